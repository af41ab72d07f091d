"""The paper's objective as it stands (Eq. 11-12): cameras and the depth of every pixel, by gradient descent.

  X = R^T (D K^-1 (u, v, 1)) + o,      L_all = mean ||X - X_hat|| + smoothness * L_s

Here for comparison: it reaches the accuracy of ``fit.py`` on noisy pointmaps, more slowly, and stays short of it on
exact ones. The unknown depth takes eight times the memory of the points.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from one4d_jax.geometry import se3
from one4d_jax.postopt.options import AdamOptions, FitOptions
from one4d_jax.postopt.problem import HIGHEST, Problem, Solution, depth_and_miss, rays


def descend(problem: Problem, start: Solution, options: FitOptions, anchored: bool) -> Solution:
  """Cameras after ``options.adam.iterations`` steps from ``start`` and its best depth; one shared focal length.

  The first camera stays where it is if ``anchored``.
  """
  return _descend(problem, start, options.adam, options.smoothness, not options.known_focal, anchored)


def _length(x: Float[Array, '*b n']) -> Float[Array, '*b']:
  return jnp.sqrt((x * x).sum(-1) + 1e-16)  # a kink without a slope of NaN


@functools.partial(jax.jit, static_argnames=('adam', 'smoothness', 'fit_focal', 'anchored'))
def _descend(
  problem: Problem, start: Solution, adam: AdamOptions, smoothness: float, fit_focal: bool, anchored: bool
) -> Solution:
  share = problem.weight / problem.weight.sum()

  def cameras(unknown) -> Solution:
    pose = se3.retract(start.pose, unknown['step'])
    return Solution(pose, jnp.broadcast_to(unknown['log_focal'], start.log_focal.shape), start.centre)

  def loss(unknown):
    found = cameras(unknown)
    r = jnp.exp(unknown['log_depth'])[..., None] * rays(problem.pixels, found.log_focal, found.centre)
    x = jnp.einsum('fij,fpj->fpi', found.pose[:, :3, :3], r, precision=HIGHEST) + found.pose[:, None, :3, 3]
    motion = se3.relative(found.pose)
    turn = (motion[:, :3, :3] - jnp.eye(3)).reshape(-1, 9)
    smooth = (_length(turn) + _length(motion[:, :3, 3])).sum() / max(len(motion), 1)
    return (share * _length(x - problem.points)).sum() + smoothness * smooth

  depth, _ = depth_and_miss(problem, start)
  unknown = {
    'step': jnp.zeros((len(start.pose), 6)),
    'log_focal': start.log_focal.mean(),
    'log_depth': jnp.log(jnp.maximum(depth, 1e-3)),
  }
  rate = optax.linear_schedule(adam.learning_rate, adam.last_learning_rate, adam.iterations)
  optimiser = optax.adam(rate, b1=adam.b1, b2=adam.b2)

  def step(state, _):
    unknown, moments = state
    slope = jax.grad(loss)(unknown)
    if not fit_focal:
      slope['log_focal'] = jnp.zeros_like(slope['log_focal'])
    if anchored:
      slope['step'] = slope['step'].at[0].set(0)
    with jax.numpy_dtype_promotion('standard'):  # optax relies on it
      change, moments = optimiser.update(slope, moments)
    return (optax.apply_updates(unknown, change), moments), None

  (unknown, _), _ = jax.lax.scan(step, (unknown, optimiser.init(unknown)), length=adam.iterations)
  return cameras(unknown)
