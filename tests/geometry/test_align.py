"""Alignments recover what was applied, and refuse what they cannot solve."""

import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import DataError, ShapeError
from one4d_jax.geometry import se3
from one4d_jax.geometry.align import Similarity, nearest_rotation, scale_shift, umeyama

POINTS = np.random.default_rng(0).normal(size=(40, 3))
MOTION = np.asarray(se3.exp(jnp.asarray([0.5, -1, 2, 0.4, 1.8, -0.9], jnp.float32)), np.float64)
LEFT, _, RIGHT = np.linalg.svd(MOTION[:3, :3])
KNOWN = Similarity(2.5, LEFT @ RIGHT, MOTION[:3, 3])


@pytest.mark.parametrize('flat', [False, True])
def test_umeyama_recovers_a_known_similarity(flat):
  points = POINTS * [1, 1, 0 if flat else 1]
  found = umeyama(points, KNOWN(points))
  np.testing.assert_allclose(found.scale, 2.5, rtol=1e-12)
  np.testing.assert_allclose(found.rotation, KNOWN.rotation, atol=1e-12)
  np.testing.assert_allclose(found.translation, KNOWN.translation, atol=1e-12)


def test_umeyama_never_mirrors_and_can_hold_the_scale():
  assert np.linalg.det(umeyama(POINTS, POINTS * [1, 1, -1]).rotation) > 0
  assert umeyama(POINTS, 3 * POINTS, with_scale=False).scale == 1


def test_weights_leave_outliers_out():
  target = KNOWN(POINTS)
  expected = umeyama(POINTS, target)
  spoilt, weight = target.copy(), np.ones(40)
  spoilt[:5] += 100
  weight[:5] = 0
  np.testing.assert_allclose(umeyama(POINTS, spoilt, weight=weight).rotation, expected.rotation, atol=1e-12)


def test_poses_follow_their_points():
  similarity = Similarity(3.0, MOTION[:3, :3], MOTION[:3, 3])
  pose = np.tile(np.eye(4), (2, 1, 1))
  pose[1, :3, 3] = [1, 2, 3]
  moved = similarity.pose(pose)
  np.testing.assert_allclose(moved[:, :3, 3], similarity(pose[:, :3, 3]))
  np.testing.assert_allclose(moved[1, :3, :3], similarity.rotation)


def test_scale_and_shift():
  x = np.random.default_rng(1).uniform(1, 5, 100)
  np.testing.assert_allclose(scale_shift(x, 2 * x - 0.5), (2, -0.5))


def test_the_nearest_rotation_of_a_mirrored_or_stretched_one_is_a_rotation():
  turn = KNOWN.rotation
  found = nearest_rotation(np.stack([turn, 3 * turn, turn @ np.diag([1, 2, 3]), turn @ np.diag([3, 2, -1])]))
  np.testing.assert_allclose(found, np.broadcast_to(turn, (4, 3, 3)), atol=1e-12)
  np.testing.assert_allclose(nearest_rotation(turn), turn, atol=1e-12)


def test_refusals():
  with pytest.raises(ShapeError, match='two arrays'):
    umeyama(POINTS, POINTS[:3])
  with pytest.raises(DataError, match='at least one point'):
    umeyama(POINTS[:0], POINTS[:0])
  with pytest.raises(DataError, match='constant'):
    scale_shift(np.ones(4), np.arange(4.0))
