"""Several processes that run as one: each finds its place before JAX touches a device, and none outlives the others.

A place is the address of process 0, the count of processes and the own number. It comes from flags, else from
``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, else from the cluster.
"""

import argparse
import atexit
import contextlib
import dataclasses
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping

from one4d_jax.errors import ConfigError, UserError
from one4d_jax.parallel import rendezvous

VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_OPEN_MPI = 'OMPI_MCA_orte_hnp_uri'
_FLAGS = ('--coordinator', '--processes', '--process')
_ALONE = 'give --coordinator, --processes and --process, or --processes 1 to run alone'


@dataclasses.dataclass(frozen=True)
class Place:
  """Of one process among all."""

  coordinator: str  # HOST:PORT of process 0
  processes: int
  process: int
  devices: tuple[int, ...] = ()  # accelerators of this machine that are its own; empty: all it sees


_LONE = Place('', 1, 0)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """``--coordinator``, ``--processes``, ``--process`` and the two time-outs."""
  group = parser.add_argument_group(
    'several processes', 'one process a machine; SLURM, Kubernetes and TPU pods tell them apart without flags'
  )
  group.add_argument('--coordinator', metavar='HOST:PORT', help='address of process 0 and a free port there')
  group.add_argument('--processes', metavar='N', type=int, help='how many there are; 1 ignores the cluster')
  group.add_argument('--process', metavar='I', type=int, help='number of this one, from 0')
  group.add_argument(
    '--start-timeout', metavar='SECONDS', type=int, default=300, help='until all must be there (default: %(default)s)'
  )
  group.add_argument(
    '--heartbeat-timeout',
    metavar='SECONDS',
    type=int,
    default=100,
    help='after which a silent process is taken for dead and the others end (default: %(default)s)',
  )


def start(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
  """Joins the other processes, if there are any; call it before anything touches a device.

  Use it as ``with distributed.start(args): ...``. At the end of the block the processes wait for each other. One that
  leaves it by an error ends at once, so that whoever launched it can end the others.

  Args:
    args: parsed by a parser with ``add_flags``.

  Raises:
    ConfigError: flags or variables that do not fit together, processes that did not come (with their numbers), a port
      in use, process 0 out of reach.
  """
  for flag, value in ('--start-timeout', args.start_timeout), ('--heartbeat-timeout', args.heartbeat_timeout):
    if value < 1:
      raise ConfigError(f'{flag} {value}: must be at least 1 second')
  place = find(args, os.environ)
  system = '' if place else known_to_jax(os.environ)
  if not system and (place or _LONE).processes == 1:
    return contextlib.nullcontext()

  import jax
  from jax.experimental import multihost_utils

  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  times = dict(
    initialization_timeout=args.start_timeout,
    heartbeat_timeout_seconds=args.heartbeat_timeout,
    shutdown_timeout_seconds=args.heartbeat_timeout,
  )
  if place:
    rendezvous.meet(place.coordinator, place.processes, place.process, timeout=args.start_timeout)
    # Otherwise JAX asks SLURM for devices even where the rest is given.
    given = dict(cluster_detection_method='deactivate', local_device_ids=place.devices or None)
    jax.distributed.initialize(place.coordinator, place.processes, place.process, **given, **times)
  else:
    try:
      jax.distributed.initialize(**times)
    except Exception as error:
      raise ConfigError(f'JAX finds no place for this process in {system}: {error}; {_ALONE}') from error
  # Gloo connects devices at their first collective and gives up on a process that is 30 s late for it. These are the
  # devices of every later wait for each other, which may take longer.
  multihost_utils.sync_global_devices('the start')
  return _until_all_end()


def is_main() -> bool:
  """Whether this is process 0, which prints and writes for all."""
  import jax

  return jax.process_index() == 0


@contextlib.contextmanager
def main_first() -> Iterator[None]:
  """Runs the block in process 0, then in the others, which find what it left on a disk that all see."""
  import jax
  from jax.experimental import multihost_utils

  wait = lambda: multihost_utils.sync_global_devices('main first') if jax.process_count() > 1 else None
  if not is_main():
    wait()
  yield
  if is_main():
    wait()


@contextlib.contextmanager
def _until_all_end() -> Iterator[None]:
  from jax.experimental import multihost_utils

  try:
    yield
  except (Exception, KeyboardInterrupt) as error:
    atexit.register(_leave, 2 if isinstance(error, UserError | OSError | KeyboardInterrupt) else 1)
    raise
  # JAX gives up on processes that end a heartbeat time-out apart; process 0 may write for longer than that.
  multihost_utils.sync_global_devices('the end')


def _leave(status: int) -> None:
  """Runs before JAX's own exit handler, which would wait for processes that cannot know of the error."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


# -- Places ------------------------------------------------------------------------------------------------------------


def find(args: argparse.Namespace, environ: Mapping[str, str]) -> Place | None:
  """The place that flags, variables or the cluster give; None if they give none.

  Raises:
    ConfigError: only some of the three facts, or facts that do not fit together.
  """
  if args.processes == 1 and args.process in (None, 0):
    return _LONE
  given = (args.coordinator, args.processes, args.process)
  if given != (None, None, None):
    return _whole(_FLAGS, given)
  given = tuple(environ.get(name) or None for name in VARIABLES)
  if given[1] == '1' and given[2] in (None, '0'):
    return _LONE
  if given[1:] != (None, None):
    return _whole(VARIABLES, given)
  place = slurm(environ) or tpu(environ)
  if given[0] and place:
    return dataclasses.replace(place, coordinator=given[0])
  if given[0] and not known_to_jax(environ):
    return _whole(VARIABLES, given)
  return place


def _whole(names: tuple[str, ...], given: tuple) -> Place:
  missing = [name for name, value in zip(names, given, strict=True) if value is None]
  if missing:
    raise ConfigError(f'{" and ".join(missing)} missing: {", ".join(names)} are given together')
  coordinator, *rest = given
  for name, value in zip(names[1:], rest, strict=True):
    if not str(value).lstrip('-').isdecimal():
      raise ConfigError(f'{name} {value!r} is no number')
  processes, process = map(int, rest)
  if processes < 1:
    raise ConfigError(f'{names[1]} {processes}: there is at least 1')
  if not 0 <= process < processes:
    raise ConfigError(f'{names[2]} {process}: the numbers of {processes} processes are 0 to {processes - 1}')
  rendezvous.split(coordinator)
  return Place(coordinator, processes, process)


def slurm(environ: Mapping[str, str]) -> Place | None:
  """Of a task of ``srun`` with several tasks; a shell or a batch script inside an allocation is none.

  With one task on a node it gets all accelerators of that node; with several, each gets the one of its local number,
  unless SLURM shows it a single one anyhow.
  """
  names = ('JOB_ID', 'STEP_NODELIST', 'STEP_NUM_TASKS', 'STEP_TASKS_PER_NODE', 'PROCID', 'LOCALID')
  values = [environ.get(f'SLURM_{name}') for name in names]
  if None in values or values[2] == '1' or _OPEN_MPI in environ:  # mpirun starts its own tasks inside of SLURM's
    return None
  job, nodes, tasks, per_node, process, local = values
  prefix, first = re.match(r'([^,\[]+)(?:\[(\d+))?', nodes).groups(default='')  # 'gpu[007-009,012],login1'
  port = environ.get('JAX_COORDINATOR_PORT') or int(job) % 4096 + 61440  # the one that JAX would take
  shared = set(re.sub(r'\(x\d+\)', '', per_node).split(',')) != {'1'}  # '1(x4)', '8(x2),4'
  single = ',' not in environ.get('CUDA_VISIBLE_DEVICES', ',')
  return Place(f'{prefix}{first}:{port}', int(tasks), int(process), (int(local),) if shared and not single else ())


def tpu(environ: Mapping[str, str]) -> Place | None:
  """Of a pod on one of several TPU hosts, as Google Kubernetes Engine numbers them; slices one after the other."""
  hosts = (environ.get('TPU_PROCESS_ADDRESSES') or environ.get('TPU_WORKER_HOSTNAMES') or '').split(',')
  slices = int(environ.get('MEGASCALE_NUM_SLICES') or 1)
  if hosts == [''] or 'TPU_WORKER_ID' not in environ:
    return None
  if len(hosts) * slices == 1:
    return _LONE
  host = (environ.get('MEGASCALE_COORDINATOR_ADDRESS') or hosts[0]).split(':')[0]
  port = environ.get('JAX_COORDINATOR_PORT') or 8482  # the one that JAX would take
  process = int(environ['TPU_WORKER_ID']) + len(hosts) * int(environ.get('MEGASCALE_SLICE_ID') or 0)
  return Place(f'{host}:{port}', len(hosts) * slices, process)


def known_to_jax(environ: Mapping[str, str]) -> str:
  """The system whose places only JAX's own detection finds; empty if there is none.

  Raises:
    ConfigError: an indexed Kubernetes job, and JAX lacks the package to ask about it.
  """
  if _OPEN_MPI in environ and environ.get('OMPI_COMM_WORLD_SIZE') != '1':
    return 'Open MPI'
  chips = glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*')
  if chips and importlib.util.find_spec('libtpu') and 'TPU_SKIP_MDS_QUERY' not in environ:
    return 'the metadata of this TPU machine'
  if environ.keys() >= {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'}:
    if importlib.util.find_spec('kubernetes') is None:
      raise ConfigError(
        f'this pod is one of an indexed Kubernetes job: set {", ".join(VARIABLES)} as the manifests in launch/gke do, '
        f'or install the package kubernetes; {_ALONE}'
      )
    return 'Kubernetes'
  return ''
