"""How fast, and in how much memory, does a 14B DiT convert? Beside ``cp`` of the same file on the same disk.

  python benchmarks/convert.py --work DIR

makes a file with the names, shapes and dtype of Wan2.1-Fun-V1.1-14B-InP (32.8 GB; random numbers, or with ``--sparse``
a random first and last layer and holes between), copies it with ``cp``, converts it, and removes everything again. Both
are timed until the data is on the disk, each with the source out of the page cache. Prints a table and writes
``benchmarks/results/convert.json``.
"""

import argparse
import dataclasses
import json
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

from one4d_jax import cli
from one4d_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = 'diffusion_pytorch_model.safetensors'
BLOCK = 64 << 20


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(prog='python benchmarks/convert.py', description=__doc__.split('\n')[0])
  p.add_argument('--work', metavar='DIR', required=True, help='an empty place with 70 GB of room (40 with --sparse)')
  p.add_argument('--layers', type=int, default=40, help='fewer for a trial (default: %(default)s)')
  p.add_argument('--sparse', action='store_true', help='holes instead of numbers in all but two layers of the source')
  p.add_argument('--out', metavar='FILE', default=str(ROOT / 'benchmarks/results/convert.json'))
  return p


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
  """Native names and shapes of the DiT."""
  from one4d_jax.wan.config import DiTConfig
  from weight_conversion.tables import dit

  cfg = dataclasses.replace(DiTConfig(), layers=layers)
  targets, found = dit.targets(cfg, 'bfloat16'), {}
  for rule in dit.rules(cfg, 'native'):
    shape = targets[rule.target].shape
    layer = np.broadcast_to(np.zeros(()), shape[1:] if rule.stacked else shape)
    for l in range(layers if rule.stacked else 1):
      found |= {n: w.shape for n, w in zip(rule.names(l), rule.transform.backward(layer), strict=True)}
  return found


def write_source(path: pathlib.Path, layers: int, *, sparse: bool) -> int:
  """A safetensors file of bfloat16 tensors; returns its size."""
  header, offset = {}, 0
  for name, shape in shapes(layers).items():
    size = 2 * int(np.prod(shape))
    header[name] = {'dtype': 'BF16', 'shape': shape, 'data_offsets': [offset, offset + size]}
    offset += size
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  rng = np.random.default_rng(0)
  noise = (rng.standard_normal(BLOCK // 2, np.float32) * 0.02).astype(ml_dtypes.bfloat16).tobytes()
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    start = file.tell()
    file.truncate(start + offset)
    for name, entry in header.items():
      layer = int(name.split('.')[1]) if name.startswith('blocks.') else 0
      if sparse and 0 < layer < layers - 1:
        continue
      begin, end = entry['data_offsets']
      file.seek(start + begin)
      while begin < end:
        shift = 2 * int(rng.integers(BLOCK // 4))
        begin += file.write(noise[shift : shift + end - begin])
    file.flush()
    os.fsync(file.fileno())
  return start + offset


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
  source = work / 'source' / NAME
  source.parent.mkdir()
  try:
    size = write_source(source, args.layers, sparse=args.sparse)
    rows = []

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
    'command': ' '.join(['python', 'benchmarks/convert.py', '--work', 'DIR', *(['--sparse'] * args.sparse)]),
    'source': {'bytes': size, 'tensors': len(shapes(args.layers)), 'sparse': args.sparse, 'layers': args.layers},
    'machine': {'cores': os.cpu_count(), 'memory_GiB': round(_memory() / 2**30), 'system': platform.system()},
    'rows': rows,
  }
  pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + '\n')
  print(table(result))


def table(result: dict) -> str:
  lines = ['| | seconds | GB/s | speed / cp | peak memory, GiB | written, GB |', '|---|---|---|---|---|---|']
  lines += [
    f'| {r["name"]} | {r["seconds"]:.0f} | {r["GB_per_s"]:.2f} | {r["of_cp"]:.2f} | {r["peak_GiB"]:.2f} '
    f'| {r["written_GB"]:.1f} |'
    for r in result['rows']
  ]
  return '\n'.join(lines)


def _memory() -> int:
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
