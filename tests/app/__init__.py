"""The app: its processes, its queue, what it serves, and the page in a browser."""

import contextlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> object:
  """Waits until something is true, and returns it."""
  end = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.02)
  return value


def gone(pid: int) -> bool:
  """True once a process has ended (or is a zombie that nobody has asked about)."""
  try:
    os.kill(pid, 0)
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] == 'Z'
  except (ProcessLookupError, FileNotFoundError):
    return True


@contextlib.contextmanager
def serving(*command: str, **settings) -> Iterator[tuple[subprocess.Popen, str]]:
  """A Python process that serves the app, and the address that it prints; asked to end, so that its folder goes."""
  environment = {**os.environ, **settings, 'PYTHONUNBUFFERED': '1'}
  with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment) as process:
    try:
      yield process, process.stdout.readline().split()[0]
    finally:
      process.terminate()
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
      process.kill()


def children(pid: int) -> list[int]:
  """Processes that any thread of a process has started."""
  threads = pathlib.Path(f'/proc/{pid}/task').iterdir()
  return [int(child) for thread in threads for child in (thread / 'children').read_text().split()]
