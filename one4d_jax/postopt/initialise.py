"""Starting point of the post-optimisation: focal length from the first frame, then a pose per frame in closed form.

Pose at fixed focal length: with P = I - r r^T / (r . r) and Y = R X + t, the cost sum |P Y|^2 is quadratic in the
nine entries of R once t = -(sum P)^-1 sum P R X is put in: q^T Omega q, q = vec R. Omega takes one pass over the
pixels; what follows works on 9 x 9 matrices. Rotations are refined on SO(3) from the identity, from Omega's two
smallest eigenvectors (which a plane leaves ambiguous), and from what the frame before found.
"""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float

from one4d_jax.geometry.align import nearest_rotation
from one4d_jax.postopt.problem import HIGHEST, Problem, Solution, depth_and_miss, rays

FOCAL_RANGE = (0.2, 10.0)  # over max(H, W)
SCAN = np.geomspace(0.3, 4, 24)  # focal lengths tried when the first frame does not give one
SCANNED = 4  # frames they are tried on, at most
CLEARLY = 0.25  # of the cost: what a minimum far from the predecessor's must undercut to be believed


@jax.jit
def weiszfeld(points: Float[Array, 'P 3'], pixels: Float[Array, 'P 2'], weight: Float[Array, 'P']) -> Float[Array, '']:
  """Focal length of a camera at the origin: minimises sum |p - f q|, q = (x, y) / z, by ten reweighted steps."""
  in_front = points[:, 2] > 1e-6
  weight = jnp.where(in_front, weight, 0)
  q = points[:, :2] / jnp.where(in_front, points[:, 2], 1)[:, None]
  pq, qq = (pixels * q).sum(-1), (q * q).sum(-1)

  def step(_, focal):
    w = weight / jnp.maximum(jnp.linalg.norm(pixels - focal * q, axis=-1), 1e-8)
    return (w * pq).sum() / (w * qq).sum()

  return jax.lax.fori_loop(0, 10, step, (weight * pq).sum() / (weight * qq).sum())


@jax.jit
def _moments(problem: Problem, focal: Float[Array, '']):
  """Per frame: centroid [F 3], sum P [F 3 3], sum x_i P [F 3 3 3], sum x_i x_j P [F 3 3 3 3]; means over pixels."""
  weight = problem.weight / jnp.maximum(problem.weight.sum(-1, keepdims=True), 1)
  centroid = jnp.einsum('fp,fpi->fi', weight, problem.points, precision=HIGHEST)
  x = problem.points - centroid[:, None]
  r = rays(problem.pixels, jnp.log(focal), jnp.zeros(2))
  r = r / jnp.linalg.norm(r, axis=-1, keepdims=True)
  plane = jnp.eye(3) - r[:, :, None] * r[:, None, :]
  zeroth = jnp.einsum('fp,pkl->fkl', weight, plane, precision=HIGHEST)
  first = jnp.einsum('fpi,pkl->fikl', weight[..., None] * x, plane, precision=HIGHEST)
  xx = weight[..., None, None] * x[..., :, None] * x[..., None, :]
  return centroid, zeroth, first, jnp.einsum('fpij,pkl->fijkl', xx, plane, precision=HIGHEST)


def _solve3(matrix: Float[Array, 'n 3 3'], right: Float[Array, 'n 3']) -> Float[Array, 'n 3']:
  """Cramer's rule for symmetric matrices: compiles in a tenth of the time of a batched factorisation."""
  a, b, c = matrix[:, 0], matrix[:, 1], matrix[:, 2]
  inverse = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
  return (inverse * right[:, None]).sum(-1) / (a * inverse[:, 0]).sum(-1)[:, None]


@jax.jit
def _refine(
  omega: Float[Array, 'n 9 9'], start: Float[Array, 'n 3 3']
) -> tuple[Float[Array, 'n 3 3'], Float[Array, 'n']]:
  """Levenberg-Marquardt on SO(3) for q^T Omega q: rotations and their costs."""
  generators = jnp.asarray([np.cross(np.eye(3), axis) for axis in np.eye(3)], jnp.float32)  # [a]x

  def cost_of(rotation):
    q = rotation.reshape(-1, 9)
    return jnp.einsum('ni,nij,nj->n', q, omega, q, precision=HIGHEST)

  def step(_, state):
    rotation, cost, damping = state
    q = rotation.reshape(-1, 9)
    jacobian = jnp.einsum('nij,ajk->nika', rotation, generators, precision=HIGHEST).reshape(-1, 9, 3)
    product = jnp.einsum('nij,njk->nik', omega, jacobian, precision=HIGHEST)
    hessian = jnp.einsum('nia,nib->nab', jacobian, product, precision=HIGHEST)
    gradient = jnp.einsum('nia,ni->na', product, q, precision=HIGHEST)
    ridge = damping * jnp.trace(hessian, axis1=1, axis2=2) / 3 + 1e-9
    tangent = -_solve3(hessian + ridge[:, None, None] * jnp.eye(3), gradient)
    with jax.numpy_dtype_promotion('standard'), jax.default_matmul_precision('highest'):
      turn = jaxlie.SO3.exp(tangent).as_matrix()
    trial = jnp.einsum('nij,njk->nik', rotation, turn, precision=HIGHEST)
    trial_cost = cost_of(trial)
    better = trial_cost < cost
    rotation = jnp.where(better[:, None, None], trial, rotation)
    return rotation, jnp.where(better, trial_cost, cost), damping * jnp.where(better, 0.1, 10.0)

  start = start.astype(jnp.float32)
  rotation, cost, _ = jax.lax.fori_loop(0, 20, step, (start, cost_of(start), jnp.full(len(omega), 1e-3)))
  return rotation, cost


def poses(problem: Problem, focal: float, first: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
  """world_from_cam [F 4 4] of each frame on its own, and its cost [F] (infinite: every start put the scene behind).

  ``first`` is the rotation of the first camera, if it is known. A frame takes the minimum next to its predecessor's
  rotation unless another one is clearly lower: on poor points the mirrored camera often fits a little better.
  """
  moments = _moments(problem, jnp.float32(focal))
  centroid, zeroth, linear, second = (np.asarray(x, np.float64) for x in moments)
  frames = len(centroid)
  solve_t = np.linalg.pinv(zeroth)
  linear = linear.transpose(0, 2, 3, 1).reshape(frames, 3, 9)  # [F, k, (l i)]: (sum P R X)_k = linear q
  omega = second.transpose(0, 3, 1, 4, 2).reshape(frames, 9, 9) - linear.transpose(0, 2, 1) @ solve_t @ linear
  omega /= np.maximum(np.trace(omega, axis1=1, axis2=2), 1e-30)[:, None, None]

  def refined(chosen, starts):  # frames [n], rotations [n 3 3]
    rotation, cost = _refine(jnp.asarray(omega[chosen], jnp.float32), jnp.asarray(starts, jnp.float32))
    rotation = np.asarray(rotation, np.float64)
    shift = -np.einsum('fkl,flm,fm->fk', solve_t[chosen], linear[chosen], rotation.reshape(-1, 9))
    return rotation, shift, np.where(shift[:, 2] > 0, np.asarray(cost), np.inf)

  vectors = np.linalg.eigh(omega)[1][..., :2].transpose(2, 0, 1).reshape(2, frames, 3, 3)
  vectors = vectors * np.where(np.linalg.det(vectors) < 0, -1, 1)[..., None, None]
  starts = np.concatenate([np.tile(np.eye(3), (1, frames, 1, 1)), nearest_rotation(vectors)])
  every = np.arange(frames)
  found = [x.reshape(3, frames, *x.shape[1:]) for x in refined(np.tile(every, 3), starts.reshape(-1, 3, 3))]
  choice = found[2].argmin(axis=0)
  rotation, shift, cost = (x[choice, every] for x in found)
  before = rotation[0] if first is None else first
  for i in every:
    (turn,), (move,), (price,) = refined(every[i : i + 1], before[None])
    if price < np.inf and not cost[i] < CLEARLY * price:
      rotation[i], shift[i], cost[i] = turn, move, price
    before = rotation[i]
  pose = np.tile(np.eye(4), (frames, 1, 1))
  pose[:, :3, :3] = rotation.transpose(0, 2, 1)
  pose[:, :3, 3] = centroid - np.einsum('fji,fj->fi', rotation, shift)
  return pose, cost


def first_miss(problem: Problem, solution: Solution) -> float:
  """Median distance of the first frame's points from their rays, its camera being the world."""
  frame = Problem(problem.points[:1], problem.pixels, problem.weight[:1])
  _, miss = depth_and_miss(frame, Solution(jnp.eye(4)[None], solution.log_focal[:1], solution.centre[:1]))
  return float(np.median(np.asarray(miss)[0][np.asarray(problem.weight[0]) > 0]))


def initialise(problem: Problem, *, anchored: bool, known_focal: float = 0.0) -> Solution:
  """Focal length (unless known, over max(H, W)) and poses; the first one is the identity if ``anchored``."""
  focal = known_focal
  if anchored and not focal:
    focal = float(weiszfeld(problem.points[0], problem.pixels, problem.weight[0]))
    if not FOCAL_RANGE[0] <= focal <= FOCAL_RANGE[1]:  # or NaN
      focal = float(min(SCAN, key=lambda f: first_miss(problem, _centred(np.eye(4)[None], f))))
  elif not focal:  # the world is elsewhere; on several frames, as one that faces a plane fits any focal length
    some = np.unique(np.linspace(0, len(problem.weight) - 1, SCANNED).round().astype(int))
    frames = Problem(problem.points[some], problem.pixels, problem.weight[some])
    focal = float(min(SCAN, key=lambda f: poses(frames, f)[1].sum()))
  pose, cost = poses(problem, focal, np.eye(3) if anchored else None)
  if anchored or not np.isfinite(cost[0]):
    pose[0] = np.eye(4)
  for k in np.flatnonzero(~np.isfinite(cost[1:])) + 1:
    pose[k] = pose[k - 1]
  return _centred(pose, focal)


def _centred(pose: np.ndarray, focal: float) -> Solution:
  """Cameras of one focal length, their principal point in the middle."""
  log_focal = jnp.full(len(pose), np.log(focal), jnp.float32)
  return Solution(jnp.asarray(pose, jnp.float32), log_focal, jnp.zeros((len(pose), 2)))
