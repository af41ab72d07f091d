"""Static points: against the masks of the procedural world, and in cases where the answer is plain."""

import dataclasses

import numpy as np
import pytest

from one4d_jax.data import render
from one4d_jax.viewer.scene import Scene
from one4d_jax.viewer.static import depth_tolerance, static_points
from tests.viewer.scenes import clip_scene, small_scene

# Clips whose bodies move through the world: one that only spins stays where it was, to within its shape.
MOVING = [('easy', 1), ('easy', 4), ('easy', 6), ('medium', 0), ('medium', 1), ('medium', 2), ('medium', 4)]


@pytest.fixture(scope='module')
def clips():
  return [render.clip(seed, level=level, frames=17, height=64, width=96, supersample=1) for level, seed in MOVING]


@pytest.mark.parametrize(
  'noise, flicker, removed', [(0, 0, 0.92), (0.02, 0, 0.75), (0, 0.02, 0.75)], ids=['exact', 'noise', 'flicker']
)
def test_procedural_clips(clips, noise, flicker, removed):
  rng = np.random.default_rng(0)
  share, kept, found = [], [], []
  for clip in clips:
    wrong = 1 + noise * rng.normal(size=clip.depth.shape) + flicker * rng.normal(size=(clip.frames, 1, 1))
    static = static_points(clip_scene(clip, clip.depth * wrong))
    still, moves = clip.valid & ~clip.dynamic, clip.valid & clip.dynamic
    found.append((static & still).sum() / static.sum())
    kept.append((static & still).sum() / still.sum())
    share.append((~static & moves).sum() / moves.sum())
  print(f'precision {np.mean(found):.4f}, recall {np.mean(kept):.4f}, moving pixels removed {np.mean(share):.3f}')
  assert np.mean(found) > 0.95 and np.mean(kept) > 0.995 and np.mean(share) > removed


def test_a_camera_that_moves_through_a_still_world_contradicts_nothing():
  clip = render.clip(3, level='medium', frames=17, height=64, width=96, supersample=1)
  still = clip.valid & ~clip.dynamic
  assert static_points(clip_scene(clip))[still].mean() > 0.998


def card(columns, *, frames=6, sky=True) -> Scene:
  """A still camera; a card at depth 2 whose left edge is at ``columns``, before the sky or a wall at depth 5."""
  scene = small_scene(frames)
  depth = np.full(scene.depth.shape, 0.0 if sky else 5.0)
  for i, column in enumerate(columns):
    depth[i, 8:16, column : column + 4] = 2
  pose = np.tile(np.eye(4), (frames, 1, 1))
  u, v = np.meshgrid(np.arange(32) + 0.5, np.arange(24) + 0.5)
  rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(scene.K[0].astype(np.float64)).T
  return dataclasses.replace(scene, pointmap=depth[..., None] * rays, depth=depth, valid=depth > 0, world_from_cam=pose)


@pytest.mark.parametrize('sky', [True, False])
def test_what_goes_away_is_seen_through_even_before_the_sky(sky):
  here = card([2] * 6, sky=sky)
  assert np.array_equal(static_points(here), here.valid)
  gone = card([2, 7, 12, 17, 22, 27], sky=sky)
  assert not static_points(gone)[gone.depth == 2].any()
  leaves = static_points(card([2, 2, 2, 2, 20, 2], sky=sky), partners=2)  # frames 0 and 5, and neighbours
  assert not leaves[[3, 4, 5], 8:16, [2, 20, 2]].any() and leaves[1, 8:16, 2:6].all()


def test_what_only_hides_behind_others_is_not_known_to_stand_still():
  scene = card([4] * 2, frames=2, sky=False)
  depth = scene.depth.copy()
  depth[0, 8:16, 4:8] = 4
  hidden = dataclasses.replace(scene, depth=depth, pointmap=scene.pointmap * (depth / scene.depth)[..., None])
  static = static_points(hidden)
  assert not static[0, 8:16, 4:8].any() and static[0, 18:].all()


def test_what_no_other_frame_looks_at_passes():
  scene = small_scene(frames=2)
  pose = np.tile(np.eye(4), (2, 1, 1))
  pose[1, :3, :3] = np.diag([-1, 1, -1])  # looks back
  back = dataclasses.replace(
    scene, world_from_cam=pose, pointmap=np.stack([scene.pointmap[0], scene.pointmap[0] @ np.diag([-1, 1, -1])])
  )
  assert np.array_equal(static_points(back), back.valid)


def test_points_that_are_not_there_are_not_static():
  one = small_scene(frames=1)
  assert np.array_equal(static_points(one), one.valid)
  points, depth = one.pointmap.copy(), one.depth.copy()
  points[0, 10, 10], points[0, 11, 11, 2] = np.nan, np.inf
  depth[0, 12, 10:14] = np.nan, np.inf, 0, -1
  holes = static_points(dataclasses.replace(one, pointmap=points, depth=depth))
  assert (one.valid & ~holes).sum() == 6
  nothing = dataclasses.replace(small_scene(), valid=np.zeros((5, 24, 32), bool))
  assert not static_points(nothing).any()


def test_frames_that_agree_in_nothing_are_no_reason_to_believe_everything():
  scene = small_scene(frames=4)
  wrong = np.float32([1, 3, 1, 3])[:, None, None]
  scene = dataclasses.replace(scene, depth=scene.depth * wrong, pointmap=scene.pointmap * wrong[..., None])
  assert depth_tolerance(scene) == 0.5
  assert static_points(scene)[0].mean() < 0.2  # frames whose surfaces lie far behind look through the others


def test_units_do_not_matter():
  scene = small_scene()
  pose = scene.world_from_cam.copy()
  pose[:, :3, 3] *= 1000
  large = dataclasses.replace(scene, world_from_cam=pose, pointmap=scene.pointmap * 1000, depth=scene.depth * 1000)
  assert np.array_equal(static_points(scene), static_points(large))
