"""Classifier-free guidance: v = v_neg + w (v_pos - v_neg). With w = 1 the negative branch is never run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.checks import checked
from one4d_jax.errors import ConfigError


@checked
def combine(
  positive: Float[Array, '*any'], negative: Float[Array, '*any'], weight: float | int
) -> Float[Array, '*any']:
  """The guided velocity, in float32; 50 steps amplify a rounded difference."""
  positive, negative = positive.astype(jnp.float32), negative.astype(jnp.float32)
  return negative + weight * (positive - negative)


def guided(
  velocity: Callable, condition: Any, negative: Any, weight: float, *, together: bool = False
) -> Callable[[Array, Array], Array]:
  """``(z, sigma) -> v`` for a sampler, from ``velocity(z, sigma, condition)``.

  Args:
    condition, negative: trees of arrays ``[b …]``; for Wan they differ in the text only.
    together: one call on a doubled batch (needs ``z`` as ``[m b …]``) in place of two calls.

  Raises:
    ConfigError: ``weight`` is not 1 and there is no ``negative``.
  """
  if weight == 1:
    return lambda z, sigma: velocity(z, sigma, condition)
  if negative is None:
    raise ConfigError(f'guidance {weight} needs a negative condition; pass one or set guidance to 1')
  if not together:
    return lambda z, sigma: combine(velocity(z, sigma, condition), velocity(z, sigma, negative), weight)
  both = jax.tree.map(lambda p, n: jnp.concatenate([n, p]), condition, negative)

  def doubled(z, sigma):
    v_negative, v_positive = jnp.split(velocity(jnp.concatenate([z, z], axis=1), sigma, both), 2, axis=1)
    return combine(v_positive, v_negative, weight)

  return doubled
