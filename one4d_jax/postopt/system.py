"""The linear system of one step: frames coupled to their neighbours, and a few unknowns that all frames share.

  [ B   C ] [local ]        B: block tridiagonal, one block a frame      C: frames with the shared unknowns
  [ C^T D ] [shared]

solved by eliminating the frames: a banded LU of B, then the small Schur complement D - C^T B^-1 C. The cost grows
linearly with the frames. float64 on the host: it takes milliseconds, and float32 would cap the accuracy.
"""

import dataclasses

import numpy as np
import scipy.linalg
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class System:
  """Normal matrix and gradient."""

  own: Float[np.ndarray, 'F n n']
  next: Float[np.ndarray, 'F-1 n n']  # between a frame (rows) and the one after it (columns)
  border: Float[np.ndarray, 'F n s']
  corner: Float[np.ndarray, 's s']
  local: Float[np.ndarray, 'F n']
  shared: Float[np.ndarray, 's']

  def step(self, damping: float) -> tuple[Float[np.ndarray, 'F n'], Float[np.ndarray, 's']]:
    """The damped Gauss-Newton step. Raises numpy's or scipy's LinAlgError where the matrix is singular."""
    local, shared = self.solve(-self.local[..., None], -self.shared[:, None], damping)
    return local[..., 0], shared[:, 0]

  def solve(
    self, local: Float[np.ndarray, 'F n m'], shared: Float[np.ndarray, 's m'], damping: float
  ) -> tuple[Float[np.ndarray, 'F n m'], Float[np.ndarray, 's m']]:
    """The matrix, its diagonal scaled to one and ``damping`` added, inverted on ``m`` right-hand sides."""
    frames, n = self.local.shape
    scale, corner_scale = _scale(np.einsum('fii->fi', self.own)), _scale(np.diag(self.corner))
    band = _banded(
      self.own / (scale[:, :, None] * scale[:, None]) + damping * np.eye(n),
      self.next / (scale[:-1, :, None] * scale[1:, None]),
    )
    border = (self.border / (scale[..., None] * corner_scale)).reshape(frames * n, -1)
    corner = self.corner / np.outer(corner_scale, corner_scale) + damping * np.eye(len(self.shared))
    right = (local / scale[..., None]).reshape(frames * n, -1)
    width = (len(band) - 1) // 2
    inverted = scipy.linalg.solve_banded((width, width), band, np.concatenate([border, right], axis=1))
    with_border, with_right = np.split(inverted, [border.shape[1]], axis=1)
    schur = corner - border.T @ with_border
    found_shared = np.linalg.solve(schur, shared / corner_scale[:, None] - border.T @ with_right)
    found = (with_right - with_border @ found_shared).reshape(frames, n, -1)
    return found / scale[..., None], found_shared / corner_scale[:, None]


def _scale(diagonal: np.ndarray) -> np.ndarray:
  return np.sqrt(np.where(diagonal > 1e-20, diagonal, 1))


def _banded(own: Float[np.ndarray, 'F n n'], next: Float[np.ndarray, 'F-1 n n']) -> np.ndarray:
  """The block tridiagonal matrix in LAPACK's form: diagonals as rows."""
  frames, n = own.shape[:2]
  width = 2 * n - 1
  band = np.zeros((2 * width + 1, frames * n))

  def put(blocks, row, column):  # of the first block's corner
    i, a, b = np.indices(blocks.shape)
    rows, columns = i * n + a + row, i * n + b + column
    band[width + rows - columns, columns] = blocks

  put(own, 0, 0)
  if frames > 1:
    put(next, 0, n)
    put(next.transpose(0, 2, 1), n, 0)
  return band
