"""Training by processes of their own: one is killed, the run goes on with as many or with another number of them."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import small
from tests.e2e import ROOT, environment

STEPS = 12


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  home = tmp_path_factory.mktemp('processes')
  small.bundle(home / 'base')
  return home


def launch(home: pathlib.Path, run: str, processes: int, *arguments: str, **values) -> list[subprocess.Popen]:
  """Starts the processes of one run, eight devices among them."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = f'127.0.0.1:{server.getsockname()[1]}'
  flags = f'--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={8 // processes}'
  values = {'train__steps': STEPS, 'train__save_every': 3, 'train__keep': 8} | values
  started = []
  for i in range(processes):
    place = ('--coordinator', address, '--processes', str(processes), '--process', str(i)) if processes > 1 else ()
    command = small.train(home, run, *place, '--heartbeat-timeout', '15', *arguments, **values)
    log = open(home / f'{run}-{i}.log', 'ab')  # noqa: SIM115, the process has it
    started.append(subprocess.Popen(command, cwd=ROOT, env=environment() | {'XLA_FLAGS': flags}, stderr=log))
  return started


def finish(home: pathlib.Path, run: str, processes: int, **values) -> dict[int, float]:
  """Runs to the end; the losses that were logged."""
  for i, process in enumerate(launch(home, run, processes, **values)):
    assert process.wait(timeout=400) == 0, (home / f'{run}-{i}.log').read_text()[-3000:]
  return small.losses(home / run)


def by_launcher(home: pathlib.Path, run: str) -> dict[int, float]:
  """Two processes with four devices each, by ``launch/local.sh``; the losses that were logged."""
  arguments = small.train(home, run, train__steps=STEPS, train__save_every=3, train__keep=8)[3:]  # without python -m …
  changes = {'PYTHON': sys.executable, 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  command = ['launch/local.sh', '-n', '2', '-c', '4', *arguments]
  done = subprocess.run(
    command, cwd=ROOT, env=environment() | changes, capture_output=True, text=True, timeout=400, check=False
  )
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  assert '[0] one4d: ' in done.stdout and '2 processes' in done.stdout and '[1] one4d: ' not in done.stdout
  return small.losses(home / run)


def until(condition, processes, seconds=300):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline and all(p.poll() is None for p in processes), 'ended too early, or never began'
    time.sleep(0.01)


@pytest.fixture(scope='module')
def straight(home):
  """Losses of one process with eight devices, never interrupted."""
  return finish(home, 'straight', 1)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_goes_on(home, straight):
  """SIGKILL of one of two; then again as two, bit for bit as without a kill."""
  alone = by_launcher(home, 'two')
  assert list(alone) == list(range(1, STEPS + 1))
  np.testing.assert_allclose(list(alone.values()), list(straight.values()), rtol=1e-5)

  processes = launch(home, 'killed', 2)
  until(lambda: 6 in small.whole(home / 'killed'), processes)
  processes[1].send_signal(signal.SIGKILL)
  assert processes[0].wait(timeout=120) != 0, 'the survivor must not wait for ever'
  saved = max(small.whole(home / 'killed'))
  assert saved < STEPS, 'the kill came too late'

  again = finish(home, 'killed', 2)
  assert [again[step] for step in range(saved + 1, STEPS + 1)] == [alone[step] for step in range(saved + 1, STEPS + 1)]


@pytest.mark.full
def test_a_run_of_two_processes_goes_on_as_one_and_as_four_on_another_mesh(home, straight):
  finish(home, 'as-one', 2, train__steps=6)
  shutil.copytree(home / 'as-one', home / 'as-four')
  for run, count, mesh in (('as-one', 1, 'fsdp'), ('as-four', 4, 'fsdp_modality')):
    found = finish(home, run, count, parallel__mesh=mesh)
    assert list(found) == list(straight)
    np.testing.assert_allclose(list(found.values()), list(straight.values()), rtol=1e-5)
    assert 'resumed at step 6' in (home / f'{run}-0.log').read_text()


@pytest.mark.full
def test_sigterm_to_one_process_saves_and_ends_all(home, straight):
  processes = launch(home, 'asked', 2, train__steps=2000)
  until(lambda: 3 in small.whole(home / 'asked'), processes)
  os.kill(processes[1].pid, signal.SIGTERM)
  time.sleep(0.2)
  os.kill(processes[1].pid, signal.SIGTERM)  # twice is the same
  assert [process.wait(timeout=200) for process in processes] == [0, 0]
  stopped = max(small.whole(home / 'asked'))
  assert f'step {stopped} is saved; the same command continues' in (home / 'asked-0.log').read_text()
  found = small.losses(home / 'asked')
  assert max(found) in (stopped, stopped - 1)
  common = [step for step in straight if step in found]
  np.testing.assert_allclose([found[step] for step in common], [straight[step] for step in common], rtol=1e-5)
