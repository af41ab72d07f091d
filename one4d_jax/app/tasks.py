"""What the app's processes do: make a scene, and look at an upload before it may queue."""

import argparse
import base64
import functools
import io
import os

from PIL import Image

from one4d_jax import request, sample
from one4d_jax.data.frames import open_source
from one4d_jax.errors import UserError

_THUMBNAIL = 240  # pixels, the longer side

_load = functools.lru_cache(maxsize=1)(sample.load_bundle)


def produce(folder: str, arguments: list[str], *, report) -> None:
  """``python -m one4d_jax.sample`` with these arguments in ``folder``, so that its record names no other place."""
  os.chdir(folder)
  sample.produce(parse(arguments), report=report, load=_load)


def parse(arguments: list[str]) -> argparse.Namespace:
  """Arguments of ``sample``, numbers checked. Raises UserError."""

  def refuse(message: str):
    raise UserError(message)

  parser = sample.parser()
  parser.error = refuse
  args = parser.parse_args(arguments)
  request.check_numbers(args)
  return args


def inspect(path: str, *, report) -> dict:
  """Kind, frames, rate, size and a small JPEG (base64) of what can be shown. Raises DataError for all else."""
  source = open_source(path)
  (picture,) = source.frames([0], _thumbnail)
  return {
    'kind': source.kind,
    'frames': len(source.times),
    'fps': source.rate,
    'size': source.size,
    'notes': source.notes,
    'thumbnail': base64.b64encode(picture).decode(),
  }


def _thumbnail(image: Image.Image) -> bytes:
  image = image.copy()
  image.thumbnail((_THUMBNAIL, _THUMBNAIL))
  stored = io.BytesIO()
  image.save(stored, 'JPEG', quality=85)
  return stored.getvalue()
