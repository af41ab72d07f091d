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


def test_weight_one_is_the_velocity_itself():
  assert guidance.guided(pull, 1) is pull


def remembering(z, sigma, memory):
  """Of rows without the prompt 0, with it 1 more than remembered; remembers how often each row was run."""
  prompt = (jnp.arange(z.shape[1]) >= z.shape[1] - SHAPE[1]).astype(jnp.float32)[:, None, None, None, None]
  return jnp.broadcast_to(prompt * (1 + memory[:, :, None, None, None, None].mean()), z.shape), memory + 1


def test_rows_without_the_prompt_come_first():
  field = guidance.guided(lambda z, sigma, memory: (remembering(z, sigma, memory)[0], memory + 1), 3.0)
  v, memory = field(jnp.zeros(SHAPE), jnp.float32(0.5), jnp.zeros((1, 6)))
  np.testing.assert_array_equal(v, jnp.full(SHAPE, 3.0))
  np.testing.assert_array_equal(memory, jnp.ones((1, 6)))


def test_outside_of_its_interval_guidance_costs_nothing_and_forgets():
  seen = []
  field = guidance.guided(lambda z, *rest: seen.append(z.shape[1]) or remembering(z, *rest), 3.0, (0.2, 0.8))
  field = jax.jit(field)
  for sigma, expected, rows in ((0.9, 1.0, [0, 0, 0, 1, 1, 1]), (0.5, 3.0, [1] * 6), (0.1, 1.0, [0, 0, 0, 1, 1, 1])):
    v, memory = field(jnp.zeros(SHAPE), jnp.float32(sigma), jnp.zeros((1, 6)))
    np.testing.assert_array_equal(v, jnp.full(SHAPE, expected))
    np.testing.assert_array_equal(memory, [rows])
  assert sorted(seen) == [3, 6], 'one program holds both'


def test_guidance_without_negative_says_so():
  with pytest.raises(ConfigError, match='needs a negative condition'):
    sampling.sample(jax.random.key(0), pull, conditions()[0], shape=SHAPE)


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
