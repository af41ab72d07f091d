"""OpenEXR pictures as arrays; a damaged one is one ``DataError`` naming it."""

import io
import pathlib

import numpy as np
from jaxtyping import Float32

from one4d_jax.errors import DataError


def channel(data: bytes, names: tuple[str, ...], place: str | pathlib.Path) -> Float32[np.ndarray, 'H W']:
  """The first of the channels ``names`` that the file's bytes hold; errors call it ``place``. Raises DataError."""
  import OpenEXR  # here, as most sets have no such file

  try:
    with OpenEXR.File(io.BytesIO(data), separate_channels=True) as file:
      found = file.channels()
      name = next((name for name in names if name in found), None)
      if name is None:
        raise DataError(f'{place} has no channel {" or ".join(names)}; it holds {", ".join(found) or "none"}')
      return np.asarray(found[name].pixels, np.float32)
  except DataError:
    raise
  except (RuntimeError, ValueError, TypeError, OSError) as error:
    raise DataError(f'{place} is damaged or no OpenEXR file: {error}') from error
