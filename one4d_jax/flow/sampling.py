"""Sampling: Gaussian noise, guidance, solver. The network is a closure ``(z, sigma, condition) -> v``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.errors import ConfigError
from one4d_jax.flow import solvers
from one4d_jax.flow.guidance import guided


def sample(
  key: jax.Array,
  velocity: Callable,
  condition: Any,
  negative: Any = None,
  *,
  shape: tuple[int, ...],
  solver: str = 'euler',
  steps: int = 50,
  shift: float = 5.0,
  guidance: float = 6.0,
  interval: tuple[float, float] = (0.0, 1.0),
) -> Float[Array, 'm b f h w c']:
  """Draws latents of ``shape`` ``[m b f h w c]``, float32. The defaults are the paper's (Sec. 4.1).

  Args:
    velocity: ``(z, sigma, condition) -> v`` with ``sigma`` a float32 scalar in [0, 1].
    condition, negative: trees of arrays ``[b …]``; the negative is what to be led away from, and not used when
      ``guidance`` is 1.
    interval: see ``guidance.guided``.

  Raises:
    ConfigError: unknown solver, bad steps or shift, guidance without a negative condition.
  """
  rows = both(condition, negative, guidance)
  field = lambda z, sigma, memory: (velocity(z, sigma, last(rows, z.shape[1])), memory)
  plan = solvers.schedule(solver, steps=steps, shift=shift)
  state = solvers.start(jax.random.normal(key, shape))
  return solvers.advance(guided(field, guidance, interval), state, plan, steps).x


def both(condition: Any, negative: Any, guidance: float) -> Any:
  """The rows of a guided velocity: without the prompt, then with it; ``condition`` alone where ``guidance`` is 1.

  Raises:
    ConfigError: guidance without a negative condition.
  """
  if guidance == 1:
    return condition
  if negative is None:
    raise ConfigError(f'guidance {guidance} needs a negative condition; pass one or set guidance to 1')
  return jax.tree.map(lambda n, p: jnp.concatenate([n, p]), negative, condition)


def last(tree: Any, rows: int, axis: int = 0) -> Any:
  """The last so many rows of every array."""
  return jax.tree.map(lambda a: jax.lax.slice_in_dim(a, a.shape[axis] - rows, a.shape[axis], axis=axis), tree)
