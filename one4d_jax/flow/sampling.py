"""Sampling: Gaussian noise, guidance, solver. The network is a closure ``(z, sigma, condition) -> v``."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from one4d_jax.flow.guidance import guided
from one4d_jax.flow.solvers import solve


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
  together: bool = False,
  callback: Callable | None = None,
) -> Float[Array, 'm b f h w c']:
  """Draws latents of ``shape`` ``[m b f h w c]``, float32. The defaults are the paper's (Sec. 4.1).

  Args:
    velocity: ``(z, sigma, condition) -> v`` with ``sigma`` a float32 scalar in [0, 1].
    negative: the condition to be led away from; not used when ``guidance`` is 1.
    together: run both conditions as one doubled batch.
    callback: see ``solvers.solve``.

  Raises:
    ConfigError: unknown solver, bad steps or shift, guidance without a negative condition.
  """
  noise = jax.random.normal(key, shape)
  field = guided(velocity, condition, negative, guidance, together=together)
  return solve(field, noise, solver=solver, steps=steps, shift=shift, callback=callback)
