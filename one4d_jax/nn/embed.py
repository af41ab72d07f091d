"""Patches and timesteps as vectors."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float


def patchify(x: Float[Array, '*b f h w c'], patch: tuple[int, int, int]) -> Float[Array, '*b s p']:
  """Tokens in (frame, row, column) order; inside a token the channel is slowest, as in Wan's convolution."""
  pt, ph, pw = patch
  pattern = '... (f pt) (h ph) (w pw) c -> ... (f h w) (c pt ph pw)'
  return rearrange(x, pattern, pt=pt, ph=ph, pw=pw)


def unpatchify(
  x: Float[Array, '*b s p'], grid: tuple[int, int, int], patch: tuple[int, int, int]
) -> Float[Array, '*b f h w c']:
  """The inverse for the head, where the channel is *fastest* inside a token."""
  (f, h, w), (pt, ph, pw) = grid, patch
  pattern = '... (f h w) (pt ph pw c) -> ... (f pt) (h ph) (w pw) c'
  return rearrange(x, pattern, f=f, h=h, w=w, pt=pt, ph=ph, pw=pw)


def sinusoid(timestep: Float[Array, 'b'], width: int) -> Float[Array, 'b width']:
  """Wan's timestep features: ``cos`` of all frequencies ``10000^(-i/half)``, then ``sin``.

  Angles reach 1000 rad, where float32 resolves only 6e-5. Each frequency is therefore split into a part
  of 12 bits, whose product with an integer timestep is exact, and a small rest.
  """
  half = width // 2
  frequency = 10000.0 ** (-np.arange(half) / half)
  coarse = np.round(frequency * 2**12) / 2**12
  fine = jnp.asarray(frequency - coarse, jnp.float32)
  t = timestep.astype(jnp.float32)[:, None]
  a, b = t * jnp.asarray(coarse, jnp.float32), t * fine
  cos = jnp.cos(a) * jnp.cos(b) - jnp.sin(a) * jnp.sin(b)
  sin = jnp.sin(a) * jnp.cos(b) + jnp.cos(a) * jnp.sin(b)
  return jnp.concatenate([cos, sin], axis=-1)
