"""CLIP against the original network, and the choices of preprocessing and depth that are easy to get wrong."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import CheckpointError
from one4d_jax.wan import clip
from one4d_jax.wan.config import CLIPConfig
from tests import golden
from weight_conversion.rules import convert
from weight_conversion.tables.clip import ignored, rules

TINY = CLIPConfig(image_size=56, patch=14, width=64, layers=4, heads=4, mlp_width=256)


@pytest.fixture(scope='module')
def native():
  return {f'visual.{name}': w for name, w in golden.load('clip')[2].items()}


@pytest.fixture(scope='module')
def case(native):
  """``(encoder, params, image, expected)`` of the golden run, channel-last."""
  description, arrays, _ = golden.load('clip')
  encoder = clip.CLIPEncoder(TINY, dtype=jnp.float32, param_dtype=jnp.float32)
  params = jax.tree.map(jnp.asarray, convert(native, rules(TINY, 'native'), ignore=ignored(TINY, 'native')))
  image = jnp.asarray(np.tanh(golden.given(description, 'image', description['image'])))
  return encoder, params, image.transpose(0, 2, 3, 1), arrays


def error(case, params=None) -> float:
  encoder, own, image, arrays = case
  return float(np.abs(jax.jit(encoder.encode)(own if params is None else params, image) - arrays['out']).max())


def pixel_error(found, arrays) -> float:
  return float(np.abs(found.transpose(0, 3, 1, 2) - arrays['pixels']).max())


def test_golden(case):
  worst = error(case)
  print(f'largest error {worst:.2e}')
  assert worst < 1e-4


def test_golden_pixels(case):
  worst = pixel_error(clip.pixels(case[2], 56), case[3])
  print(f'largest error {worst:.2e}')
  assert worst < 1e-4


@pytest.mark.parametrize('antialias', [True, False])
def test_the_resize_of_jax_is_wrong(case, antialias, monkeypatch):
  def resized(image, size):
    image = jax.image.resize(image, (2, size, size, 3), 'cubic', antialias=antialias)
    return (image * 0.5 + 0.5 - jnp.asarray(clip.MEAN)) / jnp.asarray(clip.STD)

  assert pixel_error(resized(case[2], 56), case[3]) > 1e-2
  monkeypatch.setattr(clip, 'pixels', resized)
  assert error(case) > 1e-2


def test_running_every_block_is_wrong(case, native):
  everything = convert(native, rules(TINY, 'native'), ignore=('visual.post_norm.*', 'visual.head'))
  assert len(everything['blocks']['qkv']['kernel']) == 4
  assert error(case, jax.tree.map(jnp.asarray, everything)) > 1e-2


def test_tanh_gelu_is_wrong(case, monkeypatch):
  exact = nn.gelu
  monkeypatch.setattr(nn, 'gelu', lambda y, approximate: exact(y, approximate=True))
  assert error(case) > 1e-4


def test_bicubic():
  for source, target in ((70, 56), (20, 56), (56, 56), (1, 4)):
    np.testing.assert_allclose(clip.bicubic(source, target).sum(1), 1, atol=1e-6)  # constants survive
  np.testing.assert_array_equal(clip.bicubic(9, 9), np.eye(9, dtype=np.float32))


def test_unnamed_leftovers_are_an_error(native):
  with pytest.raises(CheckpointError, match=r'2 unexpected: visual\.post_norm\.bias, visual\.post_norm\.weight\)$'):
    convert(native, rules(TINY, 'native'), ignore=('visual.transformer.3.*', 'visual.head'))


def test_bfloat16_stays_close(case):
  encoder, params, image, arrays = case
  half = dataclasses.replace(encoder, dtype=jnp.bfloat16).encode(params, image)
  assert half.dtype == jnp.bfloat16
  assert np.abs(np.asarray(half, np.float32) - arrays['out']).mean() < 0.03


def test_init_fits_the_checkpoint_and_trains(case):
  encoder, params, image, _ = case
  fresh = nn.meta.unbox(jax.jit(encoder.init)(jax.random.key(0)))
  assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
  assert all(len(leaf) == TINY.layers - 1 for leaf in jax.tree.leaves(fresh['blocks']))
  loss = lambda p: jnp.mean(encoder.encode(p, image) ** 3)
  for path, g in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(fresh)):
    assert jnp.isfinite(g).all() and jnp.any(g != 0), jax.tree_util.keystr(path)


def test_full_size():
  params = jax.eval_shape(clip.CLIPEncoder().init, jax.random.key(0))
  boxes = jax.tree.leaves(params, is_leaf=lambda v: isinstance(v, nn.LogicallyPartitioned))
  assert all(isinstance(b, nn.LogicallyPartitioned) and len(b.names) == b.value.ndim for b in boxes)
  norm, block = 2 * 1280, 12 * 1280**2 + (3 + 1 + 4 + 1) * 1280 + 4 * 1280
  dropped = block + norm + 1280 * 1024  # the last block, post_norm, the projection
  assert sum(b.value.size for b in boxes) == 632_076_800 - dropped == 611_086_080
  out = jax.eval_shape(clip.CLIPEncoder().encode, nn.meta.unbox(params), jnp.zeros((1, 8, 8, 3)))
  assert out.shape == (1, 257, 1280)
