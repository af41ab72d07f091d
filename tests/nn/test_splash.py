"""The TPU kernel, interpreted, against attention at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.nn import splash
from one4d_jax.nn.attention import attend


def inputs(s, t):
  keys = jax.random.split(jax.random.key(s), 4)
  return [jax.random.normal(key, (2, n, 1, 128)) for key, n in zip(keys, (s, t, t, s), strict=True)]


# two tiles of each, not full; full tiles of keys, one of queries that is not
@pytest.mark.parametrize(('s', 't'), [(200, 200), (96, 256)])
def test_values_and_gradients_are_those_of_attention(monkeypatch, s, t):
  monkeypatch.setattr(splash, '_TILE', 128)
  *qkv, weight = inputs(s, t)

  def run(attention, qkv):
    def loss(qkv):
      out = attention(*qkv)
      return jnp.sum(weight * out), out

    return jax.jit(jax.grad(loss, has_aux=True))(qkv)

  got = run(lambda *qkv: splash.splash(*qkv, interpret=True), qkv)
  expected = run(attend, qkv)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, expected)


def test_heads_that_the_kernel_does_not_take():
  assert splash.supports(128) and splash.supports(256) and not splash.supports(64)
