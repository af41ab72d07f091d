"""Cameras and depth from a pointmap: Levenberg-Marquardt on poses and intrinsics, depth in closed form.

  L_all = mean rho(e) + smoothness * L_s,   L_s = mean_i ||R_i^T R_(i+1) - I||_F + ||o_(i+1) - o_i||_2    (Eq. 12)

rho is the Huber loss with slope 1 and radius 2 median |e|, renewed as the fit improves. The data term thus counts in
units of the mean miss over the median distance, and so does ``smoothness``. Both terms are kinked at zero: on an exact
pointmap the radius vanishes, the data term outweighs a small smoothness and the cameras come out exact, while noise
widens the radius and lets smoothness act.

The per-pixel work is compiled (float32, in chunks of pixels); the small banded system of a step is float64.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from one4d_jax.checks import checked
from one4d_jax.errors import DataError
from one4d_jax.geometry import se3
from one4d_jax.postopt.adam import descend
from one4d_jax.postopt.initialise import FOCAL_RANGE, first_miss, initialise
from one4d_jax.postopt.options import FitOptions
from one4d_jax.postopt.problem import UNKNOWNS, Problem, Solution, depth_and_miss, normal_equations, patch_scores
from one4d_jax.postopt.smoothness import smoothness_equations
from one4d_jax.postopt.system import System

MIN_PIXELS = 32  # a frame with fewer valid pixels takes its camera from its neighbours
TARGET_PIXELS = 4096  # per frame, for the automatic stride
RADIUS = {'huber': 2.0, 'l1': 0.02, 'l2': 2.0}  # of rho, in medians of |e|
ROUND = 4  # steps between two renewals of the radius
PATCHES = 64  # parts of a frame whose errors are taken as independent of each other
WEAK = 0.03  # relative error of the focal length beyond which it counts as hardly determined
FLAT = 0.03  # of the median distance: points nearer than this to a plane (in the median) are one
FARTHEST = 1e6  # median distances; float32 could not hold the squares of what lies much farther
LARGEST = 1e30  # median distance, for the same reason
FAR_OFF = 0.1  # median miss over median distance beyond which the first frame cannot be the world's
NARROW = 20.0  # degrees of view below which a lens is long: perspective hardly shows
FOCAL = 6  # its place among a frame's unknowns; the principal point comes after it


@dataclasses.dataclass(frozen=True)
class Cameras:
  """Cameras and depth of a clip, in the units and world of the pointmap they were fitted to."""

  K: Float[np.ndarray, 'F 3 3']  # pixels; square ones
  world_from_cam: Float[np.ndarray, 'F 4 4']
  depth: Float[np.ndarray, 'F H W']  # planar; 0 where invalid or behind the camera
  residual: Float[np.ndarray, 'F']  # RMS distance of points to their rays; NaN: too few pixels, camera interpolated
  focal_std: float  # standard error of the (worst) focal length in pixels; 0: it was given
  warnings: tuple[str, ...] = ()  # for people: what makes these cameras doubtful


@checked
def fit_cameras(
  pointmap: Float[np.ndarray, 'F H W 3'],
  valid: Bool[np.ndarray, 'F H W'],
  *,
  confidence: Float[np.ndarray, 'F H W'] | None = None,
  options: FitOptions = FitOptions(),
  init: Cameras | None = None,
) -> Cameras:
  """Fits the cameras that see ``pointmap`` (world: the first camera, up to scale), and their depth.

  Moving objects need no mask. Points that are not finite, or a million times as far as the median one, count as
  invalid. Frames with fewer than 32 valid pixels get the camera interpolated between their neighbours and a residual
  of NaN. ``confidence`` weights pixels (0: as if invalid; only ratios matter). ``init``
  replaces the built-in starting point. The standard error of the focal length is estimated from the misses
  themselves (a sandwich over 8 x 8 patches and 4 frames), so errors that are smooth within a patch count in full.

  Raises:
    DataError: no frame has enough valid pixels, most valid points are the origin or beyond 1e30, or a confidence is
      negative or NaN.
    jaxtyping.TypeCheckError: arrays whose shapes do not belong together.
  """
  frames, height, width = valid.shape
  if confidence is not None and not (confidence[valid] >= 0).all():
    raise DataError('fit_cameras: a confidence is negative or NaN; mark such pixels invalid')
  unit = _median_distance(pointmap, valid if confidence is None else valid & (confidence > 0))
  if unit == 0:
    raise DataError('fit_cameras: most valid points are the origin itself; is this a pointmap?')
  if unit > LARGEST:
    raise DataError(f'fit_cameras: points lie {unit:.0e} from the origin, beyond float32; use a larger unit of length')
  limit = FARTHEST * unit
  valid = valid & (pointmap.min(axis=-1) > -limit) & (pointmap.max(axis=-1) < limit)  # false for NaN
  seen = valid if confidence is None else valid & (confidence > 0)
  count = seen.sum(axis=(1, 2))
  usable = count >= MIN_PIXELS
  if not usable.any():
    raise DataError(f'fit_cameras: no frame has {MIN_PIXELS} valid pixels (the best has {count.max()}); nothing to fit')

  used = np.flatnonzero(usable)
  grid = _grid(seen, usable, options.stride)
  some = slice(None) if usable.all() else used  # a slice copies nothing
  weight = seen[grid] if confidence is None else np.where(seen[grid], confidence[grid], 0)
  problem = Problem(
    jnp.asarray(_points(pointmap[grid][some], seen[grid][some], unit)),
    _pixels(height, width, grid),
    jnp.asarray(weight[some].reshape(len(used), -1), jnp.float32),
  )
  extent = max(height, width)
  known = options.known_focal / extent
  anchored = options.world == 'first' and bool(usable[0])
  coarse = _coarse(problem)
  if init is None:
    start = initialise(coarse, anchored=anchored, known_focal=known)
  else:
    start = _from_cameras(init, used, unit, valid.shape)
  if anchored:
    start = dataclasses.replace(start, pose=start.pose.at[0].set(jnp.eye(4)))
  if known:
    start = dataclasses.replace(start, log_focal=jnp.full(len(used), np.log(known), jnp.float32))
  fit = _Fit(problem, options, anchored)
  if options.method == 'adam':
    solution = descend(problem, start, options, anchored)
  else:
    solution = fit.run(start)
  spread, weakness = fit.focal_errors(solution)
  warnings = [] if known else [*_doubts(coarse, solution, spread, weakness)]
  if not usable.all():
    few = ', '.join(map(str, np.flatnonzero(~usable)))
    warnings.append(f'frames {few} have too few valid pixels; their cameras are interpolated')
  if anchored and (miss := first_miss(coarse, solution)) > FAR_OFF:
    warnings.append(
      f"the first frame's points miss its rays by {miss:.0%} of the distance: they are poor, or the world is not the "
      "first camera (world='any')"
    )
  solution = _carry(solution, usable, options.world == 'first')

  focal = np.exp(np.asarray(solution.log_focal, np.float64)) * extent
  K = np.zeros((frames, 3, 3))
  K[:, 0, 0] = K[:, 1, 1] = focal
  K[:, :2, 2] = np.asarray(solution.centre) * extent + [width / 2, height / 2]
  K[:, 2, 2] = 1
  pose = np.array(solution.pose)
  pose[:, :3, 3] *= unit
  depth, residual = _full_depth(pointmap, valid, solution, unit)
  return Cameras(
    K.astype(np.float32),
    pose,
    depth,
    np.where(usable, residual, np.nan).astype(np.float32),
    float(spread * focal.max()),
    tuple(warnings),
  )


def _median_distance(pointmap: np.ndarray, seen: np.ndarray) -> float:
  """From the origin, of the points that are finite, or a million of them; NaN where none is."""
  chosen = np.flatnonzero(seen)
  chosen = chosen[:: max(len(chosen) // 1_000_000, 1)]
  distance = np.linalg.norm(pointmap.reshape(-1, 3)[chosen].astype(np.float64), axis=-1)
  known = distance[np.isfinite(distance)]
  return float(np.median(known)) if known.size else float('nan')


def _grid(seen: np.ndarray, usable: np.ndarray, stride: int) -> tuple[slice, slice, slice]:
  """Every ``stride``-th pixel, by default of about 4096 a frame; more where a usable frame would lose its pixels."""
  stride = stride or max(1, round((seen[0].size / TARGET_PIXELS) ** 0.5))
  grid = lambda: (slice(None), slice(stride // 2, None, stride), slice(stride // 2, None, stride))
  while stride > 1 and (seen[grid()].sum((1, 2)) < MIN_PIXELS)[usable].any():
    stride //= 2
  return grid()


def _pixels(height: int, width: int, grid=(slice(None),) * 3) -> Float[Array, 'P 2']:
  """Pixel centres from the middle of the image, over max(H, W)."""
  u, v = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
  return jnp.asarray(np.stack([u, v], axis=-1)[grid[1:]].reshape(-1, 2) / max(height, width), jnp.float32)


def _points(pointmap: np.ndarray, seen: np.ndarray, unit: float) -> Float[np.ndarray, 'F P 3']:
  points = np.where(seen[..., None], pointmap, np.float32(0)).astype(np.float32, copy=False)
  points /= np.float32(unit)
  return points.reshape(len(seen), -1, 3)


def _coarse(problem: Problem) -> Problem:
  """About 4096 pixels a frame, enough to start from; more where a frame would lose those that it has."""
  every, seen = max(problem.weight.shape[1] // TARGET_PIXELS, 1), np.asarray(problem.weight) > 0
  while every > 1 and (seen[:, ::every].sum(1) < MIN_PIXELS).any():
    every //= 2
  return Problem(problem.points[:, ::every], problem.pixels[::every], problem.weight[:, ::every])


def _from_cameras(cameras: Cameras, used: np.ndarray, unit: float, shape: tuple[int, int, int]) -> Solution:
  _, height, width = shape
  pose = np.array(cameras.world_from_cam[used], np.float32)
  pose[:, :3, 3] /= unit
  K = cameras.K[used].astype(np.float64)
  centre = (K[:, :2, 2] - [width / 2, height / 2]) / max(height, width)
  log_focal = np.log(K[:, 0, 0] / max(height, width))
  return Solution(jnp.asarray(pose), jnp.asarray(log_focal, jnp.float32), jnp.asarray(centre, jnp.float32))


def _carry(solution: Solution, usable: np.ndarray, first_is_world: bool) -> Solution:
  """Cameras of all frames from those of the usable ones: interpolated between neighbours, copied at the ends."""
  index, good = np.arange(len(usable)), np.flatnonzero(usable)
  if first_is_world and not usable[0]:  # known all the same
    good = np.concatenate([[0], good])
    ahead = lambda x, row: jnp.concatenate([row[None], x])
    solution = Solution(
      ahead(solution.pose, jnp.eye(4)),
      ahead(solution.log_focal, solution.log_focal[0]),
      ahead(solution.centre, solution.centre[0]),
    )
  before = np.maximum(np.searchsorted(good, index, side='right') - 1, 0)  # places among the usable ones
  after = np.minimum(np.searchsorted(good, index), len(good) - 1)
  fraction = ((index - good[before]) / np.maximum(good[after] - good[before], 1)).clip(0, 1)
  pose = np.where(
    np.isin(index, good)[:, None, None],
    solution.pose[before],
    se3.interpolate(solution.pose[before], solution.pose[after], jnp.asarray(fraction, jnp.float32)),
  )
  between = lambda x: (1 - fraction) * x[before] + fraction * x[after]
  log_focal, *centre = (between(np.asarray(x)) for x in (solution.log_focal, *solution.centre.T))
  return Solution(
    jnp.asarray(pose), jnp.asarray(log_focal, jnp.float32), jnp.asarray(np.stack(centre, axis=-1), jnp.float32)
  )


def _full_depth(pointmap: np.ndarray, valid: np.ndarray, solution: Solution, unit: float):
  """Depth [F H W] and RMS miss [F] at full resolution, frame by frame, in the pointmap's units."""
  pixels = _pixels(*valid.shape[1:])
  depth, residual = np.zeros(valid.shape, np.float32), np.zeros(len(valid))
  for i, seen in enumerate(valid):
    one = Problem(
      jnp.asarray(_points(pointmap[i : i + 1], seen[None], unit)), pixels, jnp.asarray(seen.reshape(1, -1), jnp.float32)
    )
    near, miss = depth_and_miss(one, jax.tree.map(lambda x, i=i: x[i : i + 1], solution))
    depth[i] = np.maximum(near, 0).reshape(seen.shape) * unit
    residual[i] = float(np.sqrt(np.square(miss).sum() / max(seen.sum(), 1))) * unit
  return depth, residual


def _doubts(problem: Problem, solution: Solution, spread: float, weakness: float):
  """Why the focal length may be wrong although every ray meets its point, as one sentence, if at all."""
  x = np.asarray(problem.points, np.float64)[np.asarray(problem.weight) > 0]
  x = x - x.mean(axis=0)
  view = 2 * np.degrees(np.arctan(0.5 / np.exp(float(np.max(solution.log_focal)))))
  reasons = []
  if np.median(np.abs(x @ np.linalg.eigh(x.T @ x)[1][:, 0])) < FLAT:
    reasons.append('it shows one plane')
  if view < NARROW:
    reasons.append(f'its view is {view:.0f} degrees narrow')
  if spread > WEAK:
    reasons.append(f'standard error {spread:.0%}')
  if weakness > WEAK:
    reasons.append(f'errors of 1 % that are alike over an eighth of the image would move it by {weakness:.0%}')
  if reasons:
    yield f'the clip hardly determines the focal length ({"; ".join(reasons)}); give it if it is known'


class _Fit:
  """Levenberg-Marquardt over a camera a frame, and intrinsics for each or for all."""

  def __init__(self, problem: Problem, options: FitOptions, anchored: bool):
    self.problem, self.options, self.anchored = problem, options, anchored
    self.frames, self.valid = len(problem.weight), np.asarray(problem.weight) > 0
    focal = [] if options.known_focal else [FOCAL]
    own = focal if options.focal == 'per_frame' else []
    self.local = [*range(FOCAL), *own]
    self.shared = [
      *(focal if not own else []),
      *([FOCAL + 1, FOCAL + 2] if options.principal_point == 'shared' else []),
    ]

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

  def focal_errors(self, solution: Solution) -> tuple[float, float]:
    """Relative standard error of the (worst) focal length, and its change under nominal errors of 1 %.

    Both from row h of the inverse normal matrix: sum (h . g)^2 over the scores g of patches, and over patches that
    are off by 1 % of the median distance each.
    """
    if self.options.known_focal:
      return 0.0, 0.0
    delta = self._radius(solution, 'huber')
    _, system = self._system(solution, delta, 1 / float(self.problem.weight.sum()), 0.0)  # unit 1 / n: sums, not means
    local, shared = np.zeros((self.frames, len(self.local), 1)), np.zeros((len(self.shared), 1))
    if FOCAL in self.shared:
      shared[0] = 1
    else:
      local = np.zeros((self.frames, len(self.local), self.frames))
      local[np.arange(self.frames), -1, np.arange(self.frames)] = 1
      shared = np.zeros((len(self.shared), self.frames))
    rows, shared_rows = system.solve(local, shared, 1e-9)
    every = np.zeros((self.frames, UNKNOWNS, rows.shape[-1]))
    every[:, self.local] = rows
    every[:, self.shared] = shared_rows
    scores = np.asarray(patch_scores(self.problem, solution, jnp.float32(delta)), np.float64)
    parts = np.einsum('pfi,fim->pfm', scores, every)
    groups = np.add.reduceat(parts, np.arange(0, self.frames, 4), axis=1)
    count = np.count_nonzero(groups[..., 0])
    spread = np.sqrt((groups**2).sum(axis=(0, 1)).max() * count / max(count - 1, 1))
    inverse = rows[np.arange(self.frames), -1, np.arange(self.frames)] if FOCAL in self.local else shared_rows[0]
    if not inverse.min() > 0:  # singular: any focal length would do
      return np.inf, np.inf
    pixels = self.valid.sum() / self.frames
    return float(spread), float(0.01 * np.sqrt(inverse.max() * max(pixels / PATCHES, 1)))

  def _radius(self, solution: Solution, loss: str) -> float:
    miss = np.asarray(depth_and_miss(self.problem, solution)[1])[self.valid]
    return max(RADIUS[loss] * float(np.median(miss)), 1e-9)

  def _minimise(self, solution, delta, unit, smoothness, steps) -> tuple[Solution, bool]:
    """The solution after at most ``steps``, and whether it moved: a cost lower by more than 1e-4 of itself."""
    cost, system = self._system(solution, delta, unit, smoothness)
    first, damping = cost, 1e-4
    for _ in range(steps):
      try:
        trial = self._moved(solution, *system.step(damping + 1e-12))
      except np.linalg.LinAlgError:
        damping = damping * 10 + 1e-9
        continue
      trial_cost, trial_system = self._system(trial, delta, unit, smoothness)
      if not trial_cost < cost:
        damping *= 10
        continue
      done = cost - trial_cost < self.options.tolerance * cost
      solution, cost, system, damping = trial, trial_cost, trial_system, damping * 0.1
      if done:
        break
    return solution, first - cost > 1e-4 * first

  def _system(self, solution, delta, unit, smoothness) -> tuple[float, System]:
    """Cost and linear system of all unknowns."""
    radius = jnp.float32(min(delta, 1e30))
    cost, blocks, slope = (
      np.asarray(x, np.float64) for x in normal_equations(self.problem, solution, radius, jnp.float32(unit))
    )
    part = lambda rows, columns: blocks[:, rows][:, :, columns]
    own, local = part(self.local, self.local), slope[:, self.local]
    next = np.zeros((self.frames - 1, len(self.local), len(self.local)))
    if smoothness > 0 and self.frames > 1:
      chain = smoothness_equations(solution.pose)
      share = smoothness / (self.frames - 1)
      cost = cost + share * chain.value
      own[:, :6, :6] += share * chain.own
      next[:, :6, :6] = share * chain.next
      local[:, :6] += share * chain.gradient
    border, corner = part(self.local, self.shared), part(self.shared, self.shared).sum(axis=0)
    if self.anchored:
      own[0, :6] = own[0, :, :6] = next[:1, :6] = border[0, :6] = local[0, :6] = 0
      own[0, range(6), range(6)] = 1
    return float(cost), System(own, next, border, corner, local, slope[:, self.shared].sum(axis=0))

  def _moved(self, solution: Solution, local: np.ndarray, shared: np.ndarray) -> Solution:
    """The solution after a step."""
    step = np.zeros((self.frames, UNKNOWNS))
    step[:, self.local] = local
    step[:, self.shared] = shared
    log_focal = (np.asarray(solution.log_focal) + step[:, FOCAL].clip(-1, 1)).clip(*np.log(FOCAL_RANGE))
    return Solution(
      se3.retract(solution.pose, jnp.asarray(step[:, :6], jnp.float32)),
      jnp.asarray(log_focal, jnp.float32),
      solution.centre + jnp.asarray(step[:, FOCAL + 1 :].clip(-0.1, 0.1), jnp.float32),
    )
