"""Rendered clips for the writers of formats: a camera that also rolls and pitches, so that no axis can be mistaken."""

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from one4d_jax.data import render, scenes
from one4d_jax.data.clip import Clip


class HandHeld(scenes.Camera):
  """A camera held askew that turns about all of its axes as it moves."""

  def poses(self, t):
    turns = np.radians([[4, -5, 12]]) + np.radians([[-5, 6, 9]]) * np.sin(3 * t[:, None] + [[0, 1, 2]])
    poses = super().poses(t)
    poses[:, :3, :3] = poses[:, :3, :3] @ Rotation.from_euler('xyz', turns).as_matrix()
    return poses


def clip(seed: int, *, frames: int, size: tuple[int, int], fov: float | None = None) -> Clip:
  """An open field under a sky, whatever the seed; `fov` is the horizontal view in degrees."""
  scene = scenes.sample(seed, level='medium')
  fields = {field.name: getattr(scene.camera, field.name) for field in dataclasses.fields(scenes.Camera)}
  camera = HandHeld(**fields | ({} if fov is None else {'fov': fov}))
  scene = dataclasses.replace(scene, camera=camera, walls=None)
  return render.render(scene, frames=frames, height=size[0], width=size[1], supersample=1)


def world(seed: int) -> np.ndarray:
  """[4 4]: where a data set might have put its world's origin."""
  rng = np.random.default_rng(seed)
  pose = np.eye(4)
  pose[:3, :3] = Rotation.random(rng=rng).as_matrix()
  pose[:3, 3] = rng.uniform(-5, 5, 3)
  return pose
