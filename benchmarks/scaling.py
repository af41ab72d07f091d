"""How the cost of One4D grows with frames, resolution, batch and devices, beside how its operations grow.

  python benchmarks/scaling.py
  python benchmarks/scaling.py --rounds 2 --axes frames

A forward pass of both branches, float32, random weights: 4 layers of width 512, 1 x 2 x 2 patches as Wan has them.
Every size runs in a process of its own; they take turns. Devices are parts of one CPU (each size of mesh splits
tokens, the sequence axis), so what grows with their number is what splitting costs, not what it saves. Writes the
tables of docs/performance.md.
"""

import argparse
import itertools
import math
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page, race  # noqa: E402
from one4d_jax import cli  # noqa: E402

START = {'frames': 9, 'height': 128, 'width': 224, 'batch': 1, 'devices': 1}
AXES = {
  'frames': [{'frames': n} for n in (5, 9, 17, 33, 65)],
  'resolution': [{'height': 16 * n, 'width': 28 * n} for n in (4, 8, 16, 24)],
  'batch': [{'batch': n} for n in (1, 2, 4, 8)],
  'devices': [{'devices': n} for n in (1, 2, 4, 8)],
}
TEXT, IMAGE = 64, 65


def parser() -> argparse.ArgumentParser:
  p = page.parser('scaling', __doc__, page='docs/performance.md')
  p.add_argument(
    '--axes', type=lambda text: text.split(','), default=list(AXES), metavar='A,B,...', help='(default: all)'
  )
  p.add_argument('--rounds', type=int, default=5, help='(default: %(default)s)')
  return p


def network():
  """Sizes, and the model."""
  from one4d_jax.model.one4d import AdapterConfig, One4D
  from one4d_jax.wan import dit
  from one4d_jax.wan.config import DiTConfig

  cfg = DiTConfig(width=512, ffn_width=1536, heads=8, layers=4, text_width=64, image_width=64, text_len=TEXT)
  return One4D(cfg, AdapterConfig(rank=16, link_layers=(1, 3)), dit.FLOAT32, 'block')


def grid(entry: dict) -> tuple[int, int, int]:
  """Tokens along frames, rows and columns."""
  return (entry['frames'] - 1) // 4 + 1, entry['height'] // 16, entry['width'] // 16


def ours(entry: dict):
  """The program of an entry; see ``race.enter``."""
  os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={entry["devices"]}'
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import numpy as np

  from one4d_jax.model.umc import Condition
  from one4d_jax.nn import partition
  from one4d_jax.parallel import mesh as meshes
  from one4d_jax.parallel.layout import MeshLayout

  yield
  model, key, b = network(), jax.random.key(0), entry['batch']
  f, rows, columns = grid(entry)
  base = nn.unbox(jax.jit(model.init_base)(key))
  adapters = nn.unbox(jax.jit(model.init_adapters)(key, base))
  normal = lambda *shape: jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
  latent = lambda *lead: normal(*lead, b, f, 2 * rows, 2 * columns, 16)
  text, image = normal(b, TEXT, 64), normal(b, IMAGE, 64)
  condition = Condition(latent=latent(), mask=latent()[..., :4], text=text, image=image)
  layout = MeshLayout(meshes.make(f'sequence={entry["devices"]}')) if entry['devices'] > 1 else None

  @jax.jit
  def run(z):
    with partition.using(layout):
      return model.velocity(base, adapters, z, jnp.full(b, 0.5), condition)

  z = latent(2)
  yield lambda: run(z).block_until_ready()


def operations(entry: dict) -> int:
  from one4d_jax.training import flops

  model = network()
  sizes = flops.Sizes(entry['batch'], grid(entry), TEXT, IMAGE)
  return sum(flops.one4d(model.cfg, model.adapters, sizes).forward.values())


def measured(axis: str, rounds: int) -> list[dict]:
  """A row for each size along one axis."""
  entries = {str(change): START | change | {'who': 'ours'} for change in AXES[axis]}
  found = race.race(__file__, entries, rounds)
  return [
    entry | {'axis': axis, 'operations': operations(entry), **found[name]._asdict()} for name, entry in entries.items()
  ]


def table(rows: list[dict]) -> str:
  """Each size beside the one before it: the exponents by which tokens multiply operations and time."""
  from one4d_jax.evaluation import report

  lines, before = [], None
  for row in rows:
    tokens = row['batch'] * math.prod(grid(row))
    size = f'{row["frames"]}x{row["height"]}x{row["width"]}'
    exponents = ('', '')
    if before and before['axis'] == row['axis'] != 'devices':
      growth = lambda name, row=row, before=before: math.log(row[name] / before[name])
      more = math.log(tokens / (before['batch'] * math.prod(grid(before))))
      exponents = tuple(f'{growth(name) / more:.2f}' for name in ('operations', 'seconds'))
    rate = row['operations'] / row['seconds'] / 1e9
    seconds = f'{row["seconds"]:.3f} ± {row["spread"] / 2:.3f}'
    lines.append(
      (row['axis'], size, str(row['batch']), str(row['devices']), f'{tokens:,}', seconds, f'{rate:.0f}', *exponents)
    )
    before = row
  headings = (
    'grows',
    'clip',
    'batch',
    'devices',
    'tokens a branch',
    's',
    'GFLOP/s',
    'operations ~ tokens^',
    'time ~ tokens^',
  )
  return report.table(lines, headings)


def tables(results: dict) -> dict[str, str]:
  return {'scaling': table(results['rows'])}


def main(args: argparse.Namespace) -> None:
  rows = list(itertools.chain.from_iterable(measured(axis, args.rounds) for axis in args.axes))
  page.record(args, race.about(args.rounds, 'jax', 'jaxlib') | {'rows': rows}, tables)


if __name__ == '__main__':
  race.enter({'ours': ours})
  sys.exit(cli.run(main, parser()))
