"""Guidance and the sampler around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import ConfigError
from one4d_jax.flow import guidance, sampling

SHAPE = (2, 3, 1, 2, 2, 4)  # m b f h w c


def pull(z, sigma, condition):
  """The velocity whose data is the condition's value everywhere."""
  return (z - condition['text'][:, None, None, None, :]) / sigma


def conditions():
  return {'text': jnp.full((3, 4), 2.0)}, {'text': jnp.full((3, 4), 1.0)}


def test_weights_zero_and_one_pick_a_branch():
  a, b = jnp.arange(3.0), jnp.ones(3)
  np.testing.assert_array_equal(guidance.combine(a, b, 1), a)
  np.testing.assert_array_equal(guidance.combine(a, b, 0), b)
  np.testing.assert_array_equal(guidance.combine(a, b, 3.0), b + 3 * (a - b))


def test_weight_one_never_runs_the_negative():
  calls = []
  velocity = lambda z, s, c: calls.append(c) or z
  guidance.guided(velocity, 'positive', 'negative', 1)(jnp.ones(2), jnp.float32(1))
  assert calls == ['positive']


def test_doubled_batch_equals_two_calls():
  z, sigma = jax.random.normal(jax.random.key(0), SHAPE), jnp.float32(0.7)
  two = guidance.guided(pull, *conditions(), 6.0)(z, sigma)
  one = guidance.guided(pull, *conditions(), 6.0, together=True)(z, sigma)
  np.testing.assert_allclose(one, two, rtol=1e-6)


def test_guidance_without_negative_says_so():
  with pytest.raises(ConfigError, match='needs a negative condition'):
    guidance.guided(pull, conditions()[0], None, 2.0)


@pytest.mark.parametrize('solver', ['euler', 'dpm++'])
@pytest.mark.parametrize(('weight', 'expected'), [(1, 2.0), (3.0, 4.0)])
def test_sample_reaches_the_guided_data(solver, weight, expected):
  positive, negative = conditions()
  options = {'shape': SHAPE, 'solver': solver, 'steps': 6, 'shift': 1.0, 'guidance': weight}
  z = sampling.sample(jax.random.key(0), pull, positive, negative, **options)
  assert z.shape == SHAPE and z.dtype == jnp.float32
  tolerance = 1e-4 if solver == 'euler' else 0.5  # dpm++ tells the model a truncated time, this field divides by it
  np.testing.assert_allclose(z, expected, atol=tolerance)


def test_the_same_key_gives_the_same_sample():
  draw = lambda seed: sampling.sample(jax.random.key(seed), pull, *conditions(), shape=SHAPE, steps=2)
  np.testing.assert_array_equal(draw(0), draw(0))
