"""A comparison as files: a page that needs nothing beside it, and Markdown with its plots in files of their own."""

import base64
import html
import pathlib
import re
from collections.abc import Sequence

from one4d_jax.evaluation import compare, plot, preview, report
from one4d_jax.evaluation.compare import Cell, Plot, Run, Table

PICTURES = 8  # sequences that are shown
_TITLE = 'Evaluations compared'

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; color: #1b1f27; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.faint, figcaption { color: #626a78; } .wide { overflow-x: auto; } table { border-collapse: collapse; }
td, th { padding: .25rem 1rem .25rem 0; text-align: left; border-bottom: 1px solid #e3e6eb; vertical-align: top; }
td { font-variant-numeric: tabular-nums; overflow-wrap: break-word; } th { font-weight: 600; white-space: nowrap; }
td small { display: block; color: #626a78; } td small.better { color: #00704f; } td small.worse { color: #b3261e; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; align-items: start; } .plots svg { max-width: 100%; height: auto; }
.pictures { display: grid; gap: .6rem; margin-bottom: 1.4rem; }
.pictures { grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); }
figure { margin: 0; } figure img { width: 100%; display: block; border-radius: 3px; }
figcaption, h3 { font-size: .85rem; overflow-wrap: anywhere; } h3 { margin: 0 0 .3rem; } summary { cursor: pointer; }
"""


def write(folders: Sequence[str], out: pathlib.Path) -> list[pathlib.Path]:
  """Writes ``compare.html`` and ``compare.md``, with its plots, into ``out``; returns both.

  Raises as ``compare.read``.
  """
  runs = compare.read(folders)
  plots = compare.plots(runs)
  for some in plots:
    report.write(out / 'plots' / f'{some.file}.svg', _svg(some))
  report.write(out / 'compare.html', page(runs, plots))
  report.write(out / 'compare.md', markdown(runs, plots))
  return [out / 'compare.html', out / 'compare.md']


def page(runs: Sequence[Run], plots: Sequence[Plot]) -> str:
  """The page."""
  body = [f'<h1>{_TITLE}</h1>', f'<p class="faint">{html.escape(_subtitle(runs))}</p>']
  body += [f'<p>{html.escape(line)}</p>' for line in compare.notes(runs)]
  body += ['<h2>What differs</h2>', _table(compare.settings(runs)), '<h2>Pooled</h2>', _table(compare.pooled(runs))]
  body += ['<h2>Plots</h2><div class="plots">', *map(_svg, plots), '</div>'] if plots else []
  body += _pictures(runs)
  body.append('<h2>By sequence</h2>')
  for heading, table in compare.by_sequence(runs):
    body.append(f'<details><summary>{html.escape(heading)}</summary>{_table(table)}</details>')
  head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_TITLE}</title><style>{_STYLE}</style>'
  return head + '\n'.join(body) + '</html>\n'


def _subtitle(runs: Sequence[Run]) -> str:
  return f'{runs[0].report["config"]["benchmark"]}: {", ".join(run.name for run in runs)}'


def _svg(some: Plot) -> str:
  return plot.svg(some.lines, title=some.title, x_name=some.x_name, y_name=some.y_name, x_ticks=some.x_ticks,
                  marks=some.x_ticks is not None)  # fmt: skip


def _table(table: Table) -> str:
  if not table.rows:
    return '<p>Nothing.</p>'
  head = ''.join(f'<th>{html.escape(text)}</th>' for text in table.heading)
  lines = ''.join(f'<tr>{"".join(map(_cell, row))}</tr>' for row in table.rows)
  return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _cell(cell: Cell) -> str:
  kind = {1: ' class="better"', -1: ' class="worse"', 0: ''}[cell.sense]
  delta = f' <small{kind}>{html.escape(cell.delta)}</small>' if cell.delta else ''
  return f'<td>{html.escape(cell.text)}{delta}</td>'


def _pictures(runs: Sequence[Run]) -> list[str]:
  """Pictures of some sequences: the truth, then every run's main method."""
  names = [name for name in compare.shared(runs) if any(_pictured(run, run.main, name) for run in runs)]
  step = max(-(-len(names) // PICTURES), 1)
  body = ['<h2>Pictures</h2><p class="faint">Frames above depth, red near, in the colours of the truth.</p>']
  for name in names[::step]:
    truth = next((found for run in runs if (found := _pictured(run, preview.TRUTH, name))), '')
    figures = [_figure(truth, 'truth')] if truth else []
    for run in runs:
      found = _pictured(run, run.main, name)
      figures.append(_figure(found, f'{run.name}, {run.main}') if found else f'<p>{html.escape(run.name)}: none</p>')
    body.append(f'<h3>{html.escape(name)}</h3><div class="pictures">{"".join(figures)}</div>')
  return body if names else []


def _pictured(run: Run, method: str, name: str) -> str:
  """The picture of a row as a data address; empty where there is none."""
  path = preview.path(run.folder, method, name)
  return f'data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}' if path.is_file() else ''


def _figure(address: str, text: str) -> str:
  return f'<figure><img alt="{html.escape(text)}" src="{address}"><figcaption>{html.escape(text)}</figcaption></figure>'


def markdown(runs: Sequence[Run], plots: Sequence[Plot]) -> str:
  """The same without pictures; plots are ``plots/*.svg`` beside it."""
  parts = [f'# {_TITLE}', _plain(_subtitle(runs)), *map(_plain, compare.notes(runs))]
  parts += ['## What differs', _rows(compare.settings(runs)), '## Pooled', _rows(compare.pooled(runs))]
  parts += ['## Plots', *(f'![{_plain(some.title)}](plots/{some.file}.svg)' for some in plots)] if plots else []
  for heading, table in compare.by_sequence(runs):
    parts += [f'## {_plain(heading)} by sequence', _rows(table)]
  return '\n\n'.join(parts) + '\n'


def _rows(table: Table) -> str:
  cell = lambda c: _plain(f'{c.text} ({c.delta})' if c.delta else c.text)
  return report.table([tuple(map(cell, row)) for row in table.rows], tuple(map(_plain, table.heading)))


def _plain(text: str) -> str:
  """Text that Markdown leaves alone."""
  text = html.escape(' '.join(text.split()), quote=False)
  return re.sub(r'[\\|`*\[\]!]|(?<!\w)_|_(?!\w)', r'\\\g<0>', text)
