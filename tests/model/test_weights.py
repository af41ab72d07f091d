"""Converted folders: what is read comes back as it was written, what is not whole is refused by name."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from one4d_jax.errors import CheckpointError
from one4d_jax.model import weights
from one4d_jax.nn.quantize import Int8Weight, quantize
from tests import converted

TREE = {
  'blocks': {
    'ffn': {
      'kernel': np.random.default_rng(0).standard_normal((3, 16, 24), np.float32).astype(jnp.bfloat16),
      'bias': np.arange(72, dtype=np.float32).reshape(3, 24).astype(jnp.bfloat16),
    },
    'norm': {'scale': np.linspace(0, 1, 48, dtype=np.float32).reshape(3, 16)},
  },
  'head': {'kernel': np.zeros((16, 4), np.float32), 'gain': np.asarray(2, np.float32)},  # zeros are stored too
}


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  root = tmp_path_factory.mktemp('written')
  for part, int8 in (('base', False), ('text', True)):
    converted.write(root / part, part, {}, TREE, dtype='bfloat16', int8=int8)
  return root


@pytest.fixture
def folder(written, tmp_path):
  """A copy to damage."""
  return shutil.copytree(written / 'base', tmp_path / 'w' / 'base')


def rewrite_manifest(folder, change):
  manifest = json.loads((folder / 'manifest.json').read_text())
  change(manifest)
  (folder / 'manifest.json').write_text(json.dumps(manifest))


def equal(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), b)


def test_a_part_comes_back_as_it_was_written(written, capfd):
  tree = weights.load(written / 'base')
  equal(tree, TREE)
  assert all(leaf.devices() == {jax.local_devices()[0]} for leaf in jax.tree.leaves(tree))
  assert capfd.readouterr() == ('', '')


def test_int8_kernels_come_back_as_int8_weights(written):
  tree = weights.load(written / 'text')
  kernel = quantize(TREE['blocks']['ffn']['kernel'])
  assert isinstance(tree['blocks']['ffn']['kernel'], Int8Weight)
  equal(tree, TREE | {'blocks': TREE['blocks'] | {'ffn': TREE['blocks']['ffn'] | {'kernel': kernel}}})
  assert isinstance(tree['blocks']['norm']['scale'], jax.Array)  # a name alone makes no quantised weight


def test_any_orbax_program_can_read_the_folder(written):
  with ocp.StandardCheckpointer() as checkpointer:
    equal(checkpointer.restore(written / 'base'), TREE)


def test_restore_places_and_casts(written):
  mesh = jax.make_mesh((4, 2), ('a', 'b'))
  place = NamedSharding(mesh, PartitionSpec(None, 'a', 'b'))
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), TREE)
  abstract['blocks']['ffn']['kernel'] = jax.ShapeDtypeStruct((3, 16, 24), jnp.float32, sharding=place)
  tree = weights.restore(written / 'base', abstract)
  assert tree['blocks']['ffn']['kernel'].sharding == place
  equal(tree, jax.tree.map(lambda a: a.astype(np.float32), TREE))


def test_a_leaf_is_read_where_it_is_indexed(written):
  leaf = weights.open_leaf(written / 'base', 'blocks/ffn/kernel')
  assert leaf.shape == (3, 16, 24)
  np.testing.assert_array_equal(leaf[1, 2:5].read().result(), TREE['blocks']['ffn']['kernel'][1, 2:5])
  with pytest.raises(CheckpointError, match="'blocks/ffn/weight' cannot be read"):
    weights.open_leaf(written / 'base', 'blocks/ffn/weight')


def test_all_that_does_not_fit_is_named_together(written):
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), TREE)
  abstract['blocks']['ffn']['kernel'] = jax.ShapeDtypeStruct((3, 16, 25), jnp.bfloat16)
  abstract['tail'] = abstract.pop('head')
  with pytest.raises(CheckpointError) as error:
    weights.restore(written / 'base', abstract)
  for words in (
    '2 missing (tail/gain, tail/kernel)',
    '2 unexpected (head/gain, head/kernel)',
    '1 of another shape (blocks/ffn/kernel (3, 16, 24), expected (3, 16, 25))',
  ):
    assert words in str(error.value)


LAYER = 'blocks.ffn.kernel/c/1/0/0'


def test_missing_truncated_and_longer_files_are_named(folder):
  file = folder / LAYER
  content = file.read_bytes()
  for changed, words in ((None, 'is missing'), (content[:-1], f'has {len(content) - 1} bytes'), (content + b'0', '')):
    file.unlink()
    if changed is not None:
      file.write_bytes(changed)
    with pytest.raises(CheckpointError, match=rf'{LAYER}.* {words}.*the manifest says {len(content)} bytes'):
      weights.check(folder)
    file.write_bytes(content)
  weights.check(folder)


def test_a_flipped_byte_is_found_by_its_hash(folder):
  seen = []
  weights.verify_hashes(folder, seen.append)
  assert sum(seen) == sum(f.stat().st_size for f in folder.rglob('*') if f.is_file() and f.name != 'manifest.json')
  content = bytearray((folder / LAYER).read_bytes())
  content[5] ^= 1
  (folder / LAYER).write_bytes(content)
  weights.check(folder)  # sizes are right
  with pytest.raises(CheckpointError, match=f'contents differ from the manifest: {LAYER}; convert again'):
    weights.verify_hashes(folder)


def test_contents_that_cannot_be_decoded_are_an_error_in_one_line(folder):
  content = bytearray((folder / LAYER).read_bytes())
  content[-1] ^= 1  # in the index, which has a checksum of its own
  (folder / LAYER).write_bytes(content)
  with pytest.raises(CheckpointError, match=f'damaged.*{LAYER}.*convert again') as error:
    weights.load(folder)
  assert '\n' not in str(error.value)


def test_a_changed_manifest_is_refused(folder):
  rewrite_manifest(folder, lambda m: m['files'][LAYER].update(sha256='0' * 64))
  with pytest.raises(CheckpointError, match='was changed'):
    weights.read_manifest(folder)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda m: m.update(format=2), 'has format 2, this version reads 1'),
    (lambda m: m.pop('leaves'), "cannot be read .*'leaves'"),
    (lambda m: m.pop('format'), "cannot be read .*'format'"),
  ],
)
def test_manifests_of_another_kind_are_refused(folder, change, words):
  rewrite_manifest(folder, change)
  with pytest.raises(CheckpointError, match=words):
    weights.read_manifest(folder)


def test_a_manifest_that_is_no_json_or_absent(folder):
  (folder / 'manifest.json').write_text('{"format": 1, "pa')
  with pytest.raises(CheckpointError, match='cannot be read'):
    weights.read_manifest(folder)
  (folder / 'manifest.json').unlink()
  with pytest.raises(CheckpointError, match=r'no manifest\.json'):
    weights.read_manifest(folder)


def test_another_part_is_refused(written):
  with pytest.raises(CheckpointError, match="holds the part 'text', expected 'base'"):
    weights.check(written / 'text', 'base')


def test_the_folder_is_found_in_a_bundle_or_by_itself(written):
  assert weights.locate(written, 'base') == weights.locate(written / 'base', 'base') == written / 'base'


def test_the_folder_is_found_through_the_reference_of_a_bundle(written, tmp_path):
  identity = weights.identity(weights.read_manifest(written / 'base'))
  describe = lambda sha256: (tmp_path / 'bundle.json').write_text(
    json.dumps({'references': {'base': {'path': str(written / 'base'), 'sha256': sha256}}})
  )
  describe(identity)
  assert weights.locate(tmp_path, 'base') == written / 'base'
  describe(hashlib.sha256(b'another').hexdigest()[:16])
  with pytest.raises(CheckpointError, match='was made with other base weights'):
    weights.locate(tmp_path, 'base')


def test_unfinished_and_absent_conversions_are_told_apart(folder):
  bundle = folder.parent
  folder.rename(bundle / 'base.partial')
  for path in (bundle, folder):
    with pytest.raises(CheckpointError, match=r"into '.*/base' is unfinished; run its command again"):
      weights.locate(path, 'base')
  shutil.rmtree(bundle / 'base.partial')
  with pytest.raises(CheckpointError, match=r'no converted weights at .*expected base/manifest\.json'):
    weights.locate(bundle, 'base')
  (bundle / 'bundle.json').write_text('{}')
  (bundle / 'base.safetensors').touch()
  with pytest.raises(CheckpointError, match=r'base\.safetensors.* is no converted folder'):
    weights.locate(bundle, 'base')
