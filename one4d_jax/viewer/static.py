"""Which points of a scene stand still: what one frame saw is tested against the free space of the others. NumPy only.

A point is put into another frame's image. That frame then looks through it (its own surface lies behind), sees it (its
surface is there), or cannot see it (its surface is in front, or the point is outside the image).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from one4d_jax.viewer.scene import Scene

_TYPICAL = 20_000  # points that measure how well the frames agree


class Projection(NamedTuple):
  """Where points fall in a frame; ``pixel`` is the index of that pixel in the image, 0 where outside."""

  u: Float[np.ndarray, 'n']
  v: Float[np.ndarray, 'n']
  z: Float[np.ndarray, 'n']
  inside: Bool[np.ndarray, 'n']
  pixel: Int[np.ndarray, 'n']


def static_points(scene: Scene, *, partners: int = 12, tolerance: float = 0.02) -> Bool[np.ndarray, 'F H W']:
  """Valid points that no other frame contradicts: none looks through them, and one at least sees them there.

  Every frame is compared with its neighbours and with ``partners`` frames spread over the clip. A point that no
  compared frame has in its image passes. What moves by less than its own size in the image, and hardly in depth,
  cannot be told from a still body this way.

  Args:
    tolerance: differences of depth that mean nothing, relative to it; more where the frames agree less than that.
  """
  usable = usable_points(scene)
  points = np.where(usable[..., None], scene.pointmap, 0).reshape(scene.frames, -1, 3)
  depth = surfaces(scene, usable)
  tolerance = depth_tolerance(scene, least=tolerance)
  inside, seen, through = np.zeros((3, scene.frames, depth[0].size), bool)
  spread = set(np.linspace(0, scene.frames - 1, min(partners, scene.frames)).round().astype(int).tolist())
  for j in range(scene.frames):
    nearest = _least_around(depth[j]).ravel()
    for i in range(scene.frames) if j in spread else (j - 1, j + 1):
      if i == j or not 0 <= i < scene.frames:
        continue
      at = project(scene, j, points[i])
      inside[i] |= at.inside
      seen[i] |= agrees(at, depth[j], tolerance)
      through[i] |= at.inside & (at.z < (1 - tolerance) * nearest[at.pixel])
  return usable & (~through & (seen | ~inside)).reshape(usable.shape)


def usable_points(scene: Scene) -> Bool[np.ndarray, 'F H W']:
  """Valid pixels whose point and depth are numbers."""
  return scene.valid & (scene.depth > 0) & np.isfinite(scene.depth) & np.isfinite(scene.pointmap).all(axis=-1)


def surfaces(scene: Scene, usable: Bool[np.ndarray, 'F H W']) -> Float[np.ndarray, 'F H W']:
  """Depth of what each pixel shows; the sky is behind everything."""
  return np.where(usable, scene.depth, np.float32(np.inf))


def project(scene: Scene, frame: int, points: Float[np.ndarray, 'n 3']) -> Projection:
  """World points in the image of a frame."""
  height, width = scene.size
  matrix = scene.K[frame].astype(np.float64) @ np.linalg.inv(scene.world_from_cam[frame].astype(np.float64))[:3]
  x, y, z = matrix[:, :3].astype(points.dtype) @ points.T + matrix[:, 3:].astype(points.dtype)
  ahead = np.maximum(z, np.float32(1e-12))
  u, v = x / ahead, y / ahead
  inside = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
  column, row = (np.where(inside, a, 0).astype(np.int32) for a in (u, v))
  return Projection(u, v, z, inside, row * width + column)


def agrees(at: Projection, surface: Float[np.ndarray, 'H W'], tolerance: float) -> Bool[np.ndarray, 'n']:
  """Points that a frame with these surfaces sees."""
  return at.inside & (np.abs(at.z / surface.ravel()[at.pixel] - 1) <= tolerance)


def depth_tolerance(scene: Scene, *, least: float = 0.02) -> float:
  """Relative differences of depth that mean nothing: four times the median one between neighbouring frames.

  At most 0.5: nothing could be looked through where any difference means nothing.
  """
  usable = usable_points(scene)
  depth = surfaces(scene, usable)
  found = [np.zeros(0, np.float32)]
  for j in range(1, scene.frames):
    chosen = np.flatnonzero(usable[j - 1])
    chosen = chosen[:: max(len(chosen) * scene.frames // _TYPICAL, 1)]
    at = project(scene, j, scene.pointmap[j - 1].reshape(-1, 3)[chosen])
    surface = depth[j].ravel()[at.pixel]
    found.append(np.abs(at.z / surface - 1)[at.inside & np.isfinite(surface)])
  found = np.concatenate(found)
  return min(max(least, 4 * float(np.median(found))), 0.5) if found.size else least


def tracks(
  scene: Scene, first: Int[np.ndarray, 'n']
) -> Iterator[tuple[Int[np.ndarray, 'm'], Float[np.ndarray, 'm 2'], Float[np.ndarray, 'm']]]:
  """For every frame in turn: which of the points it sees, where in its image, and how many pixels from where they fall.

  ``first`` are pixels of the whole clip, counted frame by frame and row by row. A pixel's own frame sees its point at
  its centre, another where the point falls.
  """
  width = scene.size[1]
  depth, tolerance = surfaces(scene, usable_points(scene)), depth_tolerance(scene)
  points = scene.pointmap.reshape(-1, 3)[first].astype(np.float64)
  own, pixel = np.divmod(first, depth[0].size)
  centre = np.stack([pixel % width + 0.5, pixel // width + 0.5], axis=-1)
  for j in range(scene.frames):
    at = project(scene, j, points)
    seen = np.flatnonzero(agrees(at, depth[j], tolerance) | (own == j))
    falls = np.stack([at.u, at.v], axis=-1)[seen]
    place = np.where((own[seen] == j)[:, None], centre[seen], falls)
    yield seen, place, np.linalg.norm(place - falls, axis=-1)


def _least_around(depth: Float[np.ndarray, 'H W']) -> Float[np.ndarray, 'H W']:
  """The least depth of each pixel and its eight neighbours: a point beside a depth edge is not looked through."""
  for axis in (0, 1):
    padded = np.pad(depth, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode='edge')
    size = depth.shape[axis]
    depth = np.minimum.reduce([padded.take(range(k, k + size), axis) for k in range(3)])
  return depth
