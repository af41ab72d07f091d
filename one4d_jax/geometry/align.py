"""Closed-form alignments: similarity of point sets, scale and shift of depths, angles. NumPy, float64 inside."""

import dataclasses

import numpy as np
from jaxtyping import Float

from one4d_jax.errors import DataError, ShapeError


@dataclasses.dataclass(frozen=True)
class Similarity:
  """x -> scale * rotation @ x + translation."""

  scale: float
  rotation: Float[np.ndarray, '3 3']
  translation: Float[np.ndarray, '3']

  def __call__(self, points: Float[np.ndarray, '*b 3']) -> Float[np.ndarray, '*b 3']:
    return self.scale * points @ self.rotation.T + self.translation

  def pose(self, world_from_cam: Float[np.ndarray, '*b 4 4']) -> Float[np.ndarray, '*b 4 4']:
    """Cameras in the aligned world: rotated and moved, their own axes not scaled."""
    moved = np.array(world_from_cam)
    moved[..., :3, :3] = self.rotation @ world_from_cam[..., :3, :3]
    moved[..., :3, 3] = self(world_from_cam[..., :3, 3])
    return moved


def umeyama(
  source: Float[np.ndarray, 'n 3'],
  target: Float[np.ndarray, 'n 3'],
  *,
  weight: Float[np.ndarray, 'n'] | None = None,
  with_scale: bool = True,
) -> Similarity:
  """The similarity (or rigid motion) that brings ``source`` closest to ``target`` (Umeyama 1991).

  Points on one line leave the rotation about it free: the smallest one is not guaranteed. A source that is a
  single point gets scale 1.

  Raises:
    ShapeError: not two [n 3] arrays.
    DataError: no point, or values that are not finite.
  """
  if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
    raise ShapeError(f'umeyama: expected two arrays [n 3], got {source.shape} and {target.shape}')
  if not len(source) or not (np.isfinite(source).all() and np.isfinite(target).all()):
    raise DataError(f'umeyama: needs at least one point and finite values, got {len(source)} points')
  w = np.ones(len(source)) if weight is None else weight.astype(np.float64)
  w = w / w.sum()
  source, target = source.astype(np.float64), target.astype(np.float64)
  source_mean, target_mean = w @ source, w @ target
  x, y = source - source_mean, target - target_mean
  left, size, right = np.linalg.svd((w[:, None] * y).T @ x)
  sign = np.array([1, 1, np.sign(np.linalg.det(left) * np.linalg.det(right))])
  rotation = left @ (sign[:, None] * right)
  variance = w @ np.square(x).sum(axis=1)
  scale = float(size @ sign / variance) if with_scale and variance > 0 else 1.0
  return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def scale_shift(source: Float[np.ndarray, 'n'], target: Float[np.ndarray, 'n']) -> tuple[float, float]:
  """(s, t) that minimise the sum of squares of s * source + t - target.

  Raises:
    DataError: no value, or a source that does not determine the scale.
  """
  x, y = source.astype(np.float64).ravel(), target.astype(np.float64).ravel()
  if not x.size:
    raise DataError('scale_shift: no value to align')
  x_mean, y_mean = x.mean(), y.mean()
  spread = np.square(x - x_mean).sum()
  if not spread > 0:
    raise DataError('scale_shift: the source is constant, its scale is not determined')
  scale = (x - x_mean) @ (y - y_mean) / spread
  return float(scale), float(y_mean - scale * x_mean)


def nearest_rotation(matrix: Float[np.ndarray, '*b 3 3']) -> Float[np.ndarray, '*b 3 3']:
  """Projection to SO(3)."""
  left, _, right = np.linalg.svd(matrix)
  left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]
  return left @ right


def angle(rotation: Float[np.ndarray, '*b 3 3']) -> Float[np.ndarray, '*b']:
  """Angle of rotations in radians, accurate near 0 and pi."""
  skew = rotation - np.swapaxes(rotation, -1, -2)
  sine = np.linalg.norm(skew[..., [2, 0, 1], [1, 2, 0]], axis=-1) / 2
  return np.arctan2(sine, (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2)
