"""Ends a process whose training hangs, as a collective does when another process is gone, so that it can be restarted.

A thread waits for beats. When none came in time it says which step hangs, prints the stacks of all Python threads to
stderr and ends the process with status 75 (``EX_TEMPFAIL`` of sysexits.h: try again), which schedulers can be told to
restart; the newest checkpoint is whole. Where native code holds the interpreter's lock and no thread can run,
``faulthandler`` prints the stacks after twice the time and ends the process with status 1.
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

STATUS = os.EX_TEMPFAIL  # 75
FIRST = 10  # times as long for the first step, which compiles


class Watchdog:
  """Watches while it is entered.

  Args:
    seconds: from one beat to the next, 0: for ever. Steps are started ahead of the device: this must last for all
      steps between two at which the loop waits for it, and for compiling a step of another shape.
    say: prints a line.
  """

  def __init__(self, seconds: float, say: Callable[[str], None]):
    self._seconds, self._say = seconds, say
    self._step, self._deadline = None, math.inf
    self._over = threading.Event()

  def __enter__(self) -> 'Watchdog':
    if self._seconds:
      self._wind()
      threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._over.set()
    self._stop()

  def beat(self, step: int) -> None:
    """``step`` has been taken."""
    self._step = step
    self._wind()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """For what takes its own time: validation, saving."""
    self._stop()
    try:
      yield
    finally:
      self._wind()

  @property
  def _allowed(self) -> float:
    return self._seconds * (FIRST if self._step is None else 1)

  def _wind(self) -> None:
    if self._seconds:
      self._deadline = time.monotonic() + self._allowed
      faulthandler.dump_traceback_later(2 * self._allowed, exit=True, file=sys.__stderr__)

  def _stop(self) -> None:
    self._deadline = math.inf
    faulthandler.cancel_dump_traceback_later()

  def _watch(self) -> None:
    while not self._over.wait(min(1.0, self._seconds / 10)):
      if time.monotonic() > self._deadline:
        self._end()

  def _end(self) -> None:
    try:
      step = 'the first step' if self._step is None else f'step {self._step + 1}'
      self._say(
        f'{step} hangs: nothing for {self._allowed:g} s (train.hang_seconds); stacks follow, the process ends with '
        f'status {STATUS}, the same command continues'
      )
      faulthandler.dump_traceback(file=sys.__stderr__)
    finally:
      os._exit(STATUS)
