"""MPI Sintel as it is downloaded: three archives unpacked into one folder.

  training/final/SEQUENCE/frame_0001.png           1024x436
  training/depth/SEQUENCE/frame_0001.dpt           float32 tag, int32 width, int32 height, float32 planar z
  training/camdata_left/SEQUENCE/frame_0001.cam    float32 tag, 9 float64 of K, 12 float64 of [R|t], camera from world

Little-endian. K is taken as it is stored: no document says whether it counts pixels from a corner or a centre.
"""

import pathlib

import numpy as np
from jaxtyping import Float32, Float64

from one4d_jax.data.images import reading
from one4d_jax.data.sources import annotations
from one4d_jax.errors import DataError
from one4d_jax.evaluation import place
from one4d_jax.evaluation.protocol import Protocol
from one4d_jax.evaluation.sequence import Truth

TAG = np.float32(202021.25)


def read(root: pathlib.Path, name: str, protocol: Protocol) -> Truth:
  """One sequence; depth and cameras as far as the protocol scores them. Raises DataError where images are missing."""
  root = root / 'training' if (root / 'training').is_dir() else root
  chosen = protocol.chosen(protocol.lengths[name])
  path = lambda part, suffix: [root / part / name / f'frame_{i + 1:04d}.{suffix}' for i in chosen]
  rgb = place.pictures(place.present(path('final', 'png'), root / 'final' / name))
  known, lacks = {}, {}
  if protocol.scores('depth', name):
    with place.lacking(lacks, 'depth'):
      depth = [dpt(file) for file in place.present(path('depth', 'dpt'), root / 'depth' / name)]
      known['depth'] = place.stacked(depth, root / 'depth' / name)
  if protocol.scores('trajectory', name):
    with place.lacking(lacks, 'trajectory'):
      cameras = [cam(file) for file in place.present(path('camdata_left', 'cam'), root / 'camdata_left' / name)]
      known['K'] = np.stack([K for K, _ in cameras])
      known['world_from_cam'] = annotations.inverse(np.stack([pose for _, pose in cameras]))
  return Truth(name=name, rgb=rgb, lacks=lacks, **known)


def dpt(path: pathlib.Path) -> Float32[np.ndarray, 'H W']:
  """A depth map. Raises DataError."""
  content = _tagged(path)
  width, height = np.frombuffer(content[4:12], '<i4')
  if min(width, height) < 1 or len(content) != 12 + 4 * int(width) * int(height):
    raise DataError(f'{path} is damaged: {len(content)} bytes do not hold the {width}x{height} it promises')
  return np.frombuffer(content[12:], '<f4').reshape(height, width)


def cam(path: pathlib.Path) -> tuple[Float64[np.ndarray, '3 3'], Float64[np.ndarray, '4 4']]:
  """``(K, cam_from_world)``. Raises DataError."""
  content = _tagged(path)
  if len(content) != 4 + 21 * 8:
    raise DataError(f'{path} is damaged: expected {4 + 21 * 8} bytes, got {len(content)}')
  numbers = np.frombuffer(content[4:], '<f8')
  return numbers[:9].reshape(3, 3), np.vstack([numbers[9:].reshape(3, 4), [0, 0, 0, 1]])


def _tagged(path: pathlib.Path) -> bytes:
  with reading(path):
    content = path.read_bytes()
  if len(content) < 12 or np.frombuffer(content[:4], '<f4')[0] != TAG:
    raise DataError(f'{path} does not start with the tag of a Sintel file; is it cut short or something else?')
  return content
