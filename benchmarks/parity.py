"""How far are our networks from diffusers and transformers? On random weights, read through the converter.

  python benchmarks/parity.py

needs torch, diffusers and transformers. Prints the table, writes ``benchmarks/results/parity.json`` and replaces the
table in ``docs/conversion.md``.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import textwrap

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from benchmarks import page
from one4d_jax import cli
from one4d_jax.errors import UserError

PACKAGES = ('jax', 'torch', 'diffusers', 'transformers')


def main(args: argparse.Namespace) -> None:
  try:
    from tests.parity import cases, models
  except ModuleNotFoundError as error:
    raise UserError(f"parity is against other packages: pip install '.[dev]' ({error})") from error

  rows = []
  with tempfile.TemporaryDirectory() as folder, models.settings():
    made = models.Models(pathlib.Path(folder))
    for case in cases.CASES.values():
      for result in case(made):
        rows.append(result._asdict())
        print(line(rows[-1]), flush=True)
  page.record(args, {'versions': page.versions(*PACKAGES), 'rows': rows}, tables)


def line(row: dict) -> str:
  both = [f'{error:.1e}' for error in row['bfloat16'] or ()] or ['', '']
  cells = [row['component'], row['sizes'], row['files'], *(f'{row[k]:.1e}' for k in ('absolute', 'relative'))]
  return '| ' + ' | '.join([*cells, f'{row["tolerance"]:.0e}', *both]) + ' |'


def tables(results: dict) -> dict[str, str]:
  heads = ['', 'sizes', 'read from', 'max error', 'relative', 'tolerance', 'bfloat16, ours', 'bfloat16, theirs']
  note = (
    'Max error: largest absolute difference in float32, which the tolerance is for. Relative: divided by the largest '
    'absolute value of the original. The last two: relative error against the original in float32 when we, and when '
    f'the original, compute in bfloat16. {", ".join(map(" ".join, results["versions"].items()))}, CPU.'
  )
  rule = '|' + '---|' * len(heads)
  lines = ['| ' + ' | '.join(heads) + ' |', rule, *map(line, results['rows']), '', *textwrap.wrap(note, 120), '']
  return {'parity': '\n'.join(lines)}


if __name__ == '__main__':
  sys.exit(cli.run(main, page.parser('parity', __doc__, page='docs/conversion.md')))
