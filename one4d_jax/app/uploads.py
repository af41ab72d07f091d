"""What people send, looked at before it may queue: in a process of its own, as decoders of foreign files may crash."""

import contextlib
import os
import pathlib
import threading
import time

from one4d_jax.app.worker import Crash, Worker
from one4d_jax.errors import UserError

_PATIENCE = 60.0  # seconds to open a file and decode one frame
_FUNCTION = 'one4d_jax.app.tasks:inspect'
_LIFETIME, _PULSE = 7200.0, 60.0  # seconds that an upload stays, and between two looks for older ones


class Uploads:
  """The files below ``folder``, at most ``limit`` bytes each, for two hours; the only ones that jobs may take.

  Use as a context manager: at the end the process and the thread are gone.
  """

  def __init__(self, folder: pathlib.Path, *, limit: int, function: str = _FUNCTION):
    self.folder, self.limit = folder.resolve(), limit
    self._function = function
    self._turn = threading.Lock()
    self._worker: Worker | None = None
    self._since: dict[tuple[str, int], float] = {}  # when ``forget`` first saw a file, by its path and time of change
    self._over = threading.Event()
    self._sweeper = threading.Thread(target=self._sweep, name='uploads', daemon=True)

  def __enter__(self):
    self._sweeper.start()
    return self

  def __exit__(self, *_):
    self._over.set()
    self._sweeper.join()
    if self._worker is not None:
      self._worker.kill()

  def look(self, path: str) -> dict:
    """What ``tasks.inspect`` finds, and the file's ``path``. Raises UserError with a message without folders."""
    file = pathlib.Path(path).resolve()
    if not file.is_relative_to(self.folder) or not file.is_file():
      raise UserError('the file is not here any more; choose it again')
    if file.stat().st_size > self.limit:
      raise UserError(f'{file.name} is larger than {self.limit / 2**20:g} MB; choose a smaller file')
    with self._turn:
      if self._worker is None or not self._worker.alive:
        self._worker = Worker(self._function)
      try:
        return {**self._worker.call(str(file), patience=_PATIENCE), 'path': str(file)}
      except UserError as error:
        raise UserError(str(error).replace(str(file), file.name)) from error
      except Crash as error:
        raise UserError(f'{file.name} cannot be read ({error}); choose another file') from error

  def forget(self, now: float) -> None:
    """Deletes the files that have been there for two hours at ``now``, in seconds of a clock that nobody sets.

    gradio's own sweeper ends for good if a file comes while it looks.
    """
    there = {}
    for folder, _, names in os.walk(self.folder):  # which passes over folders that go meanwhile
      for path in (os.path.join(folder, name) for name in names):
        with contextlib.suppress(OSError):
          key = path, os.stat(path).st_mtime_ns
          there[key] = self._since.get(key, now)
    self._since = there
    for (path, _), since in there.items():
      if now - since >= _LIFETIME:
        with contextlib.suppress(OSError):
          os.remove(path)
          if (parent := pathlib.Path(path).parent) != self.folder:
            parent.rmdir()

  def _sweep(self) -> None:
    while not self._over.wait(_PULSE):
      self.forget(time.monotonic())
