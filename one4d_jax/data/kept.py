"""Files that stay open between reads, so that frame after frame costs no more than its own bytes."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

from one4d_jax.data.images import reading

T = TypeVar('T')


def kept(make: Callable[[pathlib.Path], T]) -> Callable[[pathlib.Path], T]:
  """``make``, with what it made of the last two files kept for the next call.

  It is made anew where the file has changed, and by every process: a fork shares the place in an open file.
  Raises DataError where there is no such file, and what ``make`` raises.
  """

  @functools.lru_cache(maxsize=2)
  def made(path: pathlib.Path, process: int, version: tuple) -> T:
    return make(path)

  def current(path: pathlib.Path) -> T:
    with reading(path):
      state = path.stat()
    return made(path, os.getpid(), (state.st_ino, state.st_size, state.st_mtime_ns))

  return current
