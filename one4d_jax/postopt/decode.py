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
  points = pointmap.denormalise(pointmap.undo_soft_limit(code))
  cameras = fit_cameras(points, pointmap.observation_from_code(code), options=options)
  row = np.linalg.inv(cameras.world_from_cam.astype(np.float64))[:, 2]
  z = np.einsum('fi,fhwi->fhw', row[:, :3], points) + row[:, 3, None, None]
  return Geometry(points, pointmap.valid_from_code(code), z, cameras)
