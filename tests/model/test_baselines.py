"""The models that One4D is compared with: where each starts, what RGB and XYZ know of each other, its size."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import CheckpointError
from one4d_jax.model import bundle as bundles
from one4d_jax.model import dlc
from one4d_jax.model.baselines import MODELS
from one4d_jax.model.one4d import AdapterConfig
from one4d_jax.model.umc import Condition
from one4d_jax.parallel import rules
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig

TINY = DiTConfig(width=48, ffn_width=80, heads=4, layers=3, text_width=24, image_width=20, freq_width=16)
ADAPTERS = AdapterConfig(rank=4, alpha=2.0, targets='self_q|cross_v|ffn_out', link_layers=(0, 2))
BRANCHES = ['dlc', 'shared_lora', 'no_links', 'rgb_to_xyz', 'xyz_to_rgb', 'full']
named = pytest.mark.parametrize('name', MODELS)


quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})  # compiles faster


@functools.cache
def model(name):
  return MODELS[name](TINY, ADAPTERS, dit.FLOAT32, remat='none')


def normal(*shape):
  """From NumPy, which unlike random arrays in JAX compiles nothing."""
  return jnp.asarray(np.random.default_rng(shape).standard_normal(shape, np.float32))


@functools.cache
def base():
  shapes = nn.unbox(jax.eval_shape(model('dlc').init_base, jax.random.key(0)))
  return jax.tree.map(lambda s: 0.2 * normal(*s.shape), shapes)


@functools.cache
def adapters(name, *, trained=False):
  """Fresh, or as after some training: every entry moved."""
  fresh = nn.unbox(model(name).init_adapters(jax.random.key(1), base()))
  return jax.tree.map(lambda a: a + 0.05 * normal(*a.shape), fresh) if trained else fresh


def inputs():
  """A noisy latent of both modalities, its time and a condition."""
  condition = Condition(
    latent=normal(2, 2, 4, 6, 16),
    mask=(normal(2, 2, 4, 6, 4) > 0).astype(jnp.float32),
    text=normal(2, 8, 24),
    image=normal(2, 5, 20),
  )
  return normal(2, 2, 2, 4, 6, 16), jnp.asarray([0.2, 0.7]), condition


def nothing_given():
  z, sigma, condition = inputs()
  return z, sigma, condition.replace(latent=0 * condition.latent, mask=0 * condition.mask)


@quick_jit
def alone(base, z, sigma, condition):
  """The base model on the RGB frames."""
  x = jnp.concatenate([z[dlc.RGB], condition.mask, condition.latent], -1)
  return dit.velocity(
    TINY, base, x, 1000 * sigma, condition.text, condition.image, precision=dit.FLOAT32, policy='none'
  )


@functools.cache
def compiled(name):
  """``velocity`` and, of the sum of squares of each output modality, the gradients by adapters and latents."""

  def run(base, adapters, z, sigma, condition):
    v, back = jax.vjp(lambda a, z: model(name).velocity(base, a, z, sigma, condition), adapters, z)
    return v, jax.vmap(lambda m: back(v * jax.nn.one_hot(m, 2).reshape(2, 1, 1, 1, 1, 1)))(jnp.arange(2))

  return quick_jit(run)


def velocity(name, adapters, z, sigma, condition):
  return compiled(name)(base(), adapters, z, sigma, condition)[0]


def gradients(name, adapters, z, sigma, condition):
  """By adapters and by latents, each with the output modality as first axis."""
  return compiled(name)(base(), adapters, z, sigma, condition)[1]


@pytest.mark.parametrize('name', [*BRANCHES, 'channel_concat'])
def test_a_fresh_model_gives_the_rgb_of_the_base(name):
  v = velocity(name, adapters(name), *inputs())
  assert v.dtype == jnp.float32 and v.shape == inputs()[0].shape
  np.testing.assert_allclose(v[dlc.RGB], alone(base(), *inputs()), atol=1e-5)


def test_channel_concat_starts_with_the_rgb_velocity_twice():
  z, sigma, condition = inputs()
  v = velocity('channel_concat', adapters('channel_concat'), z, sigma, condition)
  np.testing.assert_array_equal(v[dlc.XYZ], v[dlc.RGB])
  other = velocity('channel_concat', adapters('channel_concat'), z.at[dlc.XYZ].add(1.0), sigma, condition)
  np.testing.assert_array_equal(other, v)  # the rows of XYZ are zero


def test_spatial_concat_starts_as_the_base_where_both_halves_are_the_same():
  z, sigma, condition = nothing_given()
  same = jnp.stack([z[dlc.RGB], z[dlc.RGB]])
  v = velocity('spatial_concat', adapters('spatial_concat'), same, sigma, condition)
  np.testing.assert_allclose(v[dlc.RGB], alone(base(), same, sigma, condition), atol=1e-5)
  np.testing.assert_allclose(v[dlc.XYZ], v[dlc.RGB], atol=1e-5)
  other = velocity('spatial_concat', adapters('spatial_concat'), z, sigma, condition)
  assert np.abs(other[dlc.RGB] - v[dlc.RGB]).max() > 1e-3


def test_halves_of_spatial_concat_share_positions_and_differ_by_the_embedding():
  z, sigma, condition = nothing_given()
  run = functools.partial(velocity, 'spatial_concat')
  fresh = adapters('spatial_concat')
  v = run(fresh, z, sigma, condition)
  np.testing.assert_allclose(run(fresh, z[::-1], sigma, condition), v[::-1], atol=1e-5)
  marked = fresh | {'modality_xyz': jnp.linspace(-1, 1, TINY.width)}
  v = run(marked, z, sigma, condition)
  assert np.abs(run(marked, z[::-1], sigma, condition) - v[::-1]).max() > 1e-3


@named
def test_gradients_reach_every_adapter(name):
  by_adapters, _ = gradients(name, adapters(name, trained=True), *inputs())
  for path, g in jax.tree_util.tree_leaves_with_path(by_adapters):
    g = g.sum(axis=0)
    each = g.reshape(-1, *g.shape[2:]) if g.ndim > 2 else g[None]  # of LoRA and links: every layer and modality
    assert np.all(np.any(each != 0, axis=tuple(range(1, each.ndim)))), jax.tree_util.keystr(path)


# RGB from RGB, RGB from XYZ; XYZ from RGB, XYZ from XYZ
KNOWS = {
  'dlc': [[True, True], [True, True]],
  'channel_concat': [[True, True], [True, True]],
  'spatial_concat': [[True, True], [True, True]],
  'shared_lora': [[True, True], [True, True]],
  'no_links': [[True, False], [False, True]],
  'rgb_to_xyz': [[True, False], [True, True]],
  'xyz_to_rgb': [[True, True], [False, True]],
  'full': [[True, True], [True, True]],
}


@named
def test_which_modality_knows_of_which(name):
  _, by_latents = gradients(name, adapters(name, trained=True), *inputs())
  assert np.any(by_latents != 0, axis=(2, 3, 4, 5, 6)).tolist() == KNOWS[name]


def test_both_halves_of_spatial_concat_interact_before_any_training():
  _, by_latents = gradients('spatial_concat', adapters('spatial_concat'), *inputs())
  assert np.all(np.any(by_latents != 0, axis=-1))  # every token tells in both outputs


def test_shared_lora_is_dlc_with_equal_loras():
  trained = adapters('shared_lora', trained=True)
  both = trained | {'lora': jax.tree.map(lambda a: jnp.concatenate([a, a], axis=1), trained['lora'])}
  expected = velocity('dlc', both, *inputs())
  np.testing.assert_array_equal(velocity('shared_lora', trained, *inputs()), expected)


@pytest.mark.parametrize(('name', 'into'), [('rgb_to_xyz', dlc.XYZ), ('xyz_to_rgb', dlc.RGB)])
def test_one_way_links_are_half_of_dlc(name, into):
  trained = adapters('dlc', trained=True)
  half = trained | {'links': trained['links'][:, into][:, None]}
  v = velocity(name, half, *inputs())
  cut = trained | {'links': trained['links'].at[:, 1 - into].set(0)}
  np.testing.assert_allclose(v, velocity('dlc', cut, *inputs()), atol=1e-5)


COUNTS = {
  'dlc': 981_160_960,
  'channel_concat': 359_137_280 + (36 + 16) * 4 * 5120 + 5120 + 5120 * 64 + 64,
  'spatial_concat': 359_137_280 + 5120,
  'shared_lora': 359_137_280 + 262_144_000 + 742_400,
  'no_links': 718_274_560 + 742_400,
  'rgb_to_xyz': 718_274_560 + 131_072_000 + 742_400,
  'xyz_to_rgb': 718_274_560 + 131_072_000 + 742_400,
  'full': 16_394_878_784 + 262_144_000 + 742_400,
}


@named
def test_parameter_counts_at_full_size(name):
  paper = MODELS[name](DiTConfig())
  boxed = jax.eval_shape(paper.init_base, jax.random.key(0))
  trained = jax.eval_shape(paper.init_adapters, jax.random.key(0), nn.unbox(boxed))
  assert sum(a.size for a in jax.tree.leaves(nn.unbox(trained))) == COUNTS[name]
  for leaf in jax.tree.leaves(trained, is_leaf=lambda v: isinstance(v, nn.LogicallyPartitioned)):
    assert isinstance(leaf, nn.LogicallyPartitioned) and len(leaf.names) == leaf.value.ndim
    assert leaf.value.dtype == jnp.float32 and leaf.value.size  # checkpoints hold no empty arrays
    assert {name for name in leaf.names if name} <= set(rules.STORED)


@named
def test_a_bundle_holds_the_model_of_its_kind(name, tmp_path):
  sizes = dataclasses.replace(bundles.WAN, dit=TINY, adapters=dataclasses.replace(ADAPTERS, kind=name))
  bundles.save(bundles.Bundle({'adapters': adapters(name)}, sizes, {}), tmp_path / 'bundle')
  found = bundles.load(tmp_path / 'bundle')
  due = jax.eval_shape(found.model.init_adapters, jax.random.key(0), base())
  assert type(found.model) is type(model(name))
  assert jax.tree.map(jnp.shape, found.params['adapters']) == jax.tree.map(jnp.shape, nn.unbox(due))


def test_kinds_of_bundles_that_are_older_or_newer(tmp_path):
  bundles.save(bundles.Bundle({}, bundles.WAN, {}), tmp_path / 'bundle')
  path = tmp_path / 'bundle' / 'bundle.json'
  description = json.loads(path.read_text())
  assert description['sizes']['adapters'].pop('kind') == 'dlc'
  path.write_text(json.dumps(description))
  assert bundles.load(tmp_path / 'bundle').config == bundles.WAN
  description['sizes']['adapters']['kind'] = 'dual'
  path.write_text(json.dumps(description))
  with pytest.raises(CheckpointError, match="model 'dual'; this version has dlc, channel_concat"):
    bundles.load(tmp_path / 'bundle')
