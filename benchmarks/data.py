"""How fast does training data come, and how fast are clips prepared? Beside reading the bytes of the same files.

  python benchmarks/data.py

Latents: records of the sizes that the 14B model trains on (81 x 352 x 624, two sparse conditions, text and image
features), noise in place of latents. Prepare: 81-frame recordings of the procedural world in TartanAir's format at
640 x 480. Every row is a process of its own, with its peak memory; the files lie in the page cache. Prints the tables,
writes ``benchmarks/results/data.json`` and replaces the tables in ``docs/data.md``.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np

from benchmarks import page
from one4d_jax import cli

RECORDS, BATCH, BATCHES = 64, 8, 24
LATENT, TEXT, IMAGE = (21, 44, 78, 16), (180, 4096), (257, 1280)
REPEATS = 3
CLIPS, SIZE = 4, (480, 640)


def main(args: argparse.Namespace) -> None:
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    alone(write_latents, folder / 'latents')  # a child starts with the peak of its parent
    tasks = {'raw bytes of the shards': (raw, folder)}
    tasks |= {f'stream, {threads} threads': (stream, folder, threads) for threads in (0, 2, 4)}
    runs = {name: [] for name in tasks}
    for _ in range(REPEATS):  # interleaved: what else the machine does hits all alike
      for name, task in tasks.items():
        runs[name].append(alone(*task))
        print(json.dumps({'row': name, **runs[name][-1]}), flush=True)
    latents = {name: median(some) for name, some in runs.items()}
    alone(write_recordings, folder / 'tartanair')
    prepare = {name: alone(*task) for name, task in {
      'raw bytes of the files': (raw, folder / 'tartanair'),
      'decoded frame by frame': (decoded, folder),
      'prepare, 1 process': (prepared, folder, 1),
      'prepare, 2 processes': (prepared, folder, 2),
    }.items()}  # fmt: skip
  about = {'cpus': os.cpu_count(), 'python': platform.python_version(), 'records': RECORDS, 'batch': BATCH}
  page.record(args, about | {'latents': latents, 'prepare': prepare}, tables)


def alone(task, *args) -> dict:
  """A task's result, from a fresh process."""
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    return pool.submit(task, *args).result()


def median(runs: list[dict]) -> dict:
  return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}


def measured(count: int, size: int, seconds: float) -> dict:
  kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return {'per_second': count / seconds, 'mb_per_second': size / 1e6 / seconds, 'peak_gb': kilobytes / 1e6}


def write_latents(folder: pathlib.Path) -> None:
  from one4d_jax.data import shards

  def record(i: int) -> dict:
    rng = np.random.default_rng(i)
    noise = lambda *shape: rng.standard_normal(shape, np.float32).astype(np.float16)
    return {
      'z': noise(2, *LATENT),
      'z_image': noise(*LATENT),
      'z_sparse': noise(2, *LATENT),
      'observed_sparse': rng.random((2, 81)) < 0.2,
      'weight': np.ones(LATENT[:3], np.float16),
      'text': noise(*TEXT),
      'image': noise(*IMAGE),
      'id': f'clip {i}',
    }

  shards.write(folder, map(record, range(RECORDS)), shard_records=16)


def raw(folder: pathlib.Path) -> dict:
  """Every byte of the files, once."""
  files = [path for path in sorted(folder.rglob('*')) if path.is_file()]
  start, size = time.perf_counter(), 0
  for path in files:
    size += len(path.read_bytes())
  count = CLIPS if folder.name == 'tartanair' else RECORDS
  return measured(count, size, time.perf_counter() - start)


def stream(folder: pathlib.Path, threads: int) -> dict:
  """Training batches: shuffled, drawn, padded, as the step takes them."""
  import functools

  from one4d_jax.data import pipeline, shards
  from one4d_jax.training import latents

  source = shards.open(folder / 'latents')
  draw = functools.partial(
    latents.draw, tasks=(0.35, 0.3, 0.35), text_only=0.0, text_dropout=0.1, image_dropout=0.1, **constants()
  )
  component = pipeline.Component(source, draw, fingerprint=source.fingerprint)
  batches = pipeline.batches([component], batch_size=BATCH, seed=0, threads=threads)
  next(batches)
  start = time.perf_counter()
  for _ in range(BATCHES):
    next(batches)
  seconds = time.perf_counter() - start
  batches.close()
  size = sum(path.stat().st_size for path in (folder / 'latents').glob('*.array_record'))
  return measured(BATCHES * BATCH, size / RECORDS * BATCHES * BATCH, seconds)


def constants() -> dict:
  """What ``draw`` gets beside the record: the features of the empty prompt."""
  return {'null': np.zeros((1, TEXT[1]), np.float16), 'text_len': 512}


def write_recordings(root: pathlib.Path) -> None:
  from tests.data.sources.formats import tartanair

  tartanair.write(root, recordings=CLIPS, frames=81, size=SIZE)


def job(folder: pathlib.Path, out: str):
  from one4d_jax.data import curate, preparation

  preparation._UNIT = 1  # or two processes would have one unit of work
  return preparation.Job('tartanair', str(folder / 'tartanair'), folder / out, curate.Curation())


def decoded(folder: pathlib.Path) -> dict:
  """Every frame and depth of the recordings, nothing else done."""
  from one4d_jax.data.sources import tartanair

  recordings = [found.open() for found in tartanair.find(folder / 'tartanair')]
  start = time.perf_counter()
  for recording in recordings:
    for i in range(len(recording)):
      recording.frame(i)
  return measured(CLIPS, folder_size(folder), time.perf_counter() - start)


def prepared(folder: pathlib.Path, workers: int) -> dict:
  """The whole of ``prepare``."""
  from one4d_jax.data import preparation

  start = time.perf_counter()
  made = job(folder, f'prepared-{workers}')
  preparation.plan(made)
  preparation.work_off(made, workers=workers)
  preparation.finish(made)
  return measured(CLIPS, folder_size(folder), time.perf_counter() - start)


def folder_size(folder: pathlib.Path) -> int:
  return sum(path.stat().st_size for path in (folder / 'tartanair').rglob('*') if path.is_file())


def tables(results: dict) -> dict[str, str]:
  return {'data-latents': table(results['latents'], 'record'), 'data-prepare': table(results['prepare'], 'clip')}


def table(rows: dict[str, dict], unit: str) -> str:
  first = next(iter(rows.values()))['mb_per_second']
  lines = [f'| | {unit}s/s | MB/s | of raw reading | peak memory, GB |', '|---|---|---|---|---|']
  for name, row in rows.items():
    lines.append(
      f'| {name} | {row["per_second"]:.3g} | {row["mb_per_second"]:.0f} | {row["mb_per_second"] / first:.3f} | '
      f'{row["peak_gb"]:.2f} |'
    )
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  sys.exit(cli.run(main, page.parser('data', __doc__, page='docs/data.md')))
