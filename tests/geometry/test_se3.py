"""Rigid motions: exponential and logarithm, inverse, chains and interpolation."""

import jax.numpy as jnp
import numpy as np

from one4d_jax.geometry import se3


def motions(count=5, seed=0):
  tangent = np.random.default_rng(seed).normal(0, 0.5, (count, 6)).astype(np.float32)
  return jnp.asarray(tangent), se3.exp(jnp.asarray(tangent))


def test_log_undoes_exp():
  tangent, motion = motions()
  np.testing.assert_allclose(se3.log(motion), tangent, atol=1e-5)
  np.testing.assert_allclose(se3.log(jnp.eye(4)), np.zeros(6), atol=1e-7)


def test_inverse():
  _, motion = motions()
  np.testing.assert_allclose(se3.compose(motion, se3.inverse(motion)), np.tile(np.eye(4), (5, 1, 1)), atol=1e-6)


def test_relative_motions_chain_back():
  _, motion = motions()
  steps = se3.relative(motion)
  chained = motion[0]
  for step in steps:
    chained = se3.compose(chained, step)
  np.testing.assert_allclose(chained, motion[-1], atol=1e-5)
  assert se3.relative(motion[:1]).shape == (0, 4, 4)


def test_interpolation_ends_and_middle():
  _, motion = motions(2)
  between = lambda t: se3.interpolate(motion[0], motion[1], jnp.float32(t))
  np.testing.assert_allclose(between(0), motion[0], atol=1e-6)
  np.testing.assert_allclose(between(1), motion[1], atol=1e-6)
  half = se3.compose(se3.inverse(motion[0]), between(0.5))
  np.testing.assert_allclose(se3.compose(motion[0], se3.compose(half, half)), motion[1], atol=1e-5)
