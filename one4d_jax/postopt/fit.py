"""Cameras and depth from a pointmap: Levenberg-Marquardt on poses and focal length, depth in closed form.

  L_all = mean rho(e) + smoothness * L_s,   L_s = mean_i ||R_i^T R_(i+1) - I||_F + ||o_(i+1) - o_i||_2    (Eq. 12)

rho is the Huber loss with slope 1 and radius 2 median |e|, renewed as the fit improves. The data term thus counts in
units of the mean miss over the median distance, and so does ``smoothness``. Both terms are kinked at zero: on an exact
pointmap the radius vanishes, the data term outweighs a small smoothness and the cameras come out exact, while noise
widens the radius and lets smoothness act. It pulls towards a static camera; 1e-2 visibly so.

The per-pixel work is compiled (float32); the (6 F + 1)-sized solve is NumPy in float64.
"""

import dataclasses
import logging

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.checks import checked
from one4d_jax.errors import ConfigError, DataError
from one4d_jax.geometry import se3
from one4d_jax.postopt.initialise import FOCAL_RANGE, initialise
from one4d_jax.postopt.problem import Problem, Solution, depth_and_miss, normal_equations
from one4d_jax.postopt.smoothness import smoothness_equations

log = logging.getLogger(__name__)

MIN_PIXELS = 32  # a frame with fewer valid pixels takes its camera from its neighbours
TARGET_PIXELS = 4096  # per frame, for the automatic stride
RADIUS = {'huber': 2.0, 'l1': 0.02, 'l2': 2.0}  # of rho, in medians of |e|
ROUND = 4  # steps between two renewals of the radius


@dataclasses.dataclass(frozen=True)
class FitOptions:
  """How to fit."""

  focal: str = 'shared'  # or 'per_frame'
  loss: str = 'huber'  # or 'l1', 'l2'
  smoothness: float = 1e-3  # 0 for none
  stride: int | None = None  # pixels between two used ones; None aims at 4096 a frame
  iterations: int = 30  # at most; the first third on the squared error

  def __post_init__(self):
    if self.focal not in ('shared', 'per_frame'):
      raise ConfigError(f"FitOptions.focal must be 'shared' or 'per_frame', got {self.focal!r}")
    if self.loss not in RADIUS:
      raise ConfigError(f'FitOptions.loss must be one of {sorted(RADIUS)}, got {self.loss!r}')
    if self.smoothness < 0 or self.iterations < 1 or (self.stride is not None and self.stride < 1):
      raise ConfigError(f'FitOptions needs smoothness >= 0, iterations >= 1 and stride >= 1 or None, got {self}')


@dataclasses.dataclass(frozen=True)
class Cameras:
  """Cameras and depth of a clip, in the units and world of the pointmap they were fitted to."""

  K: Float[np.ndarray, 'F 3 3']  # pixels; principal point in the middle
  world_from_cam: Float[np.ndarray, 'F 4 4']
  depth: Float[np.ndarray, 'F H W']  # planar; 0 where invalid or behind the camera
  residual: Float[np.ndarray, 'F']  # RMS distance of points to their rays; NaN: too few pixels, camera interpolated
  focal_std: float  # of the (worst) focal length, in pixels, were the misses of the used pixels independent


@checked
def fit_cameras(
  pointmap: Float[np.ndarray, 'F H W 3'],
  valid: Bool[np.ndarray, 'F H W'],
  *,
  options: FitOptions = FitOptions(),
  init: Cameras | None = None,
) -> Cameras:
  """Fits the cameras that see ``pointmap`` (world: the first camera, up to scale), and their depth.

  Moving objects need no mask. Frames with fewer than 32 valid pixels get the camera interpolated between their
  neighbours and a residual of NaN. ``init`` replaces the built-in starting point.

  Raises:
    DataError: no frame has enough valid pixels, or every valid point is the origin.
  """
  frames, height, width = valid.shape
  valid = valid & np.isfinite(pointmap).all(axis=-1)
  usable = valid.sum(axis=(1, 2)) >= MIN_PIXELS
  if not usable.any():
    most = int(valid.sum(axis=(1, 2)).max(initial=0))
    raise DataError(f'fit_cameras: no frame has {MIN_PIXELS} valid pixels (the best has {most}); nothing to fit')
  unit = float(np.median(np.linalg.norm(pointmap[valid], axis=-1)))
  if unit <= 0:
    raise DataError('fit_cameras: most valid points are the origin itself; is this a pointmap?')
  points = np.where(valid[..., None], pointmap, 0).astype(np.float32) / np.float32(unit)

  sampled = _problem(points, valid, _stride(valid, usable, options.stride))
  extent = max(height, width)
  start = initialise(sampled, usable) if init is None else _from_cameras(init, unit, extent)
  state = _Fit(sampled, options, usable)
  solution = state.run(start)
  focal_std = state.focal_std(solution) * extent
  solution = _carry(solution, usable)

  depth, miss = (np.asarray(x).reshape(valid.shape) for x in depth_and_miss(_problem(points, valid, 1), solution))
  count = np.maximum(valid.sum(axis=(1, 2)), 1)
  residual = np.sqrt(np.square(miss).sum(axis=(1, 2)) / count) * unit
  K = np.tile(np.diag([0.0, 0.0, 1.0]), (frames, 1, 1))
  K[:, 0, 0] = K[:, 1, 1] = np.exp(np.asarray(solution.log_focal)) * extent
  K[:, 0, 2], K[:, 1, 2] = width / 2, height / 2
  pose = np.array(solution.pose)
  pose[:, :3, 3] *= unit
  return Cameras(
    K.astype(np.float32),
    pose,
    np.maximum(depth, 0) * np.float32(unit),
    np.where(usable, residual, np.nan).astype(np.float32),
    focal_std,
  )


def _stride(valid: np.ndarray, usable: np.ndarray, stride: int | None) -> int:
  """The given stride, or the one nearest to the target; smaller if a usable frame would lose its pixels."""
  stride = stride or max(1, round((valid[0].size / TARGET_PIXELS) ** 0.5))
  while stride > 1 and (valid[:, stride // 2 :: stride, stride // 2 :: stride].sum((1, 2)) < MIN_PIXELS)[usable].any():
    stride //= 2
  return stride


def _problem(points: np.ndarray, valid: np.ndarray, stride: int) -> Problem:
  frames, height, width = valid.shape
  grid = slice(stride // 2, None, stride)
  u, v = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
  pixels = np.stack([u, v], axis=-1)[grid, grid].reshape(-1, 2) / max(height, width)
  return Problem(
    jnp.asarray(points[:, grid, grid].reshape(frames, -1, 3)),
    jnp.asarray(pixels, jnp.float32),
    jnp.asarray(valid[:, grid, grid].reshape(frames, -1), jnp.float32),
  )


def _from_cameras(cameras: Cameras, unit: float, extent: int) -> Solution:
  pose = np.array(cameras.world_from_cam, np.float32)
  pose[:, :3, 3] /= unit
  return Solution(jnp.asarray(pose), jnp.asarray(np.log(cameras.K[:, 0, 0] / extent), jnp.float32))


def _carry(solution: Solution, usable: np.ndarray) -> Solution:
  """Cameras of unusable frames: interpolated between the nearest usable ones, or copied at the ends."""
  if usable.all():
    return solution
  index, good = np.arange(len(usable)), np.flatnonzero(usable)
  log.warning('fit_cameras: frames %s have too few valid pixels; their cameras are interpolated', index[~usable])
  before = good[np.maximum(np.searchsorted(good, index, side='right') - 1, 0)]
  after = good[np.minimum(np.searchsorted(good, index), len(good) - 1)]
  fraction = ((index - before) / np.maximum(after - before, 1)).clip(0, 1)
  pose = se3.interpolate(solution.pose[before], solution.pose[after], jnp.asarray(fraction, jnp.float32))
  log_focal = np.interp(index, good, np.asarray(solution.log_focal)[good])
  return Solution(pose, jnp.asarray(log_focal, jnp.float32))


class _Fit:
  """Levenberg-Marquardt over [F * 6 pose steps, 1 or F log focal lengths]."""

  def __init__(self, problem: Problem, options: FitOptions, usable: np.ndarray):
    self.options, self.frames = options, len(usable)
    self.problem = dataclasses.replace(problem, weight=problem.weight * jnp.asarray(usable, jnp.float32)[:, None])
    self.valid, self.used = np.asarray(self.problem.weight) > 0, np.flatnonzero(usable)
    self.focals = 1 if options.focal == 'shared' else self.frames

  def run(self, solution: Solution) -> Solution:
    """From the starting point to the optimum: squared error first, then rounds of the chosen loss."""
    warm_up = max(1, self.options.iterations // 3)
    solution, _ = self._minimise(solution, np.inf, self._radius(solution, 'l2'), 0.0, warm_up)
    left = self.options.iterations - warm_up
    moving = True
    while moving and left > 0:
      unit = self._radius(solution, self.options.loss)
      delta = np.inf if self.options.loss == 'l2' else unit
      solution, moving = self._minimise(solution, delta, unit, self.options.smoothness, min(left, ROUND))
      left -= ROUND
    return solution

  def focal_std(self, solution: Solution) -> float:
    """Standard deviation of the focal length, over max(H, W), from the inverse of the normal matrix."""
    size = np.asarray(depth_and_miss(self.problem, solution)[1])[self.valid]
    delta = self._radius(solution, 'huber')
    robust = np.minimum(1, delta / np.maximum(size, 1e-30))
    variance = (robust * size**2).sum() / max(2 * robust.sum() - 6 * len(self.used) - self.focals, 1)
    _, hessian, _ = self._assemble(solution, delta, 1 / len(size), 0.0)  # unit 1 / n: sums, not means
    scale = np.sqrt(np.maximum(np.diag(hessian), 1e-30))
    inverse = np.linalg.pinv(hessian / np.outer(scale, scale), hermitian=True) / np.outer(scale, scale)
    relative = np.sqrt(variance * np.diag(inverse)[6 * self.frames :].max())
    return float(relative * np.exp(np.asarray(solution.log_focal)).max())

  def _radius(self, solution: Solution, loss: str) -> float:
    miss = np.asarray(depth_and_miss(self.problem, solution)[1])[self.valid]
    return max(RADIUS[loss] * float(np.median(miss)), 1e-9)

  def _minimise(self, solution, delta, unit, smoothness, steps) -> tuple[Solution, bool]:
    """The solution after at most ``steps``, and whether it moved: a cost lower by more than 1e-4 of itself."""
    cost, hessian, gradient = self._assemble(solution, delta, unit, smoothness)
    first, damping = cost, 1e-4
    for _ in range(steps):
      trial = self._step(solution, hessian, gradient, damping)
      trial_cost, *equations = self._assemble(trial, delta, unit, smoothness)
      if trial_cost >= cost:
        damping *= 10
        continue
      done = cost - trial_cost < 1e-6 * cost
      solution, cost, (hessian, gradient), damping = trial, trial_cost, equations, damping * 0.1
      if done:
        break
    return solution, first - cost > 1e-4 * first

  def _assemble(self, solution, delta, unit, smoothness):
    """Cost, normal matrix and gradient of all unknowns, float64."""
    radius = jnp.float32(min(delta, 1e30))
    cost, blocks, slope = (
      np.asarray(x, np.float64) for x in normal_equations(self.problem, solution, radius, jnp.float32(unit))
    )
    frames, frame = self.frames, np.arange(self.frames)
    size = 6 * frames + self.focals
    hessian, gradient = np.zeros((size, size)), np.zeros(size)
    focal = 6 * frames + (np.zeros(frames, int) if self.focals == 1 else frame)
    pose = 6 * frame[:, None] + np.arange(6)
    hessian[pose[:, :, None], pose[:, None, :]] = blocks[:, :6, :6]
    hessian[pose, focal[:, None]] = hessian[focal[:, None], pose] = blocks[:, :6, 6]
    np.add.at(hessian, (focal, focal), blocks[:, 6, 6])
    gradient[pose] = slope[:, :6]
    np.add.at(gradient, focal, slope[:, 6])
    if smoothness > 0 and len(self.used) > 1:
      extra_cost, extra_hessian, extra_gradient = smoothness_equations(solution.pose, self.used)
      share = smoothness / (len(self.used) - 1)
      cost = cost + share * extra_cost
      hessian[: 6 * frames, : 6 * frames] += share * extra_hessian
      gradient[: 6 * frames] += share * extra_gradient
    return float(cost), hessian, gradient

  def _step(self, solution, hessian, gradient, damping) -> Solution:
    """A damped Gauss-Newton step, with the diagonal scaled to one."""
    scale = np.sqrt(np.where(np.diag(hessian) > 1e-20, np.diag(hessian), 1))
    scaled = hessian / np.outer(scale, scale) + damping * np.eye(len(scale))
    step = -np.linalg.solve(scaled + 1e-12 * np.eye(len(scale)), gradient / scale) / scale
    pose_step = jnp.asarray(step[: 6 * self.frames].reshape(-1, 6), jnp.float32)
    log_focal = np.asarray(solution.log_focal) + step[6 * self.frames :].clip(-1, 1)
    return Solution(
      se3.retract(solution.pose, pose_step), jnp.asarray(log_focal.clip(*np.log(FOCAL_RANGE)), jnp.float32)
    )
