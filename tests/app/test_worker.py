"""A process for a function: what it answers, and what happens when it dies, hangs or is left alone."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from one4d_jax.app.worker import Crash, Worker
from one4d_jax.errors import UserError
from tests.app import eventually, gone


@pytest.fixture
def start():
  """Workers that are gone after the test."""
  made = []

  def start(name: str) -> Worker:
    made.append(Worker(f'tests.app.producers:{name}'))
    return made[-1]

  yield start
  for worker in made:
    worker.kill()


def test_results_and_reports(start):
  worker, reports = start('echo'), []
  assert worker.call({'a': [1, 2.5]}, report=lambda *r: reports.append(r)) == {'a': [1, 2.5]}
  assert reports == [('a', 1), ('b', 2)]
  assert worker.call(None) is None and worker.alive, 'the same process answers again'


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('exit', 'its process ended with status 3'),
    ('segfault', 'its process was ended by SIGSEGV'),
    ('killed', 'its process was ended by SIGKILL (out of memory?)'),
    ('bug', 'RuntimeError: first line'),
    ('quit', 'SystemExit: 5'),
    ('memory', 'out of memory; choose fewer frames'),
    ('disk', 'No space left on device'),
  ],
)
def test_a_failure_is_one_line_and_the_end_of_the_worker(start, tmp_path, word, message):
  worker = start('produce')
  with pytest.raises(Crash) as failure:
    worker.call(str(tmp_path), [f'--prompt={word}'])
  assert str(failure.value) == message
  assert not worker.alive
  with pytest.raises(Crash):
    worker.call(str(tmp_path), [])


def test_a_mistake_of_the_user_is_one_line_and_no_more(start, tmp_path):
  worker = start('produce')
  with pytest.raises(UserError, match=r'^the input is no <b>good</b>$'):
    worker.call(str(tmp_path), ['--prompt=refuse'])
  worker.call(str(tmp_path), [])
  assert (tmp_path / 'scene').is_dir()


def test_silence_is_not_waited_for(start):
  worker = start('sleep')
  began = time.monotonic()
  with pytest.raises(Crash, match=r'no answer within 0\.5 s'):
    worker.call(60, patience=0.5)
  assert time.monotonic() - began < 10 and not worker.alive


def test_kill_ends_a_call(start):
  for _ in range(8):
    worker = start('sleep')
    threading.Timer(0.1, worker.kill).start()
    with pytest.raises(Crash, match='SIGKILL'):
      worker.call(60)


def test_ctrl_c_is_left_to_the_server(start):
  worker = start('echo')
  worker.call(1)
  os.kill(worker._process.pid, signal.SIGINT)
  assert worker.call(2) == 2


def test_it_ends_with_its_parent_even_in_the_middle_of_a_call():
  code = (
    'from one4d_jax.app.worker import Worker; import threading, time\n'
    'worker = Worker("tests.app.producers:sleep")\n'
    'threading.Thread(target=worker.call, args=(600,), daemon=True).start()\n'
    'time.sleep(2); print(worker._process.pid, flush=True); time.sleep(600)'
  )
  with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as parent:
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
  eventually(lambda: gone(pid))
