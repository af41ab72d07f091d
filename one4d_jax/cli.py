"""How commands end: a mistake of the user is one line on stderr and exit status 2; ``--debug`` shows more."""

import argparse
import sys
from collections.abc import Callable, Sequence

from one4d_jax.errors import UserError


def run(
  main: Callable[[argparse.Namespace], None],
  parser: argparse.ArgumentParser,
  argv: Sequence[str] | None = None,
) -> int:
  """Parses ``argv`` (default: the command line), calls ``main(args)`` and returns the exit status.

  Adds ``--debug`` to the parser. ``UserError``, ``OSError``, bad arguments and Ctrl-C become
  ``error: ...`` in one line; anything else is a bug of ours and keeps its traceback.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
  parser.error = _raise_usage  # instead of the usage text in several lines
  try:
    main(parser.parse_args(argv))
  except (UserError, OSError, KeyboardInterrupt) as error:
    if '--debug' in argv:
      raise
    print(f'error: {_one_line(error)}', file=sys.stderr)
    return 2
  return 0


def _raise_usage(message: str):
  raise UserError(f'{message}; see --help')


def _one_line(error: BaseException) -> str:
  if isinstance(error, KeyboardInterrupt):
    return 'interrupted'
  if isinstance(error, OSError) and error.strerror:
    place = '' if error.filename is None else f'{error.filename}: '
    return f'{place}{error.strerror}'
  return ' '.join(str(error).split()) or type(error).__name__
