"""From the XYZ video that a model makes to points, depth and cameras."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.model import pointmap
from one4d_jax.postopt.fit import Cameras, fit_cameras
from one4d_jax.postopt.options import FitOptions


class Geometry(NamedTuple):
  """What an XYZ video says, up to one scale."""

  points: Float[np.ndarray, 'F H W 3']  # in the first camera's coordinates
  valid: Bool[np.ndarray, 'F H W']  # pixels that show a point
  z: Float[np.ndarray, 'F H W']  # of every pixel's point in its fitted camera, valid or not
  cameras: Cameras


def decode(code: Float[np.ndarray, 'F H W 3'], *, options: FitOptions = FitOptions()) -> Geometry:
  """Geometry of a decoded, normalised XYZ video, its cameras fitted as ``options`` say.

  Cameras are fitted to points that the code leaves on their rays. Beyond those, a pixel's depth is the z of its point
  in the fitted camera; the fit's own depth is ``cameras.depth``.

  Raises:
    DataError: too few such pixels in the whole clip.
  """
  points, valid, observed = read(code)
  cameras = fit_cameras(points, observed, options=options)
  return Geometry(points, valid, camera_z(points, cameras), cameras)


def read(
  code: Float[np.ndarray, 'F H W 3'],
) -> tuple[Float[np.ndarray, 'F H W 3'], Bool[np.ndarray, 'F H W'], Bool[np.ndarray, 'F H W']]:
  """Points of an XYZ video, which of them show something, and which of those serve to fit cameras.

  A pixel that is not finite counts as showing nothing.
  """
  code = np.where(np.isfinite(code).all(axis=-1, keepdims=True), code, np.float32(pointmap.FILL))
  points = pointmap.denormalise(pointmap.undo_soft_limit(code))
  return points, pointmap.valid_from_code(code), pointmap.observation_from_code(code)


def camera_z(points: Float[np.ndarray, 'F H W 3'], cameras: Cameras) -> Float[np.ndarray, 'F H W']:
  """The depth of each pixel's own point in its camera."""
  row = np.linalg.inv(cameras.world_from_cam.astype(np.float64))[:, 2]
  z = np.empty(points.shape[:3], np.float32)
  for i, frame in enumerate(points):  # one by one: float64 copies of a long clip would be its largest arrays
    z[i] = frame @ row[i, :3] + row[i, 3]
  return z
