"""How the losses of a recipe's three stages fell: the picture that says whether a longer run would help.

  python benchmarks/curves.py --runs runs/tiny

Every curve is the mean over as many steps as lie between two dots; both axes are logarithmic.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from one4d_jax import cli  # noqa: E402

SHOWN = {  # of each stage
  'vae': ('loss', 'l1'),
  'base': ('loss_rgb/video', 'loss_rgb/sparse', 'loss_rgb/image', 'loss_rgb/text'),
  'one4d': ('loss_rgb/video', 'loss_rgb/image', 'loss_xyz/video', 'loss_xyz/image', 'loss_xyz/text'),
}
DOTS = 24


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(prog='python benchmarks/curves.py', description=__doc__.split('\n')[0])
  p.add_argument('--runs', metavar='DIR', default='runs/tiny', help='folders of the stages (default: %(default)s)')
  p.add_argument('--out', metavar='FILE', default=str(ROOT / 'benchmarks/results/curves.json'))
  return p


def curve(rows: list[dict], name: str, batch: int) -> dict[str, list[float]]:
  """Means of a metric over stretches of the run, even in the logarithm of the samples seen."""
  known = np.array([(row['step'] * batch, row[name]) for row in rows if name in row])
  edges = np.unique(np.geomspace(1, len(known), DOTS).astype(int))
  parts = np.split(known, edges[:-1])[1:]
  return {'samples': [float(part[-1, 0]) for part in parts], 'value': [float(part[:, 1].mean()) for part in parts]}


def draw(curves: dict[str, dict], path: pathlib.Path) -> None:
  """A panel for each stage."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12, 4.2), layout='constrained')
  for (stage, of), axis in zip(curves.items(), figure.subplots(1, len(curves)), strict=True):
    for name, points in of.items():
      axis.loglog(points['samples'], points['value'], '.-', label=name)
    axis.set(title=stage, xlabel='samples seen')
    axis.xaxis.set_minor_formatter('')
    axis.yaxis.set_minor_formatter('{x:g}')
    axis.grid(alpha=0.3, which='both')
    axis.legend(frameon=False, fontsize=8, ncols=2, loc='upper center', bbox_to_anchor=(0.5, -0.16))
  figure.savefig(path, dpi=110)


def main(args: argparse.Namespace) -> None:
  from one4d_jax.training import metrics

  curves = {}
  for stage, names in SHOWN.items():
    run = pathlib.Path(args.runs) / stage
    rows = metrics.read(run)
    batch = json.loads((run / 'config.json').read_text())['train']['batch']
    curves[stage] = {name: curve(rows, name, batch) for name in names}
  out = pathlib.Path(args.out)
  out.write_text(json.dumps(curves, indent=1) + '\n')
  draw(curves, out.with_suffix('.png'))
  print(f'{out} and {out.with_suffix(".png")} written')


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
