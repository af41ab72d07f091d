"""Surface patterns as functions of a point in the object's own coordinates, so that they move with it.

A pattern is a weight in [0, 1] between two colours. Edges are as wide as a pixel's footprint on the surface, which
keeps far floors free of moire even at one ray a pixel.
"""

import dataclasses

import numpy as np

COLOURS = {
  'red': (0.86, 0.13, 0.12),
  'orange': (0.98, 0.52, 0.08),
  'yellow': (0.98, 0.87, 0.16),
  'green': (0.13, 0.65, 0.22),
  'cyan': (0.15, 0.78, 0.84),
  'blue': (0.13, 0.27, 0.86),
  'purple': (0.50, 0.16, 0.70),
  'pink': (0.97, 0.50, 0.70),
  'white': (0.95, 0.95, 0.95),
}
KINDS = ('plain', 'checkered', 'striped', 'speckled')
HELD_OUT = 'speckled'

_PALE, _DARK = (0.95, 0.95, 0.92), (0.14, 0.14, 0.18)
_STRIPE = np.float32([0.62, 0.58, 0.53])  # oblique: stripes reach every face and show a spin about any axis


@dataclasses.dataclass(frozen=True)
class Texture:
  """A kind of pattern, its named colour and its cell size in scene units. The second colour follows from the first."""

  kind: str
  colour: str
  scale: float = 1.0
  stripe: tuple[float, float, float] = tuple(_STRIPE.tolist())  # direction across the stripes
  muted: float = 0.0  # 0 full contrast .. 1 all grey; walls are muted

  def colours(self) -> tuple[np.ndarray, np.ndarray]:
    """The two colours, each float32 [3] in [0, 1]."""
    first = np.float32(COLOURS[self.colour])
    second = np.float32(_DARK if first @ np.float32([0.3, 0.59, 0.11]) > 0.6 else _PALE)
    grey = np.float32([0.72, 0.71, 0.68])
    second = second + (0.7 * first + 0.3 * grey - second) * np.float32(min(1.0, 1.6 * self.muted))
    return first + (grey - first) * np.float32(self.muted), second + (grey - second) * np.float32(self.muted)


def weight(texture: Texture, x, y, z, footprint):
  """Weight of the second colour at points (x, y, z), for pixels `footprint` wide on the surface: float32 arrays [n]."""
  inverse = np.float32(1 / texture.scale)
  match texture.kind:
    case 'plain':
      return np.zeros_like(footprint)
    case 'checkered':
      width = footprint * inverse
      wave = _wave(x * inverse, width) * _wave(z * inverse, width)
      return 0.5 - 0.5 * (wave if y is None else wave * _wave(y * inverse, width))
    case 'striped':
      a, b, c = (np.float32(s) * inverse for s in texture.stripe)
      return 0.5 - 0.5 * _wave(a * x + c * z + (0 if y is None else b * y), footprint * inverse)
    case 'speckled':
      y = np.zeros_like(x) if y is None else y
      noise = _value_noise(x * (2 * inverse), y * (2 * inverse), z * (2 * inverse))
      return np.clip(0.5 + (noise - 0.5) * np.minimum(8, 2 / (footprint * inverse + 1e-6)), 0, 1)
  raise ValueError(f'unknown texture {texture.kind!r}')


def _wave(x, width):
  """Square wave of period 2, +1 inside [0, 1], its edges blurred to `width`; beyond a cell's width it fades."""
  shifted = x * np.float32(0.5) - np.float32(0.25)
  triangle = 4 * np.abs(shifted - np.floor(shifted) - np.float32(0.5)) - 1
  return np.clip(triangle / np.maximum(width, np.float32(1e-4)), -1, 1)


def _value_noise(x, y, z):
  """Trilinear noise in [0, 1] from hashed lattice values."""
  cell = [np.floor(v) for v in (x, y, z)]
  fade = [v - c for v, c in zip((x, y, z), cell, strict=True)]
  fade = [f * f * (3 - 2 * f) for f in fade]
  cell = [c.astype(np.int32).astype(np.uint32) for c in cell]
  total = np.zeros_like(x)
  for corner in range(8):
    bits = [corner & 1, corner >> 1 & 1, corner >> 2]
    share = [f if bit else 1 - f for f, bit in zip(fade, bits, strict=True)]
    total += share[0] * share[1] * share[2] * _hash(*(c + np.uint32(bit) for c, bit in zip(cell, bits, strict=True)))
  return total


def _hash(x, y, z):
  """Three uint32 arrays to float32 in [0, 1); wraps on purpose."""
  h = x * np.uint32(0x8DA6B343) ^ y * np.uint32(0xD8163841) ^ z * np.uint32(0xCB1AB31F)
  h = (h ^ h >> np.uint32(15)) * np.uint32(0x2C1B3C6D)
  h = (h ^ h >> np.uint32(12)) * np.uint32(0x297A2D39)
  return (h >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
