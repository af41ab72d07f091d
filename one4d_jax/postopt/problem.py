"""The post-optimisation objective (Eq. 11-12) with depth eliminated, and its normal equations.

Per pixel, with camera-frame point Y = R (X - o) and ray r = K^-1 (u, v, 1), the best depth is closed form,

  D = (r . Y) / (r . r),        e = Y - D r    (what remains: the perpendicular miss of the ray),

so N * H * W unknowns vanish (variable projection) and a frame keeps six: a step (v, omega) in the camera's axes.
Each frame is a resection of its own pixels: a moving object's point lies on that frame's ray as well, hence
dynamic scenes need no mask. The Jacobian leaves dD out (Kaufman); the gradient stays exact because e is
perpendicular to r. e is held in two components, along an orthonormal basis of the plane perpendicular to r.

Units: points over the median distance of the valid points, pixels and focal lengths over max(H, W). Pixels are worked
on in chunks, so memory beyond the problem itself does not grow with the resolution.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

HIGHEST = jax.lax.Precision.HIGHEST  # the default of accelerators would cap geometry near 1e-3
UNKNOWNS = 9  # per frame: v (3), omega (3), log focal length, principal point (2)
_CHUNK = 2**16  # points of all frames that are worked on at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
  """What is observed."""

  points: Float[Array, 'F P 3']
  pixels: Float[Array, 'P 2']  # from the middle of the image
  weight: Float[Array, 'F P']  # confidence; 0 where nothing is observed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
  """What is sought."""

  pose: Float[Array, 'F 4 4']  # world_from_cam
  log_focal: Float[Array, 'F']
  centre: Float[Array, 'F 2']  # principal point, from the middle of the image


def rays(pixels: Float[Array, 'P 2'], log_focal: Float[Array, '*F'], centre: Float[Array, '*F 2']):
  """K^-1 (u, v, 1) ``[*F P 3]``."""
  xy = (pixels - centre[..., None, :]) / jnp.exp(log_focal)[..., None, None]
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
  r = rays(problem.pixels, solution.log_focal, solution.centre)
  depth = (r * y).sum(-1) / (r * r).sum(-1)
  basis = _perpendicular(r)
  e = (basis * y[..., None, :]).sum(-1)
  return y, r, depth, basis, e


def _derivatives(problem: Problem, solution: Solution):
  """Miss e [F P 2] and its Jacobian [F P 2 9]."""
  y, r, depth, basis, e = _split(problem, solution)
  turn = jnp.cross(basis, jnp.broadcast_to(y[..., None, :], basis.shape))  # b . [Y]x
  moved = depth[..., None, None] * basis[..., :2]  # -D b . dr, with dr = (-x, -y, 0) d log f or -(dcx, dcy, 0) / f
  zoom = (moved * r[..., None, :2]).sum(-1)
  shift = moved / jnp.exp(solution.log_focal)[:, None, None, None]
  return e, jnp.concatenate([-basis, turn, zoom[..., None], shift], axis=-1)


def _over_chunks(problem: Problem, work, total):
  """``total`` plus ``work(chunk, number of its first pixel)`` summed over chunks of pixels."""
  frames, pixels = problem.weight.shape
  size = min(max(_CHUNK // frames, 1), pixels)

  def add(i, total):
    first = jnp.minimum(i * size, pixels - size)  # the last chunk begins early, and leaves out what is done
    cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, first, size, axis)
    fresh = first + jnp.arange(size) >= i * size
    chunk = Problem(cut(problem.points, 1), cut(problem.pixels, 0), jnp.where(fresh, cut(problem.weight, 1), 0))
    return jax.tree.map(jnp.add, total, work(chunk, first))

  return jax.lax.fori_loop(0, -(-pixels // size), add, total)


@jax.jit
def depth_and_miss(problem: Problem, solution: Solution) -> tuple[Float[Array, 'F P'], Float[Array, 'F P']]:
  """The best depth and ||e|| of each pixel; zero where invalid. One frame at a time."""

  def one(frame):
    points, weight, *camera = jax.tree.map(lambda x: x[None], frame)
    _, _, depth, _, e = _split(Problem(points, problem.pixels, weight), Solution(*camera))
    seen = weight > 0
    return jnp.where(seen, depth, 0)[0], jnp.where(seen, jnp.linalg.norm(e, axis=-1), 0)[0]

  return jax.lax.map(one, (problem.points, problem.weight, solution.pose, solution.log_focal, solution.centre))


@jax.jit
def normal_equations(
  problem: Problem, solution: Solution, delta: Float[Array, ''], unit: Float[Array, '']
) -> tuple[Float[Array, ''], Float[Array, 'F 9 9'], Float[Array, 'F 9']]:
  """Cost, J^T W J and J^T W e per frame, of the weighted mean over pixels of

    rho(e) = |e|^2 / (2 unit) up to |e| = delta, then straight on.

  With ``unit = delta`` (Huber) the straight part has slope 1, so the cost counts in units of mean |e|.
  """
  share = 1 / (problem.weight.sum() * unit)

  def work(chunk, _):
    e, jacobian = _derivatives(chunk, solution)
    size = jnp.linalg.norm(e, axis=-1)
    cost = (chunk.weight * share * jnp.where(size <= delta, size * size / 2, delta * (size - delta / 2))).sum()
    weight = chunk.weight * share * jnp.minimum(1, delta / jnp.maximum(size, 1e-30))
    weighted = weight[..., None, None] * jacobian
    hessian = jnp.einsum('fpki,fpkj->fij', weighted, jacobian, precision=HIGHEST)
    gradient = jnp.einsum('fpki,fpk->fi', weighted, e, precision=HIGHEST)
    return cost, hessian, gradient

  frames = len(solution.pose)
  zero = (jnp.zeros(()), jnp.zeros((frames, UNKNOWNS, UNKNOWNS)), jnp.zeros((frames, UNKNOWNS)))
  return _over_chunks(problem, work, zero)


@jax.jit
def patch_scores(problem: Problem, solution: Solution, delta: Float[Array, '']) -> Float[Array, 'n F 9']:
  """J^T W e of patches of the image, an 8 x 8 grid of them, for errors that are alike within a patch."""
  low = problem.pixels.min(axis=0)
  place = 8 * (problem.pixels - low) / (problem.pixels.max(axis=0) - low + 1e-6)
  cell = (place[:, 0].astype(jnp.int32) * 8 + place[:, 1].astype(jnp.int32)).clip(0, 63)

  def work(chunk, first):
    e, jacobian = _derivatives(chunk, solution)
    weight = chunk.weight * jnp.minimum(1, delta / jnp.maximum(jnp.linalg.norm(e, axis=-1), 1e-30))
    score = jnp.einsum('fp,fpki,fpk->pfi', weight, jacobian, e, precision=HIGHEST)
    return jax.ops.segment_sum(score, jax.lax.dynamic_slice_in_dim(cell, first, len(score)), 64)

  return _over_chunks(problem, work, jnp.zeros((64, len(solution.pose), UNKNOWNS)))
