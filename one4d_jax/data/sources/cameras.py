"""``cameras.json`` of a user's footage: every convention is stated, checked, and turned into this project's own."""

import json
import math
import pathlib

import numpy as np
from jaxtyping import Float32, Float64

from one4d_jax.data.sources import annotations
from one4d_jax.errors import DataError


def _is_number(value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _positive(value) -> bool:
  return _is_number(value) and 0 < value < math.inf


def _one_of(*values) -> tuple:
  return ' or '.join(json.dumps(v) for v in values), lambda v: not isinstance(v, bool) and v in values


def _size(value) -> bool:
  return isinstance(value, list) and len(value) == 2 and all(type(v) is int and v > 0 for v in value)


_VALUE = ('a number as stored, or null for none', lambda v: v is None or _is_number(v))
_TEXT = ('a text', lambda v: isinstance(v, str))
_REQUIRED = {  # key -> what it may be, and whether a value is that
  'fps': ('a positive number', _positive),
  'size': ('[height, width] of the depth in pixels, which K is in as well', _size),
  'axes': _one_of('opencv', 'opengl'),
  'pose': _one_of('world_from_cam', 'cam_from_world'),
  'pixel_centre': _one_of(0.5, 0.0),
  'depth': _one_of('z', 'ray'),
  'depth_scale': ('a positive number, the length of one stored unit', _positive),
  'invalid': _VALUE,
  'sky': _VALUE,
  'frames': (
    'a list of {"name": ..., "K": 3x3, "pose": 4x4 or null}, one an image',
    lambda v: isinstance(v, list) and len(v) > 0 and all(isinstance(frame, dict) for frame in v),
  ),
}
_OPTIONAL = {
  **dict.fromkeys(('caption', 'scene', 'licence', 'provenance'), _TEXT),
  'metric': ('true or false', lambda v: isinstance(v, bool)),
}
_PINHOLE = ('fx', 'fy', 'cx', 'cy')
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # between cameras that look along +z with y down and along -z with y up


def read(path: pathlib.Path) -> dict:
  """The statements of a ``cameras.json``, complete; ``frames`` hold K and pose as arrays. Raises DataError."""
  stated = annotations.parse_json(path)
  if not isinstance(stated, dict):
    raise DataError(f'{path}: expected an object {{...}}, got a {type(stated).__name__}')
  for key, (allowed, _) in _REQUIRED.items():
    if key not in stated:
      raise DataError(f'{path} lacks "{key}": {allowed}')
  if unknown := [key for key in stated if key not in {*_REQUIRED, *_OPTIONAL, 'K', *_PINHOLE}]:
    raise DataError(
      f'{path}: there is no "{unknown[0]}"; known are {", ".join([*_REQUIRED, *_OPTIONAL, "K", *_PINHOLE])}'
    )
  for key, (allowed, fits) in (_REQUIRED | _OPTIONAL).items():
    if key in stated and not fits(stated[key]):
      raise DataError(f'{path}: "{key}" must be {allowed}, got {json.dumps(stated[key])[:60]}')
  shared = {key: stated[key] for key in ('K', *_PINHOLE) if key in stated}
  frames = []
  for i, frame in enumerate(stated['frames']):
    name = frame.get('name')
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
      raise DataError(f'{path}: frame {i} needs a "name": that of its image, without folder and suffix')
    place = f'{path}: frame {frame["name"]}'
    if 'pose' not in frame:
      raise DataError(f'{place} lacks "pose": 4x4, or null where it is unknown')
    pose = np.full((4, 4), np.nan) if frame['pose'] is None else _matrix(frame['pose'], 4, f'{place}: "pose"')
    # A frame's own fx, fy, cx, cy go before a K for all.
    around = {key: value for key, value in shared.items() if key != 'K' or frame.keys().isdisjoint(_PINHOLE)}
    frames.append({'name': frame['name'], 'pose': pose, 'K': _intrinsics(around | frame, place)})
  if len({frame['name'] for frame in frames}) < len(frames):
    raise DataError(f'{path} names a frame twice')
  checked_poses(np.stack([frame['pose'] for frame in frames]), path)
  checked_K(np.stack([frame['K'] for frame in frames]), path)
  return stated | {'frames': frames}


def _intrinsics(stated: dict, place: str) -> np.ndarray:
  if 'K' in stated:
    return _matrix(stated['K'], 3, f'{place}: "K"')
  if absent := [key for key in _PINHOLE if not _is_number(stated.get(key))]:
    raise DataError(f'{place} lacks "K" (3x3 in pixels) or "{absent[0]}" of "fx", "fy", "cx", "cy"')
  return np.array([[stated['fx'], 0, stated['cx']], [0, stated['fy'], stated['cy']], [0, 0, 1]], np.float64)


def _matrix(rows, size: int, place: str) -> np.ndarray:
  try:
    matrix = np.array(rows, np.float64)
  except (TypeError, ValueError):
    matrix = np.empty(0)
  if matrix.shape != (size, size):
    raise DataError(f'{place} must be {size} rows of {size} numbers')
  return matrix


def checked_K(K: np.ndarray, place: pathlib.Path) -> Float64[np.ndarray, 'N 3 3']:
  """The matrices; raises DataError where one is not that of a pinhole without skew."""
  K = np.asarray(K, np.float64)
  fixed = np.ones((3, 3), bool)
  fixed[[0, 1, 0, 1], [0, 1, 2, 2]] = False
  wrong = np.flatnonzero((np.abs(K - np.eye(3))[:, fixed] > 1e-6).any(1))
  if wrong.size:
    raise DataError(f'{place}: K of frame {wrong[0]} must be [[fx 0 cx] [0 fy cy] [0 0 1]], got {K[wrong[0]].tolist()}')
  return K


def checked_poses(poses: np.ndarray, place: pathlib.Path) -> Float64[np.ndarray, 'N 4 4']:
  """The matrices; raises DataError where a last row is not 0 0 0 1, as in transposed ones. NaN passes."""
  poses = np.asarray(poses, np.float64)
  wrong = np.flatnonzero((np.abs(poses[:, 3] - [0, 0, 0, 1]) > 1e-6).any(1))
  if wrong.size:
    row = poses[wrong[0], 3].tolist()
    raise DataError(f'{place}: the last row of pose {wrong[0]} must be 0 0 0 1, got {row}; is it transposed?')
  return poses


def canonical(stated: dict) -> tuple[Float64[np.ndarray, 'N 3 3'], Float64[np.ndarray, 'N 4 4']]:
  """(K, world_from_cam) with OpenCV axes and pixel centres at + 0.5, from what ``read`` returned."""
  K = np.stack([frame['K'] for frame in stated['frames']])
  K[:, :2, 2] += 0.5 - stated['pixel_centre']
  poses = np.stack([frame['pose'] for frame in stated['frames']])
  if stated['pose'] == 'cam_from_world':
    poses = annotations.inverse(poses)
  return K, poses @ _FLIP if stated['axes'] == 'opengl' else poses


def planar(ray: Float32[np.ndarray, 'H W'], K: Float64[np.ndarray, '3 3']) -> Float32[np.ndarray, 'H W']:
  """Planar depth of distances from the camera's centre."""
  height, width = ray.shape
  x = (np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]
  y = (np.arange(height) + 0.5 - K[1, 2]) / K[1, 1]
  return (ray / np.sqrt(1 + x**2 + y[:, None] ** 2)).astype(np.float32)
