"""SpatialVID and SpatialVID-HQ: clips of web video with pseudo geometry, as their groups unpack.

  videos/GROUP/ID.mp4
  annotations/GROUP/ID/poses.npy         [N 7] world-to-camera translation and quaternion xyzw, OpenCV axes
                       intrinsics.npy    [N 4] fx / width, fy / height, cx / width, cy / height
                       indexes.txt       a line each: index of the annotation, index of the video's frame
                       caption.json, dyn_masks.npz (optional)
  depths/GROUP/ID.zip                    an OpenEXR file each: half-float channel Z, inverse depth
  geometry/**/ID.npz                     optional: another reconstructor's, in the layout of ``generic``

Only annotated frames are read, about 5 a second, on the grid of the depth; that is MegaSaM's geometry, in no unit.
Where ``geometry`` has a video, it takes the place of all that: run a 4D reconstructor on more of its frames to get
clips of 16 per second.
"""

import dataclasses
import functools
import os
import pathlib
import threading
import zipfile
import zlib

import numpy as np
from jaxtyping import Bool, Float32

from one4d_jax.data.frames import natural_key
from one4d_jax.data.images import reading
from one4d_jax.data.kept import kept
from one4d_jax.data.sources import annotations, exr, files, reconstructed
from one4d_jax.data.sources.npz import opened
from one4d_jax.data.sources.recording import Listed, Pixels, Recording
from one4d_jax.data.video import cursor
from one4d_jax.errors import DataError

LICENCE = 'CC BY-NC-SA 4.0'
_NEAR, _FAR = 1e-3, 1e2  # where the set's own tools clip depth: what lies beyond was not measured
_SCENE_TEXTS = ('SceneSummary', 'SceneDescription', 'SceneDesc')
_CAMERA_TEXTS = ('OptCamMotion', 'CamMotion')
UNVERIFIED = (
  'SpatialVID: the video is the unit of hold-out, as the films that they are cut from are not public.',
  'SpatialVID: line i of indexes.txt, row i of the poses and the i-th depth file by name belong together.',
  'SpatialVID: keys of caption.json as the tools of the set write them.',
)


def find(root: str | pathlib.Path) -> list[Listed]:
  """Every video under the root. Raises DataError where there is none."""
  root = pathlib.Path(root)
  with reading(root):
    os.listdir(root)
  films = sorted(root.glob('videos/*/*.mp4'), key=lambda p: natural_key(f'{p.parent.name}/{p.stem}'))
  if not films:
    raise DataError(
      f'{root} holds no video of SpatialVID; expected videos/GROUP/ID.mp4 beside annotations/ and depths/'
    )
  geometry: dict[str, list[pathlib.Path]] = {}
  for path in sorted(root.glob('geometry/**/*.npz')):
    geometry.setdefault(path.stem, []).append(path)
  return [
    Listed(
      name=f'{film.parent.name}/{film.stem}',
      open=functools.partial(_open, root, film, tuple(geometry.get(film.stem, ()))),
    )
    for film in films
  ]


def _open(root: pathlib.Path, film: pathlib.Path, geometry: tuple[pathlib.Path, ...]) -> Recording:
  group, name = film.parent.name, film.stem
  folder = root / 'annotations' / group / name
  caption = _caption(folder / 'caption.json')
  if len(geometry) > 1:
    raise DataError(f'{name} has geometry twice: {geometry[0]} and {geometry[1]}; keep one')
  if geometry:
    made = reconstructed.recording(geometry[0], film, name)
    texts = {'source': 'spatialvid', 'name': f'{group}/{name}', 'licence': LICENCE, 'unverified': UNVERIFIED[:1]}
    return dataclasses.replace(made, **texts, captions=made.captions or _captions(caption, len(made)))
  frames = _frames(folder / 'indexes.txt')
  poses, intrinsics = (_numbers(folder / f'{key}.npy', n) for key, n in (('poses', 7), ('intrinsics', 4)))
  depths = root / 'depths' / group / f'{name}.zip'
  members = _archive(depths).members
  counts = {'indexes.txt': len(frames), 'poses.npy': len(poses), 'intrinsics.npy': len(intrinsics)}
  counts[f'{depths.name} (depth files)'] = len(members)
  if len(set(counts.values())) > 1:
    raise DataError(f'{folder}: counts of frames differ: ' + ', '.join(f'{key} {n}' for key, n in counts.items()))
  video = cursor(film).video
  if frames[-1] >= len(video.times):
    raise DataError(f'{folder / "indexes.txt"} names frame {frames[-1]}; {film.name} has {len(video.times)} frames')
  if not video.rate:
    raise DataError(f'{film} does not tell how many frames it has a second')
  size = _size(depths)
  K = np.zeros((len(frames), 3, 3))
  K[:, [0, 1, 0, 1], [0, 1, 2, 2]] = intrinsics * (size[1], size[0], size[1], size[0])
  K[:, 2, 2] = 1
  masks = folder / 'dyn_masks.npz'
  return Recording(
    source='spatialvid',
    scene=name,
    name=f'{group}/{name}',
    fps=video.rate / reconstructed.even_step(frames, folder / 'indexes.txt', 'the frames of the video'),
    size=size,
    K=K,
    world_from_cam=annotations.inverse(annotations.rigid(poses[:, 3:], poses[:, :3])),
    pixels=functools.partial(_pixels, film, depths, masks if masks.exists() else None, tuple(frames)),
    numbers=tuple(frames),
    captions=_captions(caption, len(frames)),
    licence=LICENCE,
    provenance='pseudo:megasam',
    metric=False,
    unverified=UNVERIFIED,
  )


# -- Annotation -------------------------------------------------------------------------------------------------------


def _frames(path: pathlib.Path) -> list[int]:
  """Index of the video's frame for each annotation; a first line in words is a heading."""
  frames = []
  for number, line in enumerate(annotations.text(path).splitlines()):
    words = line.replace(',', ' ').split()
    if not words or (number == 0 and not any(word.isdecimal() for word in words)):
      continue
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[0]) != len(frames):
      raise DataError(f'{path}, line {number + 1}: expected "{len(frames)} FRAME", got {line[:40]!r}')
    frames.append(int(words[1]))
  if not frames:
    raise DataError(f'{path} is empty; expected a line "INDEX FRAME" for each annotated frame')
  return frames


def _numbers(path: pathlib.Path, columns: int) -> np.ndarray:
  array = files.array(path)
  if array.dtype.kind not in 'fiu' or array.shape[1:] != (columns,):
    raise DataError(f'{path}: expected numbers [N {columns}], got {array.dtype} {list(array.shape)}')
  return array.astype(np.float64)


def _caption(path: pathlib.Path) -> str:
  """The scene, then the camera, of whatever texts there are."""
  if not path.exists():
    return ''
  told = annotations.parse_json(path)
  text = lambda key: told[key].strip() if isinstance(told, dict) and isinstance(told.get(key), str) else ''
  scene, camera = ([text(key) for key in keys if text(key)] for keys in (_SCENE_TEXTS, _CAMERA_TEXTS))
  return ' '.join(dict.fromkeys(scene[:2] + camera[:1]))


def _captions(caption: str, count: int) -> tuple[tuple[int, int, str], ...]:
  return ((0, count, caption),) if caption else ()


# -- Pixels -----------------------------------------------------------------------------------------------------------


def _pixels(
  film: pathlib.Path, depths: pathlib.Path, masks: pathlib.Path | None, frames: tuple[int, ...], i: int
) -> Pixels:
  inverse = _archive(depths).read(i)
  with np.errstate(divide='ignore', invalid='ignore'):
    depth = 1 / inverse
  valid = np.isfinite(inverse) & (depth > _NEAR) & (depth < _FAR)
  rgb = cursor(film).frame(frames[i])
  return Pixels(
    rgb=reconstructed.resized(rgb, depth.shape, film),
    depth=depth,
    valid=valid,
    dynamic=None if masks is None else _dynamic(masks, i, depth.shape),
  )


def _dynamic(path: pathlib.Path, i: int, size: tuple[int, int]) -> Bool[np.ndarray, 'H W']:
  """Mask ``i``, kept as a sparse matrix by rows, by the nearest pixel on a grid of ``size``."""
  stored = opened(path)
  shape, values, columns, starts = (
    stored.array(key) for key in ('shape', *(f'f_{i}_{part}' for part in ('data', 'indices', 'indptr')))
  )
  whole = all(array.dtype.kind in 'iu' for array in (shape, columns, starts)) and shape.shape == (2,)
  if not whole or starts.shape != (shape[0] + 1,) or columns.shape != values.shape or columns.ndim != 1:
    raise DataError(f'{path}: arrays of mask {i} do not fit each other')
  counts = np.diff(starts.astype(np.int64))
  inside = not columns.size or (columns.min() >= 0 and columns.max() < shape[1])
  if starts[0] != 0 or starts[-1] != columns.size or (counts < 0).any() or not inside:
    raise DataError(f'{path}: mask {i} has pixels outside of its {shape[0]} x {shape[1]}')
  mask = np.zeros(tuple(shape), bool)
  mask[np.repeat(np.arange(shape[0]), counts), columns] = values != 0
  rows, cols = ((np.arange(n) * 2 + 1) * int(old) // (2 * n) for n, old in zip(size, shape, strict=True))
  return mask[rows[:, None], cols]


class _Zip:
  """The depth files of an archive in the order of their names, read one by one in memory."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._lock = threading.Lock()
    try:
      with reading(path):
        self._archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
      raise DataError(f'{path} is damaged or no zip file: {error}') from error
    names = [name for name in self._archive.namelist() if name.lower().endswith('.exr')]
    self.members = sorted(names, key=natural_key)

  def read(self, i: int) -> Float32[np.ndarray, 'H W']:
    """What depth file ``i`` holds. Raises DataError naming the member."""
    place = f'{self.path}: {self.members[i]}'
    try:
      with self._lock:
        data = self._archive.read(self.members[i])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
      raise DataError(f'{place} is damaged: {error}') from error
    return exr.channel(data, ('Z',), place)


_archive = kept(_Zip)


def _size(path: pathlib.Path) -> tuple[int, int]:
  """(height, width) of the first depth file that can be read, as some are damaged."""
  archive, problem = _archive(path), f'{path} holds no depth file (.exr)'
  for i in range(len(archive.members)):
    try:
      return archive.read(i).shape
    except DataError as error:
      problem = str(error)
  raise DataError(problem)
