"""Encoding a prepared set: what is stored, how it continues, who may write where."""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

from one4d_jax import cli
from one4d_jax import encode as encoding
from one4d_jax.data import prepared, shards
from one4d_jax.errors import CheckpointError, DataError
from one4d_jax.model import bundle as bundles
from one4d_jax.model.files import EMBEDDED
from one4d_jax.training import encoding as making
from one4d_jax.training import latents
from tests import converted, encoded

FIELDS = {'z', 'z_image', 'z_sparse', 'observed_sparse', 'weight', 'scale', 'text', 'image', 'id', 'caption'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return encoded.prepare(tmp_path_factory.mktemp('prepared'), train=5, test=1)


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
  """Encoded in one go on eight devices, two clips a shard, and what was told."""
  out, told = tmp_path_factory.mktemp('encoded') / 'set', []
  encode(data, out, tell=told.append)
  return out, told


def sources(data, splits=('train', 'test')):
  return {split: prepared.open(data, split) for split in splits}


def encode(data, out, **changes):
  given = sources(data) if isinstance(data, pathlib.Path) else data
  settings = {'shard_records': 2, 'tell': lambda text: None} | changes
  encoding.encode(given, EMBEDDED, out, **settings)


def contents(out: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob('*')) if path.is_file()}


def assert_same_set(a: pathlib.Path, b: pathlib.Path):
  """Files have the same names and the same records; safetensors writes the strings of a record in any order."""
  assert contents(a).keys() == contents(b).keys()
  for index in a.glob('*/dataset.json'):
    other = b / index.relative_to(a)
    assert shards.open(index.parent).meta == shards.open(other.parent).meta
    for one, two in zip(records(index.parent), records(other.parent), strict=True):
      assert one.keys() == two.keys()
      for name in one:
        np.testing.assert_array_equal(one[name], two[name])
  assert json.loads((a / 'report.json').read_text()) == json.loads((b / 'report.json').read_text())


def records(folder: pathlib.Path) -> list[dict]:
  source = shards.open(folder)
  return [source[i] for i in range(len(source))]


def test_records_hold_what_training_needs(data, whole):
  folder = whole[0] / 'train-5x32x32'
  found, clips = records(folder), prepared.open(data)
  assert [record['id'] for record in found] == [row['id'] for row in clips.rows]
  for i, record in enumerate(found):
    assert record.keys() == FIELDS and record['caption'] == clips[i].caption
    assert record['z'].shape == (2, 2, 4, 4, 96) and record['z_sparse'].shape == (2, 2, 4, 4, 96)
    assert record['observed_sparse'].shape == (2, 5) and record['observed_sparse'][:, [0, -1]].all()
    assert record['text'].shape == (len(record['caption'].encode()) + 1, 96)  # bytes and the end, no padding
    assert record['image'].shape == (17, 96)
    floats = {record[name].dtype for name in ('z', 'z_image', 'z_sparse', 'weight', 'text', 'image')}
    assert floats == {np.dtype(np.float16)}
  shards.verify(folder)
  assert len(records(whole[0] / 'test-5x32x32')) == 1
  meta = shards.open(folder).meta
  assert meta['kind'] == 'latents' and meta['size'] == [5, 32, 32] and {'vae', 'text', 'image'} < set(meta['networks'])


def test_the_report_decodes_a_sample_and_warns_of_a_weak_vae(whole):
  out, told = whole
  report = json.loads((out / 'report.json').read_text())
  assert len(report['train-5x32x32']['checked']) == 4 and report['test-5x32x32']['clips'] == 1
  assert 15 < report['train-5x32x32']['psnr'] < 60 and 0 < report['train-5x32x32']['pointmap_error'] < 0.3
  assert any('WARNING' in line and '30 dB' in line for line in told) == (
    min(part['psnr'] for part in report.values()) < 30
  )
  assert (out / 'train-5x32x32.png').is_file()


def test_the_same_again_does_nothing(data, whole, monkeypatch):
  before = contents(whole[0])
  monkeypatch.setattr('one4d_jax.training.latents.Encoder', None)
  encode(data, whole[0])
  assert contents(whole[0]) == before


@pytest.mark.full
def test_one_device_gives_the_same(data, whole, tmp_path):
  encode(data, tmp_path / 'one', devices=jax.local_devices()[:1])
  for a, b in zip(records(whole[0] / 'train-5x32x32'), records(tmp_path / 'one' / 'train-5x32x32'), strict=True):
    for name in FIELDS - {'id', 'caption'}:
      np.testing.assert_allclose(a[name].astype(np.float32), b[name].astype(np.float32), rtol=2e-3, atol=2e-3)


def test_two_processes_write_the_same_set(data, whole, tmp_path):
  out, told = tmp_path / 'set', []
  encode(data, out, process=(1, 2), tell=told.append)
  assert not list(out.rglob('dataset.json')) and 'left to other processes' in told[0]
  encode(data, out, process=(0, 2))
  assert_same_set(out, whole[0])


class Killed(BaseException):
  pass


def test_killed_in_a_shard_it_continues(data, whole, tmp_path, monkeypatch):
  out, count = tmp_path / 'set', iter(range(100))

  def dies(record):
    if next(count) == 3:  # the second of the second shard
      raise Killed
    return real(record)

  real = shards.encode
  monkeypatch.setattr(shards, 'encode', dies)
  with pytest.raises(Killed):
    encode(data, out)
  folder = out / 'train-5x32x32'
  (folder / 'data-00001.array_record.partial').write_bytes(b'as kill -9 leaves it')
  with pytest.raises(DataError, match='no complete data set'):
    shards.open(folder)
  kept = (folder / 'data-00000.array_record').stat().st_mtime_ns
  monkeypatch.setattr(shards, 'encode', real)
  encode(data, out)
  assert (folder / 'data-00000.array_record').stat().st_mtime_ns == kept
  assert_same_set(out, whole[0])


@pytest.mark.parametrize('change', ['data', 'networks', 'conditions', 'shards'])
def test_another_encoding_is_refused_naming_both(data, whole, change, tmp_path):
  settings = json.loads((whole[0] / 'encode.json').read_text())
  (tmp_path / 'encode.json').write_text(json.dumps(settings | {change: 'OTHER'}))
  with pytest.raises(DataError, match=f'{change} OTHER, now .*another --out'):
    encode(data, tmp_path)


class Damaged:
  """A source of which one clip cannot be decoded."""

  def __init__(self, source, bad):
    self.source, self.bad, self.rows, self.fingerprint = source, bad, source.rows, source.fingerprint

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i):
    if i in self.bad:
      raise DataError(f'clip {i}: frame 3 is damaged')
    return self.source[i]


def test_a_clip_that_cannot_be_decoded_is_named_and_left_out(data, tmp_path):
  given, told = {'train': Damaged(prepared.open(data), [2])}, []
  encode(given, tmp_path / 'set', tell=told.append)
  found = [record['id'] for record in records(tmp_path / 'set' / 'train-5x32x32')]
  name = given['train'].rows[2]['id']
  assert len(found) == 4 and name not in found
  failed = json.loads((tmp_path / 'set' / 'report.json').read_text())['train-5x32x32']['failed']
  assert failed == [{'id': name, 'why': 'clip 2: frame 3 is damaged'}]
  assert any('WARNING' in line and name in line for line in told)
  with pytest.raises(DataError, match=f'{name}: clip 2: frame 3'):
    encode(given, tmp_path / 'strict', strict=True)
  with pytest.raises(DataError, match=r'no clip could be encoded.*clip 0'):
    encode({'train': Damaged(prepared.open(data), range(5))}, tmp_path / 'none')


def test_sizes_go_to_folders_of_their_own_in_shards_of_about_half_a_gigabyte(tmp_path):
  rows = [{'size': size} for size in 40 * [[81, 480, 832]] + 3 * [[17, 64, 64]]]
  plan = making.plan({'train': types.SimpleNamespace(rows=rows)}, tmp_path, shard_records=None, conditions=3)
  assert [(shard.folder.name, len(shard.rows)) for shard in plan] == [
    ('train-17x64x64', 3), ('train-81x480x832', 25), ('train-81x480x832', 15),
  ]  # fmt: skip
  assert sorted(i for shard in plan for i in shard.rows) == list(range(43))


def test_converted_weights_are_read_straight_to_where_the_mesh_wants_them(tmp_path):
  whole = bundles.load(parts=latents.PARTS)
  for name in ('bundle.json', 'vae.safetensors'):
    shutil.copy(EMBEDDED / name, tmp_path)
  text = whole.params['text']
  converted.write(tmp_path / 'text', 'text', dataclasses.asdict(whole.config.text), text, dtype='float32')
  with pytest.raises(CheckpointError, match='has no image weights'):
    encoding.networks(tmp_path)
  shutil.copy(EMBEDDED / 'image.safetensors', tmp_path)
  bundle = encoding.networks(tmp_path)
  assert set(bundle.params) == {'vae', 'image'}
  one, other = (latents.Encoder(b, sparse_masks=1) for b in (bundle, whole))
  kernel = one.params['text']['blocks']['ffn_in']['kernel']
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 96 // jax.device_count(), 256)}
  (a,), (b,) = (encoder.text(['a red box']) for encoder in (one, other))
  assert a['text'].shape == (10, 96)
  np.testing.assert_array_equal(a['text'], b['text'])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--weights', str(EMBEDDED)], '--data'),
    (['--data', 'nowhere', '--weights', str(EMBEDDED)], 'nowhere is no prepared set'),
    (['--data', 'DATA', '--weights', 'nowhere'], "no weights at 'nowhere'"),
    (['--data', 'DATA', '--weights', str(EMBEDDED), '--process', '2/2'], 'expected I/N'),
    (['--data', 'DATA', '--weights', str(EMBEDDED), '--sparse-masks', '0'], '1 or more'),
  ],
)
def test_a_mistake_is_one_line(data, arguments, message, capsys, tmp_path):
  arguments = [str(data) if word == 'DATA' else word for word in arguments]
  assert cli.run(encoding.main, encoding.parser(), [*arguments, '--out', str(tmp_path / 'out')]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1 and not (tmp_path / 'out').exists()
