"""The doctor says what is wrong and how to mend it; a compiler with a known fault computes nothing."""

import importlib.metadata
import json
import resource
import shutil
import sys

import jax
import numpy as np
import psutil
import pytest

from one4d_jax import cli, compiler, doctor, sample
from one4d_jax.data import shards
from one4d_jax.model.files import EMBEDDED


@pytest.fixture
def ask(capsys, monkeypatch, tmp_path):
  """Status and findings of a call."""
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'cache'))

  def call(*argv):
    try:
      status = cli.run(doctor.main, doctor.parser(), ['--json', *argv])
    except SystemExit as end:
      status = end.code
    return status, json.loads(capsys.readouterr().out)

  return call


def faulty(function):
  """What jaxlib 0.10.2 makes of it: beyond 32768 numbers the first ones are computed again."""

  def wrong(points, rays, length):
    right = np.array(function(*map(np.asarray, (points, rays, length))))
    right[512:1024] = right[:512]
    return right

  return wrong


def test_a_sound_installation(ask):
  status, found = ask()
  assert status == 0 and list(found) == [name for name in doctor.LOOKS if name != 'data']
  assert {finding['state'] for finding in found.values()} <= {'ok', 'note'}
  assert found['compiler']['state'] == found['weights']['state'] == found['codecs']['state'] == 'ok'


def test_lines_for_people(capsys):
  assert cli.run(doctor.main, doctor.parser(), []) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(doctor.LOOKS) - 1 and lines[0].startswith('ok     python')


def test_a_compiler_that_is_wrong(ask, monkeypatch):
  monkeypatch.setattr(jax, 'jit', faulty)
  status, found = ask()
  assert status == 1 and found['compiler']['state'] == 'wrong'
  assert 'install jax==0.10.1' in found['compiler']['text'] and found['weights']['state'] == 'ok'


def test_no_command_computes_with_it(monkeypatch):
  compiler.check()  # the tested one is not asked
  monkeypatch.setattr(jax, 'jit', faulty)
  compiler.check()
  monkeypatch.setattr(compiler.jaxlib, '__version__', '0.10.2')
  with pytest.raises(compiler.CompilerError, match=r'0\.10\.2 computes wrong numbers .*install jax==0\.10\.1'):
    sample.load_bundle(None)


def test_another_compiler_that_is_right(monkeypatch):
  monkeypatch.setattr(compiler.jaxlib, '__version__', '0.11.0')
  compiler.check()


def test_weights_that_cannot_be_read(ask, tmp_path):
  shutil.copytree(EMBEDDED, tmp_path / 'weights')
  file = tmp_path / 'weights' / 'vae.safetensors'
  file.write_bytes(file.read_bytes()[:-100])
  status, found = ask('--weights', str(tmp_path / 'weights'))
  assert status == 1 and found['weights']['state'] == 'wrong' and 'weights' in found['weights']['text']
  assert found['extras']['state'] == 'ok', 'the others are still looked at'


def test_no_look_keeps_another_from_happening(ask, monkeypatch, tmp_path):
  (tmp_path / 'bundle.json').write_text('{')
  monkeypatch.setitem(sys.modules, 'av', None)  # not installed

  def requires(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'requires', requires)
  monkeypatch.delattr(doctor.os, 'sched_getaffinity')
  status, found = ask('--weights', str(tmp_path))
  assert status == 1 and list(found) == [name for name in doctor.LOOKS if name != 'data']
  assert {name for name, finding in found.items() if finding['state'] == 'wrong'} == {'packages', 'codecs', 'weights'}
  assert str(tmp_path) in found['weights']['text'] and 'cores' in found['devices']['text']


@pytest.mark.parametrize('place', ['file', 'file/below'])
def test_a_cache_that_cannot_be_written_is_a_note(ask, monkeypatch, tmp_path, place):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / place))
  status, found = ask()
  assert status == 0 and found['compiled programs']['state'] == 'note'
  assert 'set JAX_COMPILATION_CACHE_DIR' in found['compiled programs']['remedy']


@pytest.mark.parametrize('hard, words', [(4096, 'ulimit -n 4096:'), (resource.RLIM_INFINITY, 'ulimit -n unlimited:')])
def test_few_open_files_are_a_note(monkeypatch, hard, words):
  monkeypatch.setattr(resource, 'getrlimit', lambda kind: (256, hard))
  found = doctor.LOOKS['open files'](None)
  assert found.state == 'note' and found.remedy.startswith(words)


def test_data_with_a_bit_that_flipped(ask, tmp_path):
  folder = tmp_path / 'set'
  shards.write(folder, ({'x': np.full(100, i, np.float32)} for i in range(3)))
  assert ask('--data', str(folder))[1]['data']['state'] == 'ok'
  file = next(folder.glob('*.array_record*'))
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  status, found = ask('--data', str(folder))
  assert status == 1 and 'checksum' in found['data']['text']


def test_little_room_and_other_versions_are_notes(ask, monkeypatch):
  usage = psutil.disk_usage('/')
  monkeypatch.setattr(psutil, 'disk_usage', lambda path: usage._replace(free=2**20))
  monkeypatch.setattr(importlib.metadata, 'requires', lambda name: ['numpy==0.1', 'einops', 'torch; extra == "x"'])
  status, found = ask()
  assert status == 0
  assert found['disk']['state'] == 'note' and 'make room' in found['disk']['remedy']
  assert found['packages']['state'] == 'note' and found['packages']['text'].endswith('for ==0.1')


def test_a_workdir_that_cannot_be_written(ask, monkeypatch, tmp_path):
  writable = doctor.os.access
  monkeypatch.setattr(doctor.os, 'access', lambda path, mode: str(path) != str(tmp_path) and writable(path, mode))
  status, found = ask('--workdir', str(tmp_path / 'runs' / 'new'))
  assert status == 1 and found['disk'] == {
    'state': 'wrong', 'text': f'{tmp_path} cannot be written', 'remedy': 'choose another --workdir'
  }  # fmt: skip
