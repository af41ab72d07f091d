"""What people send, looked at before it may queue: in a process of its own, as decoders of foreign files may crash."""

import pathlib
import threading

from one4d_jax.app.worker import Crash, Worker
from one4d_jax.errors import UserError

_PATIENCE = 60.0  # seconds to open a file and decode one frame
_FUNCTION = 'one4d_jax.app.tasks:inspect'


class Uploads:
  """The files below ``folder``, at most ``limit`` bytes each; the only ones that jobs may take.

  Use as a context manager: at the end the process is gone.
  """

  def __init__(self, folder: pathlib.Path, *, limit: int, function: str = _FUNCTION):
    self.folder, self.limit = folder.resolve(), limit
    self._function = function
    self._turn = threading.Lock()
    self._worker: Worker | None = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
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
