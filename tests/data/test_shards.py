import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from one4d_jax.data import shards
from one4d_jax.errors import DataError


def record(i, length=3):
  rng = np.random.default_rng(i)
  return {
    'rgb': rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8),
    'depth': rng.standard_normal((2, 4, 4)).astype(np.float16),
    'mask': rng.random((2, 4, 4)) > 0.5,
    'scale': np.float32(i),
    'code': rng.integers(0, 2**16, (4,), dtype=np.uint16),
    'jpeg': bytes(range(length)),
    'caption': f'number {i}: ünïcode, "quotes"',
  }


def same(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    if isinstance(value, str):
      assert found[name] == value
    else:
      value = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.asarray(value)
      assert found[name].dtype == value.dtype and found[name].shape == value.shape
      np.testing.assert_array_equal(found[name], value)


def test_round_trip(tmp_path):
  index = shards.write(tmp_path / 'set', (record(i) for i in range(7)), meta={'level': 'easy'}, shard_records=3)
  source = shards.open(tmp_path / 'set')
  assert len(source) == index['count'] == 7
  assert [shard['count'] for shard in index['shards']] == [3, 3, 1]
  for i in (0, 6, 3, 2):
    same(source[i], record(i))
  same(source[np.int64(-1)], record(6))
  assert source.meta == {'level': 'easy'}
  assert os.listdir(tmp_path) == ['set']
  shards.verify(tmp_path / 'set')
  with pytest.raises(IndexError):
    source[7]


def test_read_arrays_may_be_changed(tmp_path):
  shards.write(tmp_path / 'set', [record(0)])
  shards.open(tmp_path / 'set')[0]['rgb'] += 1


def test_strided_arrays_keep_their_order():
  array = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
  np.testing.assert_array_equal(shards.decode(shards.encode({'a': array}))['a'], array)


def test_schema_tells_names_shapes_and_dtypes(tmp_path):
  schema = shards.write(tmp_path / 'set', [record(0, 3), record(1, 5)])['schema']
  assert schema['rgb'] == {'dtype': 'uint8', 'shape': [2, 4, 4, 3]}
  assert schema['jpeg'] == {'dtype': 'uint8', 'shape': [None]}
  assert schema['caption']['dtype'] == 'str'


def test_source_pickles_and_same_content_has_the_same_fingerprint(tmp_path):
  for name, seeds in {'a': (0, 1), 'b': (0, 1), 'c': (0, 2)}.items():
    shards.write(tmp_path / name, map(record, seeds))
  a, b, c = (shards.open(tmp_path / name) for name in 'abc')
  assert a.fingerprint == b.fingerprint != c.fingerprint
  same(pickle.loads(pickle.dumps(a))[1], record(1))


def test_a_failing_write_leaves_nothing(tmp_path):
  def records():
    yield record(0)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    shards.write(tmp_path / 'set', records())
  assert os.listdir(tmp_path) == []


def test_a_killed_write_leaves_no_data_set_and_can_be_repeated(tmp_path):
  code = (
    'import sys, time, numpy as np; from one4d_jax.data import shards\n'
    'def records():\n'
    '  yield {"a": np.zeros(3)}\n'
    '  print("begun", flush=True); time.sleep(60)\n'
    'shards.write(sys.argv[1], records())'
  )
  child = subprocess.Popen([sys.executable, '-c', code, str(tmp_path / 'set')], stdout=subprocess.PIPE)
  assert child.stdout.readline().strip() == b'begun'
  child.send_signal(signal.SIGKILL)
  child.wait(timeout=10)
  time.sleep(0.05)
  assert not (tmp_path / 'set').exists()
  with pytest.raises(DataError, match=r'interrupted.*build it'):
    shards.open(tmp_path / 'set')
  shards.write(tmp_path / 'set', [record(0)])
  assert os.listdir(tmp_path) == ['set']


def test_what_cannot_be_stored(tmp_path):
  with pytest.raises(DataError, match='already exists'):
    shards.write(tmp_path, [record(0)])
  with pytest.raises(DataError, match='no records'):
    shards.write(tmp_path / 'set', [])
  with pytest.raises(DataError, match=r'record 1 .*same fields'):
    shards.write(tmp_path / 'set', [{'a': np.zeros(2)}, {'b': np.zeros(2)}])
  with pytest.raises(DataError, match="'a' of dtype complex"):
    shards.write(tmp_path / 'set', [{'a': np.zeros(2, complex)}])
  assert os.listdir(tmp_path) == []


def test_damage_is_noticed(tmp_path):
  folder = tmp_path / 'set'
  with pytest.raises(DataError, match='no data set'):
    shards.open(folder)
  shards.write(folder, [record(0)])
  shard = folder / 'data-00000.array_record'
  whole = shard.read_bytes()
  shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  with pytest.raises(DataError, match='checksum'):
    shards.verify(folder)
  shard.write_bytes(whole[:-1])
  with pytest.raises(DataError, match='incomplete'):
    shards.open(folder)
  index = json.loads((folder / 'dataset.json').read_text())
  (folder / 'dataset.json').write_text(json.dumps({**index, 'format': 99}))
  with pytest.raises(DataError, match='format 99'):
    shards.open(folder)
  (folder / 'dataset.json').write_text('{')
  with pytest.raises(DataError, match='build the data set again'):
    shards.open(folder)
  (folder / 'dataset.json').unlink()
  with pytest.raises(DataError, match=r'no dataset\.json'):
    shards.open(folder)


def test_progress_is_shown_when_named(tmp_path, capsys):
  shards.write(tmp_path / 'quiet', [record(0)])
  assert capsys.readouterr().err == ''
  shards.write(tmp_path / 'loud', [record(0)], total=1, desc='rendering')
  assert 'rendering: 100%' in capsys.readouterr().err


def test_one_file(tmp_path):
  path, payloads = tmp_path / 'a.array_record', [b'one', b'', bytes(range(256)) * 99]
  about = shards.write_file(path, iter(payloads))
  assert list(shards.read_file(path)) == payloads
  assert list(shards.read_file(path, [2, 0])) == [payloads[2], payloads[0]]
  data = path.read_bytes()
  expected = {'file': 'a.array_record', 'count': 3, 'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
  assert about == shards.facts(path) == expected
  shards.write_file(path, payloads[:1])  # takes the place of the old one
  assert list(shards.read_file(path)) == payloads[:1]
  assert shards.write_file(tmp_path / 'none', [])['count'] == 0
  assert sorted(os.listdir(tmp_path)) == ['a.array_record', 'none']


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError, OSError])
def test_a_failing_file_leaves_the_old_one(tmp_path, error):
  path = tmp_path / 'a'
  shards.write_file(path, [b'old'])

  def payloads():
    yield b'new'
    raise error('of the payloads')

  with pytest.raises(error, match='of the payloads'):
    shards.write_file(path, payloads())
  assert list(shards.read_file(path)) == [b'old']
  assert os.listdir(tmp_path) == ['a']


def test_a_file_that_cannot_be_written(tmp_path):
  with pytest.raises(DataError, match=r'no/a cannot be written .*another folder'):
    shards.write_file(tmp_path / 'no' / 'a', [b''])


def test_a_full_disk_leaves_nothing(tmp_path):
  shards.write_file(tmp_path / 'a', [b'old'])
  code = (
    'import os, resource, signal, sys\n'
    'from one4d_jax.data import shards; from one4d_jax.errors import DataError\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))\n'
    'try: shards.write_file(sys.argv[1], (os.urandom(2**16) for _ in range(100)))\n'
    'except DataError as error: print(error)\n'
  )
  out = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path / 'a')], capture_output=True, text=True, check=True
  ).stdout
  assert 'a cannot be written' in out and 'File too large' in out
  assert os.listdir(tmp_path) == ['a'] and list(shards.read_file(tmp_path / 'a')) == [b'old']


def test_a_killed_file_is_written_again(tmp_path):
  code = (
    'import os, signal, sys; from one4d_jax.data import shards\n'
    'def payloads():\n'
    '  yield os.urandom(2**20)\n'
    '  os.kill(os.getpid(), signal.SIGKILL)\n'
    'shards.write_file(sys.argv[1], payloads())'
  )
  path = tmp_path / 'a'
  assert subprocess.run([sys.executable, '-c', code, str(path)]).returncode == -signal.SIGKILL
  assert not path.exists()
  shards.write_file(path, [b'whole'])
  assert list(shards.read_file(path)) == [b'whole'] and os.listdir(tmp_path) == ['a']


def test_a_damaged_file_is_noticed(tmp_path):
  path = tmp_path / 'a'
  for missing in (shards.read_file, shards.facts):
    with pytest.raises(DataError, match=r'a cannot be read as ArrayRecord: .*No such file'):
      list(missing(path))
  rng = np.random.default_rng(0)
  payloads = [rng.bytes(50_000) for _ in range(8)]
  shards.write_file(path, payloads)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(DataError, match='cannot be read as ArrayRecord'):
    list(shards.read_file(path))
  path.write_bytes(b'no such format')
  with pytest.raises(DataError, match='cannot be read as ArrayRecord'):
    shards.facts(path)
  middle = len(whole) // 2
  path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
  read = []
  with pytest.raises(DataError, match=r'a: record \d is damaged'):
    for payload in shards.read_file(path):
      read.append(payload)
  assert read and read == payloads[: len(read)]


def safetensors_of(header: bytes, data: bytes = b'') -> bytes:
  return len(header).to_bytes(8, 'little') + header + data


@pytest.mark.parametrize(
  'payload',
  [
    b'',
    b'\xff' * 40,
    safetensors_of(b'[]'),
    safetensors_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
    safetensors_of(b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
    safetensors_of(b'{"__metadata__":{"a":1}}'),
  ],
)
def test_what_is_no_record(tmp_path, monkeypatch, payload):
  with pytest.raises(DataError, match='no safetensors of NumPy arrays'):
    shards.decode(payload)
  monkeypatch.setattr(shards, 'encode', lambda _: payload)
  shards.write(tmp_path / 'set', [record(0)])
  with pytest.raises(DataError, match='set: record 0 is damaged: it is no safetensors'):
    shards.open(tmp_path / 'set')[0]


def test_the_same_record_is_the_same_bytes():
  record = {'b': np.float32([1, 2]), 'a': np.uint8([3]), **{f'text {i}': f'värde {i}' for i in range(20)}}
  data = shards.encode(record)
  assert all(shards.encode(record) == data for _ in range(20))
  found = shards.decode(data)
  assert found['text 7'] == 'värde 7' and found['b'].tolist() == [1, 2] and found['a'].tolist() == [3]
