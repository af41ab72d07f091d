"""Traces of what devices and threads do, for XProf (``xprof --logdir DIR``) or https://ui.perfetto.dev."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def trace(folder: str | os.PathLike | None) -> Iterator[None]:
  """Traces what runs inside into ``folder``; ``None`` traces nothing."""
  if folder is None:
    yield
    return
  import jax

  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # Python's own calls would be most of it
  with jax.profiler.trace(os.fspath(folder), create_perfetto_trace=True, profiler_options=options):
    yield


class Steps:
  """``trace`` of a few steps of a loop, after those that compile; used as ``with Steps(...) as profile``."""

  def __init__(self, folder: str | os.PathLike | None, first: int, count: int = 3):
    self._folder, self._first, self._last = folder, first, first + count - 1
    self._open = contextlib.ExitStack()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._open.close()

  def before(self, step: int) -> None:
    """Step ``step`` is about to be dispatched."""
    if step == self._first:
      self._open.enter_context(trace(self._folder))

  def after(self, step: int, result) -> None:
    """``result`` is what it gives; waited for where the trace ends."""
    if self._folder is not None and step == self._last:
      import jax

      jax.block_until_ready(result)
      self._open.close()
