"""Cameras: projection and its inverse, K under crop and resize, and compiled results against NumPy."""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from one4d_jax.geometry import camera
from one4d_jax.model import pointmap


def cameras(frames, height, width, seed=0):
  """Random K, world_from_cam and depth."""
  rng = np.random.default_rng(seed)
  tangent = rng.normal(0, 0.3, (frames, 6)).astype(np.float32)
  K = camera.intrinsics(jnp.asarray(rng.uniform(0.7, 1.3, frames).astype(np.float32) * width), height, width)
  depth = rng.uniform(1, 6, (frames, height, width)).astype(np.float32)
  return jnp.asarray(depth), K, jaxlie.SE3.exp(jnp.asarray(tangent)).as_matrix()


def test_project_undoes_unproject():
  depth, K, pose = cameras(3, 12, 16)
  pixels, z = camera.project(camera.unproject(depth, K, pose), K, pose)
  u, v = np.meshgrid(np.arange(16) + 0.5, np.arange(12) + 0.5)
  np.testing.assert_allclose(pixels, np.broadcast_to(np.stack([u, v], -1), pixels.shape), atol=1e-3)
  np.testing.assert_allclose(z, depth, rtol=1e-5)


def test_any_leading_axes():
  depth, K, pose = cameras(1, 4, 6)
  np.testing.assert_allclose(camera.unproject(depth[0], K[0], pose[0]), camera.unproject(depth, K, pose)[0], rtol=1e-6)


def test_centre_pixel_of_an_odd_image_looks_forward():
  K = camera.intrinsics(jnp.float32(20.0), 5, 7)
  np.testing.assert_allclose(camera.rays(K, 5, 7)[2, 3], [0, 0, 1], atol=1e-6)


@pytest.mark.parametrize(('origin', 'scale'), [((3, 2), (1, 1)), ((0, 0), (0.5, 0.25)), ((4, 1), (2, 3))])
def test_crop_and_resize_move_pixels_as_they_should(origin, scale):
  K = cameras(1, 12, 16)[1]
  point = jnp.asarray([0.4, -0.2, 3.0], jnp.float32).reshape(1, 1, 1, 3)
  eye = jnp.eye(4)[None]
  before, _ = camera.project(point, K, eye)
  K = jnp.asarray(camera.crop_resize(np.asarray(K), origin=origin, scale=scale))
  after, _ = camera.project(point, K, eye)
  np.testing.assert_allclose(after[0, 0, 0], (np.asarray(before[0, 0, 0]) - np.array(origin)) * scale, rtol=1e-5)


def test_compiled_lifting_equals_numpy_beyond_33k_elements():
  """Some jaxlib releases (0.10.2) mis-compile reduce-then-broadcast on CPU beyond 32768 elements, silently."""
  depth, K, pose = cameras(20, 64, 96)
  pose = jnp.einsum('ij,fjk->fik', jnp.linalg.inv(pose[0]), pose, precision='highest')
  expected = pointmap.from_depth(*map(np.asarray, (depth, K, pose)))
  np.testing.assert_allclose(jax.jit(camera.unproject)(depth, K, pose), expected, atol=2e-5)

  @jax.jit
  def along_rays(points, K, pose):  # the pattern of the fault: multiply, reduce, then a broadcast operand
    r = camera.rays(K, 64, 96)
    offset = points - pose[:, None, None, :3, 3]
    in_cam = jnp.einsum('fji,fhwj->fhwi', pose[:, :3, :3], offset, precision='highest')
    s = (r * in_cam).sum(-1) / (r * r).sum(-1)
    return s, in_cam - s[..., None] * r

  s, miss = along_rays(jnp.asarray(expected), K, pose)
  np.testing.assert_allclose(s, depth, rtol=1e-4)
  assert np.abs(miss).max() < 1e-4
