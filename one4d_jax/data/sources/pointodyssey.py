"""PointOdyssey 1.2: long Blender films with depth, in units that differ from scene to scene.

  SPLIT/SEQUENCE/rgbs/rgb_00000.jpg        960x540, 30 fps
  SPLIT/SEQUENCE/depths/depth_00000.png    16-bit planar z, 0 .. 1000 units as 0 .. 65535
  SPLIT/SEQUENCE/anno.npz                  intrinsics [T 3 3] in pixels, extrinsics [T 4 4] camera from world (OpenCV)
  SPLIT/SEQUENCE/info.npz                  shapes; not in the versions whose cameras are wrong

The highest code is 1000 units or more: the sky, and just as well smoke and fog, which Blender gives no depth.

Formats: github.com/y-zheng18/point_odyssey. Its generator writes the principal point as (width / 2, height / 2), the
middle of a Blender image counted from the image's corner: that is this project's convention, so K is left as it is.
"""

import functools
import pathlib

import numpy as np
from jaxtyping import Float64

from one4d_jax.data.sources import annotations, files
from one4d_jax.data.sources.npz import Npz
from one4d_jax.data.sources.recording import Listed, Pixels, Recording
from one4d_jax.errors import DataError

FPS = 30
UNIT = 1000 / 65535  # of depth, a step of the code
FAR = 65535  # the code of everything at 1000 units and beyond

_LICENCE = 'CC BY-NC-SA 4.0'
_UNVERIFIED = (
  'Depth and cameras are those of version 1.2; earlier ones are not told apart by more than info.npz, and their '
  'cameras are wrong.',
  'The highest depth code is taken for the sky; smoke and fog have it as well.',
  'The principal point is counted from the corner of the image, as the public generator writes it.',
  'Frames are 30 per second.',
)


def find(root: pathlib.Path) -> list[Listed]:
  """The sequences under ``root``, a folder of splits or one split. Raises DataError."""
  root = pathlib.Path(root).resolve()
  below = files.folders(root)
  sequences = [path for folder in (root, *below) for path in files.folders(folder) if (path / 'rgbs').is_dir()]
  if not sequences:
    raise DataError(
      f'{root} holds no PointOdyssey sequence; expected SPLIT/SEQUENCE/rgbs/rgb_00000.jpg, '
      'depths/depth_00000.png, anno.npz and info.npz'
    )
  found = [Listed(_name(path), functools.partial(_open, path)) for path in sequences]
  return sorted(found, key=lambda listed: listed.name)


def _name(folder: pathlib.Path) -> str:
  return f'{folder.parent.name}/{folder.name}'


def _open(folder: pathlib.Path) -> Recording:
  if not all((folder / name).is_file() for name in ('anno.npz', 'info.npz')):
    raise DataError(
      f'{folder} lacks anno.npz or info.npz, which version 1.2 of PointOdyssey has; the cameras of earlier versions '
      'are wrong: download it again'
    )
  images = files.numbered(folder / 'rgbs', r'rgb_(\d+)\.jpg')
  if not images:
    raise DataError(f'{folder / "rgbs"} holds no image rgb_00000.jpg')
  count = max(images) + 1
  K, extrinsics = _annotation(folder / 'anno.npz', count)
  return Recording(
    source='pointodyssey',
    scene=folder.name,
    name=_name(folder),
    fps=FPS,
    size=files.image_size(images.values()),
    K=K,
    world_from_cam=annotations.inverse(extrinsics),
    pixels=functools.partial(_pixels, folder),
    numbers=tuple(range(count)),
    licence=_LICENCE,
    metric=False,
    unverified=_UNVERIFIED,
  )


def _annotation(path: pathlib.Path, count: int) -> tuple[Float64[np.ndarray, 'N 3 3'], Float64[np.ndarray, 'N 4 4']]:
  """Intrinsics and extrinsics of the first ``count`` frames, NaN where the file ends before."""
  stored, result = Npz(path), []
  for name, side in (('intrinsics', 3), ('extrinsics', 4)):
    array = stored.array(name)
    if array.ndim != 3 or array.shape[1:] != (side, side) or array.dtype.kind != 'f':
      raise DataError(f'{path}: {name} are {array.dtype} {array.shape}; expected floats (frames, {side}, {side})')
    rows = np.full((count, side, side), np.nan)
    rows[: len(array)] = array[:count]
    result.append(rows)
  return tuple(result)


def _pixels(folder: pathlib.Path, i: int) -> Pixels:
  code = files.codes(folder / 'depths' / f'depth_{i:05d}.png')
  return Pixels(
    rgb=files.colour(folder / 'rgbs' / f'rgb_{i:05d}.jpg'),
    depth=code.astype(np.float32) * np.float32(UNIT),
    valid=(code > 0) & (code < FAR),
    sky=code == FAR,
  )
