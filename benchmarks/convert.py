"""How fast, and in how much memory, does a 14B DiT convert? Beside ``cp`` of the same file on the same disk.

  python benchmarks/convert.py --work DIR

makes a file with the names, shapes and dtype of Wan2.1-Fun-V1.1-14B-InP (32.8 GB of random numbers), copies it with
``cp``, converts it, and removes everything again. All are timed until the data is on the disk, each with the source out
of the page cache. Prints a table and writes it to ``benchmarks/results/convert.json`` and ``docs/conversion.md``.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from benchmarks import page
from one4d_jax import cli
from one4d_jax.errors import UserError
from one4d_jax.wan.config import DiTConfig
from weight_conversion.stream import Lazy, write_safetensors
from weight_conversion.tables import dit

ROOT = pathlib.Path(__file__).resolve().parent.parent


def parser() -> argparse.ArgumentParser:
  p = page.parser('convert', __doc__, page='docs/conversion.md')
  p.add_argument('--work', metavar='DIR', required=True, help='an empty place with 66 GB of room')
  p.add_argument('--layers', type=int, default=40, help='fewer for a trial (default: %(default)s)')
  return p


def tensors(layers: int) -> dict[str, Lazy]:
  """Random bfloat16 tensors with the native names and shapes of the DiT."""
  cfg = dataclasses.replace(DiTConfig(), layers=layers)
  targets, rng, found = dit.targets(cfg, 'bfloat16'), np.random.default_rng(0), {}

  def read(shape: tuple[int, ...]) -> np.ndarray:
    bits = np.frombuffer(rng.bytes(2 * int(np.prod(shape))), np.uint16) & 0xBFFF  # any number below 2
    return bits.view(ml_dtypes.bfloat16).reshape(shape)

  for rule in dit.rules(cfg, 'native'):
    shape = targets[rule.target].shape
    for l in range(layers if rule.stacked else 1):
      for name, source in zip(rule.names(l), rule.transform.source_shapes(shape[rule.stacked :]), strict=True):
        found[name] = Lazy(source, 'bfloat16', functools.partial(read, source))
  return found


def forget(path: pathlib.Path) -> None:
  """Drops a file's pages from the cache."""
  with path.open('rb') as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(command: list[str], source: pathlib.Path) -> tuple[float, float]:
  """Seconds, and the largest resident memory in GiB, of a command and the sync after it."""
  forget(source)
  os.sync()
  start = time.perf_counter()
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
  _, status, usage = os.wait4(process.pid, 0)
  os.sync()
  seconds = time.perf_counter() - start
  if status:
    raise UserError(f'{" ".join(command)} failed with status {status}')
  return seconds, usage.ru_maxrss / 2**20


def main(args: argparse.Namespace) -> None:
  work = pathlib.Path(args.work)
  work.mkdir(parents=True, exist_ok=True)
  if any(work.iterdir()):
    raise UserError(f'--work {work} is not empty')
  source = work / 'source' / 'diffusion_pytorch_model.safetensors'
  source.parent.mkdir()
  try:
    write_safetensors(source, tensors(args.layers))
    size, rows = source.stat().st_size, []

    def run(name: str, command: list[str], made: pathlib.Path) -> None:
      seconds, memory = timed(command, source)
      written = sum(file.stat().st_size for file in (made, *made.rglob('*')) if file.is_file())
      rows.append({'name': name, 'seconds': seconds, 'GB_per_s': size / 1e9 / seconds, 'peak_GiB': memory,
                   'written_GB': written / 1e9})  # fmt: skip
      shutil.rmtree(made) if made.is_dir() else made.unlink()
      print(rows[-1], flush=True)

    convert = [sys.executable, 'weight_conversion/wan_to_flax.py', '--src', str(source.parent), '--part', 'dit']
    convert += ['--dst', str(work / 'made')]
    run('cp', ['cp', '--sparse=never', str(source), str(work / 'copy')], work / 'copy')
    run('convert', convert, work / 'made')
    run('convert --int8', [*convert, '--int8'], work / 'made')
  finally:
    shutil.rmtree(work, ignore_errors=True)
  for row in rows:
    row['of_cp'] = rows[0]['seconds'] / row['seconds']
  result = {
    'command': f'python benchmarks/convert.py --work DIR --layers {args.layers}',
    'source': {'bytes': size, 'tensors': len(tensors(args.layers)), 'layers': args.layers},
    'machine': {'cores': os.cpu_count(), 'memory_GiB': round(_memory() / 2**30), 'system': platform.system()},
    'rows': rows,
  }
  if args.layers == DiTConfig.layers:
    page.record(args, result, tables)
  else:
    print(*tables(result).values())


def tables(result: dict) -> dict[str, str]:
  lines = ['| | seconds | GB/s | speed / cp | peak memory, GiB | written, GB |', '|---|---|---|---|---|---|']
  for row in result['rows']:
    peak = '' if row['name'] == 'cp' else f'{row["peak_GiB"]:.2f}'
    lines.append(
      f'| {row["name"]} | {row["seconds"]:.0f} | {row["GB_per_s"]:.2f} | {row["of_cp"]:.2f} | {peak} '
      f'| {row["written_GB"]:.1f} |'
    )
  return {'convert': '\n'.join(lines)}


def _memory() -> int:
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
