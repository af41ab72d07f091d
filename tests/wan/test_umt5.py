"""UMT5 against the original network, and the two things that set it apart from T5."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.wan import umt5
from one4d_jax.wan.config import UMT5Config
from tests import golden
from weight_conversion.rules import convert
from weight_conversion.tables.umt5 import rules

TINY = UMT5Config(vocab=300, width=64, ffn_width=160, heads=4, layers=3)


@pytest.fixture(scope='module')
def case():
  """``(encoder, params, ids, mask, expected)`` of the golden run."""
  _, arrays, weights = golden.load('umt5')
  encoder = umt5.UMT5Encoder(TINY, dtype=jnp.float32, param_dtype=jnp.float32)
  params = jax.tree.map(jnp.asarray, convert(weights, rules(TINY, 'native')))
  ids, mask = jnp.asarray(arrays['ids'], jnp.int32), jnp.asarray(arrays['mask'], bool)
  return encoder, params, ids, mask, arrays['out']


def error(case, **changes) -> float:
  encoder, params, ids, mask, expected = case
  encode = jax.jit(dataclasses.replace(encoder, **changes).encode)
  return float(np.abs(encode(params, ids, mask) - expected).max())


def test_golden(case):
  worst = error(case)
  print(f'largest error {worst:.2e}')
  assert worst < 1e-4


def test_a_position_table_shared_by_all_layers_is_wrong(case):
  encoder, params, *rest = case
  table = params['blocks']['position']
  shared = params['blocks'] | {'position': jnp.broadcast_to(table[:1], table.shape)}
  assert error((encoder, params | {'blocks': shared}, *rest)) > 1e-2


def test_scaled_logits_are_wrong(case):
  encoder, params, *rest = case
  q = {'kernel': params['blocks']['q']['kernel'] * (TINY.width // TINY.heads) ** -0.5}
  assert error((encoder, params | {'blocks': params['blocks'] | {'q': q}}, *rest)) > 1e-2


def test_buckets_of_distance():
  table = umt5.relative_buckets(200, buckets=32, max_distance=128)
  starts = {8: 8, 12: 9, 16: 10, 23: 11, 32: 12, 46: 13, 64: 14, 91: 15}
  expected = np.array([max((b for d, b in starts.items() if d <= n), default=n) for n in range(200)])
  np.testing.assert_array_equal(table[:, 0], expected)  # keys before the query
  np.testing.assert_array_equal(table[0, 1:], expected[1:] + 16)  # keys after it


def test_padding_changes_nothing(case):
  encoder, params, ids, mask, _ = case
  encode, noise = jax.jit(encoder.encode), jnp.where(mask, ids, 7)
  np.testing.assert_array_equal(encode(params, noise, mask), encode(params, ids, mask))
  short = int(mask[0].sum())
  alone = encode(params, ids[:1, :short], mask[:1, :short])
  np.testing.assert_allclose(alone, encode(params, ids, mask)[:1, :short], atol=1e-5)


def test_bfloat16_stays_close(case):
  encoder, params, ids, mask, expected = case
  half = dataclasses.replace(encoder, dtype=jnp.bfloat16).encode(params, ids, mask)
  assert half.dtype == jnp.bfloat16
  assert np.abs(np.asarray(half, np.float32) - expected).mean() < 0.03


def test_init_fits_the_checkpoint_and_trains(case):
  encoder, params, ids, mask, _ = case
  fresh = nn.meta.unbox(jax.jit(encoder.init)(jax.random.key(0)))
  assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
  loss = lambda p: jnp.mean(jnp.square(encoder.encode(p, ids[:, :8], mask[:, :8])))
  for path, g in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(fresh)):
    assert jnp.isfinite(g).all() and jnp.any(g != 0), jax.tree_util.keystr(path)


def test_full_size():
  params = jax.eval_shape(umt5.UMT5Encoder().init, jax.random.key(0))
  boxes = jax.tree.leaves(params, is_leaf=lambda v: isinstance(v, nn.LogicallyPartitioned))
  assert all(isinstance(b, nn.LogicallyPartitioned) and len(b.names) == b.value.ndim for b in boxes)
  assert sum(b.value.size for b in boxes) == 5_680_910_336
