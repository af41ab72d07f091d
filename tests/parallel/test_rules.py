"""Logical axes to mesh axes: what is split, and what stays whole."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from one4d_jax.errors import ConfigError
from one4d_jax.model.one4d import One4D
from one4d_jax.nn import quantize
from one4d_jax.parallel import rules
from one4d_jax.wan.clip import CLIPEncoder
from one4d_jax.wan.config import CLIPConfig, DiTConfig, UMT5Config, VAEConfig
from one4d_jax.wan.umt5 import UMT5Encoder
from one4d_jax.wan.vae import WanVAE

KEY = jax.random.key(0)


def mesh_of(**axes):
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def boxed(names, shape):
  return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@pytest.mark.parametrize(
  ('mesh', 'names', 'shape', 'expected'),
  [
    ({'fsdp': 4, 'tensor': 2}, ('layers', 'embed', 'ffn'), (40, 5120, 13824), (None, 'fsdp', 'tensor')),
    ({'fsdp': 8}, ('layers', 'embed', 'heads'), (40, 5120, 5120), (None, 'fsdp', None)),
    ({'data': 8}, ('embed', 'heads'), (64, 64), (None, None)),
    ({'data': 2, 'sequence': 4}, ('embed', 'heads'), (64, 64), ('sequence', None)),
    ({'fsdp': 2, 'sequence': 2, 'modality': 2}, (None, 'embed'), (4, 24), (None, ('fsdp', 'sequence', 'modality'))),
    ({'fsdp': 2, 'sequence': 2, 'modality': 2}, ('modality', 'embed'), (2, 6), ('modality', 'fsdp')),  # 6/2/2 is odd
    ({'fsdp': 8}, ('layers', 'embed'), (40, 64), ()),  # vectors stay whole
    ({'modality': 2, 'fsdp': 4}, ('layers', 'modality', 'embed', None), (3, 2, 8, 4), (None, 'modality', 'fsdp', None)),
    ({'fsdp': 8}, ('embed', 'heads'), (36, 64), (None, 'fsdp')),  # 36 rows do not divide by 8
    ({'fsdp': 8}, ('embed', 'heads'), (36, 60), (None, None)),
    ({'fsdp': 8}, ('layers', 'modality', None, 'heads'), (40, 2, 4, 64), (None, None, None, 'fsdp')),
    ({'fsdp': 2, 'tensor': 4}, ('heads', 'embed'), (8, 8), ('tensor', 'fsdp')),
    ({'fsdp': 2, 'tensor': 4}, ('heads', 'ffn'), (8, 8), (('tensor', 'fsdp'), None)),  # both want tensor
    ({'fsdp': 8}, (None, 'embed'), (144, 64), (None, 'fsdp')),
  ],
)
def test_axes_find_their_place(mesh, names, shape, expected):
  mesh = mesh_of(**mesh)
  sharding = rules.shardings({'w': boxed(names, shape)}, mesh)['w']
  assert sharding.spec == P(*expected) and sharding.mesh == mesh


def test_a_name_without_a_rule_is_an_error_not_a_copy():
  mesh = mesh_of(fsdp=8)
  with pytest.raises(ConfigError, match=r"no rule for the logical axis 'widht' of an array.*embed"):
    rules.shardings({'w': boxed(('widht',), (8,))}, mesh)


def test_explicit_axes_are_refused_with_the_way_out():
  with pytest.raises(ConfigError, match=r"must be Auto.*jax\.sharding\.Mesh\(devices, \('fsdp',\)\)"):
    rules.shardings({'w': boxed(('embed',), (8,))}, jax.make_mesh((8,), ('fsdp',)))


def test_other_rules_can_be_given():
  mesh = mesh_of(fsdp=8)
  assert rules.shardings({'w': boxed(('a', 'b'), (8, 8))}, mesh, {'a': (), 'b': ('fsdp',)})['w'].spec == P(None, 'fsdp')


def test_every_parameter_of_every_network_has_its_place():
  """The names in use all have rules, and of the 14B base each of 8 devices holds an eighth."""
  mesh = mesh_of(fsdp=4, tensor=2)
  model = One4D(DiTConfig())
  base = jax.eval_shape(model.init_base, KEY)
  for init in (WanVAE(VAEConfig()).init, UMT5Encoder(UMT5Config()).init, CLIPEncoder(CLIPConfig()).init):
    rules.shardings(jax.eval_shape(init, KEY), mesh)
  rules.shardings(jax.eval_shape(model.init_adapters, KEY, nn.unbox(base)), mesh)
  leaves = zip(jax.tree.leaves(nn.unbox(base)), jax.tree.leaves(rules.shardings(base, mesh)), strict=True)
  held, whole = zip(*[(math.prod(place.shard_shape(leaf.shape)), leaf.size) for leaf, place in leaves], strict=True)
  assert sum(whole) / 8 <= sum(held) < 1.02 * sum(whole) / 8


def test_an_int8_base_is_split_like_its_kernels():
  mesh = mesh_of(fsdp=4, tensor=2)
  base = jax.eval_shape(lambda key: quantize.blocks(One4D(DiTConfig()).init_base(key)), KEY)
  weight = rules.shardings(base, mesh)['blocks']['ffn_out']['kernel']
  assert weight.int8.spec == P(None, 'tensor', 'fsdp') and weight.scale.spec == P()
