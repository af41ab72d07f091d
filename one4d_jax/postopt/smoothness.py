"""Camera smoothness (Eq. 12) by iteratively reweighted least squares.

||R_i^T R_(i+1) - I||_F is sqrt(2) theta for a relative rotation by a small angle theta, so both norms are lengths:
of sqrt(2) log(R_i^T R_(i+1)) and of o_(i+1) - o_i. A length |x| is majorised by |x|^2 / (2 c) + c / 2 at c = |x|.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from one4d_jax.geometry import se3

SMALLEST = 1e-4  # lengths below it (radians, median distances) count as squares: no division by zero


class Chain(NamedTuple):
  """Value, gradient and normal matrix of a sum over neighbouring frames, for the steps (v, omega) of each camera."""

  value: float
  gradient: Float[np.ndarray, 'F 6']
  own: Float[np.ndarray, 'F 6 6']
  next: Float[np.ndarray, 'F-1 6 6']  # between a frame (rows) and the one after it (columns)


@jax.jit
def _motions(pose: Float[Array, 'F 4 4']) -> tuple[Float[Array, 'n 4 4'], Float[Array, 'n 6']]:
  """From each frame to the next, and their tangents."""
  motion = se3.relative(pose)
  return motion, se3.log(motion)


def smoothness_equations(pose: Float[Array, 'F 4 4']) -> Chain:
  """Eq. 12's L_s as a chain; float64."""
  motion, tangent = (np.asarray(x, np.float64) for x in _motions(pose))
  pose = np.asarray(pose, np.float64)
  pairs, rotation, centre = len(motion), pose[:, :3, :3], pose[:, :3, 3]
  residual = np.stack([centre[1:] - centre[:-1], np.sqrt(2) * tangent[:, 3:]], axis=1)  # [n 2 3]
  before, after = np.zeros((2, pairs, 2, 3, 6))
  after[:, 0, :, :3] = rotation[1:]  # a step v moves the centre by R v
  before[:, 0, :, :3] = -rotation[:-1]
  after[:, 1, :, 3:] = np.sqrt(2) * np.eye(3)
  before[:, 1, :, 3:] = -np.sqrt(2) * motion[:, :3, :3].transpose(0, 2, 1)

  length = np.linalg.norm(residual, axis=-1)
  value = np.where(length > SMALLEST, length, (length**2 / SMALLEST + SMALLEST) / 2).sum()
  weight = 1 / np.maximum(length, SMALLEST)
  product = lambda a, b: np.einsum('nk,nkia,nkib->nab', weight, a, b)
  own, gradient = np.zeros((pairs + 1, 6, 6)), np.zeros((pairs + 1, 6))
  own[:-1] += product(before, before)
  own[1:] += product(after, after)
  gradient[:-1] += np.einsum('nk,nkia,nki->na', weight, before, residual)
  gradient[1:] += np.einsum('nk,nkia,nki->na', weight, after, residual)
  return Chain(float(value), gradient, own, product(before, after))
