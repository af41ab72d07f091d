"""Rotary position embedding over a (frame, row, column) grid, Wan's way.

A head of width ``d`` is split into ``d - 4 (d // 6)`` channels for the frame index and ``2 (d // 6)`` each for row
and column; each part, of width ``D``, has its own frequencies ``10000^(-2j/D)``. Neighbouring channels (2j, 2j+1)
form one complex number.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def tables(grid: tuple[int, int, int], head_width: int) -> tuple[np.ndarray, np.ndarray]:
  """``(cos, sin)``, each float32 ``[s, head_width / 2]``; columns of ``grid`` fastest. Built in float64."""
  side = 2 * (head_width // 6)
  positions = np.stack(np.meshgrid(*map(np.arange, grid), indexing='ij'), -1).reshape(-1, 3)
  angles = [
    positions[:, i, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    for i, width in enumerate((head_width - 2 * side, side, side))
  ]
  angles = np.concatenate(angles, axis=-1)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
  x: Float[Array, 'b s n h'], cos: Float[Array, 's half'], sin: Float[Array, 's half']
) -> Float[Array, 'b s n h']:
  """Turn each pair of channels by its token's angles; float32 inside, the dtype of ``x`` outside."""
  even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
  cos, sin = cos[:, None], sin[:, None]
  turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return turned.reshape(x.shape).astype(x.dtype)
