"""How commands end: a mistake of the user is one line on stderr and exit status 2; ``--debug`` shows more."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence

from one4d_jax.errors import UserError

_OVERRIDE = '--config.'  # argparse would take these for abbreviations of ``--config``


def run(
  main: Callable[[argparse.Namespace], None],
  parser: argparse.ArgumentParser,
  argv: Sequence[str] | None = None,
) -> int:
  """Parses ``argv`` (default: the command line), calls ``main(args)`` and returns the exit status.

  Adds ``--debug`` to the parser. ``UserError``, ``OSError``, bad arguments and Ctrl-C become
  ``error: ...`` in one line; anything else is a bug of ours and keeps its traceback.
  """
  # Compiled programs are kept between runs; XLA's remarks on reading them back are no news to anyone.
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.expanduser('~/.cache/one4d_jax'))
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  argv = sys.argv[1:] if argv is None else list(argv)
  parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
  try:
    main(parse(parser, argv))
  except (UserError, OSError, KeyboardInterrupt) as error:
    if '--debug' in argv:
      raise
    print(f'error: {one_line(error)}', file=sys.stderr)
    return getattr(error, 'status', 2)
  return 0


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
  """The arguments, with those of the configuration in ``overrides``. Raises UserError in place of a usage text."""
  overrides = [a.removeprefix(_OVERRIDE) for a in argv if a.startswith(_OVERRIDE)]
  parser.error = _raise_usage
  args = parser.parse_args([a for a in argv if not a.startswith(_OVERRIDE)])
  if overrides and not hasattr(args, 'config'):
    raise UserError(f'{_OVERRIDE}{overrides[0]} changes a configuration, and this command has none; see --help')
  args.overrides = overrides
  return args


def process(text: str | None) -> tuple[int, int]:
  """``--process I/N`` as numbers, by default what JAX knows. Raises UserError."""
  if text is None:
    import jax

    return jax.process_index(), jax.process_count()
  index, _, count = text.partition('/')
  if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
    raise UserError(f'--process {text}: expected I/N with I in 0 .. N-1, as in 0/8')
  return int(index), int(count)


def command(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
  """The command that gives these arguments, for a parser of options; what equals its default is left out."""
  words = shlex.split(parser.prog)
  for action in parser._actions:
    value = getattr(args, action.dest, action.default)
    if value == action.default:
      continue
    option = action.option_strings[0]
    if action.nargs == 0:
      words.append(option)
      continue
    for text in map(str, value if isinstance(value, list) else [value]):
      words += [f'{option}={text}'] if text.startswith('-') else [option, text]  # alone, it would be an option
  return shlex.join([*words, *(_OVERRIDE + override for override in args.overrides)])


def add_config(parser: argparse.ArgumentParser, *, default: str | None = None, about: str = 'configuration') -> None:
  """Adds ``--config FILE[:PRESET]``. ``run`` collects ``--config.KEY=VALUE`` into ``args.overrides``."""
  text = f'{about}; change a value of it with --config.KEY=VALUE' + (' (default: %(default)s)' if default else '')
  parser.set_defaults(overrides=[])
  parser.add_argument('--config', metavar='FILE[:PRESET]', default=default, help=text)


def _raise_usage(message: str):
  raise UserError(f'{message}; see --help')


def one_line(error: BaseException) -> str:
  """What an error says to people."""
  if isinstance(error, KeyboardInterrupt):
    return 'interrupted'
  if isinstance(error, OSError) and error.strerror:
    place = '' if error.filename is None else f'{error.filename}: '
    return f'{place}{error.strerror}'
  return ' '.join(str(error).split()) or type(error).__name__
