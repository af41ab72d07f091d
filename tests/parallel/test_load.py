"""The base from a converted folder: values, dtypes and places on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import one4d_jax
from one4d_jax.errors import CheckpointError, ConfigError
from one4d_jax.model import files
from one4d_jax.nn import quantize
from one4d_jax.parallel import load
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig
from tests import converted

SMALL = DiTConfig(width=48, ffn_width=80, heads=4, layers=3, text_width=24, image_width=20, freq_width=16)


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bundle')
  converted.write_base(folder / 'base', SMALL)
  return folder


@pytest.fixture(scope='module')
def int8_bundle(tmp_path_factory):
  folder = tmp_path_factory.mktemp('int8')
  converted.write_base(folder / 'base', SMALL, int8=True)
  return folder


def assert_equal(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), b)


def test_values_as_stored_on_one_device(bundle):
  base = one4d_jax.load_base(bundle)
  assert_equal(base, converted.random_base(SMALL))
  assert base['blocks']['ffn_in']['kernel'].dtype == jnp.bfloat16
  assert base['blocks']['modulation'].dtype == jnp.float32
  assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(base))


def test_a_mesh_holds_the_slices_its_axes_say(bundle):
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('fsdp', 'tensor'))
  base = one4d_jax.load_base(bundle / 'base', mesh)
  assert_equal(base, converted.random_base(SMALL))
  kernel = base['blocks']['ffn_out']['kernel']
  assert kernel.sharding.spec == P(None, 'tensor', 'fsdp')
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 40, 12)}
  assert base['embed']['image_in']['kernel'].sharding.spec == P(None, 'fsdp')


def test_weights_widen_and_islands_stay_float32(bundle, int8_bundle):
  as_float32 = lambda tree: jax.tree.map(lambda a: a if a.dtype == np.int8 else a.astype(np.float32), tree)
  stored = converted.random_base(SMALL)
  assert_equal(one4d_jax.load_base(bundle, dtype='float32'), as_float32(stored))
  mesh = Mesh(np.array(jax.devices()), ('fsdp',))
  base = one4d_jax.load_base(int8_bundle, mesh, dtype='float32')
  assert_equal(base, as_float32(quantize.blocks(stored)))
  narrow = one4d_jax.load_base(bundle, dtype='float16')
  assert narrow['blocks']['self_q']['kernel'].dtype == jnp.float16
  assert narrow['blocks']['self_norm_q']['scale'].dtype == jnp.float32


def test_an_int8_base_runs_on_a_mesh_as_on_one_device(int8_bundle):
  key = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(key[0], (1, 2, 4, 4, 36))
  text, image = jax.random.normal(key[1], (1, 8, 24)), jax.random.normal(key[2], (1, 5, 20))
  run = jax.jit(lambda base: dit.velocity(SMALL, base, x, jnp.ones(1), text, image, precision=dit.FLOAT32))
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('fsdp', 'tensor'))
  spread, whole = one4d_jax.load_base(int8_bundle, mesh), one4d_jax.load_base(int8_bundle)
  assert spread['blocks']['ffn_in']['kernel'].scale.sharding.spec == P()
  np.testing.assert_allclose(run(spread), run(whole), rtol=1e-3, atol=1e-3)


def test_weights_of_another_part_are_refused(tmp_path):
  converted.write(tmp_path / 'base', 'text', {}, {'norm': {'scale': np.ones(4, np.float32)}}, dtype='float32')
  with pytest.raises(CheckpointError, match="holds the part 'text', expected 'base'"):
    one4d_jax.load_base(tmp_path)


def test_leaves_that_contradict_the_config_are_refused(tmp_path):
  config = dataclasses.asdict(dataclasses.replace(SMALL, layers=4))
  converted.write(tmp_path / 'base', 'base', config, converted.random_base(SMALL), dtype='bfloat16')
  with pytest.raises(CheckpointError, match=r'of another shape .*blocks/.* \(3, .*expected \(4, '):
    one4d_jax.load_base(tmp_path)


def test_truncated_folders_are_refused(tmp_path):
  converted.write_base(tmp_path / 'base', SMALL)
  file = tmp_path / 'base' / 'blocks.ffn_in.kernel/c/2/0/0'
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(CheckpointError, match=r'ffn_in.kernel/c/2/0/0.* bytes, the manifest says'):
    one4d_jax.load_base(tmp_path)


def test_unknown_dtypes_are_named(bundle):
  with pytest.raises(ConfigError, match=r"dtype='int4'.*bfloat16"):
    one4d_jax.load_base(bundle, dtype='int4')


@pytest.mark.parametrize(
  'content', [b'{"a": "\xc7\x28"}', b'{', b'[]', b'{"references": 3}', b'{"references": {"base": {}}}']
)
def test_a_damaged_description_is_named(tmp_path, content):
  (tmp_path / 'bundle.json').write_bytes(content)
  for read in (load.open_bundle, files.find_parts, one4d_jax.load_base):
    with pytest.raises(CheckpointError, match=rf'weights at {str(tmp_path)!r} cannot be read'):
      read(tmp_path)
