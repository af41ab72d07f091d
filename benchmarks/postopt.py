"""How exact and how fast are cameras from pointmaps, beside the descents that others use?

  python benchmarks/postopt.py

Fits the same pointmaps of a known scene with our default, with the paper's objective under Adam (500 steps, Geo4D's
learning rates: the paper gives none) and with a DUSt3R-style setting (Adam, 300 steps, its learning rates, betas and
smoothness), all from the same closed-form start and on the same pixels, in turns. Prints errors and seconds, writes
``benchmarks/results/postopt.json`` and replaces the table in ``docs/geometry.md``. The last row measures memory.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from benchmarks import page, race
from one4d_jax import cli

SMALL, LARGE, LARGEST = (20, 64, 96), (81, 352, 624), (81, 480, 832)
NOISE = ('exact', '1%', '5%', '1% smooth', '5% smooth', '5% and 10% outliers')


def parser() -> argparse.ArgumentParser:
  p = page.parser('postopt', __doc__, page='docs/geometry.md')
  p.add_argument('--runs', metavar='N', type=int, default=3, help='timed fits a method, after one that compiles')
  p.add_argument('--memory', metavar='STRIDE', type=int, help='only measure memory with this stride (0: the default)')
  return p


def methods(frames: int) -> dict:
  from one4d_jax.postopt.options import AdamOptions, FitOptions

  adam = lambda smoothness, **values: FitOptions(
    method='adam', loss='l1', smoothness=smoothness, adam=AdamOptions(**values)
  )
  return {
    'ours': FitOptions(),
    'Adam, paper': adam(1e-3),
    # its smoothness is 0.01 for the sum over frame pairs, beside a mean over pixels
    'DUSt3R-style': adam(0.01 * (frames - 1), iterations=300, learning_rate=0.01, last_learning_rate=1e-3),
  }


def spoil(points, truth, noise: str):
  """The pointmap with the named errors."""
  import numpy as np

  from tests.postopt.rooms import noisy, smooth_noise

  if noise == 'exact':
    return points
  level = int(noise[0]) / 100
  spoilt = smooth_noise(points, truth, level) if 'smooth' in noise else noisy(points, truth, level)
  if 'outliers' in noise:
    rng = np.random.default_rng(1)
    gross = rng.random(points.shape[:3]) < 0.1
    spoilt[gross] += rng.normal(0, 0.7 * np.median(truth.depth), (gross.sum(), 3))
  return spoilt.astype(np.float32)


def compare(size: tuple[int, int, int], noise: str, runs: int) -> list[dict]:
  """A row for each method."""
  import numpy as np

  from one4d_jax.evaluation.trajectory import trajectory_metrics
  from one4d_jax.postopt.fit import fit_cameras
  from tests.postopt.rooms import room
  from tests.postopt.test_fit import angles

  points, truth, _ = room(frames=size[0], height=size[1], width=size[2])
  points, valid = spoil(points, truth, noise), np.ones(size, bool)
  seconds, found = {}, {}
  for _ in range(runs + 1):
    for name, options in methods(size[0]).items():
      start = time.perf_counter()
      found[name] = fit_cameras(points, valid, options=options)
      seconds.setdefault(name, []).append(time.perf_counter() - start)
  rows = []
  for name, cameras in found.items():
    path = trajectory_metrics(cameras.world_from_cam, truth.world_from_cam)
    turned = angles(cameras.world_from_cam, truth.world_from_cam)
    row = {
      'size': size,
      'noise': noise,
      'method': name,
      'focal': float(abs(cameras.K[0, 0, 0] / truth.K[0, 0, 0] - 1)),
      'rotation': float(np.sqrt(np.mean(turned**2))),
      'ate': path.ate / float(np.median(truth.depth)),
      'rpe_r': path.rpe_r,
      'abs_rel': float(np.mean(np.abs(cameras.depth - truth.depth) / truth.depth)),
      'first_seconds': seconds[name][0],
      'seconds': statistics.median(seconds[name][1:]),
    }
    rows.append(row | {'ratio': row['seconds'] / (rows[0]['seconds'] if rows else row['seconds'])})
  return rows


def memory(stride: int) -> dict:
  """Peak memory of a fit at full size over what the process held before it, in GiB; stride 1 uses every pixel."""
  import numpy as np

  from one4d_jax.postopt.fit import fit_cameras
  from one4d_jax.postopt.options import FitOptions
  from tests.postopt.rooms import room

  frames, height, width = LARGEST
  fit = lambda points: fit_cameras(points, np.ones(points.shape[:3], bool), options=FitOptions(stride=stride))
  fit(room(frames=2, height=32, width=48)[0])  # the libraries' own share
  one, _, _ = room('static', frames=1, height=height, width=width)
  points = np.repeat(one, frames, axis=0)
  rng = np.random.default_rng(0)
  for frame in points:
    frame += np.float32(0.01) * rng.standard_normal(frame.shape, np.float32)
  peak = lambda: race.resident('VmHWM') / 2**30
  race.forget_peak()
  before = peak()
  start = time.perf_counter()
  fit(points)
  seconds = time.perf_counter() - start
  return {'size': LARGEST, 'stride': stride, 'before_gib': before, 'fit_gib': peak() - before, 'seconds': seconds}


def main(args: argparse.Namespace) -> None:
  if args.memory is not None:
    print(json.dumps(memory(args.memory)))
    return
  rows = []
  for size, noises, runs in [(SMALL, NOISE, args.runs), (LARGE, ('exact', '1% smooth'), 1)]:
    for noise in noises:
      for row in compare(size, noise, runs):
        rows.append(row)
        print(line(row), flush=True)
  held = []
  for stride in (0, 1):
    command = [sys.executable, __file__, '--memory', str(stride)]
    held.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
    print(held[-1], flush=True)
  versions = page.versions('jax', 'jaxlib', 'numpy', 'optax')
  results = {'versions': versions, 'cores': os.cpu_count(), 'rows': rows, 'memory': held}
  page.record(args, results, tables)


def line(row: dict) -> str:
  cells = ['x'.join(map(str, row['size'])), row['noise'], row['method']]
  cells += [
    f'{row[k]:.1e}' if row[k] < 1e-3 else f'{row[k]:.3f}' for k in ('focal', 'rotation', 'ate', 'rpe_r', 'abs_rel')
  ]
  return (
    '| ' + ' | '.join([*cells, f'{row["seconds"]:.2f}', f'{row["first_seconds"]:.1f}', f'{row["ratio"]:.1f}']) + ' |'
  )


def tables(results: dict) -> dict[str, str]:
  versions = ', '.join(map(' '.join, results['versions'].items()))
  heads = ['size', 'errors', 'method', 'focal, relative', 'rotation, °', 'ATE / depth', 'RPE-R, °', 'depth Abs Rel',
           's', 's, first', 'time / ours']  # fmt: skip
  notes = [
    f'{results["cores"]} CPU cores, float32, {versions}. Seconds are the median of '
    'interleaved fits at full resolution; the first one of a process compiles, or reads what an earlier one compiled.',
    *(
      f'Memory at {"x".join(map(str, row["size"]))}, {"every pixel" if row["stride"] else "default stride"}: '
      f'{row["fit_gib"]:.2f} GiB above the {row["before_gib"]:.2f} GiB of process and pointmap, {row["seconds"]:.0f} s.'
      for row in results['memory']
    ),
  ]
  rule = '|' + '---|' * len(heads)
  return {'postopt': '\n'.join(['| ' + ' | '.join(heads) + ' |', rule, *map(line, results['rows']), '', *notes]) + '\n'}


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
