"""Kills training again and again, at random moments and in the middle of saves, and looks at what is left.

  python benchmarks/reliability.py

Thirty short runs of the one4d stage on a network of a few thousand parameters. Each is killed up to eight times (fewer
if it ends first) and started again by the same command. After every kill each checkpoint must be readable, and none may
be missing that was there before.
Every attempt is a fork of one process that has imported JAX and started nothing: that saves the time of importing.
"""

import collections
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page  # noqa: E402

STEPS, EVERY, KILLS = 40, 2, 8
KINDS = {
  'SIGKILL, any moment': 'before training, between steps, in steps and in saves',
  'SIGKILL in a save': 'while a checkpoint has its temporary name',
  'SIGTERM': 'once',
  'SIGTERM twice': 'a tenth of a second apart',
}


def child(run, log: pathlib.Path) -> int:
  """Forks a process that calls ``run`` and ends with the status it returns; its process number."""
  number = os.fork()
  if number:
    return number
  file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(file, 1)
  os.dup2(file, 2)
  try:
    status = run()
  except BaseException:
    import traceback

    traceback.print_exc()
    status = 70
  os._exit(status)


def status(number: int) -> int:
  return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def training(home: pathlib.Path, name: str):
  """Training as the command starts it."""
  from one4d_jax import cli, train
  from tests import small

  arguments = small.train(
    home, name, train__steps=STEPS, train__save_every=EVERY, train__keep=3, train__log_every=EVERY
  )[3:]  # without python -m module
  return lambda: cli.run(train.main, train.parser(), arguments)


def digests(workdir: pathlib.Path, out: pathlib.Path) -> int:
  """Reads every checkpoint in full and writes ``{step: hash}`` to ``out``."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  found = {}
  for folder in (workdir / 'checkpoints').glob('*'):
    if folder.name.isdigit():
      tree = ocp.StandardCheckpointer().restore(folder / 'state')
      total = hashlib.sha256()
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        total.update(str(path).encode() + np.asarray(leaf).tobytes())
      found[folder.name] = total.hexdigest()
  out.write_text(json.dumps(found))
  return 0


def read(workdir: pathlib.Path, log: pathlib.Path) -> dict[int, str]:
  """Hash of each checkpoint, by step.

  Raises:
    RuntimeError: one of them cannot be read.
  """
  out = workdir.with_suffix('.json')
  if status(child(lambda: digests(workdir, out), log)):
    raise RuntimeError(f'a checkpoint in {workdir} cannot be read: {log.read_text()[-5000:]}')
  return {int(step): value for step, value in json.loads(out.read_text()).items()}


def saving(workdir: pathlib.Path) -> bool:
  return any('tmp' in path.name for path in (workdir / 'checkpoints').glob('*'))


def kill(kind: str, number: int, workdir: pathlib.Path, seconds: float, draw: random.Random) -> bool:
  """Kills the process in the way of ``kind``; False if it ended before."""
  over = lambda: os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
  if kind == 'SIGKILL in a save':
    skipped = draw.randrange(3)  # saves that are let through
    for wanted in (True, False) * skipped + (True,):
      while saving(workdir) != wanted:
        if over():
          return False
        time.sleep(0.0005)
    os.kill(number, signal.SIGKILL)
    return True
  deadline = time.monotonic() + draw.uniform(0, seconds)
  while time.monotonic() < deadline:
    if over():
      return False
    time.sleep(0.005)
  os.kill(number, signal.SIGKILL if 'KILL' in kind else signal.SIGTERM)
  if kind == 'SIGTERM twice':
    time.sleep(0.1)
    if not over():
      os.kill(number, signal.SIGTERM)
  return True


def main() -> None:
  p = page.parser('reliability', __doc__, page='docs/reliability.md')
  p.add_argument('--runs', type=int, default=30)
  p.add_argument('--seed', type=int, default=0)
  p.add_argument('--add', action='store_true', help='to the runs of other seeds that are in the results')
  args = p.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
  import orbax.checkpoint  # noqa: F401, once for all forks
  from tqdm import tqdm

  from one4d_jax import config, train  # noqa: F401
  from one4d_jax.training import stages  # noqa: F401
  from tests import small

  os.chdir(ROOT)
  draw, begun = random.Random(args.seed), time.time()
  counts = {kind: collections.Counter() for kind in KINDS}
  with tempfile.TemporaryDirectory() as temporary:
    home = pathlib.Path(temporary)
    log = home / 'log.txt'
    if status(child(lambda: small.bundle(home / 'base') and 0, log)):
      raise RuntimeError(log.read_text())
    if status(child(training(home, 'first'), log)):  # compiles
      raise RuntimeError(log.read_text())
    start = time.monotonic()
    if status(child(training(home, 'straight'), log)):
      raise RuntimeError(log.read_text())
    seconds = (time.monotonic() - start) / 2  # kills come within the first half of a run's length
    expected = read(home / 'straight', log)[STEPS]
    same, restarts = 0, 0
    for run in tqdm(range(args.runs), unit='run'):
      name, newest, kills = f'run-{run}', 0, 0
      workdir = home / name
      while True:
        kind = draw.choice(list(KINDS)) if kills < KILLS else None
        own = home / f'{name}-{restarts}.txt'
        number = child(training(home, name), own)
        restarts += 1
        killed = kind is not None and kill(kind, number, workdir, seconds, draw)
        found = status(number)
        text = own.read_text() if own.exists() else ''
        saved = read(workdir, log) if (workdir / 'checkpoints').exists() else {}
        if max(saved, default=0) < newest:
          raise RuntimeError(f'{kind}: checkpoint {newest} was there and is lost; now {sorted(saved)}')
        newest = max(saved, default=0)
        if killed:
          kills += 1
          counts[kind]['kills'] += 1
          counts[kind]['while saving'] += saving(workdir)
          asked = re.search(r'asked to stop: step (\d+) is saved', text)
          if 'TERM' in kind and asked and found == 0:
            if int(asked[1]) != newest:
              raise RuntimeError(f'said that it saved {asked[1]}, newest is {newest}')
            counts[kind]['saved and ended with 0'] += 1
          elif 'TERM' in kind and (found == -signal.SIGTERM or 'before the first step' in text):
            counts[kind]['ended before training began'] += 1
          elif 'TERM' in kind and found == 0 and newest == STEPS:
            counts[kind]['after the last step'] += 1
          elif 'TERM' in kind:
            raise RuntimeError(f'{kind}: status {found}: {text[-2000:]}')
        elif found:
          raise RuntimeError(f'status {found}: {text[-2000:]}')
        if newest == STEPS:
          break
      if saved[STEPS] != expected:
        raise RuntimeError(f'{name} does not end as a run that was never killed')
      same += 1
  part = {
    'runs': args.runs,
    'kills': sum(c['kills'] for c in counts.values()),
    'starts': restarts,
    'identical': same,
    'seconds': round(time.time() - begun),
    'by_kind': counts,
    'seed': args.seed,
  }
  before = json.loads(pathlib.Path(args.out).read_text())['parts'] if args.add else []
  page.record(args, {'parts': [*before, part]}, tables)


def tables(results: dict) -> dict[str, str]:
  parts = results['parts']
  total = {name: sum(part[name] for part in parts) for name in ('runs', 'kills', 'starts', 'identical')}
  heads = ('kill', 'when', 'kills', 'in a save', 'saved, status 0', 'before the first step', 'after the last')
  heads += ('lost', 'unreadable')
  rows = ['| ' + ' | '.join(heads) + ' |', '|---' * len(heads) + '|']
  for kind, about in KINDS.items():
    c = sum((collections.Counter(part['by_kind'][kind]) for part in parts), collections.Counter())
    names = ('saved and ended with 0', 'ended before training began', 'after the last step')
    ended = [c[name] for name in names] if 'TERM' in kind else ['-'] * 3
    rows.append(
      f'| {kind} | {about} | {c["kills"]} | {c["while saving"]} | {ended[0]} | {ended[1]} | {ended[2]} | 0 | 0 |'
    )
  rows += ['', f'{total["kills"]} kills in {total["runs"]} runs, {total["starts"]} starts; {total["identical"]} of '
           f'{total["runs"]} runs end bit for bit as a run that was never killed.']  # fmt: skip
  return {'reliability': '\n'.join(rows)}


if __name__ == '__main__':
  main()
