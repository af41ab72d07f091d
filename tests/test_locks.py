"""Two processes never work in one folder; a dead one leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from one4d_jax import cli, locks, prepare, train
from one4d_jax.data import preparation
from one4d_jax.errors import UserError

HOLD = """
import sys, time
from one4d_jax import locks
with locks.hold(sys.argv[1]):
  print('held', flush=True)
  if len(sys.argv) > 2:
    import os
    if not os.fork(): time.sleep(60)  # a child that outlives it
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """Starts a process that holds ``tmp_path / 'run'``."""
  running = []

  def start(*arguments: str):
    command = [sys.executable, '-c', HOLD, str(tmp_path / 'run'), *arguments]
    running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
    assert running[-1].stdout.readline() == 'held\n'
    return running[-1]

  yield start
  for process in running:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_process_is_told_who_is_there(holder, tmp_path):
  first = holder()
  with (
    pytest.raises(UserError, match=f'run is in use by process {first.pid} of .*choose another'),
    locks.hold(tmp_path / 'run'),
  ):
    raise AssertionError('held twice')


def test_a_killed_process_leaves_no_lock_nor_do_its_children(holder, tmp_path):
  first = holder('with a child')
  first.kill()
  first.wait()
  with locks.hold(tmp_path / 'run'):
    pass


def test_the_end_of_the_block_gives_it_back(holder, tmp_path):
  with locks.hold(tmp_path / 'run'):
    pass
  holder()


@pytest.mark.parametrize('command', ['train', 'prepare'])
def test_commands_hold_their_folder(command, holder, tmp_path, capsys, monkeypatch):
  holder()
  if command == 'train':
    argv = ['--config', 'configs/vae.py:tiny', '--workdir', str(tmp_path / 'run')]
    assert cli.run(train.main, train.parser(), argv) == 2
  else:
    monkeypatch.setattr(preparation.Job, 'work', tmp_path / 'run')
    monkeypatch.setattr(preparation, 'plan', lambda job, limit: None)
    argv = ['--source', 'tartanair', '--root', str(tmp_path), '--out', str(tmp_path / 'out')]
    assert cli.run(prepare.main, prepare.parser(), argv) == 2
  assert 'run is in use by process' in capsys.readouterr().err
