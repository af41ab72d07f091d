"""Image files to upright 8-bit RGB with Pillow; whatever is wrong with a file is one ``DataError``."""

import contextlib
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps

from one4d_jax.errors import DataError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.gif', '.avif', '.ppm', '.pgm')
SMALLEST = 16  # pixels on either side


def load_image(path: pathlib.Path) -> Image.Image:
  """The (first) image of a file, upright and RGB. Raises DataError."""
  image = try_open(path)
  if image is None:
    raise DataError(f'{path} is not an image that can be read')
  with image, decoding(path):
    return check_size(upright_rgb(image), path)


def try_open(path: pathlib.Path) -> Image.Image | None:
  """The opened image (not yet decoded); None where Pillow knows no such format or its decoder gives up at once."""
  with warnings.catch_warnings(), reading(path):
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    try:
      return Image.open(path)
    except Image.DecompressionBombError as error:
      raise DataError(f'{path} is too large an image: {error}') from error
    except (Image.UnidentifiedImageError, RuntimeError, SyntaxError, ValueError):
      return None


def upright_rgb(image: Image.Image) -> Image.Image:
  """EXIF rotation applied, transparency laid over white, 16-bit and float grey scaled to 8 bits."""
  image.load()
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith(('I', 'F')):
    values = np.nan_to_num(np.asarray(image, np.float32))
    ceiling = max(float(values.max()), 1.0) if image.mode == 'F' else 65535.0
    return Image.fromarray(np.uint8(np.clip(values / ceiling, 0, 1) * 255 + 0.5)).convert('RGB')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
  return image.convert('RGB')


def check_size(image: Image.Image, path: pathlib.Path) -> Image.Image:
  """The image itself; raises DataError where a side is under ``SMALLEST`` pixels."""
  if min(image.size) < SMALLEST:
    raise DataError(f'{path} is {image.width}x{image.height} pixels; the smallest usable side is {SMALLEST}')
  return image


@contextlib.contextmanager
def reading(path: pathlib.Path):
  """OSError about the user's path -> DataError."""
  try:
    yield
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist') from error
  except PermissionError as error:
    raise DataError(f'{path} cannot be read: permission denied') from error
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror or error}') from error


@contextlib.contextmanager
def decoding(path: pathlib.Path):
  """Whatever an image decoder raises on a damaged file -> DataError."""
  try:
    yield
  except DataError:
    raise
  except (OSError, RuntimeError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
    raise DataError(f'{path} is damaged or cut short: {error}') from error
