"""The paper's tables as runs: what to evaluate for each row, and its numbers beside those measured here.

``paper.json`` pins the numbers by table, row and column. A row of One4D says with which settings it was made; rows of
other methods have none and are only quoted. What was not measured is said, with the reason, in the place of the number.
The procedural world is not in the paper: its numbers get a table of their own.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from one4d_jax.errors import ConfigError
from one4d_jax.evaluation.report import table as markdown_table

WORLD = 'procedural'
OTHER = 'another method, quoted'

# What came of a benchmark under a row's settings: pooled numbers, or why there are none.
Outcome = dict[str, Any] | str


@dataclasses.dataclass(frozen=True)
class Column:
  """``figure`` of a pooled row of ``benchmark``; times ``factor`` it is what the paper prints."""

  benchmark: str
  data: str  # what the paper calls it
  figure: str
  heading: str
  factor: float
  digits: int

  @property
  def title(self) -> str:
    return f'{self.data} {self.heading}'

  def show(self, value: float | None, *, missing: str) -> str:
    """A number as the paper prints it."""
    return missing if value is None else f'{value:.{self.digits}f}'


@dataclasses.dataclass(frozen=True)
class PaperRow:
  """A row of the paper. ``run`` are the settings of One4D's rows, ``train_steps`` what its weights were trained for."""

  name: str
  values: tuple[float | None, ...]
  run: dict[str, Any] | None = None
  train_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class PaperTable:
  """One table of the paper."""

  name: str
  source: str
  title: str
  columns: tuple[Column, ...]
  rows: tuple[PaperRow, ...]
  notes: tuple[str, ...]

  @property
  def benchmarks(self) -> list[str]:
    """Those of the columns, in their order."""
    return list(dict.fromkeys(column.benchmark for column in self.columns))

  @property
  def by_steps(self) -> bool:
    """Whether some rows need weights of their own, trained for fewer steps."""
    return any(row.train_steps is not None for row in self.rows)


def _pinned() -> dict[str, Any]:
  return json.loads((pathlib.Path(__file__).parent / 'paper.json').read_text())


def names() -> tuple[str, ...]:
  """The tables there are."""
  return tuple(_pinned()['tables'])


@functools.cache
def load(name: str) -> PaperTable:
  """A table of the paper, ``table2`` to ``table6``.

  Raises:
    ConfigError: there is no such table.
  """
  tables = _pinned()['tables']
  if name not in tables:
    raise ConfigError(f'no table {name!r} of the paper; choose from {", ".join(tables)}')
  found = tables[name]
  rows = (PaperRow(row['row'], tuple(row['values']), row.get('run'), row.get('train_steps')) for row in found['rows'])
  columns = tuple(Column(**column) for column in found['columns'])
  return PaperTable(name, found['source'], found['title'], columns, tuple(rows), tuple(found['notes']))


def train_steps(record: dict[str, Any]) -> int | None:
  """The steps that a bundle's adapters were trained for, of its record; None for weights that were not trained here."""
  stages = [run for run in record.values() if isinstance(run, dict)]
  own = [run for run in stages if run.get('config', {}).get('train', {}).get('stage') == 'one4d']
  return own[-1]['steps'] if own else None


def measure(table: PaperTable, evaluate: Callable[[PaperRow, str], Outcome]) -> dict[str, dict[str, Outcome]]:
  """``{row: {benchmark: outcome}}`` of every row of One4D, by ``evaluate(row, benchmark)``, and of ``WORLD``."""
  benchmarks = [*table.benchmarks, WORLD]
  return {row.name: {b: evaluate(row, b) for b in benchmarks} for row in table.rows if row.run is not None}


def markdown(table: PaperTable, measured: dict[str, dict[str, Outcome]], *, notes: Sequence[str] = ()) -> str:
  """The table, each column of the paper followed by what was measured here, and what each row's numbers stand on."""
  reasons: list[str] = []
  heading = ['row', *(text for c in table.columns for text in (f'{c.title}: paper', 'here')), 'measured here']
  lines = []
  for row in table.rows:
    outcomes = measured.get(row.name, {})
    cells = [row.name]
    for column, value in zip(table.columns, row.values, strict=True):
      found = _value(outcomes.get(column.benchmark), column)
      cells += [column.show(value, missing='-'), column.show(found, missing='not measured')]
    what = [f'{b}: {_basis(outcomes.get(b, OTHER), reasons)}' for b in table.benchmarks]
    lines.append((*cells, f'no [{_index(reasons, OTHER)}]' if row.run is None else '; '.join(what)))
  parts = [f'# {table.source}: {table.title}', *notes, markdown_table(lines, tuple(heading))]
  parts += ['\n'.join(f'[{k + 1}] {reason}' for k, reason in enumerate(reasons))] if reasons else []
  parts += list(table.notes)
  world = {name: outcomes[WORLD] for name, outcomes in measured.items() if WORLD in outcomes}
  parts += _world(table, world) if world else []
  return '\n\n'.join(parts) + '\n'


def _world(table: PaperTable, outcomes: dict[str, Outcome]) -> list[str]:
  """The same settings on clips of the procedural world."""
  columns = {c.figure: c for c in reversed(table.columns)}  # one a figure, whatever the benchmark
  columns = [columns[figure] for figure in dict.fromkeys(c.figure for c in table.columns)]
  reasons: list[str] = []
  lines = []
  for name, outcome in outcomes.items():
    numbers = [c.show(_value(outcome, c), missing='not measured') for c in columns]
    lines.append((name, *numbers, _basis(outcome, reasons)))
  heading = ('row', *(c.heading for c in columns), 'measured here')
  text = (
    'Held-out clips that this package renders. The paper has no such data: none of its numbers belongs beside these.'
  )
  notes = ['\n'.join(f'[{k + 1}] {reason}' for k, reason in enumerate(reasons))] if reasons else []
  return ['## The same settings on the procedural world', text, markdown_table(lines, heading), *notes]


def _value(outcome: Outcome | None, column: Column) -> float | None:
  """What was measured, as the paper would print it."""
  value = outcome.get(column.figure) if isinstance(outcome, dict) else None
  return None if value is None else value * column.factor


def _basis(outcome: Outcome, reasons: list[str]) -> str:
  """How much was measured, or the number of the reason why it was not."""
  if isinstance(outcome, str):
    return f'no [{_index(reasons, outcome)}]'
  return outcome['basis']


def _index(reasons: list[str], reason: str) -> int:
  """Its number in the list of reasons, to which it is added."""
  if reason not in reasons:
    reasons.append(reason)
  return reasons.index(reason) + 1


def as_json(table: PaperTable, measured: dict[str, dict[str, Outcome]]) -> dict[str, Any]:
  """The same for programs: the paper's numbers with their place in it, and the outcomes as they are."""
  pinned = _pinned()
  paper = {row.name: {c.title: value for c, value in zip(table.columns, row.values, strict=True)} for row in table.rows}
  source = {'paper': pinned['paper'], 'read_from': pinned['read_from'], 'table': table.source}
  return {'source': source, 'paper': paper, 'measured': measured}
