"""Do geometry and colours of a generated video belong together? Where geometry breaks, colours should change.

  geometry edges   neighbours whose depths differ by more than 10%, and, away from those, neighbours between which the
                   normal turns by more than 30 degrees within three pixels: the reach of the differences it is made of
  colour edges     of each frame, the tenth of its pixels with the largest Sobel gradient of luma (none without any)
  hit              share of geometry edges that have a colour edge within one pixel
  chance           the same for any pixel: what edges in arbitrary places would hit

  edges = (hit - chance) / (1 - chance)     1: every edge of the geometry is one of the picture; 0: as if unrelated

The other way round says nothing: textures have edges that geometry has not. NumPy float64.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

JUMP, ANGLE, SHARE = 0.1, 30.0, 0.1
_LUMA = np.array([0.299, 0.587, 0.114])


def edge_agreement(
  depth: Float[np.ndarray, 'F h w'],
  valid: Bool[np.ndarray, 'F h w'],
  K: Float[np.ndarray, 'F 3 3'],
  rgb: Float[np.ndarray, 'F h w 3'],
) -> float | None:
  """``edges`` over all frames; None where the geometry has none. ``rgb`` may have any range."""
  hits = edges = near = pixels = 0
  for frame in zip(depth, valid, K, rgb, strict=True):
    broken = geometry_edges(*frame[:3])
    close = ndimage.binary_dilation(colour_edges(frame[3]), np.ones((3, 3)))
    hits, edges = hits + (broken & close).sum(), edges + broken.sum()
    near, pixels = near + close.sum(), pixels + close.size
  if not edges or near == pixels:
    return None
  chance = near / pixels
  return float((hits / edges - chance) / (1 - chance))


def geometry_edges(
  depth: Float[np.ndarray, 'h w'], valid: Bool[np.ndarray, 'h w'], K: Float[np.ndarray, '3 3']
) -> Bool[np.ndarray, 'h w']:
  """Both pixels of every pair of neighbours between which the surface breaks off or bends. Invalid ones have none."""
  z = np.where(valid, depth, np.nan).astype(np.float64)
  v, u = np.mgrid[: z.shape[0], : z.shape[1]] + 0.5
  points = np.stack([(u - K[0, 2]) / K[0, 0] * z, (v - K[1, 2]) / K[1, 1] * z, z], axis=-1)
  normal = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
  broken, bent = np.zeros(z.shape, bool), np.zeros(z.shape, bool)
  with np.errstate(invalid='ignore', divide='ignore'):
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    for axis in (0, 1):
      part = lambda array, start, stop, axis=axis: np.moveaxis(array, axis, 0)[start : stop or None]
      jump = np.maximum(part(z, 0, -1), part(z, 1, 0)) > (1 + JUMP) * np.minimum(part(z, 0, -1), part(z, 1, 0))
      _mark(part(broken, 0, -1), part(broken, 1, 0), jump)
    normal[broken] = np.nan  # a difference across a break is none of a surface
    for axis in (0, 1):
      part = lambda array, start, stop, axis=axis: np.moveaxis(array, axis, 0)[start : stop or None]
      turn = (part(normal, 0, -3) * part(normal, 3, 0)).sum(axis=-1) < np.cos(np.radians(ANGLE))
      _mark(part(bent, 1, -2), part(bent, 2, -1), turn)
  return broken | bent


def _mark(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> None:
  """Both of the neighbours, which are views."""
  a |= where
  b |= where


def colour_edges(rgb: Float[np.ndarray, 'h w 3']) -> Bool[np.ndarray, 'h w']:
  """The strongest tenth of the gradients, as far as there is any."""
  luma = rgb.astype(np.float64) @ _LUMA
  strength = np.hypot(ndimage.sobel(luma, 0), ndimage.sobel(luma, 1))
  return (strength > 1e-9 * max(np.abs(luma).max(), 1e-9)) & (strength >= np.quantile(strength, 1 - SHARE))
