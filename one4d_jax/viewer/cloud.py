"""The static points of a whole clip as one cloud, each place once. NumPy only."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from one4d_jax.viewer.scene import Scene
from one4d_jax.viewer.static import usable_points

_FAR = 2.0**40  # cells from the origin: beyond any that float32 tells apart


class Cloud(NamedTuple):
  """Points of a scene, in its unit. ``first`` is the first pixel of each, counted through the whole clip."""

  points: Float[np.ndarray, 'n 3']
  colours: UInt8[np.ndarray, 'n 3']
  first: Int[np.ndarray, 'n']


def merge(scene: Scene, chosen: Bool[np.ndarray, 'F H W']) -> Cloud:
  """The chosen points, averaged where several fall into one cell of a grid.

  Cells are as wide as a pixel sees at the point's distance, to the nearest power of two: near things keep their detail
  and far ones are not stored again with every frame.
  """
  whole, waiting, pixels = None, [], chosen[0].size
  chosen = chosen & usable_points(scene)
  for i in range(scene.frames):
    pixel = np.flatnonzero(chosen[i])
    points = scene.pointmap[i].reshape(-1, 3)[pixel].astype(np.float64)
    level = np.round(np.log2(scene.depth[i].ravel()[pixel] / scene.K[i, 0, 0])).astype(np.int64)
    cells = np.clip(np.floor(points / np.exp2(level)[:, None]), -_FAR, _FAR).astype(np.int64)
    values = np.concatenate([points, scene.rgb[i].reshape(-1, 3)[pixel], np.ones((len(pixel), 1))], axis=1)
    waiting.append(_unite([(_key(level, cells), i * pixels + pixel, values)]))
    if i == scene.frames - 1 or sum(len(part[0]) for part in waiting) > 2_000_000:  # few large sorts, little memory
      whole = _unite([*([] if whole is None else [whole]), *waiting])
      waiting = []
  _, first, values = whole
  mean = values[:, :6] / values[:, 6:]
  return Cloud(mean[:, :3].astype(np.float32), np.round(mean[:, 3:]).astype(np.uint8), first)


def _key(level: Int[np.ndarray, 'n'], cells: Int[np.ndarray, 'n 3']) -> Int[np.ndarray, 'n']:
  """One number for a cell; cells that share it lie half a million cells apart, so never in one picture."""
  x, y, z = (cells & (1 << 19) - 1).T
  return (level & 63) << 57 | x << 38 | y << 19 | z


def _unite(parts):
  """Rows (key, first pixel, sums) with equal keys added up; the earliest pixel stays."""
  key, first, values = (np.concatenate(a) for a in zip(*parts, strict=True))
  order = np.argsort(key, kind='stable')
  starts = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]))
  if not len(starts):
    return key, first, values
  return key[order[starts]], first[order[starts]], np.add.reduceat(values[order], starts, axis=0)
