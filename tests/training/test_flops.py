"""The formula against XLA's own count of what it compiled, and against figures that are known."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from one4d_jax.model import baselines
from one4d_jax.model.one4d import AdapterConfig
from one4d_jax.model.umc import Condition
from one4d_jax.training import flops
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig

# One layer, for XLA counts the body of a scan once; wide, so that elementwise work is little beside the products.
CFG = DiTConfig(
  width=512, ffn_width=1536, heads=4, layers=1, freq_width=64, text_width=256, text_len=96, image_width=128
)
ADAPTERS = AdapterConfig(rank=32, link_layers=(0,))
LATENT = (3, 16, 16)
SIZES = flops.Sizes(batch=2, grid=(3, 8, 8), text=96, image=65)

f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
TEXT, IMAGE = f32(2, 96, 256), f32(2, 65, 128)


def counted(function, *args) -> float:
  quick = {'xla_backend_optimization_level': 0}  # the program counted is the same
  return jax.jit(function, compiler_options=quick).lower(*args).compile().cost_analysis()['flops']


def velocity(base, x, text, image):
  return dit.velocity(CFG, base, x, jnp.ones(2), text, image, precision=dit.FLOAT32, policy='none')


squared = lambda f: lambda *args: jnp.square(f(*args)).mean()


@pytest.mark.parametrize(
  ('kind', 'what'),
  [
    *((kind, 'forward') for kind in ('base', 'dlc', 'channel_concat', 'spatial_concat')),
    *((kind, 'step') for kind in ('base', *baselines.MODELS)),
  ],
)
def test_xla_counts_the_same(kind, what):
  adapters = dataclasses.replace(ADAPTERS, kind='dlc' if kind == 'base' else kind)
  model, key = baselines.build(CFG, adapters, dit.FLOAT32, 'none'), jax.random.key(0)
  base = jax.eval_shape(lambda: nn.unbox(model.init_base(key)))
  if kind == 'base':
    function, args, trained = velocity, (base, f32(2, *LATENT, 36), TEXT, IMAGE), (0, 2, 3)
    count = flops.base(CFG, SIZES)
  else:

    def function(base, adapters, z, text, image):
      condition = Condition(jnp.ones((2, *LATENT, 16)), jnp.ones((2, *LATENT, 4)), text, image)
      return model.velocity(base, adapters, z, jnp.ones(2), condition)

    fresh = jax.eval_shape(lambda base: nn.unbox(model.init_adapters(key, base)), base)
    args, trained = (base, fresh, f32(2, 2, *LATENT, 16), TEXT, IMAGE), 1
    count = flops.one4d(CFG, adapters, SIZES)
  if what == 'step':
    function = jax.grad(squared(function), argnums=trained)
  expected = sum(getattr(count, what).values())
  found = counted(function, *args)
  assert expected == pytest.approx(found, rel=0.02) and expected < found


def test_full_training_costs_three_forward_passes_and_a_frozen_base_about_two():
  cfg, sizes = DiTConfig(), flops.Sizes(1, (21, 30, 52), 512, 257)
  full, adapted = flops.base(cfg, sizes), flops.one4d(cfg, AdapterConfig(), sizes)
  assert sum(full.step.values()) / sum(full.forward.values()) == pytest.approx(3, rel=1e-3)
  assert adapted.step['linear'] / adapted.forward['linear'] == pytest.approx(2, rel=0.01)
  assert adapted.forward['attention'] == 2 * full.forward['attention']
  assert adapted.step['lora'] / adapted.forward['lora'] == pytest.approx(3, rel=0.01)
  # 480 x 832, 81 frames: 32,760 tokens through six square linears and the MLP; 769 of text and image beside them
  tokens = math.prod(sizes.grid)
  assert full.forward['linear'] == pytest.approx(2 * tokens * 40 * (6 * 5120**2 + 2 * 5120 * 13824), rel=0.01)
  assert full.forward['attention'] == pytest.approx(4 * tokens**2 * 5120 * 40, rel=0.03)


def test_adapters_count_where_they_are():
  some = AdapterConfig(rank=32, targets='self_[qv]', link_layers=())
  count = flops.one4d(CFG, some, SIZES)
  rows = 2 * 2 * 192  # branches, batch, tokens
  assert count.forward['lora'] == 2 * 2 * rows * 32 * (512 + 512) and count.forward['links'] == 0
  assert flops.one4d(CFG, ADAPTERS, SIZES).forward['links'] == 2 * rows * 512 * 512


@pytest.mark.parametrize(('kind', 'tokens', 'attention'), [('channel_concat', 1, 1 / 2), ('spatial_concat', 2, 2)])
def test_models_of_one_sequence_against_one4d(kind, tokens, attention):
  """At the paper's size, where most of attention is between tokens of the video."""
  cfg, sizes = DiTConfig(), flops.Sizes(1, (21, 22, 39), 512, 257)
  one, two = (flops.one4d(cfg, AdapterConfig(kind=name), sizes) for name in (kind, 'dlc'))
  assert one.forward['attention'] / two.forward['attention'] == pytest.approx(attention, rel=0.05)
  assert one.forward['links'] == 0
  assert flops.tokens(baselines.build(cfg, AdapterConfig(kind=kind)), sizes) == tokens * math.prod(sizes.grid)
  assert flops.tokens(baselines.build(cfg, AdapterConfig()), sizes) == 2 * math.prod(sizes.grid)


def test_more_samples_cost_as_many_times_more():
  double = flops.one4d(CFG, ADAPTERS, SIZES._replace(batch=4)).step
  assert double == {part: 2 * n for part, n in flops.one4d(CFG, ADAPTERS, SIZES).step.items()}


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [('NVIDIA H200', 989.4e12), ('NVIDIA H100 PCIe', 756e12), ('TPU v5', 459e12), ('TPU7x', 1153.5e12), ('cpu', None)],
)
def test_peak_of_a_device(kind, expected):
  assert flops.peak(kind) == expected
  assert flops.peak(kind + ' MIG 1g.10gb') is None
