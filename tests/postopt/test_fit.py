"""Cameras fitted to pointmaps of a known scene: exact data, noise, and the cases that break naive fits."""

import dataclasses
import functools

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from one4d_jax.errors import ConfigError, DataError
from one4d_jax.geometry import se3
from one4d_jax.model import pointmap
from one4d_jax.postopt import fit
from one4d_jax.postopt.fit import Cameras, fit_cameras
from one4d_jax.postopt.options import AdamOptions, FitOptions
from one4d_jax.postopt.problem import Problem, Solution, normal_equations
from one4d_jax.postopt.smoothness import smoothness_equations
from one4d_jax.postopt.system import System
from tests.postopt.rooms import noisy, plane, room, smooth_noise


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


@pytest.mark.parametrize('noise', [noisy, functools.partial(smooth_noise, cell=4)], ids=['pixels', 'smooth'])
@pytest.mark.parametrize('focal', ['shared', 'per_frame'])
def test_focal_std_predicts_the_error(noise, focal):
  points, truth, _ = room(frames=4, height=32, width=48)
  options = FitOptions(focal=focal, smoothness=0.0)
  fits = [fit_cameras(noise(points, truth, 0.02, seed), all_valid(points), options=options) for seed in range(16)]
  measured = np.std([fit.K[:, 0, 0] for fit in fits], axis=0).max()  # of the worst frame, as focal_std
  assert 0.5 < measured / np.mean([fit.focal_std for fit in fits]) < 2


def test_smooth_noise():
  points, truth, _ = room()
  for level, limits in [(0.01, (5e-3, 1.0)), (0.05, (2e-2, 4.0))]:
    focal, rotation, _ = errors(
      fit_cameras(smooth_noise(points, truth, level), all_valid(points)), truth, f'{level:.0%} smooth'
    )
    assert focal < limits[0] and rotation < limits[1]


def test_moving_pixels_in_the_majority():
  points, truth, moving = room(ball_radius=1.75)
  assert 0.6 < moving < 0.75
  assert_exact(fit_cameras(points, all_valid(points)), truth, f'{moving:.0%} moving')


@pytest.mark.parametrize('normal', [(0.3, -0.5, -1), (0, 0, -1)])
@pytest.mark.parametrize('motion', ['orbit', 'static'])
def test_one_plane_is_exact_where_it_can_be_and_warns(normal, motion):
  points, truth = plane(normal, motion)
  found = fit_cameras(points, all_valid(points), options=FitOptions(world='any'))
  assert 'one plane' in found.warnings[0]
  assert np.isfinite(found.K).all() and np.isfinite(found.world_from_cam).all()
  if motion == 'orbit':
    assert_exact(found, truth, f'plane {normal}')
    assert_exact(fit_cameras(points, all_valid(points)), truth, 'the same, first camera known')
  elif normal == (0, 0, -1):
    assert 'would move it' in found.warnings[0], 'a plane straight ahead fits any focal length'


def test_a_long_lens_warns_and_a_room_does_not():
  for focal, warns in [(3.0, True), (0.8, False), (0.45, False)]:
    points, truth, _ = room(frames=6, height=48, width=72, focal=focal)
    found = fit_cameras(noisy(points, truth, 0.01), all_valid(points))
    assert bool(found.warnings) == warns, found.warnings
    if warns:
      assert '19 degrees' in found.warnings[0]


def test_a_large_standard_error_warns():
  points, truth, _ = room(frames=1, height=32, width=48)
  assert not fit_cameras(points, all_valid(points)).warnings
  options = FitOptions(world='any')
  noisy_fit = fit_cameras(smooth_noise(points, truth, 0.1), all_valid(points), options=options)
  assert 'standard error' in noisy_fit.warnings[0]


def test_the_first_camera_is_the_world():
  points, truth, _ = room()
  for level in (0.01, 0.05):
    noisy_points = noisy(points, truth, level)
    bound, free = (
      fit_cameras(noisy_points, all_valid(points), options=FitOptions(world=world)) for world in ('first', 'any')
    )
    np.testing.assert_array_equal(bound.world_from_cam[0], np.eye(4))
    assert errors(bound, truth)[0] < errors(free, truth)[0], 'one camera less to find'
  shifted = (points + np.float32([3, 2, 0])).astype(np.float32)
  assert "world='any'" in fit_cameras(shifted, all_valid(points)).warnings[-1]
  assert not fit_cameras(shifted, all_valid(points), options=FitOptions(world='any')).warnings


def test_a_camera_that_leaps_is_found():
  points, truth, _ = room('translation', frames=6, height=48, width=72)
  leap = np.array(truth.world_from_cam)
  leap[3:] = leap[3:] @ np.asarray(se3.exp(jnp.asarray([0, 0, 0, 0.3, 1.5, 0.2], jnp.float32)))  # 88 degrees
  depth = np.random.default_rng(0).uniform(2, 6, truth.depth.shape).astype(np.float32)
  points = pointmap.from_depth(depth, truth.K, leap)
  moved = dataclasses.replace(truth, world_from_cam=leap)
  assert_exact(fit_cameras(points, all_valid(points), options=FitOptions(smoothness=0.0)), moved, 'leap')


def test_a_known_focal_length_is_kept():
  points, truth = plane((0, 0, -1), 'static')
  points = noisy(points, truth, 0.01)
  run = lambda focal: fit_cameras(points, all_valid(points), options=FitOptions(world='any', known_focal=focal))
  free, known = run(0.0), run(float(truth.K[0, 0, 0]))
  np.testing.assert_allclose(known.K, truth.K, rtol=1e-6)
  assert known.focal_std == 0 and not known.warnings
  far = lambda found: np.linalg.norm(found.world_from_cam[:, :3, 3], axis=-1).max()
  assert far(known) < 0.2 * far(free)


@pytest.mark.parametrize('focal', ['shared', 'per_frame'])
def test_a_principal_point_off_the_middle(focal):
  points, truth, _ = room(frames=5, height=48, width=72)
  cut = np.s_[:, 4:36, 10:60]  # a crop of the images
  K = truth.K - np.array([[0, 0, 10], [0, 0, 4], [0, 0, 0]], np.float32)
  found = fit_cameras(points[cut], all_valid(points[cut]), options=FitOptions(principal_point='shared', focal=focal))
  np.testing.assert_allclose(found.K, K, atol=1e-3)
  assert angles(found.world_from_cam, truth.world_from_cam).max() < 1e-3
  bound = fit_cameras(points[cut], all_valid(points[cut]))
  assert bound.residual.max() > 100 * found.residual.max()


def test_confidence_decides_what_counts():
  points, truth, _ = room(frames=5, height=48, width=72)
  wrong = np.zeros(points.shape[:3], bool)
  wrong[:, :, :40] = True  # more than half: no robust loss can tell
  spoilt = np.where(wrong[..., None], points * np.float32([1.3, 1, 1]), points)
  confidence = np.where(wrong, 0, 5).astype(np.float32)
  assert_exact(fit_cameras(spoilt, all_valid(points), confidence=confidence), truth, 'confidence 0')
  little = np.where(wrong, 1e-3, 1).astype(np.float32)
  options = FitOptions(loss='l2', smoothness=0.0)
  trusting, wary = (
    errors(fit_cameras(spoilt, all_valid(points), confidence=c, options=options), truth)[1] for c in (None, little)
  )
  assert wary < 0.05 * trusting
  for bad in (-confidence, np.full_like(confidence, np.nan)):
    with pytest.raises(DataError, match='negative or NaN'):
      fit_cameras(points, all_valid(points), confidence=bad)
  with pytest.raises(jaxtyping.TypeCheckError, match='confidence'):
    fit_cameras(points, all_valid(points), confidence=confidence[:2])


def test_adam_reaches_the_same_cameras():
  points, truth, _ = room(frames=6, height=48, width=72)
  points = noisy(points, truth, 0.01)
  adam = FitOptions(method='adam', loss='l1', adam=AdamOptions(iterations=300))
  slow = fit_cameras(points, all_valid(points), options=adam)
  focal, rotation, _ = errors(slow, truth, 'Adam, 1% noise')
  assert focal < 5e-3 and rotation < 0.4
  known = dataclasses.replace(adam, known_focal=50.0)
  np.testing.assert_allclose(fit_cameras(points, all_valid(points), options=known).K[:, 0, 0], 50, rtol=1e-6)


def test_adam_descends_from_a_poor_start():
  points, truth, _ = room(frames=4, height=32, width=48)
  poor = dataclasses.replace(truth, K=truth.K * np.float32([[1.2, 1, 1], [1, 1.2, 1], [1, 1, 1]]))
  run = lambda n: fit_cameras(
    points, all_valid(points), init=poor,
    options=FitOptions(method='adam', loss='l1', smoothness=0.0, adam=AdamOptions(iterations=n)),
  )  # fmt: skip
  assert errors(run(300), truth, '300')[0] < 0.05 * errors(run(1), truth, '1')[0]


def test_the_stop_rule_stops():
  points, truth, _ = room(frames=3, height=32, width=48)
  points = noisy(points, truth, 0.05)
  loose = fit_cameras(points, all_valid(points), options=FitOptions(tolerance=1e9, iterations=30))
  tight = fit_cameras(points, all_valid(points))
  assert np.abs(loose.world_from_cam - tight.world_from_cam).max() > 1e-6


def test_a_long_clip():
  points, truth, _ = room(frames=200, height=24, width=36)
  assert_exact(fit_cameras(points, all_valid(points)), truth, '200 frames')


@pytest.mark.parametrize('frames', [1, 2, 5])
def test_a_step_solves_the_whole_system(frames):
  rng = np.random.default_rng(frames)
  n, s, size = 7, 2, 7 * frames + 2
  half = rng.normal(size=(frames * n + s, size)) / 10
  dense = half.T @ half + np.eye(size)
  for i in range(frames):  # only neighbours are coupled
    for j in range(frames):
      if abs(i - j) > 1:
        dense[i * n : i * n + n, j * n : j * n + n] = 0
  dense += 10 * np.eye(size)
  gradient = rng.normal(size=size)
  block = lambda i, j: dense[i * n : i * n + n, j * n : j * n + n]
  system = System(
    np.stack([block(i, i) for i in range(frames)]),
    np.array([block(i, i + 1) for i in range(frames - 1)]).reshape(frames - 1, n, n),
    dense[: frames * n, frames * n :].reshape(frames, n, s),
    dense[frames * n :, frames * n :],
    gradient[: frames * n].reshape(frames, n),
    gradient[frames * n :],
  )
  local, shared = system.step(0.0)
  np.testing.assert_allclose(np.concatenate([local.ravel(), shared]), np.linalg.solve(dense, -gradient), rtol=1e-9)
  damped, _ = system.step(3.0)
  want = np.linalg.solve(dense + 3 * np.diag(np.diag(dense)), -gradient)
  np.testing.assert_allclose(damped.ravel(), want[: frames * n], rtol=1e-9)


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
  elsewhere = (points @ motion[:3, :3].T + motion[:3, 3]).astype(np.float32)
  found = fit_cameras(elsewhere, all_valid(points), options=FitOptions(world='any'))
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


def test_frames_without_pixels_take_the_camera_between_their_neighbours():
  points, truth, _ = room('translation')
  valid = all_valid(points)
  missing = [0, 4, 5, 19]
  valid[missing] = False
  found = fit_cameras(points, valid)
  np.testing.assert_array_equal(np.isnan(found.residual), np.isin(np.arange(20), missing))
  assert found.warnings == ('frames 0, 4, 5, 19 have too few valid pixels; their cameras are interpolated',)
  inner = found.world_from_cam[:19, :3, 3]
  np.testing.assert_allclose(inner, truth.world_from_cam[:19, :3, 3], atol=2e-5)
  np.testing.assert_array_equal(found.world_from_cam[0], np.eye(4))  # known: it is the world
  np.testing.assert_allclose(found.world_from_cam[19], found.world_from_cam[18], atol=1e-6)
  np.testing.assert_allclose(found.K, truth.K, rtol=1e-5)


def test_the_start_too_sees_enough_of_a_sparse_frame():
  """At most every 12th of these 49152 pixels would be looked at, and none of the 40 that frame 1 has."""
  weight = np.ones((2, 192 * 256), np.float32)
  weight[1] = 0
  weight[1, 7 : 7 + 40 * 24 : 24] = 1
  problem = Problem(jnp.zeros((*weight.shape, 3)), jnp.zeros((weight.shape[1], 2)), jnp.asarray(weight))
  coarse = fit._coarse(problem)
  assert (coarse.weight > 0).sum(1).min() >= fit.MIN_PIXELS and len(coarse.pixels) == coarse.weight.shape[1]
  many = fit._coarse(dataclasses.replace(problem, weight=jnp.ones_like(problem.weight)))
  assert many.weight.shape[1] == fit.TARGET_PIXELS


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
  with pytest.raises(ConfigError, match='iterations=0'):
    FitOptions(iterations=0)
  with pytest.raises(ConfigError, match="paper's objective"):
    FitOptions(method='adam')
  with pytest.raises(ConfigError, match='positive'):
    FitOptions(adam=AdamOptions(learning_rate=0.0))
  with pytest.raises(DataError, match='no frame'):
    fit_cameras(np.full_like(points, np.nan), all_valid(points))
  with pytest.raises(DataError, match='larger unit of length'):
    fit_cameras(np.float32(1e36) * points, all_valid(points))
  for wrong in (points[..., :2], points[0], points[:1]):
    with pytest.raises(jaxtyping.TypeCheckError, match='pointmap'):
      fit_cameras(wrong, all_valid(points))


@pytest.mark.parametrize('world', ['first', 'any'])
@pytest.mark.parametrize('value', [1e38, -1e10, np.inf, np.nan])
def test_stray_values_count_as_invalid(value, world):
  points, truth, _ = room(frames=3, height=32, width=48)
  stray = np.random.default_rng(0).random(points.shape) < 0.1
  found = fit_cameras(np.where(stray, np.float32(value), points), all_valid(points), options=FitOptions(world=world))
  assert_exact(found, truth, f'{value}')
  np.testing.assert_array_equal(found.depth == 0, stray.any(axis=-1))


def behind(points):
  return points * np.float32([1, 1, -1])


def mirrored(points):
  return points * np.float32([-1, 1, 1])


def one_point(points):
  return np.ones_like(points)


def one_line(points):
  return np.linspace(0, 1, points[..., :1].size, dtype=np.float32).reshape(*points.shape[:3], 1) * np.float32([1, 2, 3])


def no_depth(points):
  return points * np.float32([1, 1, 0])


def a_frame_of_zeros(points):
  return np.where(np.arange(len(points))[:, None, None, None] == 1, np.float32(0), points)


def scattered(points):
  return np.random.default_rng(0).normal(size=points.shape).astype(np.float32)


@pytest.mark.parametrize('make', [behind, mirrored, one_point, one_line, no_depth, a_frame_of_zeros, scattered])
@pytest.mark.parametrize(
  'options', [FitOptions(), FitOptions(world='any', loss='l1', focal='per_frame', principal_point='shared')]
)
def test_what_no_camera_sees_gives_finite_cameras_and_a_warning(make, options):
  points, _, _ = room(frames=3, height=12, width=16)
  found = fit_cameras(make(points), all_valid(points), options=options)
  for array in (found.K, found.world_from_cam, found.depth):
    assert np.isfinite(array).all()
  rotation = found.world_from_cam[:, :3, :3]
  np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (3, 1, 1)), atol=1e-4)
  assert (found.K[:, 0, 0] > 0).all() and not np.isnan(found.focal_std)
  assert found.warnings or make is a_frame_of_zeros, 'a camera at the point that all pixels show fits exactly'


@pytest.mark.parametrize('motion', ['static', 'rotation', 'translation', 'orbit'])
def test_gross_outliers_on_top_of_noise(motion):
  points, truth, _ = room(motion)
  rng = np.random.default_rng(1)
  spoilt = noisy(points, truth, 0.05)
  gross = rng.random(points.shape[:3]) < 0.1
  spoilt[gross] += rng.normal(0, 0.7 * np.median(truth.depth), (gross.sum(), 3)).astype(np.float32)
  focal, rotation, _ = errors(fit_cameras(spoilt, all_valid(points)), truth, f'5% and 10% outliers, {motion}')
  assert focal < 1e-2 and rotation < 1


def test_gradients_equal_finite_differences():
  rng = np.random.default_rng(3)
  points, truth, _ = room(frames=3, height=8, width=12)
  pixels = (np.stack(np.meshgrid(np.arange(12) - 5.5, np.arange(8) - 3.5), -1).reshape(-1, 2) / 12).astype(np.float32)
  problem = Problem(jnp.asarray(noisy(points, truth, 0.1).reshape(3, -1, 3)), jnp.asarray(pixels), jnp.ones((3, 96)))
  solution = Solution(jnp.asarray(truth.world_from_cam), jnp.full(3, jnp.log(jnp.float32(0.8))), jnp.full((3, 2), 0.05))
  radius = jnp.float32(0.3)
  direction, step = rng.normal(size=(3, 9)).astype(np.float32), np.float32(2e-3)

  def moved(sign):
    pose = se3.retract(solution.pose, jnp.asarray(sign * step * direction[:, :6]))
    centre = solution.centre + sign * step * direction[:, 7:]
    return Solution(pose, solution.log_focal + sign * step * direction[:, 6], centre)

  cost = lambda s: float(normal_equations(problem, s, radius, radius)[0])
  slope = (np.asarray(normal_equations(problem, solution, radius, radius)[2]) * direction).sum()
  np.testing.assert_allclose((cost(moved(1)) - cost(moved(-1))) / (2 * step), slope, rtol=1e-2)

  length = lambda s: smoothness_equations(s.pose).value
  slope = (smoothness_equations(solution.pose).gradient * direction[:, :6]).sum()
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
