"""Programs that do the same work, each in a process of its own, taking turns: what runs beside them meets all alike.

A script that races calls ``enter`` first: in a process that ``race`` started it runs one entry and never returns. Where
each library does the same work, ``pair`` and ``about`` make the results.
"""

import ctypes
import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from benchmarks import page

_FLAG = '--entry'
_RACES = 'dit', 'vae', 'text'  # whose results README sums up


class Result(NamedTuple):
  """Of one entry."""

  seconds: float  # median
  spread: float  # largest less smallest, seconds
  memory: int  # bytes resident at the highest point of a run, beyond what the libraries alone take


def enter(builders: Mapping[str, Callable[[dict], Iterator]]) -> None:
  """Runs the entry that this process was started for, if it was, by the builder that its ``who`` names.

  A builder is a generator function: it imports, yields nothing, makes its program and yields that. The memory of the
  imports does not count.
  """
  if _FLAG not in sys.argv:
    return
  entry = json.loads(sys.argv[sys.argv.index(_FLAG) + 1])
  steps = builders[entry['who']](entry)
  next(steps)
  libraries = resident('VmRSS')
  program = next(steps)
  program()  # compiles, warms up
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)  # what a compiler has freed is not the program's
  _tell(libraries)
  for _ in sys.stdin:
    forget_peak()
    start = time.perf_counter()
    program()
    _tell([time.perf_counter() - start, resident('VmHWM')])
  sys.exit(0)


def race(script: str, entries: Mapping[str, dict], rounds: int) -> dict[str, Result]:
  """``{name: Result}`` of ``entries``, each what a builder of ``script`` is given.

  Raises:
    RuntimeError: an entry ended early; what it printed stands above.
  """
  command = lambda entry: [sys.executable, script, _FLAG, json.dumps(entry)]
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  running, libraries, found = {}, {}, {name: [] for name in entries}
  try:
    for name, entry in entries.items():  # one after the other: compilers would disturb each other
      running[name] = subprocess.Popen(command(entry), **pipes, env=os.environ | {'OMP_WAIT_POLICY': 'passive'})
      libraries[name] = _hear(name, running[name])
    for _ in range(rounds):
      for name, process in running.items():
        process.stdin.write('go\n')
        process.stdin.flush()
        found[name].append(_hear(name, process))
  finally:
    for process in running.values():
      process.kill()
      process.wait()
  results = {}
  for name, rows in found.items():
    seconds, memory = zip(*rows, strict=True)
    spread = max(seconds) - min(seconds)
    results[name] = Result(statistics.median(seconds), spread, max(memory) - libraries[name])
  return results


def pair(script: str, entry: dict, builders: Iterable[str], rounds: int) -> dict:
  """The row of ``entry``, with the result of each builder at it as a dictionary."""
  found = race(script, {who: entry | {'who': who} for who in builders}, rounds)
  return entry | {who: result._asdict() for who, result in found.items()}


def about(rounds: int, *packages: str) -> dict:
  """What belongs to all results of a script."""
  return {'threads': os.cpu_count(), 'rounds': rounds, 'versions': page.versions(*packages)}


def forget_peak() -> None:
  """``resident('VmHWM')``, the highest point, is counted from what is held now."""
  pathlib.Path('/proc/self/clear_refs').write_text('5')


def resident(field: str) -> int:
  """A figure of this process in bytes, as Linux tells it."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(field):
      return 1024 * int(line.split()[1])
  raise RuntimeError(f'/proc/self/status has no {field}')


def headings(ours: str, theirs: str) -> tuple[str, ...]:
  """Of ``columns``."""
  return f'{ours}, s', f'{theirs}, s', 'ratio', f'{ours}, GiB', f'{theirs}, GiB', 'ratio'


def columns(row: dict, ours: str, theirs: str) -> tuple[str, ...]:
  """Time and memory of two entries of ``row``, results as dictionaries, and how many times theirs ours is."""
  a, b = row[ours], row[theirs]
  seconds = (f'{of["seconds"]:.2f} ± {of["spread"] / 2:.2f}' for of in (a, b))
  memory = (f'{of["memory"] / 2**30:.2f}' for of in (a, b))
  return *seconds, f'{a["seconds"] / b["seconds"]:.2f}', *memory, f'{a["memory"] / b["memory"]:.2f}'


def readme(_: dict) -> dict[str, str]:
  """What README says of speed, of the committed results of all races."""
  found = {name: json.loads((page.ROOT / f'benchmarks/results/{name}.json').read_text()) for name in _RACES}
  rows = [row for results in found.values() for row in results.get('rows', results.get('pairs'))]
  span = lambda ratios: f'{min(ratios):.2f} to {max(ratios):.2f}'
  against = lambda field: span(
    [row['ours'][field] / row[peer][field] for row in rows for peer in ('diffusers', 'transformers') if peer in row]
  )
  place = lambda row: (row['layers'], row['tokens'])
  seconds = {(row['what'], place(row)): row['seconds'] for row in found['dit']['joined']}
  dlc = span([taken / seconds['two forwards', at] for (what, at), taken in seconds.items() if what == 'dlc'])
  text = (
    f'On two CPU cores its networks take {against("seconds")} of the time of diffusers, PEFT and transformers at the\n'
    f'same work, and {against("memory")} of their memory; both branches with their links take {dlc} times two\n'
    'forward passes of the base. Nothing was timed on an accelerator ([performance](docs/performance.md)).'
  )
  return {'speed': text}


def _tell(value) -> None:
  print(_FLAG, json.dumps(value), flush=True)


def _hear(name: str, process: subprocess.Popen):
  for line in process.stdout:
    if line.startswith(_FLAG):
      return json.loads(line.removeprefix(_FLAG))
    print(line, end='')
  raise RuntimeError(f'{name} ended with status {process.wait()}')
