"""Several evaluations side by side: one page for a browser and one in Markdown, of the folders that ``evaluate`` wrote.

Numbers are pooled over the sequences that all runs have, and differences are against the first run: its same method, or
its first one. Runs on different data are refused. What else differs between runs is listed before any number.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from one4d_jax.errors import ConfigError, DataError
from one4d_jax.evaluation import report
from one4d_jax.evaluation.plot import Line
from one4d_jax.evaluation.sequence import PARTS

HIGHER = {'psnr', 'ssim', 'delta1', 'valid_iou', 'consistency', 'edges'}  # is better; of all others, lower
BY_SEQUENCE = ('abs_rel', 'ate', 'psnr')
SWEPT = ('abs_rel', 'ate')


@dataclasses.dataclass(frozen=True)
class Run:
  """One evaluation. ``name`` is unlike that of any other that it is compared with."""

  name: str
  folder: pathlib.Path
  report: dict[str, Any]

  @property
  def main(self) -> str:
    """The method that plots and pictures show."""
    return next(iter(self.report['rows']))

  def rows(self, method: str, names: Sequence[str]) -> list[report.Row]:
    """Rows of these sequences, in this order."""
    found = {row['name']: row for row in self.report['rows'][method]}
    return [found[name] for name in names]

  def pool(self, method: str, names: Sequence[str]) -> report.Row:
    """Their pooled row, by this run's protocol."""
    return report.pool(self.rows(method, names), depth_weight=self.report['protocol']['depth_weight'])


class Cell(NamedTuple):
  """A number of a table, its difference from the first run's, and whether that is better (1) or worse (-1)."""

  text: str
  delta: str = ''
  sense: int = 0


class Table(NamedTuple):
  """Rows of cells under their headings."""

  heading: tuple[str, ...]
  rows: list[tuple[Cell, ...]]


Column = tuple[str, str, str, float, str]  # as in report.COLUMNS


class Plot(NamedTuple):
  """What ``plot.svg`` needs, and a name for its file."""

  file: str
  title: str
  x_name: str
  y_name: str
  lines: list[Line]
  x_ticks: list[tuple[float, str]] | None = None


def read(folders: Sequence[str]) -> list[Run]:
  """The evaluations in these folders.

  Raises:
    ConfigError: fewer than two.
    DataError: a folder without a report, or reports of different data.
  """
  if len(folders) < 2:
    raise ConfigError('--compare needs two folders or more that evaluate wrote, as in --compare runs/a runs/b')
  runs = []
  for folder, name in zip(map(pathlib.Path, folders), short_names(folders), strict=True):
    path = folder / 'report.json'
    try:
      content = json.loads(path.read_text())
      benchmark, rows = content['config']['benchmark'], content['rows']
      [(row['name'], row['skipped'], content['protocol']['align'][0]) for some in rows.values() for row in some]
    except FileNotFoundError as error:
      raise DataError(f'{folder} holds no evaluation: {path.name} is missing; let evaluate end there first') from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise DataError(f'{path} is not a report of evaluate ({error!r}); evaluate into a new folder') from error
    if runs and benchmark != runs[0].report['config']['benchmark']:
      first = runs[0].report['config']['benchmark']
      raise DataError(f'{folder} is an evaluation on {benchmark}, {folders[0]} on {first}: such numbers do not compare')
    runs.append(Run(name, folder, content))
  if not shared(runs):
    raise DataError(f'{", ".join(map(str, folders))} have no sequence in common')
  return runs


def short_names(folders: Sequence[str]) -> list[str]:
  """Paths without the parts that all of them begin or end with; equal paths get numbers."""
  parts = [list(pathlib.Path(folder).absolute().parts[1:]) or ['/'] for folder in folders]
  if len(set(map(tuple, parts))) < len(parts):
    return [f'{some[-1]} ({i + 1})' for i, some in enumerate(parts)]
  for end in (-1, 0):
    while all(len(some) > 1 for some in parts) and len({some[end] for some in parts}) == 1:
      for some in parts:
        some.pop(end)
  return ['/'.join(some) for some in parts]


def shared(runs: Sequence[Run]) -> list[str]:
  """Sequences that all methods of all runs have, in the order of the first."""
  having = [{row['name'] for row in rows} for run in runs for rows in run.report['rows'].values()]
  return [row['name'] for row in runs[0].report['rows'][runs[0].main] if all(row['name'] in some for some in having)]


def settings(runs: Sequence[Run]) -> Table:
  """What differs between the runs, one line a setting."""
  about = [{key: value for key, value in run.report.items() if key not in ('pooled', 'rows')} for run in runs]
  flat = [_flat(some) for some in about]
  keys = dict.fromkeys(key for some in flat for key in some)
  rows = []
  for key in keys:
    values = [some.get(key) for some in flat]
    if any(value != values[0] for value in values):
      rows.append((Cell(key), *(Cell('-' if value is None else str(value)) for value in values)))
  return Table(('setting', *(run.name for run in runs)), rows)


def _flat(value: Any, key: str = '') -> dict[str, Any]:
  if not isinstance(value, dict):
    return {key: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value}
  return {k: v for name, inner in value.items() for k, v in _flat(inner, f'{key}.{name}' if key else name).items()}


def notes(runs: Sequence[Run]) -> list[str]:
  """What a reader must know before comparing."""
  names = shared(runs)
  lines = [f'{len(names)} sequences that all runs have; differences are against {runs[0].name}.']
  for run in runs:
    more = len(run.report['rows'][run.main]) - len(names)
    lines += [f'{run.name} has {more} more, left out here.'] if more else []
  aligned = {run.report['protocol']['align'][0] for run in runs}
  lines += [f'Depth is not aligned alike: {", ".join(sorted(aligned))}.'] if len(aligned) > 1 else []
  for part in PARTS:
    skipped = [{row['name'] for row in run.rows(run.main, names) if part in row['skipped']} for run in runs]
    if any(some != skipped[0] for some in skipped):
      counts = ', '.join(f'{run.name}: {len(some)}' for run, some in zip(runs, skipped, strict=True))
      lines.append(f'Not the same sequences lack {part} ({counts}): its means are over different ones.')
  return lines


def pooled(runs: Sequence[Run]) -> Table:
  """A line for every method of every run."""
  names, first = shared(runs), runs[0]
  every = [(run, method, run.pool(method, names)) for run in runs for method in run.report['rows']]
  columns = _measured([row for _, _, row in every])
  counts = [_scored(row) for *_, row in every]
  kinds = list(dict.fromkeys(kind for some in counts for kind in some))
  rows = []
  for (run, method, mine), scored in zip(every, counts, strict=True):
    other = method if method in first.report['rows'] else first.main
    base = None if (run, method) == (first, other) else first.pool(other, names)
    coverage = (Cell(scored.get(kind, '-')) for kind in kinds)
    rows.append((Cell(run.name), Cell(method), *coverage, *(_cell(mine, base, c) for c in columns)))
  return Table(('run', 'method', *kinds, *(column[2] for column in columns)), rows)


def _scored(row: report.Row) -> dict[str, str]:
  """Of how many sequences each part is scored; in one number where that is the same for all."""
  asked = {part: row['evaluated'][part] + len(row['skipped'][part]) for part in PARTS}
  counts = {f'{part} of': f'{row["evaluated"][part]} of {n}' for part, n in asked.items() if n}
  return counts if len(set(counts.values())) > 1 else {'scored': next(iter(counts.values()), '0')}


def by_sequence(runs: Sequence[Run]) -> list[tuple[str, Table]]:
  """For each of ``BY_SEQUENCE`` that was measured: every sequence under every run's main method."""
  names, tables = shared(runs), []
  lines = [run.rows(run.main, names) for run in runs]
  for column in _measured([row for some in lines for row in some]):
    if column[1] in BY_SEQUENCE:
      rows = []
      for name, first, *others in zip(names, *lines, strict=True):
        rows.append((Cell(name), _cell(first, None, column), *(_cell(row, first, column) for row in others)))
      tables.append((column[2], Table(('sequence', *(f'{run.name}, {run.main}' for run in runs)), rows)))
  return tables


def _measured(rows: Sequence[report.Row]) -> list[Column]:
  """The columns that any of the rows has."""
  return [column for column in report.COLUMNS if any(report.value(row, *column[:2]) is not None for row in rows)]


def _cell(row: report.Row, base: report.Row | None, column: Column) -> Cell:
  part, name, _, factor, style = column
  value, before = report.value(row, part, name), None if base is None else report.value(base, part, name)
  if value is None:
    return Cell('-')
  text = format(value * factor, style)
  if before is None:
    return Cell(text)
  delta = format((value - before) * factor, f'+{style}')
  if not float(delta):
    return Cell(text, '=')
  return Cell(text, delta, 1 if (value > before) == (name in HIGHER) else -1)


def plots(runs: Sequence[Run]) -> list[Plot]:
  """Errors over frames, over the share of frames given and over training steps, as far as the runs have them."""
  return [*over_frames(runs), *over_fraction(runs), *over_steps(runs)]


def over_frames(runs: Sequence[Run]) -> list[Plot]:
  """The mean over sequences of each error that rows have frame by frame, by the number of the frame."""
  names, found = shared(runs), []
  for figure, heading in report.CURVES.items():
    lines = []
    for index, run in enumerate(runs):
      curves = [row['frames'][figure] for row in run.rows(run.main, names) if figure in row['frames']]
      if curves:
        mean = report.mean_curve(curves)
        lines.append(Line(run.name, range(len(mean)), mean, index))
    if lines:
      found.append(Plot(f'frames_{figure}', f'{heading} over frames', 'frame', heading, lines))
  return found


def over_fraction(runs: Sequence[Run]) -> list[Plot]:
  """Errors by the share of frames that the model was given; a line for each set of weights."""

  def fraction(run: Run) -> float | None:
    config = run.report['config']
    return {'video': 1.0, 'sparse': config['fraction']}.get(config['task']) if 'weights' in run.report else None

  def weights(run: Run) -> str:
    return f'{run.report["weights_name"]} ({run.report["weights"][:8]})'

  return _sweep(runs, 'fraction', 'frames given, %', fraction, weights, tick=lambda x: (math.log10(x), f'{100 * x:g}'))


def over_steps(runs: Sequence[Run]) -> list[Plot]:
  """Errors by the steps that weights were trained for; a line for each task."""

  def steps(run: Run) -> int | None:
    return run.report.get('train_steps')

  def task(run: Run) -> str:
    config = run.report['config']
    return f'{config["task"]}, {config["fraction"]:g}' if config['task'] == 'sparse' else config['task']

  return _sweep(runs, 'steps', 'training steps', steps, task, tick=lambda x: (float(x), f'{x:g}'))


def _sweep(
  runs: Sequence[Run],
  file: str,
  x_name: str,
  place: Callable[[Run], float | None],
  group: Callable[[Run], str],
  *,
  tick: Callable[[float], tuple[float, str]],
) -> list[Plot]:
  """Pooled errors of the runs' main methods by ``place``, a line a ``group``; none where no line has two points."""
  groups: dict[str, dict[float, Run]] = {}
  for run in runs:
    if place(run) is not None:
      groups.setdefault(group(run), {})[place(run)] = run
  if not any(len(some) > 1 for some in groups.values()):
    return []
  names, found = shared(runs), []
  ticks = [tick(x) for x in sorted({x for some in groups.values() for x in some})]
  for part, column, heading, factor, _ in report.COLUMNS:
    if column in SWEPT:
      lines = []
      for index, (name, some) in enumerate(groups.items()):
        points = [(tick(x)[0], report.value(some[x].pool(some[x].main, names), part, column)) for x in sorted(some)]
        values = [None if y is None else y * factor for _, y in points]
        lines.append(Line(name, [x for x, _ in points], values, index))
      if any(y is not None for line in lines for y in line.y):
        found.append(Plot(f'{file}_{column}', f'{heading} by {x_name}', x_name, heading, lines, ticks))
  return found
