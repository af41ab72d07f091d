"""Pointmaps as videos: depth and cameras to XYZ, XYZ to what the VAE sees, and back.

A pointmap holds, for every pixel of every frame, the seen point in the coordinates of the first camera
(OpenCV axes). The paper normalises it to [-1, 1] without saying how. Here, per clip and over valid pixels
(isotropic, so rays stay straight; fixed origin, so camera 0 sits at (0, 0, -1) and the scale can be left
unknown),

  S = max(q98 z, 2 q98 |x|, 2 q98 |y|),    (x, y, z)_n = (2x/S, 2y/S, 2z/S - 1).

Sky and invalid pixels carry no point. For the VAE they take one constant colour, ``FILL`` = (-1, -1, -1):
as far up and left as the clip reaches, yet at depth zero. What camera 0 sees satisfies |x_n| <= a (z_n + 1)
and |y_n| <= b (z_n + 1), with a, b the tangents of its half view angles, hence stays sqrt(2 - (a + b)^2 /
(1 + a^2 + b^2)) away from ``FILL``: 1.15 at 53 degrees, 0.82 at 90. A pixel is invalid when its code is
within ``TOLERANCE`` = 0.5. A later camera that looks backwards may see points there; they are dropped,
never misplaced. The corner lies in the range the VAE was trained on, and inside the soft limit.

NumPy only, and no ``checked`` (it loads JAX): data workers import this file.
"""

import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.errors import DataError, ShapeError

FILL = (-1.0, -1.0, -1.0)
TOLERANCE = 0.5  # Euclidean distance to FILL below which a decoded pixel is invalid
MARGIN = 0.25  # codes end at 1 + MARGIN
QUANTILE = 0.98
_STRAIGHT = 1.1  # up to this code the soft limit has moved a coordinate by less than 0.006


def _require(array: np.ndarray, name: str, layout: str, shape: tuple) -> None:
  if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
    raise ShapeError(f'{name}: expected {layout}, here {shape} with None for any size; got {array.shape}')


def from_depth(
  depth: Float[np.ndarray, 'F H W'],
  K: Float[np.ndarray, 'F 3 3'],
  world_from_cam: Float[np.ndarray, 'F 4 4'],
) -> Float[np.ndarray, 'F H W 3']:
  """Lifts planar depth to points in the first camera's coordinates (Eq. 11), in units of ``depth``, float32.

  A pixel of depth 0 lands on its camera's centre; the caller's mask says so.
  """
  _require(depth, 'depth', '[F H W]', (None, None, None))
  frames, height, width = depth.shape
  _require(K, 'K', '[F 3 3]', (frames, 3, 3))
  _require(world_from_cam, 'world_from_cam', '[F 4 4]', (frames, 4, 4))
  world_from_cam = world_from_cam.astype(np.float64)
  first_from_cam = np.linalg.inv(world_from_cam[0]) @ world_from_cam
  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
  first_from_pixel = first_from_cam[:, :3, :3] @ np.linalg.inv(K.astype(np.float64))
  rays = (pixels @ np.swapaxes(first_from_pixel, 1, 2)).reshape(frames, height, width, 3)
  return (depth[..., None] * rays + first_from_cam[:, None, None, :3, 3]).astype(np.float32)


def normalise(
  pointmap: Float[np.ndarray, 'F H W 3'], valid: Bool[np.ndarray, 'F H W']
) -> tuple[Float[np.ndarray, 'F H W 3'], float]:
  """The normalised pointmap, and S in units of ``pointmap``.

  Values are not limited: 98% of each coordinate lies in [-1, 1], the rest beyond. Invalid pixels become
  camera 0's centre, (0, 0, -1).

  Raises:
    DataError: no valid pixel, or valid points without extent or not finite.
    ShapeError: shapes that do not belong together.
  """
  _require(pointmap, 'pointmap', '[F H W 3]', (*valid.shape[:3], 3))
  points = pointmap[valid]
  if not len(points):
    raise DataError('pointmap: no valid pixel in the clip, so it has no scale; drop this clip')
  if not np.isfinite(points).all():
    raise DataError('pointmap: valid pixels hold NaN or infinity; mark them invalid first')
  reach = np.quantile(np.stack([points[:, 2], 2 * np.abs(points[:, 0]), 2 * np.abs(points[:, 1])]), QUANTILE, axis=1)
  S = float(reach.max())
  if not 1e-30 * np.abs(points).max() < S:  # the rest would be infinite
    raise DataError(f'pointmap: extent must be positive, got {S}; every valid point is at or behind the first camera')
  scaled = np.where(valid[..., None], pointmap, 0) * np.float32(2 / S)
  scaled[..., 2] -= 1
  return scaled.astype(np.float32), S


def denormalise(normalised: Float[np.ndarray, 'F H W 3'], S: float = 2.0) -> Float[np.ndarray, 'F H W 3']:
  """Undoes ``normalise``. With S unknown, the default gives the scene up to scale, its origin exact."""
  return ((normalised + np.asarray([0, 0, 1], np.float32)) * np.float32(S / 2)).astype(np.float32)


def soft_limit(x: np.ndarray) -> np.ndarray:
  """Identity within [-1, 1], then a smooth approach to +-(1 + MARGIN), sign kept."""
  size = np.abs(x)
  return np.where(size <= 1, x, np.sign(x) * (1 + MARGIN * np.tanh((size - 1) / MARGIN))).astype(np.float32)


def undo_soft_limit(code: np.ndarray) -> np.ndarray:
  """Inverse of ``soft_limit`` up to 90% of the margin; codes beyond, mostly noise, are cut there."""
  size = np.abs(code)
  far = 1 + MARGIN * np.arctanh(np.clip((size - 1) / MARGIN, 0, 0.9))
  return np.where(size <= 1, code, np.sign(code) * far).astype(np.float32)


def encode_input(
  normalised: Float[np.ndarray, 'F H W 3'], valid: Bool[np.ndarray, 'F H W']
) -> Float[np.ndarray, 'F H W 3']:
  """The XYZ video for the VAE: soft-limited points, ``FILL`` where there is none."""
  _require(normalised, 'normalised', '[F H W 3]', (*valid.shape[:3], 3))
  return np.where(valid[..., None], soft_limit(normalised), np.float32(FILL)).astype(np.float32)


def valid_from_code(decoded: Float[np.ndarray, 'F H W 3']) -> Bool[np.ndarray, 'F H W']:
  """True where a decoded XYZ video shows a point, not ``FILL`` (and not NaN)."""
  return np.linalg.norm(decoded - np.float32(FILL), axis=-1) > TOLERANCE


def observation_from_code(decoded: Float[np.ndarray, 'F H W 3']) -> Bool[np.ndarray, 'F H W']:
  """True where a decoded point may serve to fit cameras: valid, and not bent off its ray by the soft limit."""
  return valid_from_code(decoded) & (np.abs(decoded) <= _STRAIGHT).all(axis=-1)
