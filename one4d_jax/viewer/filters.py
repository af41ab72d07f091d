"""Which pixels of a scene are worth showing, and how large: how sure a point is, depth edges, how many. NumPy only."""

import numpy as np
from jaxtyping import Bool, Float, Float32

from one4d_jax.viewer.scene import Scene
from one4d_jax.viewer.static import usable_points

_LEVELS = 1001  # steps of confidence
_REACH = 4  # pixels to either side that say how steep is usual


def confidence(scene: Scene) -> Float32[np.ndarray, 'F H W']:
  """How well each point agrees with the camera that was fitted to all: its rank within the clip, 1 best, 0 unusable.

  The measure is the distance of the point from the ray of its pixel, over its depth. A share r of all usable points
  misses by as much as a point of rank r, or by more.
  """
  usable = usable_points(scene)
  miss = np.stack([_miss(scene, i) for i in range(scene.frames)])
  known = miss[usable]
  if not known.size:
    return np.zeros(usable.shape, np.float32)
  levels = np.quantile(known[:: max(known.size // 2_000_000, 1)], np.linspace(0, 1, _LEVELS))
  rank = 1 - np.searchsorted(levels, miss, side='left') / np.float32(_LEVELS)
  return np.where(usable, rank, 0).astype(np.float32)


def _miss(scene: Scene, i: int) -> Float[np.ndarray, 'H W']:
  """Distance of each point of a frame from its pixel's ray, over its depth."""
  height, width = scene.size
  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(scene.K[i].astype(np.float64)).T
  rays = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(np.float32)
  pose = scene.world_from_cam[i]
  with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
    points = (scene.pointmap[i] - pose[:3, 3]) @ pose[:3, :3]
    along = sum(points[..., c] * rays[..., c] for c in range(3))
    beside = sum((points[..., c] - along * rays[..., c]) ** 2 for c in range(3))
    return np.nan_to_num(np.sqrt(beside) / scene.depth[i], nan=np.inf)


def depth_edges(
  depth: Float[np.ndarray, 'F H W'], valid: Bool[np.ndarray, 'F H W'], *, jump: float = 0.03, steep: float = 3.0
) -> Bool[np.ndarray, 'F H W']:
  """Pixels that fly between two surfaces, along rows or columns.

  Inverse depth is linear across any plane, however slanted. A pixel flies where it rises (or falls) on both sides by
  more than ``jump`` of itself and ``steep`` times more than is usual (median) within four pixels.
  """
  inverse = np.divide(1, depth, out=np.zeros(depth.shape, np.float32), where=valid & (depth > 0))
  along_columns = _ramps(np.swapaxes(inverse, 1, 2), jump, steep)
  return valid & (_ramps(inverse, jump, steep) | np.swapaxes(along_columns, 1, 2))


def _ramps(values: np.ndarray, jump: float, steep: float) -> np.ndarray:
  rise = np.diff(values, axis=-1)
  before, after = rise[..., :-1], rise[..., 1:]
  least = np.where(before * after > 0, np.minimum(np.abs(before), np.abs(after)), 0)
  flying = np.zeros(values.shape, bool)
  flying[..., 1:-1] = least > jump * values[..., 1:-1]
  *where, column = np.nonzero(flying)
  around = np.clip(column[:, None] + np.arange(-_REACH, _REACH), 0, rise.shape[-1] - 1)
  usual = np.median(np.abs(rise[(*(axis[:, None] for axis in where), around)]), axis=-1)
  flying[(*where, column)] = least[(*where, column - 1)] > steep * usual
  return flying


def stride_for(scene: Scene, most: int) -> int:
  """The least stride of rows and columns that leaves at most so many points over all frames."""
  return max(int(np.ceil(np.sqrt(scene.valid.size / most))), 1)


def spacing(
  scene: Scene, i: int, usable: Bool[np.ndarray, 'H W'], *, stride: int = 1, most: float = 2.0
) -> Float[np.ndarray, 'h w']:
  """How far the usable points of frame ``i`` lie from the next ones, in the scene's unit: discs that wide close gaps.

  Of every ``stride``-th row and column. At least what so many pixels see at that depth, at most ``most`` times that:
  no surface reaches across a depth edge.
  """
  grid = np.s_[::stride, ::stride]
  points = np.where(usable[grid][..., None], scene.pointmap[i][grid], np.float32(np.nan))
  apart = [_nearest_along(points, axis) for axis in (0, 1)]
  pixel = stride * scene.depth[i][grid] / min(scene.K[i, 0, 0], scene.K[i, 1, 1])
  return np.fmin(np.fmax(np.fmax(*apart), pixel), most * pixel)


def _nearest_along(points: np.ndarray, axis: int) -> np.ndarray:
  """Distance to the nearer neighbour along an axis; NaN where there is none."""
  step = np.diff(points, axis=axis)
  step = np.sqrt(sum(step[..., c] ** 2 for c in range(3)))
  ends = [[sides if a == axis else (0, 0) for a in (0, 1)] for sides in ((1, 0), (0, 1))]
  return np.fmin(*(np.pad(step, widths, constant_values=np.nan) for widths in ends))
