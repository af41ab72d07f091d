"""The VAE against the original network, and the properties that make streaming exact."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import ShapeError
from one4d_jax.nn import partition
from one4d_jax.wan import vae_blocks as blocks
from one4d_jax.wan.config import VAEConfig
from one4d_jax.wan.vae import WanVAE, _tiled, chunk_for, latent_grid, video_size
from tests import golden
from weight_conversion.rules import convert
from weight_conversion.tables.vae import rules

TOLERANCE = 1e-4
TINY = VAEConfig(width=4, mult=(1, 2, 2), res_blocks=1, temporal=(True, True))  # 4 times smaller on each axis

quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})  # compiles 4x faster


@functools.cache
def original():
  """The golden run: its VAE, its parameters, ``video(frames)``, ``latent(frames)`` and the stored outputs."""
  description, arrays, weights = golden.load('vae')
  sizes = description['config']
  cfg = VAEConfig(
    width=sizes['dim'],
    mult=tuple(sizes['dim_mult']),
    res_blocks=sizes['num_res_blocks'],
    temporal=tuple(sizes['temporal_downsample']),
    latent_channels=sizes['z_dim'],
  )
  h, w = description['height'], description['width']

  def video(t):
    x = np.tanh(golden.given(description, f'video{t}', (1, 3, t, h, w)))
    return jnp.asarray(np.moveaxis(x, 1, -1))

  def latent(t):
    z = golden.given(description, f'latent{t}', (1, sizes['z_dim'], (t - 1) // 4 + 1, h // 8, w // 8))
    return jnp.asarray(np.moveaxis(z, 1, -1))

  expected = {k: np.moveaxis(v, 1, -1) for k, v in arrays.items()}
  return WanVAE(cfg), convert(weights, rules(cfg, 'native')), video, latent, expected


@functools.cache
def tiny():
  """A small VAE whose parameters are all random: no zero kernel or bias hides a mistake."""
  vae, rng = WanVAE(TINY), np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(vae.init, jax.random.key(0)))
  draw = lambda p: rng.standard_normal(p.shape) * (0.3 if p.ndim == 1 else np.prod(p.shape[:-1]) ** -0.5)
  params = jax.tree.map(lambda p: jnp.asarray(draw(p), jnp.float32), shapes)
  return vae, params


def error(a, b) -> float:
  assert a.shape == b.shape
  return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


@pytest.mark.parametrize('frames', [1, 5, 13])
def test_encode_equals_the_original(frames):
  vae, params, video, _, expected = original()
  got = error(quick_jit(vae.encode)(params, video(frames)), expected[f'mu{frames}'])
  print(f'encode {frames}: {got:.1e}')
  assert got <= TOLERANCE


@pytest.mark.parametrize('frames', [1, 5, 13])
def test_decode_equals_the_original(frames):
  vae, params, _, latent, expected = original()
  got = error(quick_jit(vae.decode)(params, latent(frames)), expected[f'pixels{frames}'])
  print(f'decode {frames}: {got:.1e}')
  assert got <= TOLERANCE


def first_frame_through_time_conv(next_fun, args, kwargs, context):
  """What the resamplers would do if the first frame were a frame like any other."""
  y = next_fun(*args, **kwargs)
  module = context.module
  if context.method_name != '__call__' or not getattr(module, 'temporal', False):
    return y
  (x,) = args
  conv = module.variables['params']['time']
  last_tap, bias = conv['kernel'][2, 0, 0, :, -x.shape[-1] :], conv['bias'][-x.shape[-1] :]
  if isinstance(module, blocks.Downsample):
    return y.at[:, 0].set(y[:, 0] @ last_tap + bias)
  space = module.variables['params']['space']
  big = jnp.repeat(jnp.repeat(x[:, 0] @ last_tap + bias, 2, axis=1), 2, axis=2)
  return y.at[:, 0].set(blocks.conv2d(big, space['kernel']) + space['bias'])


def test_first_frame_rule_matters():
  vae, params, video, latent, expected = original()
  with nn.intercept_methods(first_frame_through_time_conv):
    mu, pixels = quick_jit(lambda p, x, z: (vae.encode(p, x), vae.decode(p, z)))(params, video(5), latent(5))
  assert error(mu, expected['mu5']) > 100 * TOLERANCE
  assert error(pixels, expected['pixels5']) > 100 * TOLERANCE


@pytest.mark.parametrize('chunk', [1, 3])
def test_encode_in_chunks_equals_encode_at_once(chunk):
  vae, params = tiny()
  video = jnp.tanh(jax.random.normal(jax.random.key(1), (2, 17, 8, 4, 3)))
  got = quick_jit(functools.partial(vae.moments, chunk=chunk))(params, video)
  for a, b in zip(got, quick_jit(vae.moments)(params, video), strict=True):
    assert error(a, b) < 1e-5 * (1 + np.abs(b).max())


@pytest.mark.parametrize('chunk', [1, 3])
def test_decode_in_chunks_equals_decode_at_once(chunk):
  vae, params = tiny()
  z = jax.random.normal(jax.random.key(1), (2, 5, 2, 1, 16))
  got = quick_jit(functools.partial(vae.decode, chunk=chunk))(params, z)
  full = quick_jit(vae.decode)(params, z)
  assert got.shape == (2, 17, 8, 4, 3)
  assert error(got, full) < 1e-5 * (1 + np.abs(full).max())


@pytest.mark.slow
def test_chunks_equal_the_original():
  chunk = 2
  vae, params, video, latent, expected = original()
  mu = quick_jit(functools.partial(vae.encode, chunk=chunk))(params, video(13))
  pixels = quick_jit(functools.partial(vae.decode, chunk=chunk))(params, latent(13))
  print(f'chunk {chunk}: {error(mu, expected["mu13"]):.1e} {error(pixels, expected["pixels13"]):.1e}')
  assert error(mu, expected['mu13']) <= TOLERANCE
  assert error(pixels, expected['pixels13']) <= TOLERANCE


def test_an_image_needs_no_chunks():
  vae, params = tiny()
  image = jnp.ones((1, 1, 8, 8, 3))
  z, one_piece = quick_jit(lambda p, x: (vae.encode(p, x), vae.encode(p, x, chunk=2)))(params, image)
  np.testing.assert_allclose(one_piece, z, rtol=1e-5, atol=1e-5)
  assert jax.eval_shape(functools.partial(vae.decode, chunk=2), params, z).shape == image.shape


def test_folded_convolution_equals_the_3d_one():
  key_x, key_kernel = jax.random.split(jax.random.key(0))
  x, kernel = jax.random.normal(key_x, (2, 6, 5, 7, 3)), jax.random.normal(key_kernel, (3, 3, 3, 3, 4))

  def loss(x, kernel, fold):
    y = blocks.conv3d(x, kernel, fold=fold)
    return jnp.sum(jnp.sin(y)), y

  grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
  (dx, dk), y = grad(x, kernel, True)
  (dx3, dk3), y3 = grad(x, kernel, False)
  assert y.shape == (2, 4, 5, 7, 4)
  for a, b in [(y, y3), (dx, dx3), (dk, dk3)]:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_future_frames_do_not_change_the_past():
  vae, params = tiny()
  video = jnp.tanh(jax.random.normal(jax.random.key(1), (1, 9, 8, 8, 3)))
  long, short = quick_jit(lambda p, x: (vae.encode(p, x), vae.encode(p, x[:, :5])))(params, video)
  np.testing.assert_allclose(long[:, :2], short, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_and_reach_every_parameter():
  vae, params = tiny()
  video = jnp.zeros((1, 9, 8, 8, 3)).at[:, 4:].set(0.5)  # the norm of a zero vector has to stay differentiable

  def loss(params):
    return jnp.mean(jnp.square(vae.decode(params, vae.encode(params, video)) - 0.5))

  grads = quick_jit(jax.grad(loss))(params)
  for path, g in jax.tree.leaves_with_path(grads):
    assert np.isfinite(g).all(), jax.tree_util.keystr(path)
    assert np.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_real_size_and_logical_axes():
  boxed = jax.eval_shape(WanVAE().init, jax.random.key(0))
  leaves = jax.tree.leaves_with_path(boxed, is_leaf=lambda p: isinstance(p, nn.LogicallyPartitioned))
  assert sum(p.value.size for _, p in leaves) == 126_892_531
  assert len(leaves) == 194
  for path, p in leaves:
    assert len(p.names) == p.value.ndim and p.names[-1] == 'conv_out', jax.tree_util.keystr(path)
    assert p.value.dtype == jnp.float32


def test_converted_weights_have_the_shapes_of_init():
  vae, params, *_ = original()
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, nn.unbox(jax.eval_shape(vae.init, jax.random.key(0)))
  )


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((1, 8, 16, 16, 3), 'frames 8 is not 4n \\+ 1: use 5 or 9'),
    ((1, 5, 20, 16, 3), 'height 20 is not a multiple of 8: use 16 or 24'),
    ((1, 5, 16, 4, 3), 'width 4 is not a multiple of 8: use 8'),
    ((1, 0, 16, 16, 3), 'frames 0 .* use 1'),
  ],
)
def test_sizes_that_do_not_fit(shape, message):
  with pytest.raises(ShapeError, match=message):
    jax.eval_shape(WanVAE().encode, {}, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_other_bad_arguments():
  vae, params = tiny()
  with pytest.raises(ShapeError, match='8 channels, this VAE needs 16'):
    vae.decode(params, jnp.zeros((1, 2, 1, 1, 8)))
  with pytest.raises(ShapeError, match='chunk is 0'):
    vae.encode(params, jnp.zeros((1, 5, 8, 8, 3)), chunk=0)


def test_bfloat16_stays_close():
  vae, params = tiny()
  video = jnp.tanh(jax.random.normal(jax.random.key(1), (1, 5, 8, 8, 3)))
  half = WanVAE(TINY, jnp.bfloat16)
  z, full = quick_jit(lambda p, x: (half.encode(p, x, chunk=1), vae.encode(p, x)))(params, video)
  assert z.dtype == jnp.float32
  assert error(z, full) < 0.1 * np.abs(full).max()


@pytest.mark.parametrize('size', [(5, 9), (16, 4), (11, 23)])
def test_tiles_of_a_local_map_are_the_whole(size):
  z = jax.random.normal(jax.random.key(0), (1, 2, *size, 3))
  decode = lambda z: jnp.repeat(jnp.repeat(z, 8, axis=2), 8, axis=3)
  np.testing.assert_allclose(_tiled(decode, z, 5, 8), decode(z), atol=1e-5)


def test_tiles_take_less_memory_and_differ_little():
  model, params = tiny()
  z = jax.random.normal(jax.random.key(1), (1, 2, 40, 40, model.cfg.latent_channels))
  whole, tiled = (jax.jit(functools.partial(model.decode, params, tile=tile)).lower(z).compile() for tile in (None, 16))
  assert tiled.memory_analysis().temp_size_in_bytes < 0.6 * whole.memory_analysis().temp_size_in_bytes
  a, b = whole(z), tiled(z)
  assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95
  np.testing.assert_array_equal(model.decode(params, z, tile=40), model.decode(params, z))
  with pytest.raises(ShapeError, match='tile is 3'):
    model.decode(params, z, tile=3)


def test_large_frames_go_in_small_pieces():
  assert chunk_for(17, 64, 64, 'gpu') is chunk_for(17, 64, 64, 'cpu') is None and chunk_for(81, 128, 224, 'cpu') == 1
  assert [chunk_for(81, *size, 'gpu') for size in ((128, 224), (352, 624), (480, 832), (720, 1280))] == [4, 2, 1, 1]


@pytest.mark.parametrize('frames', [3, 6])
def test_a_large_convolution_goes_frame_by_frame(frames, monkeypatch):
  x, kernel = jax.random.normal(jax.random.key(0), (2, frames, 6, 4, 3)), jnp.ones((3, 3, 3, 3, 5))
  whole = blocks.conv3d(x, kernel, fold=True)
  monkeypatch.setattr(blocks, '_FOLDED', 0)
  np.testing.assert_allclose(blocks.conv3d(x, kernel, fold=True), whole, rtol=1e-5)


def test_the_platform_of_the_mesh_decides_how_a_convolution_runs():
  """Not the machine on which it is traced: that of a plan has other devices."""
  x, kernel = jnp.ones((1, 3, 4, 4, 2)), jnp.ones((3, 3, 3, 2, 2))

  def kernel_axes(platform):
    with partition.using(types.SimpleNamespace(platform=platform)):
      equations = jax.make_jaxpr(lambda x: blocks.conv3d(x, kernel))(x).eqns
    return [e.invars[1].aval.ndim for e in equations if e.primitive.name == 'conv_general_dilated']

  assert kernel_axes('cpu') == [4] and kernel_axes('gpu') == [5]


def test_a_latent_has_the_places_of_its_video():
  assert latent_grid(81, 352, 624) == (21, 44, 78) and video_size(21, 44, 78) == (81, 352, 624)
  vae, params = original()[:2]
  z = jax.eval_shape(vae.encode, params, jax.ShapeDtypeStruct((1, 5, 16, 24, 3), jnp.float32))
  assert z.shape[1:4] == latent_grid(5, 16, 24)
