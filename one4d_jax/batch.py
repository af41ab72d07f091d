"""Many scenes by one command: ``python -m one4d_jax.sample --input list.jsonl --out DIR``.

Each line of the list is a JSON object with flags of ``sample`` that describe one scene, and a ``name``:

  {"name": "kitchen", "input": "clips/kitchen.mp4", "observed": [0, 8, 16], "seed": 3}
  {"prompt": "a red ball rolls", "export": "ply"}

  DIR/NAME/        a scene folder each, whole or not there
  DIR/NAME.failed  in its stead where a scene could not be made: why
  DIR/batch.json   the state of every line

The list is checked before networks are loaded. The same command again makes what is missing. Processes share DIR: each
takes its own lines, none waits for another.
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import pathlib
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from one4d_jax import cli, sample
from one4d_jax import request as requests
from one4d_jax.errors import DataError, UserError
from one4d_jax.model.files import write_whole
from one4d_jax.viewer import export, metric
from one4d_jax.viewer import scene as scenes

SUMMARY = 'batch.json'
_SHOWN = 20  # problems, or names of failed scenes
_NAME = r'\w[\w -]{0,99}'  # no dot: names of our own files have one

_is = lambda *types: lambda value: isinstance(value, types) and not isinstance(value, bool)
_all = lambda *types: lambda value: isinstance(value, list) and all(map(_is(*types), value))
_TEXT = ('text', _is(str))
_WHOLE = ('a whole number', _is(int))
_NUMBER = ('a number', _is(int, float))
_TEXTS = ('text or a list of texts', lambda value: _is(str)(value) or _all(str)(value))
KEYS = {
  'name': _TEXT,
  'input': _TEXT,
  'prompt': _TEXT,
  'prompt_file': _TEXT,
  'observed': ('a list of frame numbers, or text with commas', lambda value: _is(str)(value) or _all(int)(value)),
  'sparsity': _NUMBER,
  'frames': ("a whole number or 'all'", _is(int, str)),
  'overlap': _WHOLE,
  'seed': _WHOLE,
  'steps': _WHOLE,
  'guidance': _NUMBER,
  'guidance_interval': ('two numbers', lambda value: _is(str)(value) or _all(int, float)(value)),
  'shift': _NUMBER,
  'cache': _NUMBER,
  'tile': _WHOLE,
  'solver': (f'one of {", ".join(sample.SOLVERS)}', lambda value: value in sample.SOLVERS),
  'metric': _TEXTS,
  'export': _TEXTS,
}
"""What a line may hold: what the value has to be, in words and as a test."""

_EITHER = (('prompt', 'prompt_file'), ('observed', 'sparsity'))
# Constants of the compiled programs.
_COMPILED = ('frames', 'solver', 'steps', 'shift', 'guidance', 'guidance_interval', 'cache', 'tile')
# What makes a scene what it is, beside the text of its prompt and the weights. Exports can be added later.
_SETTINGS = [name for name in KEYS if name not in ('name', 'prompt', 'prompt_file', 'export')] + ['config', 'overrides']


@dataclasses.dataclass(frozen=True)
class Line:
  """One scene of the list: the arguments of ``sample`` that make it, and its prompt as text."""

  number: int
  name: str
  args: argparse.Namespace
  prompt: str

  @property
  def folder(self) -> pathlib.Path:
    return pathlib.Path(self.args.out)

  @property
  def failure(self) -> pathlib.Path:
    return self.folder.with_name(f'{self.name}.failed')


def main(args: argparse.Namespace) -> None:
  """Makes the scenes of this process that are missing. Exits with 1 where some could not be made.

  Raises UserError where a line of the list cannot be followed, after all of them were looked at, or, under
  ``--strict``, at the first scene that cannot be made.
  """
  if args.process is not None:
    cli.process(args.process)  # a mistake in it shows before anything else is done
  lines = read(args)
  done = check(lines, args)
  which, count = cli.process(args.process)
  own = lines[which::count]
  before = sum(line.name in done for line in own)
  print(f'{args.input}: {len(lines)} scenes, {len(own)} for this process, {before} of them done before')
  pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
  try:
    failed = work_off(own, done, args)
  finally:  # after --strict or Ctrl-C too
    states = summarise(lines, args)
  for state, number in states.items():
    print(f'{args.out}: {number} {state}')
  if failed:
    shown = [f'{line.name}: {reason}' for line, reason in failed[:_SHOWN]] + _rest(failed)
    print(*(f'failed: {text}' for text in shown), sep='\n', file=sys.stderr)
    raise SystemExit(1)


def read(args: argparse.Namespace) -> list[Line]:
  """The lines of the list. Raises UserError where flags fit no line, or once all problems of lines are told."""
  requests.check_numbers(args)
  requests.read_sizes(requests.weights_folder(args))
  sample.fit_options(args)
  path, out = pathlib.Path(args.input), pathlib.Path(args.out)
  if out.exists() and not out.is_dir():
    raise DataError(f'--out {out} is a file; name a folder')
  if (out / scenes.FILE).exists():
    raise DataError(f'--out {out} is a scene itself; name a folder for all scenes of the list')
  try:
    content = path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not UTF-8 text') from error
  named: dict[str, int] = {}

  def line(number: int, text: str) -> Line:
    made = parse(number, text, args)
    if (first := named.setdefault(made.name, number)) != number:
      raise DataError(f'name {made.name!r} is taken by line {first}')
    return made

  texts = [(number, text) for number, text in enumerate(content.split('\n'), 1) if text.strip()]
  if not texts:
    raise DataError(f'{path} holds no scenes; write one JSON object a line')
  return _every(args.input, texts, lambda item: line(*item), lambda item: item[0])


def parse(number: int, text: str, defaults: argparse.Namespace) -> Line:
  """One line of the list, looked at as closely as is cheap. Raises UserError for the first thing that is wrong."""
  try:
    given = json.loads(text)
  except ValueError as error:
    raise DataError(f'not JSON ({error})') from error
  if not isinstance(given, dict):
    raise DataError(f'expected an object such as {{"prompt": "a red ball rolls"}}, not {text.strip()[:20]}')
  for key, value in given.items():
    if key not in KEYS:
      raise DataError(f'unknown key {key!r}; choose from {", ".join(KEYS)}')
    wanted, fits = KEYS[key]
    if not fits(value):
      raise DataError(f'{key} {json.dumps(value)[:40]}: expected {wanted}')
  name = given.pop('name', f'{number:05d}')
  if not re.fullmatch(_NAME, name):
    raise DataError(f'name {name[:40]!r}: use up to 100 letters, digits, spaces, - and _, first a letter or digit')
  args = copy.copy(defaults)
  args.input, args.process, args.strict = None, None, False
  args.out = str(pathlib.Path(defaults.out, name))
  for a, b in _EITHER:
    if a in given and b in given:
      raise DataError(f'{a} and {b} exclude each other; use one')
    for key, other in ((a, b), (b, a)):
      if key in given:
        setattr(args, other, None)
  for key, value in given.items():
    setattr(args, key, _as_flag(key, value))
  for key in given.keys() & {'input', 'prompt_file'}:  # absolute, so that it does not matter where a rerun starts
    setattr(args, key, str(pathlib.Path(defaults.input).resolve().parent / pathlib.Path(given[key]).expanduser()))
  if args.input is None and args.prompt is None and args.prompt_file is None:
    raise DataError('neither input nor prompt; give one, or both')
  frames, height, width = requests.check(args)
  export.check_exports(args.export)
  measures = metric.parse(args.metric or ())
  metric.check(measures, frames=frames, height=height, width=width)
  if args.input is None:
    metric.known_focal(measures, {})
  return Line(number, name, args, requests.read_prompt(args) or '')


def _as_flag(key: str, value: Any) -> Any:
  """A value of JSON as the flag has it."""
  if key == 'metric':
    return [value] if isinstance(value, str) else value or None
  if isinstance(value, list):
    return ','.join(map(str, value))
  return str(value) if key == 'frames' else value


def check(lines: Sequence[Line], args: argparse.Namespace) -> set[str]:
  """The names of those that are made already. Raises UserError, all told, where a folder holds something else."""

  @functools.cache
  def weights() -> str:
    from one4d_jax.model import bundle

    return bundle.load(args.weights, parts=()).hash

  def is_done(line: Line) -> bool:
    there = line.folder.exists()  # looked at first: another process may be about to write it
    found = differences(line, weights)
    if found and not args.overwrite:
      raise DataError(f'{line.folder} was made with {"; ".join(found)}; add --overwrite to make it again')
    if found is None:
      export.check_out(line.folder, overwrite=args.overwrite or not there)
    return found == []

  states = _every(args.input, lines, is_done, lambda line: line.number)
  return {line.name for line, done in zip(lines, states, strict=True) if done}


def differences(line: Line, weights: Callable[[], str]) -> list[str] | None:
  """How the scene that is there was made otherwise; None where there is no whole scene of ``sample``."""
  try:
    run = json.loads((line.folder / 'run.json').read_text())
    made = cli.parse(sample.parser(), shlex.split(run['command'])[3:])
    prompt, used = run['prompt'], run['weights']['hash']
  except (OSError, ValueError, KeyError, TypeError):
    return None
  if not all((line.folder / name).is_file() for name in export.FILES):
    return None
  pairs = {name: (getattr(made, name), getattr(line.args, name)) for name in _SETTINGS}
  pairs['prompt'] = (prompt, line.prompt)
  if all(a == b for a, b in pairs.values()):
    pairs['weights'] = (used, weights())  # looked at last, as that takes longest
  return [f'{name} {a!r}, now {b!r}' for name, (a, b) in pairs.items() if a != b]


def _every(path: str, items: Sequence, use: Callable, number: Callable) -> list:
  """``use`` of each; problems are gathered, and told by the number of their line."""
  made, problems = [], []
  for item in items:
    try:
      made.append(use(item))
    except (UserError, OSError) as error:
      problems.append(f'{path}:{number(item)}: {cli.one_line(error)}')
  if problems:
    print(*problems[:_SHOWN], *_rest(problems), sep='\n', file=sys.stderr)
    raise UserError(f'{path}: {len(problems)} of {len(items)} lines cannot be followed; nothing was made')
  return made


def _rest(items: Sequence) -> list[str]:
  return [f'and {len(items) - _SHOWN} more'] if len(items) > _SHOWN else []


def work_off(lines: Sequence[Line], done: set[str], args: argparse.Namespace) -> list[tuple[Line, str]]:
  """Makes those that are not ``done``, and the exports that the others lack. Returns those that failed, and why."""
  from tqdm import tqdm

  load = functools.cache(sample.loader(args))
  todo = [line for line in lines if line.name not in done]
  # Scenes of one compiled program follow each other.
  todo.sort(key=lambda line: [str(getattr(line.args, name)) for name in _COMPILED])
  if todo:
    load(requests.weights_folder(args))  # if they cannot be read, no scene is to blame
  failed = []
  steps = [(line, add_exports) for line in lines if line.name in done]
  steps += [(line, functools.partial(make, load=load)) for line in todo]
  made_before = len(lines) - len(todo)
  with tqdm(total=len(lines), initial=made_before, desc='scenes', unit='scene', miniters=0, smoothing=0) as bar:

    def report(name: str, stage: str, count: int, total: int) -> None:
      bar.set_postfix_str(f'{name}: {stage} {count}/{total}', refresh=count == 0)
      bar.update(0)

    for line, step in steps:
      try:
        step(line, report=functools.partial(report, line.name))
      except Exception as error:  # whatever it is, the other scenes are still wanted
        if args.strict:
          raise UserError(f'scene {line.name}: {cli.one_line(error)}') from error
        failed.append((line, cli.one_line(error)))
        _record(line, error)
      else:
        line.failure.unlink(missing_ok=True)
      bar.update(line.name not in done)
  return failed


def make(line: Line, *, report: Callable[[str, int, int], None], load: Callable) -> None:
  """The scene of a line; what a killed process left of it goes first."""
  for left in line.folder.parent.glob(f'.{line.name}.new-*'):
    shutil.rmtree(left, ignore_errors=True)
  sample.produce(line.args, report=report, load=load, tell=lambda text: None)


def add_exports(line: Line, *, report: Callable[[str, int, int], None]) -> None:
  """Writes what the line asks for and its scene lacks, asked for later or lost when a process was killed."""
  names = export.check_exports(line.args.export)
  missing = [name for name in names if not (line.folder / export.EXPORTS[name].target).exists()]
  if missing:
    for left in line.folder.glob('.export-*'):
      shutil.rmtree(left, ignore_errors=True)
    fps = scenes.playback_rate(line.folder)
    export.write_exports(scenes.load(line.folder), line.folder, missing, fps=fps, progress=report)


def _record(line: Line, error: Exception) -> None:
  """Keeps why a scene failed, with the traceback of what is not the user's doing."""
  expected = isinstance(error, UserError | OSError)
  details = '' if expected else ''.join(traceback.format_exception(error))
  write_whole(line.failure, f'{cli.one_line(error)}\n{details}')


def summarise(lines: Sequence[Line], args: argparse.Namespace) -> dict[str, int]:
  """Writes ``batch.json`` as the folders are, whoever made them; how many lines are in which state."""

  def state(line: Line) -> dict[str, Any]:
    about = {'line': line.number, 'state': 'to do'}
    with contextlib.suppress(FileNotFoundError):  # most have none, and another process may take it away
      return about | {'state': 'failed', 'reason': line.failure.read_text().partition('\n')[0]}
    return about | ({'state': 'done'} if (line.folder / 'run.json').is_file() else {})

  found, written = {line.name: state(line) for line in lines}, None
  while found != written:  # another process may have finished meanwhile; the last one to write has seen everything
    written = found
    content = {'list': args.input, 'scenes': found}
    write_whole(pathlib.Path(args.out, SUMMARY), json.dumps(content, indent=1) + '\n')
    found = {line.name: state(line) for line in lines}
  states = [about['state'] for about in found.values()]
  return {name: states.count(name) for name in ('done', 'failed', 'to do') if name in states}
