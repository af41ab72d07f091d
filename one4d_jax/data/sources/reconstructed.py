"""Geometry that a reconstructor made of a video: ``NAME.npz``, the layout of ``generic``, and the video beside it."""

import functools
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from one4d_jax.data.sources import cameras
from one4d_jax.data.sources.npz import Npz, opened
from one4d_jax.data.sources.recording import Pixels, Recording
from one4d_jax.data.video import cursor
from one4d_jax.errors import DataError

TEXTS = ('caption', 'scene', 'licence', 'provenance')
_DEFAULTS = {'licence': 'not stated', 'provenance': 'pseudo:unknown'}


def recording(path: pathlib.Path, film: pathlib.Path, name: str) -> Recording:
  """What the file ``path`` tells of the video ``film``; depth stays in it. Raises DataError."""
  stored = Npz(path)
  K, poses, frames = (stored.array(key) for key in ('K', 'world_from_cam', 'frames'))
  shape = stored.shape('depth')
  count = len(frames) if frames.ndim == 1 else 0
  if not count or len(shape) != 3:
    raise DataError(f'{path}: expected frames [N] and depth [N h w], got {list(frames.shape)} and {list(shape)}')
  for key, array, want in (('K', K, (count, 3, 3)), ('world_from_cam', poses, (count, 4, 4))):
    expect(path, key, array.shape, want)
    if array.dtype.kind not in 'fiu':
      raise DataError(f'{path}: expected {key} in numbers, got {array.dtype}')
  for key in ('depth', 'valid', 'sky', 'dynamic', 'confidence'):
    if key in stored.names:
      expect(path, key, stored.shape(key), (count, *shape[1:]))
  length = len(cursor(film).video.times)
  if frames.dtype.kind not in 'iu' or frames.min() < 0 or frames.max() >= length:
    raise DataError(f'{path}: frames must be whole numbers from 0 to {length - 1}, as {film.name} has {length} frames')
  plain = {key: stored.array(key) for key in ('fps', 'metric', 'confidence_at_least', *TEXTS) if key in stored.names}
  for key, value in plain.items():
    if value.shape or (key == 'metric' and value.dtype.kind != 'b'):
      kind = 'true or false' if key == 'metric' else 'one value'
      raise DataError(f'{path}: {key} must be {kind}, got {value.dtype} {list(value.shape)}')
  if 'confidence' in stored.names and 'confidence_at_least' not in plain:
    raise DataError(f'{path} lacks confidence_at_least: the number from which on confidence makes a pixel valid')
  rate = _number(path, 'fps', plain['fps']) if 'fps' in plain else cursor(film).video.rate
  if not rate or not rate > 0:
    raise DataError(f'{path} lacks fps, a positive number: {film.name} does not tell its own')
  threshold = plain.get('confidence_at_least')
  return Recording(
    source='generic',
    name=name,
    fps=rate / even_step(frames.tolist(), path, 'frames'),
    size=shape[1:],
    K=cameras.checked_K(K, path),
    world_from_cam=cameras.checked_poses(poses, path),
    pixels=functools.partial(
      _pixels,
      path,
      film,
      tuple(frames.tolist()),
      None if threshold is None else _number(path, 'confidence_at_least', threshold),
    ),
    numbers=tuple(frames.tolist()),
    metric=bool(plain.get('metric', False)),
    **described({key: str(plain[key]) for key in TEXTS if key in plain}, name, count, path),
  )


def _pixels(path: pathlib.Path, film: pathlib.Path, frames, threshold: float | None, i: int) -> Pixels:
  stored = opened(path)
  depth = stored.row('depth', i).astype(np.float32)
  mask = lambda key: stored.row(key, i) != 0 if key in stored.names else None
  valid = mask('valid')
  valid = np.ones(depth.shape, bool) if valid is None else valid
  if threshold is not None:
    valid = valid & (stored.row('confidence', i) >= threshold)
  return Pixels(
    rgb=resized(cursor(film).frame(frames[i]), depth.shape, film),
    depth=depth,
    valid=valid,
    sky=mask('sky'),
    dynamic=mask('dynamic'),
  )


def even_step(numbers: list[int], path: pathlib.Path, what: str) -> int:
  """The one step between increasing numbers of frames. Raises DataError where there are two."""
  steps = set(np.diff(numbers).tolist()) or {1}
  if len(steps) > 1 or min(steps) < 1:
    raise DataError(
      f'{path}: {what} must increase by one and the same step, got steps {sorted(steps)[:4]}; '
      'a frame whose pose is unknown has NaN in it'
    )
  return steps.pop()


def resized(image: Image.Image, size: tuple[int, int], place: pathlib.Path) -> UInt8[np.ndarray, 'H W 3']:
  """The picture on the depth's grid (height, width), antialiased. Raises DataError where one lies on its side."""
  height, width = size
  if (image.width - image.height) * (width - height) < 0:
    raise DataError(
      f'{place} is {image.height}x{image.width} (height x width), its depth {height}x{width}: one is turned'
    )
  return np.array(image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS))


def described(texts: dict[str, str], name: str, count: int, place: pathlib.Path) -> dict:
  """The texts as arguments of ``Recording``."""
  caption, told = texts.get('caption', ''), _DEFAULTS | texts
  if told['provenance'] != 'exact' and not told['provenance'].startswith('pseudo:'):
    raise DataError(
      f'{place}: provenance must be exact (rendered, measured) or pseudo:NAME, got {told["provenance"]!r}'
    )
  return {
    'scene': told.get('scene', name),
    'licence': told['licence'],
    'provenance': told['provenance'],
    'captions': ((0, count, caption),) if caption else (),
  }


def _number(path: pathlib.Path, key: str, value: np.ndarray) -> float:
  try:
    return float(str(value))
  except ValueError as error:
    raise DataError(f'{path}: {key} must be one number, got {str(value)[:40]!r}') from error


def expect(path: pathlib.Path, key: str, got: tuple[int, ...], want: tuple[int, ...]) -> None:
  if tuple(got) != tuple(want):
    raise DataError(f'{path}: expected {key} of shape {list(want)} beside the other arrays, got {list(got)}')
