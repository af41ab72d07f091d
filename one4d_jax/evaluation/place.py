"""What every reader does with files: all are looked for before one is read, and those that are missing are counted."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from one4d_jax.data.sources import files
from one4d_jax.errors import DataError


def folder(root: pathlib.Path, name: str) -> pathlib.Path:
  """Where a sequence lies: in ``root``, or one folder deeper, as archives unpack. Raises DataError."""
  if (root / name).is_dir():
    return root / name
  deeper = sorted(path for path in root.glob(f'*/{name}') if path.is_dir())
  if not deeper:
    raise DataError(f'{root / name} does not exist')
  return deeper[0]


def present(paths: Sequence[pathlib.Path], folder: pathlib.Path) -> Sequence[pathlib.Path]:
  """The files themselves. Raises DataError where ``folder`` is not there, or lacks some of them."""
  if not folder.is_dir():
    raise DataError(f'{folder} does not exist')
  missing = [path.name for path in paths if not path.is_file()]
  if missing:
    more = ', ...' if len(missing) > 3 else ''
    raise DataError(f'{folder} lacks {len(missing)} of {len(paths)} frames: {", ".join(missing[:3])}{more}')
  return paths


def enough(found: int, wanted: int, folder: pathlib.Path, what: str) -> None:
  """Raises DataError where a protocol asks for more frames than were found."""
  if found < wanted:
    raise DataError(f'{folder} has {found} {what} where the protocol takes {wanted}; is it unpacked completely?')


def stacked(frames: Sequence[np.ndarray], folder: pathlib.Path) -> np.ndarray:
  """One array. Raises DataError where frames differ in size."""
  sizes = [frame.shape[:2] for frame in frames]
  if other := [i for i, size in enumerate(sizes) if size != sizes[0]]:
    a, b = ('x'.join(map(str, size)) for size in (sizes[0], sizes[other[0]]))
    raise DataError(f'{folder}: frame {other[0]} is {b} (height x width), the first {a}; {len(other)} differ')
  return np.stack(frames)


def pictures(paths: Sequence[pathlib.Path]) -> UInt8[np.ndarray, 'F H W 3']:
  """Images of one size. Raises DataError."""
  return stacked([files.colour(path) for path in paths], paths[0].parent)


@contextlib.contextmanager
def lacking(lacks: dict[str, str], part: str) -> Iterator[None]:
  """What cannot be read is noted under ``part``; the rest of the sequence is still of use."""
  try:
    yield
  except DataError as error:
    lacks[part] = str(error)
