import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from one4d_jax.data import codec, example, prepared, render, shards
from one4d_jax.errors import DataError

SIZES = ((5, 32, 48), (5, 48, 32), (9, 32, 48))  # of the clips, in turn
META = {'source': 'proc', 'licence': ['none needed'], 'content': 'abc', 'curation': {'quality': 92}}


def clip(i):
  frames, height, width = SIZES[i % 3]
  return render.clip(i, frames=frames, height=height, width=width, supersample=1)


CLIPS = [clip(i) for i in range(6)]
PAYLOADS = [prepared.serialise(codec.encode(c, quality=92)) for c in CLIPS]
SHARDS = {'train': [(0, 1), (), (2, 3)], 'test': [(4,)], 'dropped': [(5,)]}


def row(i, split):
  c = CLIPS[i]
  return {
    'id': c.meta['id'],
    'split': split,
    'size': [c.frames, *c.size],
    'caption': f'caption {i}',
    'statistics': {'motion': 0.1 * i},
    'reasons': {},
  }


def parts(folder, which=None):
  """Files as workers leave them, and the rows: what `finish` takes."""
  which = SHARDS if which is None else which
  folder.mkdir(exist_ok=True)
  paths = {split: [folder / f'{split}-{k}' for k in range(len(some))] for split, some in which.items()}
  for split, some in which.items():
    for path, numbers in zip(paths[split], some, strict=True):
      shards.write_file(path, [PAYLOADS[i] for i in numbers])
  return {'shards': paths, 'rows': [row(i, split) for split, some in which.items() for part in some for i in part]}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  out = tmp_path_factory.mktemp('sets')
  return prepared.finish(out / 'proc' / '1.0.0', name='proc', meta=META, **parts(out / 'work'))


@pytest.fixture
def copy(finished, tmp_path):
  """A set to damage."""
  return pathlib.Path(shutil.copytree(finished, tmp_path / 'out' / 'proc' / '1.0.0'))


def same(found, expected, caption):
  decoded = codec.decode(codec.encode(expected, quality=92))
  for field in dataclasses.fields(found):
    value = getattr(found, field.name)
    if field.name == 'caption':
      assert value == caption
    else:
      np.testing.assert_array_equal(value, getattr(decoded, field.name))


def test_the_clips_come_back(finished):
  assert prepared.splits(finished) == ('train', 'test', 'dropped')
  assert prepared.read_meta(finished) == META
  train = prepared.open(finished)
  assert len(train) == 4 and train.split == 'train' and train.meta == META
  for i in (3, 0, 2, 1):
    same(train[i], CLIPS[i], f'caption {i}')
  same(train[np.int64(-1)], CLIPS[3], 'caption 3')
  assert [r['index'] for r in train.rows] == [0, 1, 2, 3]
  assert [tuple(r['size']) for r in train.rows] == [(c.frames, *c.size) for c in CLIPS[:4]]
  same(prepared.open(finished, 'dropped')[0], CLIPS[5], 'caption 5')
  np.testing.assert_array_equal(codec.frames(train.record(2), [8]), train[2].rgb[8:])
  for i in (4, -5):
    with pytest.raises(IndexError):
      train[i]
  prepared.verify(finished)


def test_the_folder(finished):
  files = sorted(path.name for path in finished.iterdir())
  assert files == sorted(
    [
      *('LICENSE', 'checksums.json', 'clips.jsonl', 'dataset_info.json', 'features.json'),
      'proc-train.array_record-00000-of-00002',  # the empty file between them is left out
      'proc-train.array_record-00001-of-00002',
      'proc-test.array_record-00000-of-00001',
      'proc-dropped.array_record-00000-of-00001',
    ]
  )
  assert os.listdir(finished.parent) == ['1.0.0']
  source = finished.parent.parent / 'work' / 'train-2'
  assert source.samefile(finished / 'proc-train.array_record-00001-of-00002')  # not a copy


def test_tfds_reads_it_without_tensorflow(finished):
  code = (
    'import sys, tensorflow_datasets as tfds\n'
    'from one4d_jax.data import codec\n'
    "for split in ('train', 'train[2:3]', 'test', 'dropped'):\n"
    "  source = tfds.data_source('proc', split=split, data_dir=sys.argv[1])\n"
    '  clips = [codec.decode(source[i]) for i in range(len(source))]\n'
    "  print(len(clips), clips[0].meta['id'], clips[0].rgb.sum(), clips[0].depth.sum())\n"
    "print([name for name in ('tensorflow', 'jax') if name in sys.modules])\n"
  )
  out = subprocess.run(
    [sys.executable, '-c', code, str(finished.parent.parent)], capture_output=True, text=True, check=True
  )
  lines = out.stdout.splitlines()
  for line, count, i in zip(lines, (4, 1, 1, 1), (0, 2, 4, 5), strict=False):
    decoded = codec.decode(prepared.deserialise(PAYLOADS[i]))
    assert line.split() == [str(count), CLIPS[i].meta['id'], str(decoded.rgb.sum()), str(decoded.depth.sum())]
  assert lines[-1] == '[]'


def test_a_reader_needs_no_tfds(finished):
  code = (
    'import sys; from one4d_jax.data import prepared; prepared.open(sys.argv[1])[0]\n'
    "print([name for name in ('tensorflow', 'tensorflow_datasets', 'jax') if name in sys.modules])"
  )
  out = subprocess.run([sys.executable, '-c', code, str(finished)], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'


def test_the_bytes_are_those_of_tfds():
  import tensorflow_datasets as tfds

  features = tfds.features.FeaturesDict(
    {
      'n': tfds.features.Tensor(shape=(None,), dtype=np.uint16, encoding='bytes'),
      't': tfds.features.Text(),
      'f': tfds.features.Tensor(shape=(None, 2), dtype=np.float32, encoding='bytes'),
    }
  )
  values = {'n': np.arange(300, dtype=np.uint16), 't': 'ünï', 'f': np.eye(2, dtype=np.float32)}
  ours = example.pack({'n': values['n'].tobytes(), 't': 'ünï'.encode(), 'f': values['f'].tobytes()})
  read = features.deserialize_example_np(ours)
  np.testing.assert_array_equal(read['n'], values['n'])
  np.testing.assert_array_equal(read['f'], values['f'])
  assert read['t'].decode() == 'ünï'
  theirs = features.serialize_example(values)
  assert sorted(theirs) == sorted(ours)
  assert example.unpack(theirs) == example.unpack(ours)


def test_bytes_that_are_no_record():
  with pytest.raises(DataError, match='not a serialised example'):
    prepared.deserialise(PAYLOADS[0][:-1])
  with pytest.raises(DataError, match='the record has no id'):
    prepared.deserialise(b'')
  stored = example.unpack(PAYLOADS[0])
  for name, value in {'K': stored['K'][:-1], 'size': stored['size'] * 2, 'caption': b'\xff'}.items():
    with pytest.raises(DataError, match=f'{name} of the record is damaged'):
      prepared.deserialise(example.pack(stored | {name: value}))


def test_source_pickles_and_serves_threads(finished):
  source = pickle.loads(pickle.dumps(prepared.open(finished)))
  found, threads = {}, []
  for i in range(8):
    threads.append(threading.Thread(target=lambda i=i: found.update({i: source[i % 4].depth})))
    threads[-1].start()
  for thread in threads:
    thread.join()
  for i in range(8):
    np.testing.assert_array_equal(found[i], source[i % 4].depth)


def test_fingerprint_tells_content(finished, tmp_path):
  def make(version, given):
    return prepared.open(prepared.finish(tmp_path / 'proc' / version, name='proc', meta=META, **given)).fingerprint

  given = parts(tmp_path / 'work')
  first, again = prepared.open(finished).fingerprint, make('1.0.0', given)
  assert first == again
  assert prepared.open(finished, 'test').fingerprint != first
  given['rows'][0]['caption'] = 'another'
  assert make('1.1.0', given) != first
  assert make('2.0.0', parts(tmp_path / 'less', {'train': [(0, 1)]})) != first


def test_splits_without_clips_are_left_out(tmp_path):
  folder = prepared.finish(
    tmp_path / 'proc' / '1.0.0',
    name='proc',
    meta={},
    **parts(tmp_path / 'w', {'train': [()], 'test': [], 'dropped': [(1,)]}),
  )
  assert prepared.splits(folder) == ('dropped',)
  with pytest.raises(DataError, match="no split 'train', only dropped"):
    prepared.open(folder)


def test_what_cannot_be_finished(tmp_path, finished):
  given = parts(tmp_path / 'work')
  finish = lambda folder=tmp_path / 'proc' / '1.0.0', name='proc', **changed: prepared.finish(
    folder, name=name, meta=META, **(given | changed)
  )
  with pytest.raises(DataError, match='already exists'):
    finish(finished)
  with pytest.raises(DataError, match=r'a version of proc is a folder like proc/1\.0\.0'):
    finish(tmp_path / 'proc' / 'new')
  with pytest.raises(DataError, match='a version of other'):
    finish(name='other')
  with pytest.raises(DataError, match='no clips'):
    finish(shards={'train': []}, rows=[])
  with pytest.raises(DataError, match='3 clips are listed in train, its files hold 4'):
    finish(rows=given['rows'][1:])
  with pytest.raises(DataError, match='2 clips are listed in dropped, its files hold 1'):
    finish(rows=[*given['rows'], row(0, 'dropped')])
  with pytest.raises(DataError, match='listed in val, where there are no records'):
    finish(rows=[*given['rows'], row(0, 'val')])
  with pytest.raises(DataError, match='no-such-file cannot be read'):
    finish(shards={'train': [tmp_path / 'no-such-file']})
  cut = given['shards']['train'][0]
  cut.write_bytes(cut.read_bytes()[:-100])
  with pytest.raises(DataError, match='train-0 cannot be read'):
    finish()
  assert not list((tmp_path / 'proc').iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
  given = parts(tmp_path / 'work')

  def full(self, text):
    if self.name == 'clips.jsonl':
      raise OSError(28, 'No space left on device')
    return original(self, text)

  original = pathlib.Path.write_text
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'write_text', full)
    with pytest.raises(DataError, match=r'1\.0\.0 cannot be written: .*No space left'):
      prepared.finish(tmp_path / 'proc' / '1.0.0', name='proc', meta=META, **given)
  assert not list((tmp_path / 'proc').iterdir())
  prepared.verify(prepared.finish(tmp_path / 'proc' / '1.0.0', name='proc', meta=META, **given))


@pytest.mark.parametrize('step', ['_link', '_write_tfds', '_write_clips', 'rename'])
def test_a_kill_leaves_no_version_and_the_parts(tmp_path, step):
  given = parts(tmp_path / 'work')
  call = tmp_path / 'call.json'
  call.write_text(json.dumps(given | {'meta': META}, default=str))
  code = (
    'import json, os, pathlib, signal, sys\n'
    'from one4d_jax.data import prepared\n'
    'step = sys.argv[1]\n'
    "place = pathlib.Path if step == 'rename' else prepared\n"
    'original = getattr(place, step)\n'
    'def killed(*args, **kwargs):\n'
    "  if step != 'rename': original(*args, **kwargs)\n"
    '  os.kill(os.getpid(), signal.SIGKILL)\n'
    'setattr(place, step, killed)\n'
    "prepared.finish(sys.argv[2], name='proc', **json.load(open(sys.argv[3])))\n"
  )
  folder = tmp_path / 'proc' / '1.0.0'
  assert subprocess.run([sys.executable, '-c', code, step, str(folder), str(call)]).returncode == -signal.SIGKILL
  assert [name for name in os.listdir(folder.parent) if not name.startswith('.')] == []
  with pytest.raises(DataError, match='is no prepared set'):
    prepared.open(folder)
  prepared.verify(prepared.finish(folder, name='proc', meta=META, **given))
  assert os.listdir(folder.parent) == ['1.0.0']


def shard_of(folder, split='train', number=1):
  return sorted(folder.glob(f'proc-{split}.array_record-*'))[number]


def test_a_missing_or_cut_file_is_noticed_at_once(copy):
  for path in (shard_of(copy), shard_of(copy, 'dropped', 0), copy / 'clips.jsonl'):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f'{path.name} is missing or incomplete'):
      prepared.open(copy)
    path.unlink()
    with pytest.raises(DataError, match=f'{path.name} is missing or incomplete'):
      prepared.verify(copy)
    path.write_bytes(whole)
  prepared.verify(copy)


def test_a_flipped_byte_is_noticed(copy):
  path = shard_of(copy)
  whole = bytearray(path.read_bytes())
  whole[len(PAYLOADS[2]) // 2 + 64] ^= 1
  path.write_bytes(whole)
  with pytest.raises(DataError, match=f'{path.name} does not match its checksum'):
    prepared.verify(copy)
  with pytest.raises(DataError, match=rf'{path.name}: clip [23] of train is damaged'):
    _ = [prepared.open(copy)[i] for i in range(4)]
  same(prepared.open(copy)[0], CLIPS[0], 'caption 0')  # the others can still be read


def test_a_record_that_does_not_decode_names_its_file(tmp_path):
  record = codec.encode(CLIPS[0], quality=92)
  path, lengths = tmp_path / 'part', record['jpeg_lengths'] + np.int32([1, 0, 0, 0, 0])
  shards.write_file(path, [PAYLOADS[0], prepared.serialise(record | {'jpeg_lengths': lengths})])
  rows = [row(0, 'train'), row(0, 'train')]
  made = prepared.finish(tmp_path / 'proc' / '1.0.0', name='proc', shards={'train': [path]}, rows=rows, meta=META)
  source = prepared.open(made)
  source[0]
  source.record(1)
  with pytest.raises(DataError, match=r'1\.0\.0/proc-train.*00000-of-00001: clip 1 of train is damaged: .* of JPEG'):
    source[1]


def rewrite(copy, change):
  """`clips.jsonl` with other rows, and checksums that fit it."""
  path = copy / 'clips.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  path.write_text('\n'.join(map(json.dumps, change(rows))) + '\n')
  index = json.loads((copy / 'checksums.json').read_text())
  index['clips'] |= {'bytes': path.stat().st_size, 'sha256': shards.sha256(path)}
  (copy / 'checksums.json').write_text(json.dumps(index))


def test_rows_that_do_not_fit_the_records(copy):
  text = (copy / 'clips.jsonl').read_text()
  (copy / 'clips.jsonl').write_text(text.replace('caption 0', 'caption 7'))
  with pytest.raises(DataError, match=r'clips\.jsonl does not match its checksum'):
    prepared.verify(copy)
  rewrite(copy, lambda rows: [*rows, rows[0] | {'index': 4}])
  with pytest.raises(DataError, match='lists 5 clips of train, its files hold 4'):
    prepared.open(copy)
  rewrite(copy, lambda rows: rows[:3] + rows[4:-1])
  with pytest.raises(DataError, match='lists 3 clips of train'):
    prepared.open(copy)
  (copy / 'clips.jsonl').write_text(text)
  rewrite(copy, lambda rows: [rows[0] | {'id': rows[1]['id']}, rows[1] | {'id': rows[0]['id']}, *rows[2:]])
  with pytest.raises(DataError, match=r'00000-of-00002: record 0 is proc4d-.*, its row'):
    prepared.verify(copy)
  (copy / 'clips.jsonl').write_text('[]\n')
  rewrite(copy, lambda rows: rows)
  with pytest.raises(DataError, match=r'clips\.jsonl cannot be read'):
    prepared.open(copy)


def test_a_missing_or_strange_index(copy):
  path = copy / 'checksums.json'
  index = json.loads(path.read_text())
  path.write_text(json.dumps(index | {'format': 99}))
  with pytest.raises(DataError, match='data format 99'):
    prepared.open(copy)
  for text in ('{', '[]', '{"format": 1}', json.dumps(index | {'splits': []})):
    path.write_text(text)
    with pytest.raises(DataError, match=r'checksums\.json cannot be read'):
      prepared.open(copy)
  path.unlink()
  for use in (prepared.open, prepared.verify, prepared.read_meta, prepared.splits):
    with pytest.raises(DataError, match=r'no prepared set .*folder of a version'):
      use(copy)


def test_the_folder_above_is_no_set_but_names_them(finished):
  with pytest.raises(DataError, match=rf'give {finished}'):
    prepared.open(finished.parent)
