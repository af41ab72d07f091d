"""Which points of a scene stand still: what one frame saw is tested against the free space of the others. NumPy only.

A point is put into another frame's image. That frame then looks through it (its own surface lies behind), sees it (its
surface is there), or cannot see it (its surface is in front, or the point is outside the image).
"""

import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.viewer.scene import Scene

_TYPICAL = 20_000  # points that measure how well the frames agree


def static_points(scene: Scene, *, partners: int = 12, tolerance: float = 0.02) -> Bool[np.ndarray, 'F H W']:
  """Valid points that no other frame contradicts: none looks through them, and one at least sees them there.

  Every frame is compared with its neighbours and with ``partners`` frames spread over the clip. A point that no
  compared frame has in its image passes. What moves by less than its own size in the image, and hardly in depth,
  cannot be told from a still body this way.

  Args:
    tolerance: differences of depth that mean nothing, relative to it; more where the frames agree less than that.
  """
  usable = scene.valid & (scene.depth > 0) & np.isfinite(scene.pointmap).all(axis=-1) & np.isfinite(scene.depth)
  points = np.where(usable[..., None], scene.pointmap, 0).reshape(scene.frames, -1, 3)
  depth = np.where(usable, scene.depth, np.inf)  # the sky is behind everything
  tolerance = max(tolerance, 4 * _disagreement(scene, points, usable, depth))
  inside, seen, through = np.zeros((3, scene.frames, depth[0].size), bool)
  spread = set(np.linspace(0, scene.frames - 1, min(partners, scene.frames)).round().astype(int).tolist())
  for j in range(scene.frames):
    nearest = _least_around(depth[j]).ravel()
    for i in range(scene.frames) if j in spread else (j - 1, j + 1):
      if i == j or not 0 <= i < scene.frames:
        continue
      z, pixel, within = project(scene, j, points[i])
      surface = depth[j].ravel()[pixel]
      inside[i] |= within
      seen[i] |= within & (np.abs(z / surface - 1) <= tolerance)
      through[i] |= within & (z < (1 - tolerance) * nearest[pixel])
  return usable & (~through & (seen | ~inside)).reshape(usable.shape)


def project(
  scene: Scene, frame: int, points: Float[np.ndarray, 'n 3']
) -> tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n'], Bool[np.ndarray, 'n']]:
  """World points in a frame: planar depth, index of the pixel they fall on, and whether they are in the image."""
  height, width = scene.size
  matrix = scene.K[frame] @ np.linalg.inv(scene.world_from_cam[frame].astype(np.float64))[:3]
  x, y, z = matrix[:, :3].astype(np.float32) @ points.T + matrix[:, 3:].astype(np.float32)
  ahead = np.maximum(z, np.float32(1e-12))
  u, v = np.floor(x / ahead), np.floor(y / ahead)
  within = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
  pixel = np.where(within, v * width + u, 0).astype(np.int32)
  return z, pixel, within


def _disagreement(scene: Scene, points, usable, depth) -> float:
  """Median difference of depth between neighbouring frames, relative; 0 for a single frame."""
  found = []
  flat = usable.reshape(scene.frames, -1)
  for j in range(1, scene.frames):
    chosen = np.flatnonzero(flat[j - 1])
    chosen = chosen[:: max(len(chosen) * scene.frames // _TYPICAL, 1)]
    z, pixel, within = project(scene, j, points[j - 1, chosen])
    surface = depth[j].ravel()[pixel]
    found.append(np.abs(z / surface - 1)[within & np.isfinite(surface)])
  found = np.concatenate(found) if found else np.zeros(0)
  return float(np.median(found)) if found.size else 0.0


def _least_around(depth: Float[np.ndarray, 'H W']) -> Float[np.ndarray, 'H W']:
  """The least depth of each pixel and its eight neighbours: a point beside a depth edge is not looked through."""
  for axis in (0, 1):
    padded = np.pad(depth, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode='edge')
    size = depth.shape[axis]
    depth = np.minimum.reduce([padded.take(range(k, k + size), axis) for k in range(3)])
  return depth
