"""Rectified flow: a straight line from data to noise and the constant velocity along it (One4D, Eqs. 1-4).

  z_sigma = (1 - sigma) z + sigma eps        sigma 0 = data, 1 = noise
  v       = d z_sigma / d sigma = eps - z    what the network learns

The paper writes t = 1 - sigma and a velocity of the opposite sign, z - eps; the base model (Wan2.1) fixes ours.
The leading axis ``m`` (rgb, xyz) is optional in every function here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.checks import checked


def shift(u, s: float):
  """``s u / (1 + (s - 1) u)``: moves times towards noise for ``s > 1``, keeps 0 and 1. Any array type."""
  return s * u / (1 + (s - 1) * u)


_shift = shift  # ``draw_sigma`` has an argument of that name


def draw_sigma(key: jax.Array, shape: tuple[int, ...], *, shift: float, shift_max: float = 0.0) -> Float[Array, '...']:
  """Noise levels for training, ``shift(U, s)`` with U uniform in [0, 1); float32.

  With ``shift_max`` each has an ``s`` of its own, log-uniform from ``shift`` to ``shift_max``: for data with parts that
  only much noise hides, and others that only little noise shows.
  """
  if shift_max:
    key, key_shift = jax.random.split(key)
    shift = shift * (shift_max / shift) ** jax.random.uniform(key_shift, shape)
  return _shift(jax.random.uniform(key, shape), shift)


@checked
def interpolate(
  z: Float[Array, '*m b f h w c'],
  eps: Float[Array, '*m b f h w c'],
  sigma: Float[Array, 'b'] | Float[Array, ''],
) -> Float[Array, '*m b f h w c']:
  """``z_sigma`` (Eq. 1); both modalities of a sample share its ``sigma``. Computed in the dtype of ``z``."""
  sigma = sigma.reshape(-1, 1, 1, 1, 1).astype(z.dtype)
  return (1 - sigma) * z + sigma * eps


@checked
def target(z: Float[Array, '*m b f h w c'], eps: Float[Array, '*m b f h w c']) -> Float[Array, '*m b f h w c']:
  """The velocity of the straight line, ``eps - z`` (Eq. 2)."""
  return eps - z


@checked
def loss(
  v: Float[Array, '*m b f h w c'],
  target: Float[Array, '*m b f h w c'],
  weight: Float[Array, '*m b f h w'] | None = None,
) -> Float[Array, '*m']:
  """Mean squared error of the velocity, one number a modality (Eq. 4), in float32.

  ``weight`` masks or weighs latent positions; the error is divided by its sum, and is 0 where that is 0.
  """
  error = jnp.square(v.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
  axes = (-4, -3, -2, -1)
  if weight is None:
    return error.mean(axis=axes)
  weight = weight.astype(jnp.float32)
  return (weight * error).sum(axis=axes) / jnp.maximum(weight.sum(axis=axes), 1e-6)
