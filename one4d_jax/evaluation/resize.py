"""Images and depth on another pixel grid, as the published evaluations have it."""

import functools

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def bicubic(maps: Float[np.ndarray, 'F h w'], height: int, width: int) -> Float[np.ndarray, 'F {height} {width}']:
  """Cubic interpolation as OpenCV's and PyTorch's (a = -0.75, centres at + 0.5, edges repeated, no antialiasing)."""
  if maps.shape[1:] == (height, width):
    return maps
  rows, columns = _weights(maps.shape[1], height), _weights(maps.shape[2], width)
  return np.stack([(rows @ one @ columns.T).astype(maps.dtype) for one in maps])


@functools.lru_cache(maxsize=8)
def _weights(old: int, new: int) -> np.ndarray:
  """[new old]: what each old pixel adds to a new one."""
  place = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(place).astype(int)
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    index = np.clip(first + tap, 0, old - 1)
    np.add.at(weights, (np.arange(new), index), _keys(np.abs(place - first - tap)))
  return weights


def _keys(x: np.ndarray) -> np.ndarray:
  a = -0.75
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0))


def nearest(maps: np.ndarray, height: int, width: int) -> np.ndarray:
  """Of ``[F h w ...]``, the value at the centre of each new pixel: nothing is made up between two surfaces."""
  rows, columns = (
    np.floor((np.arange(new) + 0.5) * old / new).astype(int)
    for new, old in zip((height, width), maps.shape[1:3], strict=True)
  )
  return maps[:, rows[:, None], columns]


def pictures(rgb: UInt8[np.ndarray, 'F H W 3'], height: int, width: int) -> UInt8[np.ndarray, 'F {height} {width} 3']:
  """Whole frames, not cropped, by Lanczos with antialiasing."""
  if rgb.shape[1:3] == (height, width):
    return rgb
  return np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS)) for f in rgb])
