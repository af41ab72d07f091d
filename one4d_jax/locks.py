"""One process at a time in a folder that a run continues in."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator

from one4d_jax.errors import UserError


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
  """Keeps other processes that ask the same out of ``folder``, which is made if need be, until the end of the block.

  The lock goes with the process, however that ends, and its children have no part in it; where a file system knows no
  locks there is none.

  Raises:
    UserError: another process holds it.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / '.lock').open('a+') as file:
    try:
      fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in (errno.EACCES, errno.EAGAIN):
        file.seek(0)
        raise UserError(
          f'{folder} is in use by {file.read().strip() or "another process"}; wait for it, stop it, or choose another '
          'folder'
        ) from None
      if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
        raise
    file.truncate(0)
    file.write(f'process {os.getpid()} of {os.uname().nodename}\n')
    file.flush()
    yield
