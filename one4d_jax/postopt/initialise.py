"""Starting point of the post-optimisation: focal length from the first frame, then a pose per frame in closed form.

Pose at fixed focal length: with P = I - r r^T / (r . r) and Y = R X + t, the cost sum |P Y|^2 is quadratic in the
nine entries of R once t = -(sum P)^-1 sum P R X is put in: q^T Omega q, q = vec R. Omega takes one pass over the
pixels; what follows works on 9 x 9 matrices. Rotations are refined on SO(3) from the identity, from Omega's two
smallest eigenvectors (which a plane leaves ambiguous), then from what the neighbouring frames found.
"""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float

from one4d_jax.geometry.camera import HIGHEST
from one4d_jax.postopt.problem import Problem, Solution, depth_and_miss, rays

FOCAL_RANGE = (0.2, 10.0)  # over max(H, W)
SCAN = np.geomspace(0.3, 4, 24)  # focal lengths tried when the first frame does not give one
FAR_OFF = 0.1  # median miss over median distance beyond which the world is not the first camera


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


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
  """Projection to SO(3), over leading axes."""
  left, _, right = np.linalg.svd(matrix)
  left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]
  return left @ right


def poses(problem: Problem, focal: float) -> tuple[np.ndarray, np.ndarray]:
  """world_from_cam [F 4 4] of each frame on its own, and its cost [F] (infinite: every start put the scene behind)."""
  moments = _moments(problem, jnp.float32(focal))
  centroid, zeroth, first, second = (np.asarray(x, np.float64) for x in moments)
  frames = len(centroid)
  solve_t = np.linalg.pinv(zeroth)
  linear = first.transpose(0, 2, 3, 1).reshape(frames, 3, 9)  # [F, k, (l i)]: (sum P R X)_k = linear q
  omega = second.transpose(0, 3, 1, 4, 2).reshape(frames, 9, 9) - linear.transpose(0, 2, 1) @ solve_t @ linear
  omega /= np.maximum(np.trace(omega, axis1=1, axis2=2), 1e-30)[:, None, None]

  def best(starts):  # [s F 3 3]
    count = len(starts)
    rotation, cost = _refine(jnp.asarray(np.tile(omega, (count, 1, 1)), jnp.float32), starts.reshape(-1, 3, 3))
    rotation = np.asarray(rotation, np.float64).reshape(count, frames, 3, 3)
    shift = -np.einsum('fkl,flm,sfm->sfk', solve_t, linear, rotation.reshape(count, frames, 9))
    cost = np.where(shift[..., 2] > 0, np.asarray(cost).reshape(count, frames), np.inf)
    choice, frame = cost.argmin(axis=0), np.arange(frames)
    return rotation[choice, frame], shift[choice, frame], cost[choice, frame]

  vectors = np.linalg.eigh(omega)[1][..., :2].transpose(2, 0, 1).reshape(2, frames, 3, 3)
  vectors = vectors * np.where(np.linalg.det(vectors) < 0, -1, 1)[..., None, None]
  identity = np.tile(np.eye(3), (1, frames, 1, 1))
  rotation, _, _ = best(np.concatenate([identity, _nearest_rotation(vectors)]))
  neighbours = [np.concatenate([rotation[:1], rotation[:-1]]), np.concatenate([rotation[1:], rotation[-1:]])]
  rotation, shift, cost = best(np.stack([rotation, *neighbours]))
  pose = np.tile(np.eye(4), (frames, 1, 1))
  pose[:, :3, :3] = rotation.transpose(0, 2, 1)
  pose[:, :3, 3] = centroid - np.einsum('fji,fj->fi', rotation, shift)
  return pose, cost


def _first_frame_focal(problem: Problem) -> float | None:
  """Weiszfeld's focal length if frame 0 is seen from the origin along +z, else None."""
  focal = float(weiszfeld(problem.points[0], problem.pixels, problem.weight[0]))
  if not np.isfinite(focal) or not FOCAL_RANGE[0] <= focal <= FOCAL_RANGE[1]:
    return None
  frame = Problem(problem.points[:1], problem.pixels, problem.weight[:1])
  at_origin = Solution(jnp.eye(4)[None], jnp.log(jnp.float32(focal))[None], jnp.zeros((1, 2)))
  valid = np.asarray(problem.weight[0]) > 0
  depth, miss = (np.asarray(x)[0][valid] for x in depth_and_miss(frame, at_origin))
  return focal if np.median(miss) < FAR_OFF and np.median(depth) > 0 else None


def initialise(problem: Problem, known_focal: float = 0.0) -> Solution:
  """Focal length (unless known, over max(H, W)) and poses.

  Frame 0 starts at the origin, unless its points say it is elsewhere.
  """
  focal = _first_frame_focal(problem)
  at_origin = focal is not None
  if known_focal:
    focal = known_focal
  elif not at_origin:  # the world is some other frame: try focal lengths on the first one
    frame = Problem(problem.points[:1], problem.pixels, problem.weight[:1])
    focal = float(min(SCAN, key=lambda f: poses(frame, f)[1][0]))
  pose, cost = poses(problem, focal)
  if at_origin or not np.isfinite(cost[0]):
    pose[0] = np.eye(4)
  for k in np.flatnonzero(~np.isfinite(cost[1:])) + 1:
    pose[k] = pose[k - 1]
  log_focal = np.full(len(pose), np.log(focal))
  return Solution(jnp.asarray(pose, jnp.float32), jnp.asarray(log_focal, jnp.float32), jnp.zeros((len(pose), 2)))
