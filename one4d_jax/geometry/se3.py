"""Rigid motions as 4x4 matrices, exponential and logarithm by jaxlie. Tangents are (v, omega): translation first."""

import functools

import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Float

from one4d_jax.checks import checked


def _motion(fun):
  """Compiled, checked, in full float32; jaxlie itself relies on standard dtype promotion."""

  @jax.jit
  @functools.wraps(fun)
  def run(*args):
    with jax.numpy_dtype_promotion('standard'), jax.default_matmul_precision('highest'):
      return checked(fun)(*args)

  return run


@_motion
def exp(tangent: Float[Array, '*b 6']) -> Float[Array, '*b 4 4']:
  """The motion of a tangent (v, omega)."""
  return jaxlie.SE3.exp(tangent).as_matrix()


@_motion
def log(matrix: Float[Array, '*b 4 4']) -> Float[Array, '*b 6']:
  """The tangent (v, omega) of a motion; rotations below 180 degrees."""
  return jaxlie.SE3.from_matrix(matrix).log()


def _assemble(rotation: Float[Array, '*b 3 3'], translation: Float[Array, '*b 3']) -> Float[Array, '*b 4 4']:
  top = jnp.concatenate([rotation, translation[..., None]], axis=-1)
  bottom = jnp.broadcast_to(jnp.asarray([0, 0, 0, 1], top.dtype), (*top.shape[:-2], 1, 4))
  return jnp.concatenate([top, bottom], axis=-2)


@_motion
def inverse(matrix: Float[Array, '*b 4 4']) -> Float[Array, '*b 4 4']:
  """The motion back."""
  back = jnp.swapaxes(matrix[..., :3, :3], -1, -2)
  return _assemble(back, -(back @ matrix[..., :3, 3:])[..., 0])


@_motion
def compose(a: Float[Array, '*b 4 4'], b: Float[Array, '*b 4 4']) -> Float[Array, '*b 4 4']:
  """``a b``. A Newton step R (3 - R^T R) / 2 puts the rotation back on SO(3): chains of any length stay rigid."""
  product = a @ b
  rotation = product[..., :3, :3]
  drift = jnp.swapaxes(rotation, -1, -2) @ rotation - jnp.eye(3, dtype=rotation.dtype)
  return _assemble(rotation - 0.5 * rotation @ drift, product[..., :3, 3])


@_motion
def retract(matrix: Float[Array, '*b 4 4'], step: Float[Array, '*b 6']) -> Float[Array, '*b 4 4']:
  """``matrix exp(step)``: a step in the moving (camera) frame."""
  return compose(matrix, exp(step))


@_motion
def relative(world_from_cam: Float[Array, 'F 4 4']) -> Float[Array, 'F-1 4 4']:
  """Each camera seen from the one before: ``inverse(T_i) T_(i+1)``."""
  return compose(inverse(world_from_cam[:-1]), world_from_cam[1:])


@_motion
def interpolate(
  a: Float[Array, '*b 4 4'], b: Float[Array, '*b 4 4'], fraction: Float[Array, '*b']
) -> Float[Array, '*b 4 4']:
  """The motion ``fraction`` of the way from ``a`` to ``b``, at constant velocity."""
  return retract(a, fraction[..., None] * log(compose(inverse(a), b)))
