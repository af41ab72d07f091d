"""How long things take to start: imports, help, the first scene and the first training step, cold and again.

  python benchmarks/startup.py

Each command runs in a new process, with a cache of compiled programs that is empty at first. Writes a table of
docs/performance.md.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page  # noqa: E402
from one4d_jax import cli  # noqa: E402

LIGHT = {
  'import one4d_jax': ('-c', 'import one4d_jax'),
  **{f'{name} --help': ('-m', f'one4d_jax.{name}', '--help') for name in ('sample', 'train', 'evaluate', 'plan')},
}


def parser() -> argparse.ArgumentParser:
  p = page.parser('startup', __doc__, page='docs/performance.md')
  p.add_argument('--rounds', type=int, default=5, help='of the light commands (default: %(default)s)')
  p.add_argument(
    '--again', type=int, default=3, help='of the heavy ones, once the cache is full (default: %(default)s)'
  )
  return p


def seconds(command: tuple[str, ...], cache: str) -> float:
  """Wall-clock time of one process."""
  start = time.perf_counter()
  environ = os.environ | {'JAX_COMPILATION_CACHE_DIR': cache}
  subprocess.run([sys.executable, *command], cwd=ROOT, env=environ, check=True, stdout=subprocess.DEVNULL)
  return time.perf_counter() - start


def heavy(home: pathlib.Path) -> dict[str, tuple[str, ...]]:
  """A scene of the embedded model, and a run of one training step over it on four clips that are there already."""
  train = {
    'model.weights': ROOT / 'one4d_jax/assets/tiny', 'data.cache': home / 'data', 'data.clips': 4,
    'data.validation_clips': 4, 'train.steps': 1, 'train.validate_every': 0,
  }  # fmt: skip
  values = (f'--config.{key}={value}' for key, value in train.items())
  command = ('-m', 'one4d_jax.train', '--config', 'configs/one4d.py:tiny', '--workdir', str(home / 'run'))
  return {
    'sample, the embedded model': ('-m', 'one4d_jax.sample', '--out', str(home / 'out'), '--overwrite'),
    'train, one step of the tiny preset': (*command, *values),
  }


def main(args: argparse.Namespace) -> None:
  import shutil

  rows = []
  with tempfile.TemporaryDirectory() as folder:
    home = pathlib.Path(folder)
    cache = str(home / 'cache')
    for name, command in LIGHT.items():
      taken = [seconds(command, cache) for _ in range(args.rounds + 1)][1:]  # the first one reads from the disk
      rows.append({'what': name, 'first': None, 'again': taken})
    for name, command in heavy(home).items():
      if 'train' in name:
        seconds(command, str(home / 'other'))  # renders and encodes the clips
      taken = []
      for _ in range(1 + args.again):
        shutil.rmtree(home / 'run', ignore_errors=True)
        taken.append(seconds(command, cache))
      rows.append({'what': name, 'first': taken[0], 'again': taken[1:]})
  results = {'cpus': os.cpu_count(), 'versions': page.versions('jax', 'jaxlib'), 'rows': rows}
  page.record(args, results, tables)


def tables(results: dict) -> dict[str, str]:
  from one4d_jax.evaluation import report

  lines = [
    (row['what'], f'{row["first"]:.1f}' if row['first'] else '-', f'{statistics.median(row["again"]):.2f}')
    for row in results['rows']
  ]
  return {'startup': report.table(lines, ('command', 'empty cache, s', 'again, s'))}


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
