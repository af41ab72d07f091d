"""Several real processes as one: they meet, compute together, and none waits for one that is gone.

Run as a module, this file is one of those processes.
"""

import argparse
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from one4d_jax import cli
from one4d_jax.errors import ConfigError, DataError
from one4d_jax.parallel import distributed, rendezvous

ROOT = pathlib.Path(__file__).parents[2]
HEARTBEAT = 6  # seconds


# -- One of the processes ----------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser()
  p.add_argument('--fault', default='', help='what process 1 does in the middle')
  p.add_argument('--late', type=int, default=0, help='seconds by which process 0 comes later than the others')
  distributed.add_flags(p)
  return p


def main(args: argparse.Namespace) -> None:
  with distributed.start(args):
    import jax

    with distributed.main_first():
      time.sleep(args.late if distributed.is_main() else 0)
    total = together()
    print(f'{describe()}, main {distributed.is_main()}, total {total:g}', file=sys.stderr)
    if args.fault and jax.process_index() == 1:
      {'killed': lambda: os.kill(os.getpid(), signal.SIGKILL), 'failed': fail}[args.fault]()
    if args.fault:
      while True:
        together()
    if distributed.is_main() and args.late:
      time.sleep(HEARTBEAT + 1)  # the others wait for whatever process 0 still writes
  print('ended', file=sys.stderr)


def describe() -> str:
  """``2 processes x 4 x cpu``."""
  import jax

  processes = jax.process_count()
  text = f'{jax.local_device_count()} x {jax.devices()[0].device_kind}'
  return text if processes == 1 else f'{processes} processes x {text}'


def together() -> float:
  """The sum of 1, 2, 3, ... over the devices of all processes."""
  import jax
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec

  mesh = jax.make_mesh((jax.device_count(),), ('all',))
  place = NamedSharding(mesh, PartitionSpec('all'))
  values = np.arange(1, 1 + jax.device_count(), dtype=np.float32)
  x = jax.make_array_from_callback(values.shape, place, lambda index: values[index])
  return float(jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(x))


def fail() -> None:
  raise DataError('clip 7 is broken')


# -- Running them ------------------------------------------------------------------------------------------------------


def run(*commands: list[str], **variables: str) -> list[tuple[int, str]]:
  """Exit status and stderr of processes that run at the same time; ``{i}`` in a variable is the process's number."""
  clean = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'SLURM_', 'TPU_', 'OMPI_'))}
  clean |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'PYTHONPATH': str(ROOT)}
  started = []
  for i, command in enumerate(commands):
    env = clean | {name: value.format(i=i) for name, value in variables.items()}
    command = [sys.executable, '-m', 'tests.parallel.test_distributed', *command]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # Gloo writes to stdout
    started.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
  try:
    outputs = [process.communicate(timeout=120)[1] for process in started]
  finally:
    for process in started:
      process.kill()
      process.wait()
  return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def flags(port: int, processes: int, process: int, *more: str) -> list[str]:
  return [*f'--coordinator 127.0.0.1:{port} --processes {processes} --process {process}'.split(), *more]


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def test_two_tasks_of_slurm_compute_together_and_wait_for_the_last():
  step = dict(NODELIST='localhost', NUM_TASKS='2', TASKS_PER_NODE='2')
  variables = {f'SLURM_STEP_{name}': value for name, value in step.items()}
  variables |= dict(SLURM_JOB_ID='7', SLURM_PROCID='{i}', SLURM_LOCALID='{i}', JAX_COORDINATOR_PORT=str(free_port()))
  # Process 0 may render or encode data first; Gloo by itself would wait for 30 s.
  short = ['--heartbeat-timeout', str(HEARTBEAT), '--late', '32']
  for i, (status, output) in enumerate(run(short, short, **variables)):
    assert status == 0, output
    assert f'2 processes x 2 x cpu, main {i == 0}, total 10' in output and output.endswith('ended\n')


def test_whoever_is_killed_does_not_leave_the_others_waiting():
  port, short = free_port(), ['--fault', 'killed', '--heartbeat-timeout', str(HEARTBEAT)]
  (status, output), (killed, _) = run(flags(port, 2, 0, *short), flags(port, 2, 1, *short))
  assert killed == -signal.SIGKILL
  assert status not in (0, -signal.SIGKILL)
  # Either the heartbeat or the broken connection tells.
  assert 'stopped sending heartbeats):\n1\n' in output or 'Gloo' in output.rsplit('Error', 1)[-1], output


def test_whoever_fails_ends_at_once_with_its_own_status():
  port, short = free_port(), ['--fault', 'failed', '--heartbeat-timeout', str(HEARTBEAT)]
  (other, _), (status, output) = run(flags(port, 2, 0, *short), flags(port, 2, 1, *short))
  assert other != 0
  assert status == 2 and output.splitlines()[-1] == 'error: clip 7 is broken'


def test_who_is_missing_is_named_by_everybody():
  port, short = free_port(), ['--start-timeout', '10']
  for status, output in run(flags(port, 4, 0, *short), flags(port, 4, 2, *short)):
    assert status == 2
    (line,) = [line for line in output.splitlines() if not line.startswith('waiting for')]
    assert line.startswith('error: processes 1, 3 of 4 did not come within 10 s (processes 0, 2 did)')


# -- The meeting alone -------------------------------------------------------------------------------------------------


def meet(*places: tuple[int, int], timeout: float = 20, port: int = 0) -> list[str]:
  """What each of ``(processes, process)`` ends with; they come at the same time."""
  port, ends = port or free_port(), [''] * len(places)

  def one(i: int) -> None:
    try:
      rendezvous.meet(f'localhost:{port}', *places[i], timeout=timeout)
    except ConfigError as error:
      ends[i] = str(error)

  threads = [threading.Thread(target=one, args=(i,)) for i in range(len(places))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return ends


def test_all_meet_and_the_port_is_free_again():
  port = free_port()
  for _ in range(2):
    assert meet((4, 3), (4, 0), (4, 1), (4, 2), port=port) == ['', '', '', '']


def test_missing():
  ends = meet((3, 0), (3, 2), timeout=1)
  assert ends[0] == ends[1]
  assert ends[0].startswith('process 1 of 3 did not come within 1 s (processes 0, 2 did)')


@pytest.mark.parametrize(
  ('places', 'message'),
  [
    ([(3, 0), (3, 1), (3, 1)], 'two processes have the number 1; each needs its own, from 0 to 2'),
    ([(3, 0), (2, 1)], 'process 1 was started as one of 2 processes, process 0 as one of 3'),
  ],
)
def test_places_that_do_not_fit_end_at_once(places, message):
  start = time.monotonic()
  assert meet(*places) == [message] * len(places)
  assert time.monotonic() - start < 10


def test_no_process_0():
  (end,) = meet((2, 1), timeout=1)
  assert end.startswith('process 0 did not answer at localhost:') and 'within 1 s (Connection refused)' in end


def test_a_name_that_nobody_has(capsys):
  with pytest.raises(ConfigError, match=r'did not answer at nowhere\.invalid:8476 within 1 s \(.*[Nn]ame'):
    rendezvous.meet('nowhere.invalid:8476', 2, 1, timeout=1)


def test_a_port_in_use():
  with socket.create_server(('', 0)) as other:
    port = other.getsockname()[1]
    (end,) = meet((2, 0), port=port)
    assert end == f'process 0 cannot listen on port {port} of this machine (Address already in use); ' \
                  'give all processes another one'  # fmt: skip


def test_another_program_answers():
  with socket.create_server(('127.0.0.1', 0)) as other:
    answer = threading.Thread(target=lambda: other.accept()[0].sendall(b'SSH-2.0-OpenSSH_9.6\r\n'))
    answer.start()
    with pytest.raises(ConfigError, match='another program has that port, or the run began without this process'):
      rendezvous.meet(f'127.0.0.1:{other.getsockname()[1]}', 2, 1, timeout=20)
    answer.join()


def test_strangers_and_processes_that_start_again():
  port, end = free_port(), []
  first = threading.Thread(target=lambda: end.append(rendezvous.meet(f'127.0.0.1:{port}', 3, 0, timeout=30)))
  first.start()
  for hello in b'GET / HTTP/1.1\r\n\r\n', b'{"process": 1, "processes": 3}\n':
    for _ in range(100):
      try:
        connection = socket.create_connection(('127.0.0.1', port))
        break
      except ConnectionRefusedError:
        time.sleep(0.05)
    connection.sendall(hello)
    time.sleep(0.3)
    connection.close()
  others = [threading.Thread(target=rendezvous.meet, args=(f'127.0.0.1:{port}', 3, i), kwargs=dict(timeout=30))
            for i in (1, 2)]  # fmt: skip
  for thread in others:
    thread.start()
  for thread in [first, *others]:
    thread.join(timeout=40)
  assert end == [None]


# -- Places ------------------------------------------------------------------------------------------------------------


def find(line: str = '', **environ: str) -> distributed.Place | None:
  return distributed.find(parser().parse_args(line.split()), environ)


SLURM = dict(SLURM_JOB_ID='5000', SLURM_STEP_NODELIST='gpu[007-009,012],x1', SLURM_STEP_NUM_TASKS='5',
             SLURM_STEP_TASKS_PER_NODE='1(x5)', SLURM_PROCID='3', SLURM_LOCALID='0')  # fmt: skip
GKE = dict(TPU_WORKER_HOSTNAMES='t-0.t,t-1.t', TPU_WORKER_ID='1')
VARIABLES = dict(JAX_COORDINATOR_ADDRESS='[::1]:80', JAX_NUM_PROCESSES='3', JAX_PROCESS_ID='2')


@pytest.mark.parametrize(
  ('line', 'environ', 'place'),
  [
    ('--coordinator a:80 --processes 4 --process 3', SLURM | GKE | VARIABLES, ('a:80', 4, 3)),
    ('--processes 1', SLURM | VARIABLES, ('', 1, 0)),
    ('', SLURM | GKE | VARIABLES, ('[::1]:80', 3, 2)),
    ('', SLURM | {'JAX_NUM_PROCESSES': '1'}, ('', 1, 0)),
    ('', SLURM, ('gpu007:62344', 5, 3)),
    ('', SLURM | {'JAX_COORDINATOR_ADDRESS': 'a:80'}, ('a:80', 5, 3)),
    ('', SLURM | {'SLURM_STEP_NODELIST': 'big-1,big-2', 'JAX_COORDINATOR_PORT': '80'}, ('big-1:80', 5, 3)),
    ('', SLURM | {'SLURM_STEP_TASKS_PER_NODE': '4,1', 'SLURM_LOCALID': '3'}, ('gpu007:62344', 5, 3, (3,))),
    ('', SLURM | {'SLURM_STEP_TASKS_PER_NODE': '4,1', 'CUDA_VISIBLE_DEVICES': '0'}, ('gpu007:62344', 5, 3)),
    ('', GKE, ('t-0.t:8482', 2, 1)),
    ('', GKE | {'MEGASCALE_NUM_SLICES': '3', 'MEGASCALE_SLICE_ID': '2', 'MEGASCALE_COORDINATOR_ADDRESS': 'm:1'},
     ('m:8482', 6, 5)),
    ('', GKE | {'TPU_WORKER_HOSTNAMES': 'localhost'}, ('', 1, 0)),
  ],
)  # fmt: skip
def test_places(line, environ, place):
  assert find(line, **environ) == distributed.Place(*place)


@pytest.mark.parametrize(
  'environ',
  [
    {},
    SLURM | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_STEP_TASKS_PER_NODE': '1'},  # srun --pty bash
    {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '8', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'},  # a line of a batch script
    SLURM | {'OMPI_MCA_orte_hnp_uri': 'x'},
  ],
)
def test_no_place(environ):
  assert find(**environ) is None


def test_systems_that_jax_knows(monkeypatch):
  monkeypatch.setattr(distributed.glob, 'glob', lambda pattern: [])
  pod = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'}
  assert distributed.known_to_jax({}) == distributed.known_to_jax({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}) == ''
  assert distributed.known_to_jax({'OMPI_MCA_orte_hnp_uri': 'x', 'OMPI_COMM_WORLD_SIZE': '2'}) == 'Open MPI'
  monkeypatch.setattr(distributed.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ConfigError, match=r'set JAX_COORDINATOR_ADDRESS, .* or install the package kubernetes'):
    distributed.known_to_jax(pod)
  monkeypatch.setattr(distributed.importlib.util, 'find_spec', lambda name: name)
  assert distributed.known_to_jax(pod) == 'Kubernetes'
  monkeypatch.setattr(distributed.glob, 'glob', lambda pattern: ['/dev/accel0'] if 'accel' in pattern else [])
  assert 'TPU' in distributed.known_to_jax({}) and not distributed.known_to_jax({'TPU_SKIP_MDS_QUERY': '1'})


@pytest.mark.parametrize(
  ('line', 'environ', 'message'),
  [
    (
      '--processes 2',
      {},
      '--coordinator and --process missing: --coordinator, --processes, --process are given togeth',
    ),
    ('--process 0', SLURM, '--coordinator and --processes missing'),
    ('--coordinator a:1 --processes 2 --process 2', {}, '--process 2: the numbers of 2 processes are 0 to 1'),
    ('--coordinator a:1 --processes 2 --process -1', {}, '--process -1: the numbers of 2 processes are 0 to 1'),
    ('--coordinator a:1 --processes 0 --process 0', {}, '--processes 0: there is at least 1'),
    ('--coordinator a --processes 2 --process 0', {}, "coordinator 'a' is no HOST:PORT, for example"),
    ('--coordinator a:99999 --processes 2 --process 0', {}, "coordinator 'a:99999' is no HOST:PORT"),
    ('', {'JAX_NUM_PROCESSES': '2'}, 'JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID missing'),
    ('', {'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'JAX_NUM_PROCESSES and JAX_PROCESS_ID missing'),
    ('', VARIABLES | {'JAX_PROCESS_ID': 'two'}, "JAX_PROCESS_ID 'two' is no number"),
  ],
)
def test_places_that_are_wrong(line, environ, message):
  with pytest.raises(ConfigError, match=message.replace('[', r'\[')):
    find(line, **environ)


def test_time_outs_that_are_wrong():
  with pytest.raises(ConfigError, match='--start-timeout 0: must be at least 1 second'):
    distributed.start(parser().parse_args(['--start-timeout', '0']))


def test_alone_costs_nothing():
  code = 'import sys; from tests.parallel import test_distributed as t; from one4d_jax.parallel import distributed\n'
  code += 'with distributed.start(t.parser().parse_args([])): print("jax" in sys.modules)'
  env = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')} | {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '1'}
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
  assert out.stdout == 'False\n'


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
