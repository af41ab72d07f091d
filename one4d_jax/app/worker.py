"""A function in a process of its own, which may crash, hang or be killed without harm to the caller.

The process lives from call to call, with whatever the function remembers (networks, compiled programs), and ends with
its parent, however that ends.
"""

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

from one4d_jax.errors import UserError

_CONTEXT = multiprocessing.get_context('spawn')  # a fork would copy the locks of the server's threads


class Crash(Exception):
  """The call came to nothing, and not by a mistake in its arguments; the message is for people."""


class Worker:
  """A process that calls ``function`` ('package.module:name') as ``function(*arguments, report=report)``.

  Arguments, reports and results are plain values. Calls come from one thread, ``kill`` from any. Once a call has
  raised Crash the worker is dead, and a new one must take its place.
  """

  def __init__(self, function: str):
    self._pipe, theirs = _CONTEXT.Pipe()
    self._process = _CONTEXT.Process(target=_serve, args=(theirs, function), daemon=True)
    self._process.start()
    self._reaping = threading.Lock()
    theirs.close()  # held open by us too, it would hide the end of the process

  @property
  def alive(self) -> bool:
    return self._process.is_alive()

  def call(self, *arguments: Any, report: Callable[..., None] | None = None, patience: float | None = None) -> Any:
    """What the function returns; ``report`` is called with what it reports, as it does.

    ``patience`` is how many seconds may pass without a word. Raises UserError where the function does, and Crash
    where it fails, dies, is killed or stays silent.
    """
    try:
      self._pipe.send(arguments)
      while self._pipe.poll(patience):
        kind, value = self._pipe.recv()
        if kind != 'report':
          break
        if report is not None:
          report(*value)
      else:
        kind, value = 'failed', f'no answer within {patience:g} s'
    except (EOFError, OSError):
      self._reap()
      kind, value = 'failed', _cause(self._process.exitcode)
    if kind == 'failed':  # what the process holds now is anyone's guess
      self.kill()
      raise Crash(value)
    if kind == 'refused':
      raise UserError(value)
    return value

  def kill(self) -> None:
    """Ends the process and with it the call that is under way, if there is one."""
    self._process.kill()
    self._reap()

  def _reap(self) -> None:
    """Waits for the end of the process; one thread at a time, or the other would never learn the exit status."""
    with self._reaping:
      self._process.join()


def _serve(pipe, function: str) -> None:
  """The process: answers calls until the pipe closes."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal; the server then ends us
  threading.Thread(target=_end_with_parent, daemon=True).start()
  faulthandler.enable()
  module, name = function.split(':')

  def report(*values: Any) -> None:
    pipe.send(('report', values))

  with contextlib.suppress(EOFError):
    while True:
      arguments = pipe.recv()
      try:
        answer = 'done', getattr(importlib.import_module(module), name)(*arguments, report=report)
      except UserError as error:
        answer = 'refused', ' '.join(str(error).split())
      except BaseException as error:
        traceback.print_exc()
        answer = 'failed', _reason(error)
      pipe.send(answer)


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)


def _reason(error: BaseException) -> str:
  """One line for people; the traceback went to the server's log."""
  text = next(iter(str(error).splitlines()), '')
  if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text:
    return 'out of memory; choose fewer frames'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror  # without the name of a file of the server
  return f'{type(error).__name__}: {text[:300]}' if text else type(error).__name__


def _cause(status: int | None) -> str:
  """Why a process died, from its exit status."""
  if status is None or status >= 0:
    return f'its process ended with status {status}'
  name = signal.Signals(-status).name if -status in set(signal.Signals) else f'signal {-status}'
  return f'its process was ended by {name}' + (' (out of memory?)' if -status == signal.SIGKILL else '')
