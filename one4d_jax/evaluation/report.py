"""Tables of an evaluation: pooled per method and level, then every clip; JSON for programs, Markdown for people."""

import json
import pathlib
from typing import Any

import numpy as np

from one4d_jax.model.files import write_whole

Row = dict[str, Any]

# name, heading, factor, format
COLUMNS = (
  ('psnr', 'PSNR RGB, dB', 1, '.2f'),
  ('abs_rel', 'Abs Rel', 1, '.4f'),
  ('delta1', 'δ < 1.25, %', 100, '.1f'),
  ('focal_error', 'focal error, %', 100, '.2f'),
  ('ate', 'ATE', 1, '.4f'),
  ('rpe_t', 'RPE-T', 1, '.4f'),
  ('rpe_r', 'RPE-R, °', 1, '.3f'),
  ('valid_iou', 'valid IoU', 1, '.3f'),
)
DEPTH = ('abs_rel', 'delta1', 'delta2', 'delta3', 'rmse', 'log_rmse')  # weighted by pixels
PATH = ('ate', 'rpe_t')  # without clips whose true camera stands still


def pool(rows: list[Row]) -> Row:
  """The mean of every number over clips. Counts say how many clips each kind of mean leaves out."""
  done = [row for row in rows if not row['failed']]
  moving = [row for row in done if not row['still']]
  pooled: Row = {'clips': len(rows), 'failed': len(rows) - len(done), 'still': len(done) - len(moving)}
  for name in ('psnr', *DEPTH, 'focal_error', *PATH, 'rpe_r', 'valid_iou', 'residual'):
    among = moving if name in PATH else rows if name in ('psnr', 'valid_iou') else done
    values = [(row[name], row['pixels'] if name in DEPTH else 1) for row in among if row.get(name) is not None]
    pooled[name] = _mean(values)
  return pooled


def _mean(weighted: list[tuple[float, float]]) -> float | None:
  if not weighted:
    return None
  values, weights = zip(*weighted, strict=True)
  return float(np.average(values, weights=weights))


def summary(rows: dict[str, list[Row]]) -> dict[str, dict[str, Row]]:
  """``{method: {'all' | level: pooled row}}``."""
  pooled = {}
  for method, some in rows.items():
    levels = list(dict.fromkeys(row['level'] for row in some))
    pooled[method] = {'all': pool(some)} | {l: pool([row for row in some if row['level'] == l]) for l in levels}
  return pooled


def _cells(row: Row) -> list[str]:
  shown = ((row.get(name), factor, style) for name, _, factor, style in COLUMNS)
  return ['-' if value is None else format(value * factor, style) for value, factor, style in shown]


def table(rows: list[tuple[str, ...]], heading: tuple[str, ...]) -> str:
  """A Markdown table with aligned columns."""
  widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
  line = lambda cells: '| ' + ' | '.join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + ' |'
  return '\n'.join([line(heading), '|' + '|'.join('-' * (w + 2) for w in widths) + '|', *map(line, rows)])


def markdown(title: str, rows: dict[str, list[Row]], notes: list[str]) -> str:
  """The whole report."""
  headings = tuple(heading for _, heading, _, _ in COLUMNS)
  pooled = summary(rows)
  total = [(m, str(levels['all']['clips']), *_cells(levels['all'])) for m, levels in pooled.items()]
  by_level = [
    (m, level, *_cells(row)) for m, levels in pooled.items() for level, row in levels.items() if level != 'all'
  ]
  by_clip = [(m, row['clip'], *_cells(row)) for m, some in rows.items() for row in some]
  parts = [f'# {title}', *notes, '## Pooled', table(total, ('method', 'clips', *headings))]
  parts += ['## By level', table(by_level, ('method', 'level', *headings))]
  parts += ['## By clip', table(by_clip, ('method', 'clip', *headings))]
  return '\n\n'.join(parts) + '\n'


def write(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file that is whole or absent: under a temporary name, then renamed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, content)


def write_json(path: pathlib.Path, value: Any) -> None:
  """``write`` for JSON; infinite numbers (the PSNR of equal videos) are stored as null."""
  clean = lambda v: None if isinstance(v, float) and not np.isfinite(v) else v

  def walk(v):
    if isinstance(v, dict):
      return {k: walk(x) for k, x in v.items()}
    return [walk(x) for x in v] if isinstance(v, (list, tuple)) else clean(v)

  write(path, json.dumps(walk(value), indent=1, allow_nan=False) + '\n')
