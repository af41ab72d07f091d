"""The files that readers meet, as arrays; a missing or damaged one is one ``DataError`` naming it. NumPy only."""

import pathlib
import re
import tokenize
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8, UInt16

from one4d_jax.data.images import decoding, load_image, reading, try_open
from one4d_jax.errors import DataError


def folders(parent: pathlib.Path) -> list[pathlib.Path]:
  """The folders in ``parent``, by name. Raises DataError where it cannot be listed."""
  with reading(parent):
    return sorted(path for path in parent.iterdir() if path.is_dir())


def numbered(folder: pathlib.Path, pattern: str) -> dict[int, pathlib.Path]:
  """The files whose whole name matches, by the number that is the pattern's group, in order; empty without a folder."""
  if not folder.is_dir():
    return {}
  with reading(folder):
    found = [(re.fullmatch(pattern, path.name), path) for path in folder.iterdir()]
  return dict(sorted((int(match[1]), path) for match, path in found if match))


def image_size(paths: Iterable[pathlib.Path]) -> tuple[int, int]:
  """(height, width) that the first readable image tells in its header. Raises DataError where there is none."""
  last = None
  for last in paths:
    try:
      image = try_open(last)
    except DataError:
      continue
    if image is not None:
      with image:
        return image.height, image.width
  raise DataError(f'{last} and the images before it cannot be read')


def colour(path: pathlib.Path) -> UInt8[np.ndarray, 'H W 3']:
  """An image as 8-bit RGB. Raises DataError."""
  return np.array(load_image(path))


def codes(path: pathlib.Path) -> UInt16[np.ndarray, 'H W']:
  """The numbers of a 16-bit grey PNG, untouched. Raises DataError, also for an image of another kind."""
  image = try_open(path)
  if image is None:
    raise DataError(f'{path} is not an image that can be read')
  with image, decoding(path):
    if not image.mode.startswith('I'):
      raise DataError(f'{path} is an image of mode {image.mode}; expected 16-bit grey')
    return np.asarray(image).astype(np.uint16)


def array(path: pathlib.Path) -> np.ndarray:
  """What an .npy file holds. Raises DataError where it is missing, damaged, pickled or an archive."""
  try:
    with reading(path):
      stored = np.load(path, allow_pickle=False)
  except DataError:
    raise
  except (ValueError, EOFError, tokenize.TokenError) as error:
    raise DataError(f'{path} is damaged or no .npy file: {error}') from error
  if not isinstance(stored, np.ndarray):
    raise DataError(f'{path} is an archive of several arrays; expected an .npy file')
  return stored
