"""OmniWorld-Game: 24 fps game footage with the engine's depth, cut into splits that each have cameras of their own.

A scene is one folder, with its archives extracted into it:

  UID/color/000000.png  depth/000000.png  camera/split_0.json  split_info.json  fps.txt
      text/START_END.json  gdino_mask/000000.png (both optional)

Each split is one recording: world coordinates and scale differ between the splits of a scene. The metadata table's
'Test Split Index' is not used: what is held out here are whole scenes.

Zhou et al., OmniWorld, arXiv 2509.12201; formats as in the scripts of the set's repository.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from one4d_jax.data.sources import annotations, files
from one4d_jax.data.sources.recording import Listed, Pixels, Recording
from one4d_jax.errors import DataError

BROKEN = ('05017c153ac9', '05346c2f4648')  # scenes that others who prepare the set leave out as damaged
LAYOUT = 'UID/split_info.json with color/, depth/ and camera/ beside it (all archives of a scene in one folder)'
LICENCE = 'CC BY-NC-SA 4.0; game content for non-commercial research only'
UNVERIFIED = (
  'OmniWorld-Game: fps.txt is taken to hold one number, the rate of the frames of a split.',
  'OmniWorld-Game: START and END of text/START_END.json are taken for frame numbers as in split_info.json.',
  'OmniWorld-Game: pixels of gdino_mask that are not black are taken to move.',
  'OmniWorld-Game: depth and cameras of a split are taken to share one scale, not metres.',
)


# What a 16-bit code of depth means. The engine's planes are at 1 and 1000; z is 0 where too near to tell, or sky.
_SHARE = np.arange(65536) / 65535
_SKY = np.arange(65536) > 65500
_DEPTH = np.where((_SHARE < 0.0015) | _SKY, 0, _SHARE / (1000 - 999 * _SHARE) / 0.004).astype(np.float32)


def find(root: str | pathlib.Path) -> list[Listed]:
  """The splits under a folder of scenes, up to two levels down, or of one scene.

  Raises:
    DataError: there is none.
  """
  root = pathlib.Path(root).resolve()
  folders = [path.parent for prefix in ('', '*/', '*/*/') for path in root.glob(prefix + 'split_info.json')]
  folders = [folder for folder in folders if folder.name not in BROKEN]
  if not folders:
    raise DataError(f'{root} holds no OmniWorld-Game scene (but for {", ".join(BROKEN)}, left out); expected {LAYOUT}')
  listed = []
  for folder in folders:
    # A scene without its camera files is listed all the same, for `open` to tell.
    for camera in list(folder.glob('camera/split_*.json')) or [folder / 'camera/split_0.json']:
      name = f'{folder.name}/{camera.stem}'
      listed.append(Listed(name, functools.partial(_open, folder, camera)))
  return sorted(listed, key=lambda found: found.name)


def _open(folder: pathlib.Path, camera: pathlib.Path) -> Recording:
  frames = _frames(folder / 'split_info.json', camera)
  focals, centre, world_from_cam = _cameras(camera, len(frames))
  numbers = np.arange(frames[0], frames[-1] + 1)  # a frame that the split leaves out has no pose
  rows = np.searchsorted(frames, numbers)
  listed = (frames[rows] == numbers)[:, None, None]
  K = np.tile(np.eye(3), (len(numbers), 1, 1))
  K[:, 0, 0] = K[:, 1, 1] = focals[rows]
  K[:, :2, 2] = centre
  return Recording(
    source='omniworld',
    scene=folder.name,
    name=f'{folder.name}/{camera.stem}',
    fps=_fps(folder / 'fps.txt'),
    size=files.image_size(folder / f'color/{frame:06d}.png' for frame in frames),
    K=K,
    world_from_cam=np.where(listed, world_from_cam[rows], np.nan),
    pixels=functools.partial(_pixels, folder, int(frames[0])),
    numbers=tuple(numbers.tolist()),
    captions=_captions(folder / 'text', int(frames[0]), len(numbers)),
    licence=LICENCE,
    metric=False,
    unverified=UNVERIFIED,
  )


def _frames(info: pathlib.Path, camera: pathlib.Path) -> np.ndarray:
  """int [S]: numbers of the frames in the split of ``camera``, rising."""
  stored = annotations.parse_json(info)
  try:
    frames = np.array(stored['split'][int(camera.stem.removeprefix('split_'))])
  except (KeyError, IndexError, TypeError, ValueError) as error:
    raise DataError(f'{info} has no list of frames for {camera.name}: {error!r}') from error
  if frames.ndim != 1 or frames.dtype.kind != 'i' or not len(frames) or (np.diff(frames) <= 0).any() or frames[0] < 0:
    raise DataError(f'{info}: the frames of {camera.name} are no rising list of whole numbers')
  return frames


def _cameras(path: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Focal lengths [S], the principal point [2], world_from_cam [S 4 4]; null or NaN in a row stays NaN.

  The file has world-to-camera motions as quaternions (w, x, y, z) and a principal point that is meant, as ours is,
  for pixel centres at one half.
  """
  stored = annotations.parse_json(path)
  try:
    focals, quaternions, translations = (np.array(stored[name], np.float64) for name in ('focals', 'quats', 'trans'))
    centre = np.array([stored['cx'], stored['cy']], np.float64)
  except (KeyError, TypeError, ValueError) as error:
    raise DataError(f'{path}: expected numbers focals, cx, cy, quats, trans: {error!r}') from error
  if (focals.shape, quaternions.shape, translations.shape, centre.shape) != ((count,), (count, 4), (count, 3), (2,)):
    shapes = [list(value.shape) for value in (focals, quaternions, translations)]
    raise DataError(f'{path}: focals, quats and trans are {shapes}; split_info.json lists {count} frames')
  return focals, centre, annotations.inverse(annotations.rigid(np.roll(quaternions, -1, axis=1), translations))


def _fps(path: pathlib.Path) -> float:
  stored = annotations.text(path).strip()
  try:
    fps = float(stored)
  except ValueError:
    fps = 0.0
  if not 0 < fps < 1000:
    raise DataError(f'{path} holds no frame rate: {stored[:40]!r}')
  return fps


def _captions(folder: pathlib.Path, first: int, count: int) -> tuple[tuple[int, int, str], ...]:
  """The captions whose windows touch the frames ``first`` .. ``first + count - 1``."""
  found = []
  for path in folder.glob('*.json'):
    start, _, end = path.stem.partition('_')
    if not (start.isdigit() and end.isdigit()):
      raise DataError(f'{path}: expected START_END.json, in numbers of frames')
    window = max(int(start) - first, 0), min(int(end) - first, count)
    if window[0] < window[1]:
      found.append((*window, ' '.join(_strings(annotations.parse_json(path)))))
  return tuple(sorted(found))


def _strings(value: Any) -> Iterator[str]:
  """The texts in a JSON value, in order: how the set names them is not documented."""
  if isinstance(value, str):
    yield from [value.strip()] if value.strip() else []
  elif isinstance(value, dict | list):
    for part in value.values() if isinstance(value, dict) else value:
      yield from _strings(part)


def _pixels(folder: pathlib.Path, first: int, i: int) -> Pixels:
  name = f'{first + i:06d}.png'
  code = files.codes(folder / 'depth' / name)
  depth, mask = _DEPTH[code], folder / 'gdino_mask' / name
  return Pixels(
    rgb=files.colour(folder / 'color' / name),
    depth=depth,
    valid=depth > 0,
    sky=_SKY[code],
    dynamic=files.colour(mask).any(axis=-1) if mask.is_file() else None,
  )
