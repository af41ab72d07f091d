"""Ends a run between two steps when it is asked to: SIGTERM, as schedulers send it before they take a machine away.

The signal may reach one process of many, and all must stop after the same step: JAX's coordination service carries it
to the others and agrees on the step. Asked twice, it is the same. Before the first step there is nothing to save, and a
lone process ends at once.
"""

import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils


class Interrupt:
  """``with Interrupt() as interrupt: ... if interrupt.stops(step): break``."""

  def __init__(self):
    self._asked, self._stepping, self._before = False, False, None

  def __enter__(self) -> 'Interrupt':
    # Among several processes the service listens for the signal itself.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._ask)
    return self

  def __exit__(self, *_) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _ask(self, *_) -> None:
    self._asked = True
    if not self._stepping:
      print('asked to stop before the first step: nothing to save', file=sys.stderr)
      raise SystemExit(0)

  def stops(self, step: int) -> bool:
    """Whether the run ends after ``step``; every process asks after each step."""
    self._stepping = True
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked
