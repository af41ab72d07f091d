"""The DiT against the original's golden numbers, and against the mistakes others made with it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.nn import rope
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig
from tests import golden
from weight_conversion.rules import convert
from weight_conversion.tables.dit import rules


@pytest.fixture(scope='module')
def original():
  description, arrays, weights = golden.load('dit')
  c = description['config']
  cfg = DiTConfig(
    width=c['dim'], ffn_width=c['ffn_dim'], heads=c['num_heads'], layers=c['num_layers'], text_width=c['text_dim']
  )
  shape = description['inputs']
  video = [np.moveaxis(golden.given(description, key, shape[key]), 1, -1) for key in 'xy']
  text = np.zeros((2, c['text_len'], c['text_dim']), np.float32)
  for i, rows in enumerate(shape['ctx']):
    text[i, : rows[0]] = golden.given(description, f'ctx{i}', rows)
  inputs = np.concatenate(video, -1), arrays['t'], text, golden.given(description, 'clip', shape['clip'])
  return cfg, convert(weights, rules(cfg, 'native')), inputs, np.moveaxis(arrays['out'], 1, -1)


def error(cfg, params, inputs, expected) -> float:
  run = jax.jit(lambda params, *inputs: dit.velocity(cfg, params, *inputs, precision=dit.FLOAT32))
  return float(np.abs(run(params, *map(jnp.asarray, inputs)) - expected).max())


def test_equals_the_original(original):
  worst = error(*original)
  print(f'DiT golden: largest error {worst:.2e}')
  assert worst < 1e-4


def test_golden_sees_an_image_query_without_its_norm(original, monkeypatch):
  """Peers gave the raw query to the image branch and the normalised one to the text branch."""
  cfg, params, inputs, expected = original
  raw, calls, attend = [], [], dit.attend

  def remember(next_fun, args, kwargs, context):
    if context.module.name == 'cross_norm_q':
      raw.append(args[0])
    return next_fun(*args, **kwargs)

  def third_call_raw(q, k, v):
    calls.append(1)
    return attend(raw[-1].reshape(q.shape) if len(calls) % 3 == 0 else q, k, v)

  monkeypatch.setattr(dit, 'attend', third_call_raw)
  with nn.intercept_methods(remember):
    assert error(cfg, params, inputs, expected) > 1e-2


@pytest.mark.parametrize('moved', [1, -1])
def test_golden_sees_a_moved_split_of_text_and_image(original, moved, monkeypatch):
  """Peers concatenate [image | text] and split again; one row off gives plausible, wrong numbers."""
  cfg, params, inputs, expected = original
  context = dit.WanEmbed.context

  def off_by_one(self, text, image):
    text, image = context(self, text, image)
    rows, split = jnp.concatenate([image, text], axis=1), image.shape[1] + moved
    return rows[:, split:], rows[:, :split]

  monkeypatch.setattr(dit.WanEmbed, 'context', off_by_one)
  assert error(cfg, params, inputs, expected) > 1e-3


def test_golden_sees_norm2_and_norm3_swapped(original):
  """The affine norm belongs to cross-attention; given to the MLP, nothing fails and everything is wrong."""
  cfg, params, inputs, expected = original
  blocks = params['blocks']
  norm, ffn = blocks['cross_norm'], blocks['ffn_in']
  swapped = blocks | {
    'cross_norm': {'scale': np.ones_like(norm['scale']), 'bias': np.zeros_like(norm['bias'])},
    'ffn_in': {  # scale and bias before a linear layer fold into it
      'kernel': norm['scale'][..., None] * ffn['kernel'],
      'bias': ffn['bias'] + np.einsum('ld,ldf->lf', norm['bias'], ffn['kernel']),
    },
  }
  assert error(cfg, params | {'blocks': swapped}, inputs, expected) > 1e-2


def test_parameters_at_full_size():
  base = jax.eval_shape(lambda k: dit.init_base(k, DiTConfig()), jax.random.key(0))
  count = sum(a.size for a in jax.tree.leaves(nn.unbox(base)))
  assert count == 16_394_878_784
  small = DiTConfig(width=1536, ffn_width=8960, heads=12, layers=30)
  base = jax.eval_shape(lambda k: dit.init_base(k, small), jax.random.key(0))
  assert sum(a.size for a in jax.tree.leaves(nn.unbox(base))) == 1_564_428_608


def test_every_parameter_names_its_axes():
  base = jax.eval_shape(lambda k: dit.init_base(k, DiTConfig()), jax.random.key(0))
  boxes = jax.tree.leaves(base, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  assert all(isinstance(b, nn.LogicallyPartitioned) and len(b.names) == b.value.ndim for b in boxes)


def test_rope_splits_a_head_as_wan_does():
  cos, _ = rope.tables((3, 2, 2), 128)
  angles = np.arccos(np.clip(cos[-1], -1, 1))  # token (2, 1, 1)
  assert cos.shape == (12, 64)
  np.testing.assert_allclose(angles[:22], np.arccos(np.cos(2 * 10000.0 ** (-np.arange(22) / 22))), atol=1e-3)
  np.testing.assert_allclose(angles[22:43], 10000.0 ** (-np.arange(21) / 21), atol=1e-3)


def test_a_preconditioned_head_gives_the_latent_near_noise_and_the_noise_near_data():
  cfg = DiTConfig(out_channels=3, patch=(1, 1, 1), sigma_data=0.5)
  x, eps = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 5, 40, 50, 3)), jnp.float32)
  x *= cfg.sigma_data
  read = lambda out, z, sigma: dit.read_out(cfg, out.reshape(2, -1, 3), z.shape[1:4], z, jnp.full(2, sigma))
  np.testing.assert_allclose(read(x, eps, 1.0), eps - x, atol=1e-5)
  np.testing.assert_allclose(read(-cfg.sigma_data * eps, x, 0.0), eps - x, atol=1e-5)
  for sigma in (0.1, 0.5, 0.9):  # between them, a head that gives nothing leaves the best linear guess
    z, v = (1 - sigma) * x + sigma * eps, eps - x
    slope = (z * v).sum() / (z * z).sum()
    np.testing.assert_allclose(read(0 * z, z, sigma), slope * z, atol=0.1)


def test_a_plain_head_gives_the_velocity():
  cfg, out = DiTConfig(out_channels=1, patch=(1, 1, 2)), np.arange(8, dtype=np.float32).reshape(1, 4, 2)
  made = dit.read_out(cfg, jnp.asarray(out), (1, 2, 2), jnp.ones((1, 1, 2, 4, 1)), jnp.ones(1))
  np.testing.assert_array_equal(made[0, 0, :, :, 0], np.arange(8).reshape(2, 4))
