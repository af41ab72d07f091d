"""Scenes with exact geometry for the tests of this folder."""

import numpy as np

from one4d_jax.data.clip import Clip
from one4d_jax.viewer.scene import Scene


def small_scene(frames=5, height=24, width=32) -> Scene:
  """A tilted wall behind a nearer square; the camera moves right and turns. The top rows are sky."""
  rng = np.random.default_rng(0)
  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  K = np.tile(np.array([[30, 0, width / 2], [0, 31, height / 2], [0, 0, 1]], np.float32), (frames, 1, 1))
  pose = np.tile(np.eye(4), (frames, 1, 1))
  depth = np.tile(4 + 0.03 * u + 0.02 * v, (frames, 1, 1))
  for i in range(frames):
    a = 0.07 * i
    pose[i, :3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    pose[i, :3, 3] = [0.1 * i, 0.02 * i, 0]
    depth[i, 8:16, 6 + i : 14 + i] = 2
  valid = np.ones(depth.shape, bool)
  valid[:, :3] = False
  rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K[0].astype(np.float64)).T
  points = np.einsum('fij,fhwj->fhwi', pose[:, :3, :3], depth[..., None] * rays) + pose[:, None, None, :3, 3]
  return Scene(
    rgb=rng.integers(0, 255, (frames, height, width, 3)),
    pointmap=points,
    depth=depth,
    valid=valid,
    K=K,
    world_from_cam=pose,
    observed=np.arange(frames) % 2 == 0,
    residual=np.full(frames, 0.01),
  )


def clip_scene(clip: Clip, depth: np.ndarray | None = None) -> Scene:
  """A clip as a scene, with its own depth or another one."""
  depth = np.asarray(clip.depth if depth is None else depth, np.float64)
  u, v = np.meshgrid(np.arange(depth.shape[2]) + 0.5, np.arange(depth.shape[1]) + 0.5)
  rays = np.einsum('fij,hwj->fhwi', np.linalg.inv(clip.K.astype(np.float64)), np.stack([u, v, np.ones_like(u)], -1))
  pose = clip.world_from_cam.astype(np.float64)
  return Scene(
    rgb=clip.rgb,
    pointmap=np.einsum('fij,fhwj->fhwi', pose[:, :3, :3], depth[..., None] * rays) + pose[:, None, None, :3, 3],
    depth=depth,
    valid=clip.valid,
    K=clip.K,
    world_from_cam=pose,
    observed=np.ones(clip.frames, bool),
    residual=np.zeros(clip.frames),
  )
