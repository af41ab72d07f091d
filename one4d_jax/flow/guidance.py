"""Classifier-free guidance: v = v_neg + w (v_pos - v_neg). With w = 1 the negative branch is never run."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.checks import checked


@checked
def combine(
  positive: Float[Array, '*any'], negative: Float[Array, '*any'], weight: float | int
) -> Float[Array, '*any']:
  """The guided velocity, in float32; 50 steps amplify a rounded difference."""
  positive, negative = positive.astype(jnp.float32), negative.astype(jnp.float32)
  return negative + weight * (positive - negative)


def guided(velocity: Callable, weight: float, interval: tuple[float, float] = (0.0, 1.0)) -> Callable:
  """``(z, sigma, memory) -> (v, memory)`` for a solver, from a ``velocity`` of the same form.

  Args:
    velocity: takes ``z`` ``[m b …]`` with the condition alone where ``weight`` is 1; else ``[m 2b …]``, samples without
      the prompt before those with it, and ``[m b …]``, those with it, where guidance is off. ``memory`` is a tree of
      arrays of such rows ``[m' 2b …]``.
    interval: noise levels, least and largest, between which there is guidance (Kynkäänniemi et al., arXiv 2404.07724).
  """
  if weight == 1:
    return velocity

  def both(z, sigma, memory):
    v, memory = velocity(jnp.concatenate([z, z], axis=1), sigma, memory)
    return combine(*jnp.split(v, 2, axis=1)[::-1], weight), memory

  def alone(z, sigma, memory):
    """What was remembered of samples without the prompt is out of date when they run again."""
    rows = z.shape[1]
    v, own = velocity(z, sigma, jax.tree.map(lambda a: a[:, rows:], memory))
    return v.astype(jnp.float32), jax.tree.map(lambda a: jnp.concatenate([jnp.zeros_like(a), a], axis=1), own)

  low, high = interval
  if low <= 0 and high >= 1:
    return both
  return lambda z, sigma, memory: jax.lax.cond((low <= sigma) & (sigma <= high), both, alone, z, sigma, memory)
