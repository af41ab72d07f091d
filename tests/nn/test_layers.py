"""Shared layers against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from one4d_jax.nn import attention, embed, lora, rope


def test_attention_in_chunks_equals_attention_at_once(monkeypatch):
  q, k, v = (jax.random.normal(jax.random.key(i), (2, n, 3, 8)) for i, n in enumerate((37, 11, 11)))
  whole = attention.attend(q, k, v)
  for constant, value in (('_LOGITS', 1000), ('_CHUNK', 5)):  # short sequences, then long ones
    monkeypatch.setattr(attention, constant, value)
    np.testing.assert_allclose(attention.attend(q, k, v), whole, atol=1e-6)
  logits = np.einsum('bsnh,btnh->bnst', q, k) / np.sqrt(8)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(whole, np.einsum('bnst,btnh->bsnh', weights, v), atol=1e-5)


def test_sinusoid_is_exact_at_every_timestep():
  t = np.concatenate([np.arange(0, 1001, 7), [999.0, 0.5, 123.456]]).astype(np.float32)
  angles = t[:, None].astype(np.float64) * 10000.0 ** (-np.arange(128) / 128)
  expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
  assert np.abs(embed.sinusoid(jnp.asarray(t), 256) - expected).max() < 2e-5


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
  cos, sin = map(jnp.asarray, rope.tables((1, 1, 9), 24))
  q, k = (jnp.broadcast_to(jax.random.normal(jax.random.key(i), (24,)), (1, 9, 1, 24)) for i in range(2))
  q, k = rope.rotate(q, cos, sin)[0, :, 0], rope.rotate(k, cos, sin)[0, :, 0]
  np.testing.assert_allclose(jnp.linalg.norm(q, axis=-1), jnp.linalg.norm(q[0]), rtol=1e-5)
  products = np.asarray(q @ k.T)
  for distance in (0, 1, 3):
    diagonal = np.diagonal(products, distance)
    np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4)


def test_patches_come_back_with_the_channel_first_and_last():
  x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(1, 2, 4, 6, 3)
  tokens = embed.patchify(x, (1, 2, 2))
  assert tokens.shape == (1, 12, 12)
  np.testing.assert_array_equal(tokens[0, 0, :4], x[0, 0, :2, :2, 0].reshape(-1))  # channel slowest
  shuffled = tokens.reshape(1, 12, 3, 4).swapaxes(2, 3).reshape(1, 12, 12)  # channel fastest, as the head writes
  np.testing.assert_array_equal(embed.unpatchify(shuffled, (2, 2, 3), (1, 2, 2)), x)


def test_scaled_changes_b_alone():
  adapters = {'q': {'a': jnp.ones((1, 2, 3, 1)), 'b': jnp.ones((1, 2, 1, 3))}}
  scaled = lora.scaled(adapters, 0.5)
  assert float(scaled['q']['a'].max()) == 1 and float(scaled['q']['b'].max()) == 0.5
