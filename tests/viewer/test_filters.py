"""Confidence, edges, sky and the size of points, against scenes where they are known."""

import dataclasses

import numpy as np

from one4d_jax.viewer import filters
from one4d_jax.viewer.static import usable_points
from tests.viewer.scenes import small_scene


def test_confidence_ranks_points_by_how_far_they_miss_their_ray():
  scene = small_scene()
  u = np.cross(scene.pointmap[2] - scene.world_from_cam[2, :3, 3], [0, 1, 0])  # across the ray
  u /= np.linalg.norm(u, axis=-1, keepdims=True)
  share = np.linspace(0.01, 0.5, u[..., 0].size).reshape(u.shape[:2])
  moved = scene.pointmap.copy()
  moved[2] += u * (share * scene.depth[2])[..., None]
  found = filters.confidence(dataclasses.replace(scene, pointmap=moved))
  assert found.shape == scene.valid.shape and found.dtype == np.float32
  assert (found[~scene.valid] == 0).all() and found.min() == 0 and 0.99 < found.max() <= 1
  bad = found[2][scene.valid[2]]
  assert (np.diff(bad) <= 1e-6).all(), 'a greater miss is never more sure'
  assert bad.max() < 0.21 and bad.min() < 0.002  # one frame of five
  assert found[[0, 1, 3, 4]][scene.valid[[0, 1, 3, 4]]].min() > 0.19
  for least in (0.05, 0.1, 0.15):
    assert abs((found[scene.valid] >= least).mean() - (1 - least)) < 0.01


def test_confidence_is_blind_to_scale_and_to_errors_along_the_ray():
  scene = small_scene()
  rng = np.random.default_rng(1)
  noisy = scene.pointmap + rng.normal(0, 0.05, scene.pointmap.shape).astype(np.float32)
  want = filters.confidence(dataclasses.replace(scene, pointmap=noisy))
  poses = scene.world_from_cam.copy()
  poses[:, :3, 3] *= 3
  larger = dataclasses.replace(scene, pointmap=3 * noisy, depth=3 * scene.depth, world_from_cam=poses)
  np.testing.assert_allclose(filters.confidence(larger), want, atol=0.004)


def test_confidence_where_nothing_is_usable():
  scene = small_scene(frames=1)
  for broken in ({'valid': np.zeros_like(scene.valid)}, {'pointmap': np.full_like(scene.pointmap, np.nan)}):
    empty = dataclasses.replace(scene, **broken)
    assert not filters.confidence(empty).any() and not usable_points(empty).any()


def test_one_point_that_is_not_a_number_is_hidden_and_harms_no_other():
  scene = small_scene()
  points = scene.pointmap.copy()
  points[1, 10, 10] = np.nan
  points[1, 10, 11] = np.inf
  broken = dataclasses.replace(scene, pointmap=points)
  found = filters.confidence(broken)
  assert np.isfinite(found).all() and not found[1, 10, 10:12].any() and found[1, 10, 12] > 0
  assert (usable_points(broken) != scene.valid).sum() == 2


def test_flying_pixels_are_found_and_slants_are_kept():
  row = np.full((1, 20, 40), 5.0, np.float32)
  row[..., 20:] = 2.0
  valid = np.ones(row.shape, bool)
  assert not filters.depth_edges(row, valid).any()  # a clean step has no pixel between
  row[..., 20] = 3.0
  flying = filters.depth_edges(row, valid)
  assert flying[..., 20].all() and flying.sum() == 20
  turned = filters.depth_edges(row.swapaxes(1, 2), valid.swapaxes(1, 2))
  assert np.array_equal(turned, flying.swapaxes(1, 2))
  u, v = np.meshgrid(np.arange(40), np.arange(20))
  slanted = (1 / (0.02 + 0.03 * v + 0.001 * u))[None].astype(np.float32)
  assert not filters.depth_edges(slanted, valid).any()


def test_spacing_is_the_distance_to_the_next_points_within_bounds():
  scene = small_scene(frames=1)
  pixel = scene.depth[0] / 30
  found = filters.spacing(scene, 0, scene.valid[0], most=2.0)
  assert (found >= pixel - 1e-6).all() and (found <= 2 * pixel + 1e-6).all()
  wall = found[12:20, 20:28]  # slanted: dz / du = 0.03, so neighbours lie farther apart than a pixel is wide
  assert (wall > 1.03 * pixel[12:20, 20:28]).all() and (wall < 1.6 * pixel[12:20, 20:28]).all()
  rim = found[8:16, 6:14]  # the square is flat and stands before the wall: its rim does not reach back
  np.testing.assert_allclose(rim, pixel[8:16, 6:14], rtol=0.01)
  hidden = scene.valid[0].copy()
  hidden[19:22, 19:22] = False
  hidden[20, 20] = True
  lone = filters.spacing(scene, 0, hidden)[20, 20]
  np.testing.assert_allclose(lone, pixel[20, 20], rtol=1e-6)  # no neighbour to reach to
  steep = dataclasses.replace(scene, pointmap=scene.pointmap * np.float32([1, 9, 1]))
  np.testing.assert_allclose(filters.spacing(steep, 0, scene.valid[0])[20, 20], 2 * pixel[20, 20], rtol=1e-5)
  coarse = filters.spacing(scene, 0, scene.valid[0], stride=3)
  np.testing.assert_allclose(coarse[5:, 7:], 3 * found[15::3, 21::3], rtol=0.05)
