"""Pointmaps against ground truth: how far every pixel's point is from where it should be.

  point_rel   mean |S(X) - X*| / z*      z* the true planar depth of the pixel

S is the similarity (scale, rotation, shift) that takes the predicted points of the whole clip closest to the true ones
in the sense of least squares (Umeyama 1991): a pointmap has a world and a unit of its own. It counts what depth alone
does not see: the focal length, and whether the frames lie right in one world. NumPy float64.
"""

import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.errors import DataError
from one4d_jax.geometry.align import umeyama

MOST = 1_000_000  # pixels, taken evenly from all


def point_error(
  pred: Float[np.ndarray, 'F h w 3'],
  gt: Float[np.ndarray, 'F h w 3'],
  depth: Float[np.ndarray, 'F h w'],
  valid: Bool[np.ndarray, 'F h w'],
) -> float:
  """``point_rel`` over pixels where ``valid`` and ``pred`` is finite.

  Raises:
    DataError: no such pixel.
  """
  index = np.flatnonzero(valid & np.isfinite(pred).all(axis=-1))
  if not len(index):
    raise DataError('pointmap: no valid pixel to compare')
  index = index[:: -(-len(index) // MOST)]
  source, target = (a.reshape(-1, 3)[index].astype(np.float64) for a in (pred, gt))
  miss = np.linalg.norm(umeyama(source, target)(source) - target, axis=1)
  return float(np.mean(miss / depth.reshape(-1)[index]))
