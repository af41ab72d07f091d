"""The C library's allocator, where a CPU computes."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> None:
  """Has glibc keep what it would give back to the system; elsewhere this does nothing.

  A step on a CPU frees and asks for the same few hundred megabytes as the one before, and each time the system would
  have to map and clear them.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
