"""BEDLAM (version 1): people in rendered places, with depth in centimetres and Unreal cameras.

  SCENE/png/seq_000000/seq_000000_0000.png              1280x720; every frame at 30 fps, or every fifth
  SCENE/depth/seq_000000/seq_000000_0000_depth.exr      float32 channel 'Depth', planar z in cm
  SCENE/ground_truth/camera/seq_000000_camera.csv       a row a frame: place in cm, angles in degrees, lens in mm
  SCENE/masks/seq_000000/seq_000000_0000_env.png        optional; people in ..._00_body.png, ..._00_clothing.png, ...

Axes: Unreal's x forward, y right, z up (left-handed); yaw about z (positive turns right), then pitch about the new y
(positive looks up), then roll about the new x (positive is clockwise). With OpenCV's axes that is the place
(y, -z, x) and the rotation Ry(yaw) Rx(pitch) Rz(roll). ``closeup`` scenes are portraits that were filmed with the
camera on its side: image and camera are turned upright here.

Colour has motion blur and depth has not, so the two disagree at the edges of what moves fast. No edge is cut off
here: the blur's width is not known, and one pixel at full size would be none after the resize.

Formats: the documents and post-processing of github.com/PerceivingSystems/bedlam_render.
"""

import csv
import functools
import pathlib

import numpy as np
from jaxtyping import Bool, Float32, Float64

from one4d_jax.data.images import reading
from one4d_jax.data.sources import exr, files
from one4d_jax.data.sources.recording import Listed, Pixels, Recording
from one4d_jax.errors import DataError

FPS = 30
FAR = 200.0  # metres; what is further is taken for the sky

# What is behind the people in these is a photograph on a dome: the depth of the background is not that of the place.
HDRI_SCENES = (
  '20221010_3_1000_batch01hand',
  '20221017_3_1000_batch01hand',
  '20221018_3-8_250_batch01hand',
  '20221019_3_250_highbmihand',
)

_SUBSET = '_6fps'  # ends the name of a scene's folder that holds every fifth frame
_PORTRAIT = 'closeup'
_COLUMNS = ('x', 'y', 'z', 'yaw', 'pitch', 'roll', 'focal_length', 'sensor_width', 'sensor_height')
_QUARTER = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # upright camera -> the one on its side

_LICENCE = 'BEDLAM licence (Max Planck): registered users, non-commercial research, no redistribution'
_UNVERIFIED = (
  f'Depth beyond {FAR:g} m is taken for the sky; the set has no mask of it.',
  'People are marked as moving where SCENE/masks has the frame; no archive was at hand to see how many frames it has.',
)


def find(root: pathlib.Path) -> list[Listed]:
  """The sequences under ``root``, a folder of scenes or one scene; ``HDRI_SCENES`` are left out. Raises DataError."""
  root = pathlib.Path(root).resolve()
  scenes = [path for path in (root, *files.folders(root)) if (path / 'png').is_dir()]
  found = []
  for folder in scenes:
    scene = folder.name.removesuffix(_SUBSET)
    if scene not in HDRI_SCENES:
      for sequence in files.folders(folder / 'png'):
        name = f'{folder.name}/{sequence.name}'
        found.append(Listed(name, functools.partial(_open, folder, sequence.name)))
  if not found:
    left_out = ' (the HDRI scenes have no real background and do not count)' if scenes else ''
    raise DataError(
      f'{root} holds no BEDLAM sequence{left_out}; expected SCENE/png/seq_000000/*.png, '
      'SCENE/depth/seq_000000/*_depth.exr and SCENE/ground_truth/camera/seq_000000_camera.csv'
    )
  return sorted(found, key=lambda listed: listed.name)


def _open(folder: pathlib.Path, sequence: str) -> Recording:
  """The frames that have both an image and depth, at the even step that most of them follow each other by."""
  images = files.numbered(folder / 'png' / sequence, rf'{sequence}_(\d+)\.png')
  depths = files.numbered(folder / 'depth' / sequence, rf'{sequence}_(\d+)_depth\.exr')
  both = sorted(images.keys() & depths.keys())
  if not both:
    raise DataError(
      f'{folder.name}/{sequence}: {len(images)} images in png/ and {len(depths)} files in depth/, none for the same '
      f'frame; both belong below {folder}'
    )
  step = int(np.median(np.diff(both))) if len(both) > 1 else 1
  numbers = tuple(range(both[0], both[-1] + 1, step))
  size = files.image_size(images[number] for number in both)
  rows = _camera_rows(folder / 'ground_truth' / 'camera' / f'{sequence}_camera.csv')
  unknown = np.full(len(_COLUMNS), np.nan)
  camera = np.array([rows.get(f'{sequence}_{number:04d}.png', unknown) for number in numbers])
  K, pose = _intrinsics(camera, size), _poses(camera)
  portrait = _PORTRAIT in folder.name
  if portrait:
    K, pose, size = *_upright(K, pose, size), size[::-1]
  return Recording(
    source='bedlam',
    scene=folder.name.removesuffix(_SUBSET),
    name=f'{folder.name}/{sequence}',
    fps=FPS / step,
    size=size,
    K=K,
    world_from_cam=pose,
    pixels=functools.partial(_pixels, folder, sequence, numbers, portrait),
    numbers=numbers,
    licence=_LICENCE,
    unverified=_UNVERIFIED,
  )


def _camera_rows(path: pathlib.Path) -> dict[str, Float64[np.ndarray, 'C']]:
  """The numbers of ``_COLUMNS`` by the name of the image."""
  try:
    with reading(path), open(path, newline='', encoding='utf-8') as file:
      table = csv.DictReader(file)
      absent = {'name', *_COLUMNS}.difference(table.fieldnames or ())
      if absent:
        raise DataError(f'{path} has no column {", ".join(sorted(absent))}')
      rows = {}
      for row in table:
        try:
          rows[row['name']] = np.array([float(row[column]) for column in _COLUMNS])
        except (TypeError, ValueError) as error:
          raise DataError(f'{path}, line {table.line_num}: not a row of numbers: {list(row.values())}') from error
      return rows
  except (UnicodeDecodeError, csv.Error) as error:
    raise DataError(f'{path} is damaged or no CSV file: {error}') from error


def _intrinsics(camera: Float64[np.ndarray, 'N C'], size: tuple[int, int]) -> Float64[np.ndarray, 'N 3 3']:
  """K in pixels of the stored image, of height and width ``size``."""
  height, width = size
  focal, sensor_width, sensor_height = camera[:, 6:].T
  K = np.zeros((len(camera), 3, 3))
  K[:, 0, 0], K[:, 1, 1] = focal / sensor_width * width, focal / sensor_height * height
  K[:, :, 2] = width / 2, height / 2, 1
  return K


def _poses(camera: Float64[np.ndarray, 'N C']) -> Float64[np.ndarray, 'N 4 4']:
  """World from camera, in metres and OpenCV's axes."""
  x, y, z = camera[:, :3].T / 100
  (cy, cp, cr), (sy, sp, sr) = (f(np.radians(camera[:, 3:6])).T for f in (np.cos, np.sin))
  o, i = np.zeros_like(x), np.ones_like(x)
  about_y = np.array([[cy, o, sy], [o, i, o], [-sy, o, cy]])
  about_x = np.array([[i, o, o], [o, cp, -sp], [o, sp, cp]])
  about_z = np.array([[cr, -sr, o], [sr, cr, o], [o, o, i]])
  pose = np.tile(np.eye(4), (len(camera), 1, 1))
  pose[:, :3, :3] = np.einsum('abn,bcn,cdn->nad', about_y, about_x, about_z)
  pose[:, :3, 3] = np.stack([y, -z, x], axis=1)
  return pose


def _upright(K, pose, size: tuple[int, int]) -> tuple[Float64[np.ndarray, 'N 3 3'], Float64[np.ndarray, 'N 4 4']]:
  """Camera of the image turned by 90 degrees clockwise: its point (height - v, u) is (u, v) of the stored one."""
  height = size[0]
  turned = K.copy()
  turned[:, 0, 0], turned[:, 1, 1] = K[:, 1, 1], K[:, 0, 0]
  turned[:, 0, 2], turned[:, 1, 2] = height - K[:, 1, 2], K[:, 0, 2]
  pose = pose.copy()
  pose[:, :3, :3] @= _QUARTER
  return turned, pose


def _pixels(folder: pathlib.Path, sequence: str, numbers: tuple[int, ...], portrait: bool, i: int) -> Pixels:
  stem = f'{sequence}_{numbers[i]:04d}'
  depth = _depth(folder / 'depth' / sequence / f'{stem}_depth.exr')
  finite = np.isfinite(depth)
  far = finite & (depth > FAR)
  dynamic = _people(folder / 'masks' / sequence, stem)
  turn = functools.partial(np.rot90, k=-1) if portrait else lambda image: image
  return Pixels(
    rgb=turn(files.colour(folder / 'png' / sequence / f'{stem}.png')),
    depth=turn(depth),
    valid=turn(finite & (depth > 0) & ~far),
    sky=turn(far),
    dynamic=None if dynamic is None else turn(dynamic),
  )


def _depth(path: pathlib.Path) -> Float32[np.ndarray, 'H W']:
  """In metres."""
  with reading(path):
    stored = path.read_bytes()
  return exr.channel(stored, ('Depth',), path) / 100


def _people(folder: pathlib.Path, stem: str) -> Bool[np.ndarray, 'H W'] | None:
  """Pixels on bodies, clothes and hair; None for a frame without masks.

  Each has its own mask, left out where it is not in view. The environment's mask is written for every frame, so it
  tells that the frame was processed; what it leaves open need not be a person (the sky, say), so it tells no more.
  """
  environment = folder / f'{stem}_env.png'
  if not environment.is_file():
    return None
  people = np.zeros(files.image_size([environment]), bool)
  for path in sorted(folder.glob(f'{stem}_[0-9][0-9]_*.png')):
    mask = files.colour(path)[..., 0] > 127
    if mask.shape != people.shape:
      raise DataError(f'{path} is {mask.shape}, {environment.name} {people.shape} (height, width)')
    people |= mask
  return people
