"""Camera smoothness (Eq. 12) by iteratively reweighted least squares.

||R_i^T R_(i+1) - I||_F is sqrt(2) theta for a relative rotation by a small angle theta, so both norms are lengths:
of sqrt(2) log(R_i^T R_(i+1)) and of o_(i+1) - o_i. A length |x| is majorised by |x|^2 / (2 c) + c / 2 at c = |x|.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from one4d_jax.geometry import se3

SMALLEST = 1e-4  # lengths below it (radians, median distances) count as squares: no division by zero


@jax.jit
def _turns(
  before: Float[Array, 'n 4 4'], after: Float[Array, 'n 4 4']
) -> tuple[Float[Array, 'n 4 4'], Float[Array, 'n 6']]:
  """Relative motions and their tangents."""
  motion = se3.compose(se3.inverse(before), after)
  return motion, se3.log(motion)


def smoothness_equations(
  pose: Float[Array, 'F 4 4'], used: Int[np.ndarray, 'n']
) -> tuple[float, Float[np.ndarray, '6F 6F'], Float[np.ndarray, '6F']]:
  """Value, normal matrix and gradient for the steps (v, omega) of each camera, along the chain of ``used`` frames."""
  before, after = used[:-1], used[1:]
  pose = np.asarray(pose)
  motion, tangent = (np.asarray(x, np.float64) for x in _turns(jnp.asarray(pose[before]), jnp.asarray(pose[after])))
  turn = np.sqrt(2) * tangent[:, 3:]
  rotation, centre = pose[:, :3, :3].astype(np.float64), pose[:, :3, 3].astype(np.float64)
  residual = np.stack([centre[after] - centre[before], turn], axis=1)  # [n-1 2 3]

  pair = np.arange(len(before))
  jacobian = np.zeros((len(before), 2, 3, len(pose), 6))
  jacobian[pair, 0, :, after, :3] = rotation[after]  # a step v moves the centre by R v
  jacobian[pair, 0, :, before, :3] = -rotation[before]
  jacobian[pair, 1, :, after, 3:] = np.sqrt(2) * np.eye(3)
  jacobian[pair, 1, :, before, 3:] = -np.sqrt(2) * motion[:, :3, :3].transpose(0, 2, 1)

  length = np.linalg.norm(residual, axis=-1)
  value = np.where(length > SMALLEST, length, (length**2 / SMALLEST + SMALLEST) / 2).sum()
  weight = 1 / np.maximum(length, SMALLEST)[..., None]
  flat = jacobian.reshape(residual.size, -1)
  weighted = (weight[..., None, None] * jacobian).reshape(residual.size, -1)
  return float(value), weighted.T @ flat, weighted.T @ residual.ravel()
