"""Every preset of the mesh gives the loss and the gradients of one device, and talks as much as it should."""

import collections
import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.model.baselines import MODELS
from one4d_jax.model.one4d import AdapterConfig
from one4d_jax.model.umc import Condition
from one4d_jax.nn import partition, quantize, remat
from one4d_jax.parallel import load, rules
from one4d_jax.parallel import mesh as meshes
from one4d_jax.parallel.layout import MeshLayout
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig

CFG = DiTConfig(width=64, ffn_width=96, heads=8, layers=2, text_width=24, image_width=20, freq_width=16)
SAMPLES = 8
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})  # compiles faster


def model(name='dlc', policy='block'):
  return MODELS[name](CFG, AdapterConfig(rank=4, alpha=2.0, link_layers=(0,)), dit.FLOAT32, remat=policy)


@functools.cache
def parameters(name):
  """Base and adapters on one device, none of them zero."""
  base = nn.unbox(model(name).init_base(jax.random.key(0)))
  adapters = nn.unbox(model(name).init_adapters(jax.random.key(1), base))
  return base, jax.tree.map(lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape), adapters)


@functools.cache
def inputs():
  """A latent of 2 x 3 x 3 tokens, which 2 does not divide into equal frames; its noise level and condition."""
  k = jax.random.split(jax.random.key(0), 6)
  grid = (SAMPLES, 3, 6, 6)
  condition = Condition(
    latent=jax.random.normal(k[1], (*grid, 16)),
    mask=(jax.random.normal(k[2], (*grid, 4)) > 0).astype(jnp.float32),
    text=jax.random.normal(k[3], (SAMPLES, 8, 24)),
    image=jax.random.normal(k[4], (SAMPLES, 5, 20)),
  )
  return jax.random.normal(k[0], (2, *grid, 16)), jax.random.uniform(k[5], (SAMPLES,)), condition


def objective(name, policy, layout, adapters, base, z, sigma, condition):
  with partition.using(layout):
    v = model(name, policy).velocity(base, adapters, z, sigma, condition)
  return jnp.square(v).mean()


def gradient(name, policy, layout):
  return quick_jit(jax.value_and_grad(functools.partial(objective, name, policy, layout)))


@functools.cache
def alone(name, int8=False):
  base, adapters = parameters(name)
  base = quantize.blocks(base) if int8 else base
  return jax.tree.map(np.asarray, gradient(name, 'none', None)(adapters, base, *inputs()))


def boxes(name):
  base = jax.eval_shape(model(name).init_base, jax.random.key(0))
  return base, jax.eval_shape(lambda base: model(name).init_adapters(jax.random.key(0), base), nn.unbox(base))


def on_mesh(name, mesh, int8=False):
  """``(adapters, base)`` as training stores them."""
  base, adapters = parameters(name)
  base = quantize.blocks(base) if int8 else base
  names = boxes(name)
  placed = load.put(base, rules.shardings(quantize.boxed_like(names[0], base), mesh))
  return load.put(adapters, rules.shardings(names[1], mesh)), placed


def assert_equal(found, expected):
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  for path, want in jax.tree_util.tree_leaves_with_path(expected[1]):
    got = functools.reduce(lambda tree, key: tree[key.key], path, found[1])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max(), err_msg=str(path))


def cases():
  """One4D on every preset, each model that it is compared with on one that splits tokens; the others in test-full."""
  for name in MODELS:
    for preset in meshes.PRESETS:
      marks = () if name == 'dlc' or preset == 'fsdp_sequence' else (pytest.mark.full,)
      yield pytest.param(name, preset, marks=marks)


@pytest.mark.parametrize('name, preset', list(cases()))
def test_loss_and_gradients_of_one_device(name, preset):
  mesh = meshes.make(preset)
  assert_equal(gradient(name, 'block', MeshLayout(mesh))(*on_mesh(name, mesh), *inputs()), alone(name))


@pytest.mark.parametrize('method', ['ulysses', 'ring'])
def test_all_axes_at_once(method):
  mesh = meshes.make('modality=2,sequence=2,tensor=2')
  run = gradient('dlc', 'attention_saved', MeshLayout(mesh, method))
  assert_equal(run(*on_mesh('dlc', mesh), *inputs()), alone('dlc'))


@pytest.mark.parametrize('policy', [p for p in remat.POLICIES if p != 'block'])  # block: above
def test_what_the_backward_pass_keeps_changes_no_number(policy):
  mesh = meshes.make('fsdp_modality')
  assert_equal(gradient('dlc', policy, MeshLayout(mesh))(*on_mesh('dlc', mesh), *inputs()), alone('dlc'))


def test_an_int8_base():
  mesh = meshes.make('fsdp_modality')
  run = gradient('dlc', 'block', MeshLayout(mesh))
  assert_equal(run(*on_mesh('dlc', mesh, int8=True), *inputs()), alone('dlc', int8=True))


def collectives(name, preset, policy='block', int8=False):
  """How often each kind is called for in the compiled forward pass, with the shapes it gives."""
  mesh = meshes.make(preset)
  adapters, base = on_mesh(name, mesh, int8)
  run = quick_jit(functools.partial(objective, name, policy, MeshLayout(mesh)))
  text = run.lower(adapters, base, *inputs()).compile().as_text()
  kinds = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute'
  found = collections.defaultdict(list)
  for shape, kind in re.findall(rf'= \(?(\w+\[[\d,]*\])[^=]*? ({kinds})(?:-start)?\(', text):
    found[kind].append(shape)
  return found


def test_a_base_kernel_is_gathered_once_for_both_branches():
  """Ten of the block's linears are 64 x 64 and two are of the MLP; scanned layers stand once in the program."""
  for preset in ('fsdp', 'fsdp_modality'):
    found = collections.Counter(re.sub(r'\[1,', '[', shape) for shape in collectives('dlc', preset)['all-gather'])
    assert found['f32[64,96]'] == 1 and found['f32[96,64]'] == 1, found
    others = 2 + 2  # time and text embedding; a link's kernel for each branch
    assert 10 <= found['f32[64,64]'] <= 10 + others, found


def test_int8_kernels_are_gathered_as_they_are_stored():
  found = collections.Counter(collectives('dlc', 'fsdp', int8=True)['all-gather'])
  assert sum(n for shape, n in found.items() if shape.startswith('s8')) == 12


def test_branches_exchange_only_at_links():
  linked, unlinked = (collectives(name, 'fsdp_modality')['collective-permute'] for name in ('dlc', 'no_links'))
  tokens = [shape for shape in linked if shape.endswith('27,64]')]
  assert len(tokens) == 1, linked  # one exchange for the link
  assert not [shape for shape in unlinked if shape.endswith('27,64]')], unlinked


def test_nothing_large_is_repeated():
  """No parameter, adapter or moment above a million values lies whole on every device of a mesh that could split it."""
  import optax

  from one4d_jax.model.one4d import One4D
  from one4d_jax.training.step import init_state

  whole = One4D(DiTConfig())
  base = jax.eval_shape(whole.init_base, jax.random.key(0))
  adapters = jax.eval_shape(whole.init_adapters, jax.random.key(0), nn.unbox(base))
  state = jax.eval_shape(lambda p: init_state(p, optax.adamw(1e-3), seed=0, ema=0.9), nn.unbox(adapters))
  for preset in meshes.PRESETS:
    mesh = meshes.make(preset)
    places = [(base, rules.shardings(base, mesh)), (state, rules.state_shardings(state, adapters, mesh))]
    for tree, shardings in places:
      tree = nn.unbox(tree)
      for (path, leaf), place in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shardings), strict=True
      ):
        if leaf.size > 2**20 and 'modulation' not in str(path):
          share = np.prod(place.shard_shape(leaf.shape)) / leaf.size
          assert share <= 1 / 4, f'{preset}: {path} {leaf.shape} lies as {place.spec}'


def test_fields_of_a_model_are_those_of_one4d():
  assert {field.name for field in dataclasses.fields(model())} >= {'cfg', 'adapters', 'precision', 'remat'}
