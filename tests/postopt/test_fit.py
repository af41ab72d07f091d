"""Cameras fitted to pointmaps of a known scene: exact data, noise, and the cases that break naive fits."""

import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import ConfigError, DataError
from one4d_jax.geometry import se3
from one4d_jax.model import pointmap
from one4d_jax.postopt.fit import Cameras, fit_cameras
from one4d_jax.postopt.options import FitOptions
from one4d_jax.postopt.problem import Problem, Solution, normal_equations
from one4d_jax.postopt.smoothness import smoothness_equations


def path(motion, frames):
  """world_from_cam [F 4 4] that starts at the identity."""
  t = np.linspace(0, 1, frames)[:, None]
  tangent = {
    'orbit': np.hstack([1.5 * t, 0.2 * np.sin(6 * t), 0.6 * t, 0.1 * t, -0.5 * t, 0.05 * np.sin(9 * t)]),
    'static': 0 * t + np.zeros(6),
    'rotation': t * [0, 0, 0, 0.1, 0.6, 0.1],
    'translation': t * [1, 0.2, 0.5, 0, 0, 0],
  }[motion]
  return np.asarray(se3.exp(jnp.asarray(tangent, jnp.float32)), np.float64)


def room(motion='orbit', frames=20, height=64, width=96, focal=0.8):
  """A camera in a box with a ball that crosses the view: (pointmap, truth as Cameras, share of moving pixels)."""
  pose = path(motion, frames)
  K = np.tile(np.array([[focal * width, 0, width / 2], [0, focal * width, height / 2], [0, 0, 1]]), (frames, 1, 1))
  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(K[0]).T
  rays = np.einsum('fij,hwj->fhwi', pose[:, :3, :3], rays)
  origin = pose[:, None, None, :3, 3]
  walls = np.array([[-3, -2, -2], [4.5, 1.5, 7]])
  depth = np.max((walls[:, None, None, None] - origin) / rays, axis=0).min(axis=-1)  # leaving the box
  ball = np.stack([np.linspace(-1, 2, frames), np.full(frames, 0.2), np.full(frames, 3.5)], axis=-1)[:, None, None]
  a, b = (rays**2).sum(-1), (rays * (origin - ball)).sum(-1)
  inside = b**2 - a * (((origin - ball) ** 2).sum(-1) - 1)
  hit = inside > 0
  depth = np.where(hit, (-b - np.sqrt(np.maximum(inside, 0))) / a, depth).astype(np.float32)
  K, pose = K.astype(np.float32), pose.astype(np.float32)
  truth = Cameras(K, pose, depth, np.zeros(frames, np.float32), 0.0)
  return pointmap.from_depth(depth, K, pose), truth, hit.mean()


def angles(a, b):
  """Angle between rotations, in degrees, accurate near zero."""
  r = np.einsum('fji,fjk->fik', a[:, :3, :3].astype(np.float64), b[:, :3, :3].astype(np.float64))
  axis = np.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]], axis=-1)
  return np.degrees(np.linalg.norm(axis, axis=-1) / 2)


def errors(found, truth, name=''):
  """Worst (focal, rotation in degrees, position over median depth) of all frames; printed under ``pytest -s``."""
  focal = np.abs(found.K[:, 0, 0] / truth.K[:, 0, 0] - 1).max()
  moved = np.linalg.norm(found.world_from_cam[:, :3, 3] - truth.world_from_cam[:, :3, 3], axis=-1).max()
  result = focal, angles(found.world_from_cam, truth.world_from_cam).max(), moved / np.median(truth.depth)
  print(f'{name}: focal {result[0]:.1e}, rotation {result[1]:.1e} deg, position {result[2]:.1e}')
  return result


def all_valid(points):
  return np.ones(points.shape[:3], bool)


def noisy(points, truth, level, seed=0):
  sigma = level * np.median(truth.depth)
  return (points + sigma * np.random.default_rng(seed).normal(size=points.shape)).astype(np.float32)


def assert_exact(found, truth, name):
  focal, rotation, position = errors(found, truth, name)
  assert focal < 1e-5 and rotation < 1e-3 and position < 1e-5


@pytest.mark.parametrize('loss', ['huber', 'l1', 'l2'])
def test_an_exact_pointmap_gives_exact_cameras(loss):
  points, truth, moving = room()
  assert 0.15 < moving < 0.3
  found = fit_cameras(points, all_valid(points), options=FitOptions(loss=loss))
  assert_exact(found, truth, f'exact, {loss}')
  np.testing.assert_allclose(found.world_from_cam[0], np.eye(4), atol=1e-5)
  np.testing.assert_allclose(found.depth, truth.depth, rtol=1e-5)
  assert found.residual.max() < 1e-5


@pytest.mark.parametrize('motion', ['static', 'rotation', 'translation'])
def test_degenerate_paths_are_exact_too(motion):
  points, truth, _ = room(motion)
  assert_exact(fit_cameras(points, all_valid(points)), truth, motion)


def test_units_do_not_matter():
  points, truth, _ = room()
  found = fit_cameras(1000 * points, all_valid(points))
  scaled = np.array(truth.world_from_cam)
  scaled[:, :3, 3] *= 1000
  np.testing.assert_allclose(found.world_from_cam, scaled, atol=0.03)
  np.testing.assert_allclose(found.depth, 1000 * truth.depth, rtol=1e-5)


@pytest.mark.parametrize(('level', 'limits'), [(0.01, (2e-3, 0.2)), (0.05, (1e-2, 1.0))])
def test_noise(level, limits):
  points, truth, _ = room()
  found = fit_cameras(noisy(points, truth, level), all_valid(points))
  focal, rotation, _ = errors(found, truth, f'{level:.0%} noise')
  assert focal < limits[0] and rotation < limits[1]
  np.testing.assert_allclose(found.residual, 2**0.5 * level * np.median(truth.depth), rtol=0.1)


def test_focal_std_predicts_the_error():
  points, truth, _ = room(frames=4, height=32, width=48)
  fits = [fit_cameras(noisy(points, truth, 0.02, seed), all_valid(points)) for seed in range(12)]
  measured = np.std([fit.K[0, 0, 0] for fit in fits])
  assert 0.5 < measured / np.mean([fit.focal_std for fit in fits]) < 2


def test_the_robust_loss_withstands_outliers():
  points, truth, _ = room()
  rng = np.random.default_rng(1)
  spoilt = np.where(rng.random(points.shape[:3])[..., None] < 0.1, points + rng.normal(0, 3, points.shape), points)
  run = lambda loss: fit_cameras(spoilt.astype(np.float32), all_valid(points), options=FitOptions(loss=loss))
  robust, square = (errors(run(loss), truth, f'10% outliers, {loss}') for loss in ('huber', 'l2'))
  assert robust[0] < 1e-3 and robust[1] < 0.1 and robust[1] < 0.2 * square[1]


def test_smoothness_calms_a_noisy_static_camera():
  points, truth, _ = room('static')
  points = noisy(points, truth, 0.05)
  free, smooth = (
    errors(fit_cameras(points, all_valid(points), options=FitOptions(smoothness=weight)), truth, f'smoothness {weight}')
    for weight in (0.0, 1e-2)
  )
  assert smooth[1] < 0.5 * free[1]


def test_one_focal_length_per_frame():
  points, truth, _ = room(frames=4, height=32, width=48)
  zoom = np.linspace(1, 1.4, 4, dtype=np.float32)
  K = np.array(truth.K)
  K[:, 0, 0] *= zoom
  K[:, 1, 1] *= zoom
  points = pointmap.from_depth(truth.depth, K, truth.world_from_cam)
  found = fit_cameras(points, all_valid(points), options=FitOptions(focal='per_frame'))
  np.testing.assert_allclose(found.K[:, 0, 0], K[:, 0, 0], rtol=1e-5)
  assert fit_cameras(points, all_valid(points)).residual.max() > 100 * found.residual.max()


def test_a_single_frame():
  points, truth, _ = room(frames=1)
  assert_exact(fit_cameras(points, all_valid(points)), truth, 'one frame')


def test_a_world_that_is_not_the_first_camera():
  points, truth, _ = room()
  motion = np.asarray(se3.exp(jnp.asarray([2, 1, -3, 0.9, -0.6, 0.4], jnp.float32)))
  found = fit_cameras((points @ motion[:3, :3].T + motion[:3, 3]).astype(np.float32), all_valid(points))
  moved = Cameras(truth.K, motion @ truth.world_from_cam, truth.depth, truth.residual, 0.0)
  assert_exact(found, moved, 'another world')


def test_a_good_start_is_kept():
  points, truth, _ = room(frames=4, height=32, width=48)
  assert_exact(fit_cameras(points, all_valid(points), init=truth, options=FitOptions(iterations=1)), truth, 'init')


def test_invalid_pixels_are_never_read():
  points, truth, _ = room()
  valid = np.random.default_rng(2).random(points.shape[:3]) < 0.3
  points[~valid] = np.nan
  found = fit_cameras(points, valid)
  assert_exact(found, truth, '70% invalid')
  np.testing.assert_array_equal(found.depth[~valid], 0)


def test_frames_without_pixels_take_the_camera_between_their_neighbours(caplog):
  points, truth, _ = room('translation')
  valid = all_valid(points)
  missing = [0, 4, 5, 19]
  valid[missing] = False
  found = fit_cameras(points, valid)
  np.testing.assert_array_equal(np.isnan(found.residual), np.isin(np.arange(20), missing))
  assert 'interpolated' in caplog.text
  inner = found.world_from_cam[1:19, :3, 3]
  np.testing.assert_allclose(inner, truth.world_from_cam[1:19, :3, 3], atol=2e-5)
  np.testing.assert_allclose(found.world_from_cam[[0, 19]], found.world_from_cam[[1, 18]], atol=1e-6)
  np.testing.assert_allclose(found.K, truth.K, rtol=1e-5)


@pytest.mark.slow
def test_a_large_frame_is_sampled_and_sparse_ones_more_finely():
  points, truth, _ = room(frames=2, height=192, width=256)
  assert_exact(fit_cameras(points, all_valid(points)), truth, '192 x 256')
  valid = np.zeros(points.shape[:3], bool)
  valid[:, 50:60, 40:200:16] = valid[:, 150:170, 30:250:20] = True
  assert_exact(fit_cameras(points, valid, options=FitOptions(stride=16)), truth, 'sparse')


def test_refusals():
  points, _, _ = room(frames=2, height=16, width=16)
  with pytest.raises(DataError, match='no frame has 32 valid pixels'):
    fit_cameras(points, np.zeros(points.shape[:3], bool))
  with pytest.raises(DataError, match='origin'):
    fit_cameras(0 * points, all_valid(points))
  with pytest.raises(ConfigError, match='one of'):
    FitOptions(loss='l0')
  with pytest.raises(ConfigError, match='per_frame'):
    FitOptions(focal='free')


def test_gradients_equal_finite_differences():
  rng = np.random.default_rng(3)
  points, truth, _ = room(frames=3, height=8, width=12)
  pixels = (np.stack(np.meshgrid(np.arange(12) - 5.5, np.arange(8) - 3.5), -1).reshape(-1, 2) / 12).astype(np.float32)
  problem = Problem(jnp.asarray(noisy(points, truth, 0.1).reshape(3, -1, 3)), jnp.asarray(pixels), jnp.ones((3, 96)))
  solution = Solution(jnp.asarray(truth.world_from_cam), jnp.full(3, jnp.log(jnp.float32(0.8))))
  radius = jnp.float32(0.3)
  direction, step = rng.normal(size=(3, 7)).astype(np.float32), np.float32(2e-3)

  def moved(sign):
    pose = se3.retract(solution.pose, jnp.asarray(sign * step * direction[:, :6]))
    return Solution(pose, solution.log_focal + sign * step * direction[:, 6])

  cost = lambda s: float(normal_equations(problem, s, radius, radius)[0])
  slope = (np.asarray(normal_equations(problem, solution, radius, radius)[2]) * direction).sum()
  np.testing.assert_allclose((cost(moved(1)) - cost(moved(-1))) / (2 * step), slope, rtol=1e-2)

  used = np.arange(3)
  length = lambda s: smoothness_equations(s.pose, used)[0]
  slope = smoothness_equations(solution.pose, used)[2] @ direction[:, :6].ravel()
  np.testing.assert_allclose((length(moved(1)) - length(moved(-1))) / (2 * step), slope, rtol=2e-2)


def test_compiled_misses_equal_numpy_beyond_33k_elements():
  """Guards against compilers that mis-handle large reduce-then-broadcast fusions (jaxlib 0.10.2 on CPU)."""
  points, truth, _ = room()
  found = fit_cameras(noisy(points, truth, 0.01), all_valid(points))
  pose = found.world_from_cam.astype(np.float64)
  y = np.einsum('fji,fhwj->fhwi', pose[:, :3, :3], noisy(points, truth, 0.01) - pose[:, None, None, :3, 3])
  u, v = np.meshgrid(np.arange(96) + 0.5, np.arange(64) + 0.5)
  r = np.einsum('fij,hwj->fhwi', np.linalg.inv(found.K.astype(np.float64)), np.stack([u, v, np.ones_like(u)], -1))
  depth = (r * y).sum(-1) / (r * r).sum(-1)
  np.testing.assert_allclose(found.depth, depth, rtol=1e-4)
  rms = np.sqrt(np.square(y - depth[..., None] * r).sum(-1).mean(axis=(1, 2)))
  np.testing.assert_allclose(found.residual, rms, rtol=1e-3)
