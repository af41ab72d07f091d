"""One clip with exact geometry: what every reader, renderer and test hands around. NumPy only."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, UInt8


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video with depth, masks and cameras.

  Axes are OpenCV's (x right, y down, z forward); the centre of pixel (u, v) is (u + 0.5, v + 0.5). `depth` is planar z
  and 0 where unknown. `sky` marks pixels at infinity (never valid), `dynamic` those on something that moves.
  """

  rgb: UInt8[np.ndarray, 'F H W 3']
  depth: Float32[np.ndarray, 'F H W']
  valid: Bool[np.ndarray, 'F H W']
  sky: Bool[np.ndarray, 'F H W']
  dynamic: Bool[np.ndarray, 'F H W']
  K: Float32[np.ndarray, 'F 3 3']  # in pixels
  world_from_cam: Float32[np.ndarray, 'F 4 4']
  caption: str
  meta: dict  # JSON-able: id, fps, ...; the rest depends on where the clip is from

  @property
  def frames(self) -> int:
    return len(self.rgb)

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) in pixels."""
    return self.rgb.shape[1:3]


def signed(rgb: UInt8[np.ndarray, '*s']) -> Float32[np.ndarray, '*s']:
  """Colours 0..255 as values in [-1, 1], the range of every network here."""
  return rgb.astype(np.float32) / 127.5 - 1
