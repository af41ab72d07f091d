"""Steps that are not computed, because the first layer changes little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.flow import caching

GAIN = jnp.asarray([0.5, 0.25, 2.0])  # of three layers


def layer(x, gain):
  return x + gain * jnp.sin(x), None


def through(x):
  for gain in GAIN:
    x = layer(x, gain)[0]
  return x


@jax.jit
def step(x, kept, threshold):
  stack = caching.FirstBlock(threshold, kept)
  return stack(layer, x, GAIN), stack.kept


@pytest.fixture
def x():
  return jax.random.normal(jax.random.key(0), (2, 3, 5, 4))


def test_the_first_step_is_computed(x):
  y, kept = step(x, caching.nothing(x), jnp.inf)
  np.testing.assert_allclose(y, through(x), rtol=1e-6)
  assert kept.known.all()
  np.testing.assert_allclose(x + kept.first + kept.rest, y, rtol=1e-5)


def test_a_small_change_is_skipped_and_a_large_one_computed(x):
  _, kept = step(x, caching.nothing(x), 0.1)
  near, far = 1.01 * x, 1.5 * x
  y, after = step(near, kept, 0.1)
  np.testing.assert_allclose(y, near + 0.5 * jnp.sin(near) + kept.rest, rtol=1e-6)
  assert float(jnp.abs(y - through(near)).max()) > 1e-4, 'the others are not run'
  for was, is_ in zip(kept, after, strict=True):
    np.testing.assert_array_equal(was, is_)  # small changes add up, until one is computed
  y, after = step(far, kept, 0.1)
  np.testing.assert_allclose(y, through(far), rtol=1e-5)
  assert float(jnp.abs(after.first - kept.first).max()) > 0.01


def test_one_row_of_which_nothing_is_known_makes_all_run(x):
  _, kept = step(x, caching.nothing(x), 0.1)
  forgot = kept._replace(known=kept.known.at[:, 1].set(False))
  np.testing.assert_allclose(step(1.01 * x, forgot, 0.1)[0], through(1.01 * x), rtol=1e-5)


def test_change_is_relative():
  assert float(caching.change(jnp.full(4, 11.0), jnp.full(4, 10.0))) == pytest.approx(0.1)
