"""The depth and the miss of a ray, compiled, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.postopt.problem import Problem, Solution, depth_and_miss, rays
from tests.postopt.rooms import noisy, room


def problem(frames, height, width):
  """A noisy room and its true cameras."""
  points, truth, _ = room(frames=frames, height=height, width=width)
  points = noisy(points, truth, 0.01).reshape(frames, -1, 3)
  u, v = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
  pixels = np.stack([u, v], axis=-1).reshape(-1, 2) / max(height, width)
  log_focal = np.log(truth.K[:, 0, 0] / max(height, width))
  given = Problem(points, pixels.astype(np.float32), np.ones(points.shape[:2], np.float32))
  return jax.tree.map(
    jnp.asarray, (given, Solution(truth.world_from_cam, log_focal, np.zeros((frames, 2), np.float32)))
  )


def expected(given, solution):
  """In float64."""
  points, pixels, pose, log_focal = (
    np.asarray(x, np.float64) for x in (given.points, given.pixels, solution.pose, solution.log_focal)
  )
  y = np.einsum('fji,fpj->fpi', pose[:, :3, :3], points - pose[:, None, :3, 3])
  r = np.stack([np.append(pixels / np.exp(f), np.ones((len(pixels), 1)), axis=1) for f in log_focal])
  depth = (r * y).sum(-1) / (r * r).sum(-1)
  return depth, np.linalg.norm(y - depth[..., None] * r, axis=-1)


@jax.jit
def along_rays(given, solution):
  """The pattern of the fault: multiply, reduce, then a broadcast operand; of all frames at once."""
  r = rays(given.pixels, solution.log_focal, solution.centre)
  offset = given.points - solution.pose[:, None, :3, 3]
  y = jnp.einsum('fpi,fij->fpj', offset, solution.pose[:, :3, :3], precision='highest')
  depth = (r * y).sum(-1) / (r * r).sum(-1)
  return depth, jnp.linalg.norm(y - depth[..., None] * r, axis=-1)


@pytest.mark.parametrize(('compiled', 'size'), [(along_rays, (20, 64, 96)), (depth_and_miss, (2, 192, 256))])
def test_compiled_rays_equal_numpy_beyond_33k_elements(compiled, size):
  """Some jaxlib releases (0.10.2) mis-compile reduce-then-broadcast on CPU beyond 32768 elements, silently."""
  given, solution = problem(*size)
  (depth, miss), (true_depth, true_miss) = compiled(given, solution), expected(given, solution)
  np.testing.assert_allclose(depth, true_depth, rtol=1e-4)
  np.testing.assert_allclose(miss, true_miss, atol=1e-4)
