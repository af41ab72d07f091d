"""Pointmaps: lifting, normalisation there and back, and the code of invalid pixels."""

import subprocess
import sys

import numpy as np
import pytest

from one4d_jax.data import render
from one4d_jax.errors import DataError, ShapeError
from one4d_jax.model import pointmap


def rotation(axis, degrees):
  """Rodrigues' formula."""
  x, y, z = np.asarray(axis) / np.linalg.norm(axis)
  k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
  a = np.radians(degrees)
  return np.eye(3) + np.sin(a) * k + (1 - np.cos(a)) * k @ k


def landscape(frames=5, height=24, width=32, focal=28.0):
  """A camera that pans over a ground plane and a far wall, sky above: depth, valid, K, world_from_cam."""
  K = np.tile(np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]), (frames, 1, 1))
  pose = np.tile(np.eye(4), (frames, 1, 1))
  start = rotation([1, 2, 3], 40)
  for i in range(frames):
    pose[i, :3, :3] = start @ rotation([0, 1, 0], 8 * i)
    pose[i, :3, 3] = start @ [0.3 * i, 0, 0.1 * i] + [4, 5, 6]
  down = np.broadcast_to((np.arange(height)[:, None] + 0.5 - height / 2) / focal, (height, width))
  depth = np.where(down > 0.05, np.minimum(1.5 / np.maximum(down, 1e-3), 12), np.where(down > -0.2, 12, 0))
  depth = np.tile(depth, (frames, 1, 1)).astype(np.float32)
  return depth, depth > 0, K.astype(np.float32), pose.astype(np.float32)


def test_from_depth_lifts_each_pixel_into_the_first_camera():
  depth, _, K, pose = landscape()
  points = pointmap.from_depth(depth, K, pose)
  for f, y, x in [(0, 20, 3), (2, 23, 31), (4, 13, 0)]:
    in_cam = depth[f, y, x] * np.linalg.inv(K[f]) @ [x + 0.5, y + 0.5, 1]
    in_world = pose[f, :3, :3] @ in_cam + pose[f, :3, 3]
    expected = pose[0, :3, :3].T @ (in_world - pose[0, :3, 3])
    np.testing.assert_allclose(points[f, y, x], expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(points[0, ..., 2], depth[0], rtol=1e-5)


def test_normalise_there_and_back():
  depth, valid, K, pose = landscape()
  points = pointmap.from_depth(depth, K, pose)
  normalised, S = pointmap.normalise(points, valid)
  np.testing.assert_allclose(pointmap.denormalise(normalised, S)[valid], points[valid], atol=1e-5)
  np.testing.assert_allclose(pointmap.denormalise(normalised)[valid], points[valid] * 2 / S, atol=1e-6)
  assert (np.abs(normalised[valid]) <= 1).mean(axis=0).min() >= 0.98
  np.testing.assert_array_equal(normalised[~valid], np.broadcast_to([0, 0, -1], normalised[~valid].shape))


def test_scale_ignores_invalid_pixels_even_nan():
  depth, valid, K, pose = landscape()
  points = pointmap.from_depth(depth, K, pose)
  expected = pointmap.normalise(points, valid)
  points[~valid] = np.nan
  normalised, S = pointmap.normalise(points, valid)
  np.testing.assert_allclose(S, expected[1], rtol=0)
  np.testing.assert_array_equal(normalised, expected[0])


def test_soft_limit_is_exact_inside_monotonic_beyond_and_invertible():
  x = np.linspace(-1.36, 1.36, 1001, dtype=np.float32)
  y = pointmap.soft_limit(x)
  np.testing.assert_array_equal(y[np.abs(x) <= 1], x[np.abs(x) <= 1])
  assert (np.diff(y) > 0).all()
  assert np.abs(pointmap.soft_limit(np.float32([-50, 50]))).max() <= 1.25
  np.testing.assert_allclose(pointmap.undo_soft_limit(y), x, atol=1e-5)


def test_the_code_tells_valid_from_invalid():
  depth, valid, K, pose = landscape()
  normalised, _ = pointmap.normalise(pointmap.from_depth(depth, K, pose), valid)
  code = pointmap.encode_input(normalised, valid)
  assert code.min() >= -1.25 and code.max() <= 1.25
  np.testing.assert_array_equal(pointmap.valid_from_code(code), valid)
  noisy = code + np.random.default_rng(0).normal(0, 0.1, code.shape).astype(np.float32)
  assert (pointmap.valid_from_code(noisy) == valid).mean() > 0.999


@pytest.mark.parametrize('level', ['easy', 'medium', 'hard'])
def test_the_code_survives_noise_on_rendered_clips(level):
  for seed in range(3):
    clip = render.clip(seed, level=level, split='val', frames=5, height=32, width=32)
    points = pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam)
    code = pointmap.encode_input(pointmap.normalise(points, clip.valid)[0], clip.valid)
    np.testing.assert_array_equal(pointmap.valid_from_code(code), clip.valid)
    noisy = code + np.random.default_rng(seed).normal(0, 0.1, code.shape).astype(np.float32)
    assert (pointmap.valid_from_code(noisy) == clip.valid).mean() > 0.998


@pytest.mark.parametrize('degrees', [40, 60, 90])
def test_what_the_first_camera_sees_is_far_from_the_fill_code(degrees):
  tangent = np.tan(np.radians(degrees / 2))
  edge = np.linspace(-tangent, tangent, 41)
  x, y, z = np.meshgrid(edge, edge, np.linspace(0, 2, 81), indexing='ij')
  points = np.stack([x * z, y * z, z - 1], axis=-1).astype(np.float32)
  distance = np.linalg.norm(pointmap.soft_limit(points) - np.float32(pointmap.FILL), axis=-1).min()
  a = 2 - 4 * tangent**2 / (1 + 2 * tangent**2)
  assert distance >= np.sqrt(a) - 1e-3 and distance > 1.5 * pointmap.TOLERANCE


def test_soft_limited_points_are_no_observations():
  normalised = np.zeros((1, 1, 4, 3), np.float32)
  normalised[0, 0, 1] = [0, 0, 1.05]
  normalised[0, 0, 2] = [0, 1.5, 0]
  valid = np.array([[[True, True, True, False]]])
  code = pointmap.encode_input(normalised, valid)
  np.testing.assert_array_equal(pointmap.observation_from_code(code)[0, 0], [True, True, False, False])
  assert not pointmap.valid_from_code(np.full((1, 1, 1, 3), np.nan, np.float32)).any()


@pytest.mark.parametrize(
  ('points', 'valid', 'message'),
  [
    (np.ones((1, 2, 2, 3)), np.zeros((1, 2, 2), bool), 'no valid pixel'),
    (np.full((1, 2, 2, 3), np.nan), np.ones((1, 2, 2), bool), 'NaN'),
    (np.zeros((1, 2, 2, 3)), np.ones((1, 2, 2), bool), 'extent'),
  ],
)
def test_clips_without_scale_are_refused(points, valid, message):
  with pytest.raises(DataError, match=message):
    pointmap.normalise(points.astype(np.float32), valid)


def test_shapes_are_named():
  with pytest.raises(ShapeError, match=r'pointmap: expected \[F H W 3\]'):
    pointmap.normalise(np.zeros((1, 2, 2, 3), np.float32), np.ones((1, 2, 3), bool))


def test_data_workers_do_not_load_jax():
  code = 'import sys, one4d_jax.model.pointmap; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
