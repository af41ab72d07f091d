"""Trains the tiny One4D over a bfloat16 base and over an int8 one, all else equal, and compares the curves.

  python benchmarks/int8.py

500 steps each of the one4d stage from fresh adapters over the embedded base, on the same batches with the same noise.
Writes the table and the picture of docs/scale.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page  # noqa: E402

BASES = {'bfloat16': (), 'int8': ('model.int8=True',)}
WINDOW = 50  # steps of a point of the curve


def parser() -> argparse.ArgumentParser:
  p = page.parser('int8', __doc__, page='docs/scale.md')
  p.add_argument('--steps', type=int, default=500)
  p.add_argument('--picture', metavar='FILE', default=str(ROOT / 'docs/images/int8.png'))
  return p


def train(home: pathlib.Path, name: str, steps: int) -> list[dict]:
  """The rows of ``metrics.jsonl`` of one run."""
  from one4d_jax.training import metrics

  values = (
    f'train.steps={steps}', 'train.batch=4', 'train.log_every=10', f'train.validate_every={steps}',
    f'train.save_every={steps}', 'train.ema=0', 'train.learning_rate=1e-3', 'model.dtype=bfloat16', 'data.clips=64',
    'data.validation_clips=8', 'model.adapters.rank=8', f'data.cache={home / "data"}',
    f'model.weights={ROOT / "one4d_jax/assets/tiny"}', *BASES[name],
  )  # fmt: skip
  command = [
    sys.executable,
    '-m',
    'one4d_jax.train',
    '--config',
    'configs/one4d.py:tiny',
    '--workdir',
    str(home / name),
  ]
  subprocess.run([*command, *(f'--config.{value}' for value in values)], cwd=ROOT, check=True)
  return metrics.read(home / name)


def curve(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps, and means over windows of them."""
  steps, values = (np.array([row[key] for row in rows if name in row], float) for key in ('step', name))
  size = max(1, WINDOW // 10)
  count = len(values) // size * size
  return steps[:count].reshape(-1, size).max(1), values[:count].reshape(-1, size).mean(1)


def draw(runs: dict[str, list[dict]], path: pathlib.Path) -> None:
  """Both curves of both losses, one colour a base."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
  for axis, loss in zip(axes, ('loss_rgb', 'loss_xyz'), strict=True):
    for (name, rows), style in zip(runs.items(), ('-', '--'), strict=True):
      axis.plot(*curve(rows, loss), style, label=f'{name} base', linewidth=2)
    axis.set(title=loss, xlabel='step')
    axis.grid(alpha=0.3)
  axes[0].legend(frameon=False)
  figure.savefig(path, dpi=110)


def main() -> None:
  args = parser().parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    runs = {name: train(pathlib.Path(temporary), name, args.steps) for name in BASES}
  draw(runs, pathlib.Path(args.picture))
  last = lambda rows, name: [row[name] for row in rows if name in row][-1]
  final = {
    name: {'loss_rgb': curve(rows, 'loss_rgb')[1][-1], 'loss_xyz': curve(rows, 'loss_xyz')[1][-1]}
    | {key: last(rows, key) for key in rows[-1] if key.startswith('validation/')}
    for name, rows in runs.items()
  }
  apart = {
    loss: float(np.abs(np.subtract(*(curve(rows, loss)[1] for rows in runs.values()))).max())
    for loss in ('loss_rgb', 'loss_xyz')
  }
  curves = {
    name: {loss: [list(map(float, c)) for c in curve(rows, loss)] for loss in ('loss_rgb', 'loss_xyz')}
    for name, rows in runs.items()
  }
  results = {'steps': args.steps, 'final': final, 'apart': apart, 'curves': curves}
  page.record(args, json.loads(json.dumps(results, default=float)), tables)


def tables(results: dict) -> dict[str, str]:
  heads = {
    'loss_rgb': f'loss RGB, last {WINDOW} steps',
    'loss_xyz': 'loss XYZ',
    'validation/loss_rgb@0.5': 'validation RGB, noise 0.5',
    'validation/loss_xyz@0.5': 'validation XYZ, noise 0.5',
    'validation/psnr_rgb': 'PSNR RGB, dB',
    'validation/psnr_xyz': 'PSNR XYZ, dB',
  }
  table = ['| base | ' + ' | '.join(heads.values()) + ' |', '|---' * (len(heads) + 1) + '|']
  table += [
    f'| {name} | ' + ' | '.join(f'{found[key]:.4g}' for key in heads) + ' |' for name, found in results['final'].items()
  ]
  apart = results['apart']
  table += ['', f'{results["steps"]} steps of 4 samples. The curves (means of {WINDOW} steps) lie at most '
            f'{apart["loss_rgb"]:.4f} (RGB) and {apart["loss_xyz"]:.4f} (XYZ) apart.']  # fmt: skip
  return {'int8': '\n'.join(table)}


if __name__ == '__main__':
  main()
