"""Pinhole cameras: OpenCV axes (x right, y down, z forward), pixel centres at (u + 0.5, v + 0.5), planar depth.

Every product runs at ``precision=HIGHEST``: the default of accelerators would cap geometry near 1e-3.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from one4d_jax.checks import checked

HIGHEST = jax.lax.Precision.HIGHEST


@checked
def intrinsics(focal: Float[Array, '*b'], height: int, width: int) -> Float[Array, '*b 3 3']:
  """K of square pixels, focal length in pixels, principal point in the middle."""
  diagonal = jnp.diag(jnp.asarray([1, 1, 0], focal.dtype))
  centre = jnp.asarray([[0, 0, width / 2], [0, 0, height / 2], [0, 0, 1]], focal.dtype)
  return focal[..., None, None] * diagonal + centre


def crop_resize(
  K: Float[np.ndarray, '*b 3 3'], *, origin: tuple[float, float] = (0, 0), scale: tuple[float, float] = (1, 1)
) -> Float[np.ndarray, '*b 3 3']:
  """K after a crop whose corner is ``origin`` = (x, y) in old pixels, then a resize by ``scale`` = (x, y). NumPy.

  Depth and pointmaps must be resized by nearest neighbour: a mean of two surfaces lies on neither.
  """
  left, top = origin
  update = np.array([[scale[0], 0, -scale[0] * left], [0, scale[1], -scale[1] * top], [0, 0, 1]], K.dtype)
  return update @ K


@checked
def rays(K: Float[Array, '*b 3 3'], height: int, width: int) -> Float[Array, '*b {height} {width} 3']:
  """Rays K^-1 (u, v, 1) through the pixel centres, in camera axes; their third component is 1."""
  u, v = jnp.meshgrid(jnp.arange(width, dtype=K.dtype) + 0.5, jnp.arange(height, dtype=K.dtype) + 0.5)
  pixels = jnp.stack([u, v, jnp.ones_like(u)], axis=-1)
  return jnp.einsum('...ij,hwj->...hwi', jnp.linalg.inv(K), pixels, precision=HIGHEST)


@checked
def transform(matrix: Float[Array, '*b 4 4'], points: Float[Array, '*b h w 3']) -> Float[Array, '*b h w 3']:
  """Rigid motion of the points of each frame."""
  rotated = jnp.einsum('...ij,...hwj->...hwi', matrix[..., :3, :3], points, precision=HIGHEST)
  return rotated + matrix[..., None, None, :3, 3]


@checked
def unproject(
  depth: Float[Array, '*b h w'], K: Float[Array, '*b 3 3'], world_from_cam: Float[Array, '*b 4 4']
) -> Float[Array, '*b h w 3']:
  """World points of planar depth: X = R^T (D K^-1 (u, v, 1)) + o (Eq. 11)."""
  return transform(world_from_cam, depth[..., None] * rays(K, *depth.shape[-2:]))


@checked
def project(
  points: Float[Array, '*b h w 3'], K: Float[Array, '*b 3 3'], world_from_cam: Float[Array, '*b 4 4']
) -> tuple[Float[Array, '*b h w 2'], Float[Array, '*b h w']]:
  """Pixel coordinates (u, v) and planar depth of world points. Where depth <= 0 the pixel means nothing."""
  rotation, centre = world_from_cam[..., :3, :3], world_from_cam[..., :3, 3]
  in_cam = jnp.einsum('...ji,...hwj->...hwi', rotation, points - centre[..., None, None, :], precision=HIGHEST)
  pixels = jnp.einsum('...ij,...hwj->...hwi', K, in_cam, precision=HIGHEST)
  return pixels[..., :2] / pixels[..., 2:], in_cam[..., 2]
