"""The report of a run: pooled rows, every row, what was skipped and why; JSON for programs, Markdown for people.

``report.json`` holds what the run was (config, protocol, weights or predictions, root), and

  rows     {method: [row, ...]}, as ``score.py`` describes them
  pooled   {method: {'all' or group: pooled}}, where a pooled row has
             sequences                    how many there are
             evaluated, skipped           {part: number}, {part: {sequence: reason}}
             still                        sequences whose true camera does not move
             depth                        {alignment: the mean of each error, weighted as the protocol says}
             trajectory, video, geometry  the mean of each number over the sequences that have it

ATE and RPE-T of a still camera have no scale: its row shows them, the mean leaves them out and ``still`` names it.
"""

import json
import pathlib
from typing import Any

import numpy as np

from one4d_jax.evaluation import depth, plot
from one4d_jax.evaluation.sequence import PARTS
from one4d_jax.model.files import write_whole

Row = dict[str, Any]

# section of a row, name, heading, factor, format; of depth the first alignment is shown
COLUMNS = (
  ('video', 'psnr', 'PSNR RGB, dB', 1, '.2f'),
  ('video', 'ssim', 'SSIM', 1, '.3f'),
  ('video', 'lpips', 'LPIPS', 1, '.3f'),
  ('depth', 'abs_rel', 'Abs Rel', 1, '.4f'),
  ('depth', 'delta1', 'δ < 1.25, %', 100, '.1f'),
  ('trajectory', 'ate', 'ATE', 1, '.4f'),
  ('trajectory', 'ate_share', 'ATE, % of path', 100, '.1f'),
  ('trajectory', 'rpe_t', 'RPE-T', 1, '.4f'),
  ('trajectory', 'rpe_r', 'RPE-R, °', 1, '.3f'),
  ('geometry', 'focal_error', 'focal error, %', 100, '.2f'),
  ('geometry', 'point_rel', 'points', 1, '.4f'),
  ('geometry', 'valid_iou', 'valid IoU', 1, '.3f'),
  ('geometry', 'consistency', 'consistency, %', 100, '.1f'),
  ('geometry', 'reprojection', 'reprojection, %', 100, '.2f'),
  ('geometry', 'edges', 'edges, %', 100, '.1f'),
)
_ALIGNED = (
  ('abs_rel', 'Abs Rel', 1, '.4f'),
  ('delta1', 'δ < 1.25, %', 100, '.1f'),
  ('delta2', 'δ < 1.25², %', 100, '.1f'),
  ('delta3', 'δ < 1.25³, %', 100, '.1f'),
  ('rmse', 'RMSE', 1, '.4f'),
  ('log_rmse', 'log RMSE', 1, '.4f'),
)
CURVES = {'abs_rel': 'Abs Rel', 'ate': 'distance of the camera', 'psnr': 'PSNR, dB'}
_OF_MOVING = ('ate', 'rpe_t')
_NO_ERRORS = ('scale', 'degenerate')  # of a trajectory: what belongs to one sequence


def pool(rows: list[Row], *, depth_weight: str = 'pixels') -> Row:
  """The pooled row of some rows; see above. ``depth_weight`` is the protocol's."""
  still = [row['name'] for row in rows if row.get('trajectory', {}).get('degenerate')]
  made: Row = {
    'sequences': len(rows),
    'evaluated': {part: sum(part in row for row in rows) for part in PARTS},
    'skipped': {part: {row['name']: row['skipped'][part] for row in rows if part in row['skipped']} for part in PARTS},
    'still': still,
    'depth': {},
  }
  scored = [row['depth'] for row in rows if 'depth' in row]
  for align in scored[0] if scored else ():
    made['depth'][align] = depth.pool([errors[align] for errors in scored], weight=depth_weight)
  for part in PARTS[1:]:
    names = dict.fromkeys(name for row in rows for name in row.get(part, {}) if name not in _NO_ERRORS)
    made[part] = {name: _mean([row for row in rows if part in row], part, name, still) for name in names}
  return made


def _mean(rows: list[Row], part: str, name: str, still: list[str]) -> float | None:
  among = [row[part].get(name) for row in rows if not (name in _OF_MOVING and row['name'] in still)]
  known = [value for value in among if value is not None]
  return float(np.mean(known)) if known else None


def summary(rows: dict[str, list[Row]], *, depth_weight: str = 'pixels') -> dict[str, dict[str, Row]]:
  """``{method: {'all' | group: pooled row}}``."""
  pooled = {}
  for method, some in rows.items():
    groups = list(dict.fromkeys(row['group'] for row in some if row['group']))
    parts = {'all': some} | {group: [row for row in some if row['group'] == group] for group in groups}
    pooled[method] = {group: pool(part, depth_weight=depth_weight) for group, part in parts.items()}
  return pooled


def value(row: Row, part: str, name: str) -> float | None:
  """A number of a row or pooled row; of depth under the protocol's first alignment."""
  section = row.get(part) or {}
  return next(iter(section.values()), {}).get(name) if part == 'depth' else section.get(name)


def markdown(title: str, rows: dict[str, list[Row]], notes: list[str], *, depth_weight: str = 'pixels') -> str:
  """The whole report."""
  pooled = summary(rows, depth_weight=depth_weight)
  every = [
    *(row for some in rows.values() for row in some),
    *(p for groups in pooled.values() for p in groups.values()),
  ]
  columns = [c for c in COLUMNS if any(value(row, *c[:2]) is not None for row in every)]
  cells = lambda row: [_cell(value(row, part, name), factor, style) for part, name, _, factor, style in columns]
  headings = tuple(heading for _, _, heading, _, _ in columns)
  asked = [
    part for part in PARTS if any(part in row or part in row['skipped'] for some in rows.values() for row in some)
  ]

  def coverage(row: Row) -> list[str]:
    return [f'{row["evaluated"][part]} of {row["evaluated"][part] + len(row["skipped"][part])}' for part in asked]

  total = [(m, *coverage(groups['all']), *cells(groups['all'])) for m, groups in pooled.items()]
  parts = [f'# {title}', *notes, '## Pooled', table(total, ('method', *(f'{part} of' for part in asked), *headings))]
  aligned = [
    (m, align, *(_cell(errors[name], factor, style) for name, _, factor, style in _ALIGNED))
    for m, groups in pooled.items()
    for align, errors in groups['all']['depth'].items()
  ]
  if aligned:
    parts += ['## Depth by alignment', table(aligned, ('method', 'alignment', *(column[1] for column in _ALIGNED)))]
  by_group = [(m, g, *cells(row)) for m, groups in pooled.items() for g, row in groups.items() if g != 'all']
  if by_group:
    parts += ['## By level', table(by_group, ('method', 'level', *headings))]
  by_name = [(m, row['name'], str(row['length'] or '-'), *cells(row)) for m, some in rows.items() for row in some]
  parts += ['## By sequence', table(by_name, ('method', 'sequence', 'frames', *headings))]
  pictures = [f'![{name}](plots/{name})' for name in plots(rows)]
  parts += ['## Over frames', '\n'.join(pictures)] if pictures else []
  return '\n\n'.join([*parts, *_exceptions(rows), *_policies(rows)]) + '\n'


def _exceptions(rows: dict[str, list[Row]]) -> list[str]:
  """What the means do not show."""
  lines = [
    f'- {method}, {row["name"]}: {", ".join(p for p, why in row["skipped"].items() if why == reason)} skipped: {reason}'
    for method, some in rows.items()
    for row in some
    for reason in dict.fromkeys(row['skipped'].values())
  ]
  lines += [
    f'- {method}, {row["name"]}: the true camera stands still; ATE and RPE-T have no scale and are not in the mean'
    for method, some in rows.items()
    for row in some
    if row.get('trajectory', {}).get('degenerate')
  ]
  return ['## Not in the means', '\n'.join(lines)] if lines else []


def _policies(rows: dict[str, list[Row]]) -> list[str]:
  """How predictions came about: what all sequences of a method have in common, and how many have the rest."""
  lines = []
  for method, some in rows.items():
    counts: dict[str, int] = {}
    for note in (note for row in some for note in row['notes']):
      counts[note] = counts.get(note, 0) + 1
    lines += [f'- {method}: {note} ({count} of {len(some)} sequences)' for note, count in counts.items()]
  return ['## How predictions were made', '\n'.join(lines)] if lines else []


def _cell(number: float | None, factor: float, style: str) -> str:
  return '-' if number is None else format(number * factor, style)


def table(rows: list[tuple[str, ...]], heading: tuple[str, ...]) -> str:
  """A Markdown table with aligned columns."""
  widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
  line = lambda cells: '| ' + ' | '.join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + ' |'
  return '\n'.join([line(heading), '|' + '|'.join('-' * (w + 2) for w in widths) + '|', *map(line, rows)])


def plots(rows: dict[str, list[Row]]) -> dict[str, str]:
  """``{file name: SVG}``: the mean of each error over the sequences of a method, against the place in the sequence."""
  made = {}
  for name, heading in CURVES.items():
    lines = []
    for index, (method, some) in enumerate(rows.items()):
      curves = [row['frames'][name] for row in some if name in row['frames']]
      if curves:
        lines.append(plot.Line(method, list(range(max(map(len, curves)))), mean_curve(curves), index))
    if lines:
      title = f'{heading} over frames, mean of the sequences that have the frame'
      made[f'{name}.svg'] = plot.svg(lines, title=title, x_name='frame', y_name=heading, marks=False)
  return made


def mean_curve(curves: list[list[float | None]]) -> list[float | None]:
  """The mean at each frame over the curves that have a number there."""
  padded = np.full((len(curves), max(map(len, curves))), np.nan)
  for line, curve in zip(padded, curves, strict=True):
    line[: len(curve)] = [np.nan if y is None else y for y in curve]
  known = np.isfinite(padded)
  total = np.where(known, padded, 0).sum(axis=0)
  return [float(t / n) if n else None for t, n in zip(total, known.sum(axis=0), strict=True)]


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
