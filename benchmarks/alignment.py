"""What is left of a perfect prediction by each way of aligning depth? And of one with noise?

  python benchmarks/alignment.py

The true depth g of held-out procedural clips is given as p = (g - t) / s: a scale and a shift take it back exactly.
Prints the table, writes ``benchmarks/results/alignment.json`` and replaces the table in ``docs/evaluation.md``.
"""

import argparse
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np

from benchmarks import page
from one4d_jax import cli

CLIPS, SIZE = 6, {'frames': 17, 'height': 64, 'width': 64}
ALIGNMENTS = ('scale_shift', 'adam_1e-2_5000', 'adam_1e-4_1000', 'median')
CASES = (  # s, t over the median depth, noise over the depth
  (1.0, 0.0, 0.0),
  (1.0, 0.02, 0.0),
  (1.0, 0.1, 0.0),
  (1.0, 0.5, 0.0),
  (10.0, 0.1, 0.0),
  (10.0, 0.5, 0.0),
  (0.1, 0.1, 0.0),
  (0.1, 0.5, 0.0),
  (1.0, 0.0, 0.1),
  (1.0, 0.5, 0.1),
  (10.0, 0.5, 0.1),
)


def main(args: argparse.Namespace) -> None:
  from one4d_jax.evaluation import benchmarks

  names = benchmarks.names(benchmarks.EvalConfig().levels, CLIPS)
  clips = [benchmarks.held_out_clip(level, seed, **SIZE) for level, seed in names]
  rows = []
  for scale, shift, noise in CASES:
    rows.append({'scale': scale, 'shift': shift, 'noise': noise} | measured(clips, scale, shift, noise))
    print(json.dumps(rows[-1]), flush=True)
  results = {'clips': [f'{level}-{seed}' for level, seed in names], 'size': SIZE, 'rows': rows}
  page.record(args, results, tables)


def measured(clips, scale: float, shift: float, noise: float) -> dict:
  """Means over clips, by alignment: Abs Rel, and how far each went from its start."""
  found = [measure(clip, scale, shift, noise) for clip in clips]
  mean = lambda key: {name: float(np.mean([row[key][name] for row in found])) for name in ALIGNMENTS}
  return {key: mean(key) for key in ('abs_rel', 'moved')}


def measure(clip, scale: float, shift: float, noise: float) -> dict:
  """One clip: Abs Rel, and the larger way that s and t went from the ratio of medians and 0."""
  from one4d_jax.evaluation.depth import depth_metrics

  g = clip.depth[clip.valid].astype(np.float64)
  said = g * (1 + noise * np.random.default_rng(0).normal(size=g.shape))
  p = (said - shift * np.median(g)) / scale
  row = {'abs_rel': {}, 'moved': {}}
  for name in ALIGNMENTS:
    made = depth_metrics(p, g, np.ones(g.shape, bool), align=name)
    row['abs_rel'][name] = made.abs_rel
    row['moved'][name] = max(abs(made.scale - np.median(g) / np.median(p)), abs(made.shift))
  return row


def tables(results: dict) -> dict[str, str]:
  from one4d_jax.evaluation import report

  heading = ('prediction', 's', 't / median', *(f'{name}: Abs Rel' for name in ALIGNMENTS), 's, t moved by 1e-4 x 1000')
  lines = [
    (
      f'{row["noise"]:.0%} noise' if row['noise'] else 'exact',
      f'{row["scale"]:g}',
      f'{row["shift"]:g}',
      *(f'{row["abs_rel"][name]:.4f}' for name in ALIGNMENTS),
      f'{row["moved"]["adam_1e-4_1000"]:.3f}',
    )
    for row in results['rows']
  ]
  return {'alignment': report.table(lines, heading)}


if __name__ == '__main__':
  sys.exit(cli.run(main, page.parser('alignment', __doc__, page='docs/evaluation.md')))
