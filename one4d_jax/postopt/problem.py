"""The post-optimisation objective (Eq. 11-12) with depth eliminated, and its normal equations.

Per pixel, with camera-frame point Y = R (X - o) and ray r = K^-1 (u, v, 1), the best depth is closed form,

  D = (r . Y) / (r . r),        e = Y - D r    (what remains: the perpendicular miss of the ray),

so N * H * W unknowns vanish (variable projection) and a frame keeps six: a step (v, omega) in the camera's axes.
Each frame is a resection of its own pixels: a moving object's point lies on that frame's ray as well, hence
dynamic scenes need no mask. The Jacobian leaves dD out (Kaufman); the gradient stays exact because e is
perpendicular to r. e is held in two components, along an orthonormal basis of the plane perpendicular to r.

Units: points over the median distance of the valid points, pixels and focal lengths over max(H, W).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.geometry.camera import HIGHEST

UNKNOWNS = 7  # per frame: v (3), omega (3), log focal length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
  """What is observed."""

  points: Float[Array, 'F P 3']
  pixels: Float[Array, 'P 2']  # from the principal point
  weight: Float[Array, 'F P']  # 1, or 0 where nothing is observed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
  """What is sought."""

  pose: Float[Array, 'F 4 4']  # world_from_cam
  log_focal: Float[Array, 'F']


def rays(pixels: Float[Array, 'P 2'], focal: Float[Array, '*F']) -> Float[Array, '*F P 3']:
  """K^-1 (u, v, 1)."""
  xy = pixels / focal[..., None, None]
  return jnp.concatenate([xy, jnp.ones_like(xy[..., :1])], axis=-1)


def _perpendicular(r: Float[Array, '*b 3']) -> Float[Array, '*b 2 3']:
  """Orthonormal basis of the plane perpendicular to r = (x, y, 1)."""
  x, y = r[..., 0], r[..., 1]
  a = jnp.stack([jnp.ones_like(x), jnp.zeros_like(x), -x], axis=-1)
  b = jnp.stack([-x * y, 1 + x * x, -y], axis=-1)
  basis = jnp.stack([a, b], axis=-2)
  return basis / jnp.linalg.norm(basis, axis=-1, keepdims=True)


def _split(problem: Problem, solution: Solution):
  """Camera-frame points Y [F P 3], rays r [F P 3], depth D [F P], basis [F P 2 3], miss e [F P 2]."""
  offset = problem.points - solution.pose[:, None, :3, 3]
  y = jnp.einsum('fpi,fij->fpj', offset, solution.pose[:, :3, :3], precision=HIGHEST)
  r = rays(problem.pixels, jnp.exp(solution.log_focal))
  depth = (r * y).sum(-1) / (r * r).sum(-1)
  basis = _perpendicular(r)
  e = (basis * y[..., None, :]).sum(-1)
  return y, r, depth, basis, e


@jax.jit
def depth_and_miss(problem: Problem, solution: Solution) -> tuple[Float[Array, 'F P'], Float[Array, 'F P']]:
  """The best depth and ||e|| of each pixel; zero where invalid. One frame at a time, so any resolution fits."""

  def one(frame):
    points, weight, pose, log_focal = (x[None] for x in frame)
    _, _, depth, _, e = _split(Problem(points, problem.pixels, weight), Solution(pose, log_focal))
    return jnp.where(weight > 0, depth, 0)[0], jnp.where(weight > 0, jnp.linalg.norm(e, axis=-1), 0)[0]

  return jax.lax.map(one, (problem.points, problem.weight, solution.pose, solution.log_focal))


@jax.jit
def normal_equations(
  problem: Problem, solution: Solution, delta: Float[Array, ''], unit: Float[Array, '']
) -> tuple[Float[Array, ''], Float[Array, 'F 7 7'], Float[Array, 'F 7']]:
  """Cost, J^T W J and J^T W e per frame, of the mean over valid pixels of

    rho(e) = |e|^2 / (2 unit) up to |e| = delta, then straight on.

  With ``unit = delta`` (Huber) the straight part has slope 1, so the cost counts in units of mean |e|.
  """
  y, r, depth, basis, e = _split(problem, solution)
  size = jnp.linalg.norm(e, axis=-1)
  share = problem.weight / problem.weight.sum() / unit
  cost = (share * jnp.where(size <= delta, size * size / 2, delta * (size - delta / 2))).sum()
  weight = share * jnp.minimum(1, delta / jnp.maximum(size, 1e-30))
  turn = jnp.cross(basis, jnp.broadcast_to(y[..., None, :], basis.shape))  # b . [Y]x
  zoom = depth[..., None] * (basis[..., :2] * r[..., None, :2]).sum(-1)  # d e / d log f = -D dr, dr = (-x, -y, 0)
  jacobian = jnp.concatenate([-basis, turn, zoom[..., None]], axis=-1)  # [F P 2 7]
  weighted = weight[..., None, None] * jacobian
  hessian = jnp.einsum('fpki,fpkj->fij', weighted, jacobian, precision=HIGHEST)
  gradient = jnp.einsum('fpki,fpk->fi', weighted, e, precision=HIGHEST)
  return cost, hessian, gradient
