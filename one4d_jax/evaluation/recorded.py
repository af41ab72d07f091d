"""Recordings in the layout of TUM RGB-D, which Bonn RGB-D Dynamic follows: files and poses known by time stamps.

  FOLDER/rgb/1548266470.88634.png    FOLDER/depth/....png    16-bit, 5000 a metre, 0 unknown
  FOLDER/rgb.txt, depth.txt          "stamp file"            FOLDER/groundtruth.txt    "stamp tx ty tz qx qy qz qw"

The poses map camera to world. A colour image has no pose or depth of the same stamp; protocols differ in how they are
paired (``Protocol.pairing``):

  index        the sorted images and the sorted depth maps, by their place, whatever their stamps
  depth_time   each image with a depth map, by ``associate``
  pose_time    each image with a pose, by ``associate``

Bonn's poses are those of markers and are not read.
"""

import pathlib

import numpy as np
from jaxtyping import Float64

from one4d_jax.data.images import reading
from one4d_jax.data.sources import annotations, files
from one4d_jax.errors import DataError
from one4d_jax.evaluation import place
from one4d_jax.evaluation.protocol import Protocol
from one4d_jax.evaluation.sequence import Truth

PER_METRE = 5000


def read(root: pathlib.Path, name: str, protocol: Protocol) -> Truth:
  """One sequence of the protocol. Raises DataError where images, their pairs or their lists are missing."""
  folder = place.folder(root, protocol.folder.format(name))
  if protocol.pairing == 'index':
    images, depths = (_sorted(folder / kind) for kind in ('rgb', 'depth'))
    images, depths = ([paths[i] for i in protocol.chosen(len(paths))] for paths in (images, depths))
    place.enough(len(depths), protocol.lengths[name], folder, 'depth maps')
    pairs = {'depth': depths}
  else:
    kind, listed = ('depth', 'depth.txt') if protocol.pairing == 'depth_time' else ('pose', 'groundtruth.txt')
    (stamps, images), (others, values) = table(folder / 'rgb.txt'), table(folder / listed)
    matches = associate(stamps, others, within=protocol.within)
    matches = [matches[i] for i in protocol.chosen(len(matches))]
    images = [folder / images[a][0] for a, _ in matches]
    pairs = {kind: [values[b] for _, b in matches]}
  place.enough(len(images), protocol.lengths[name], folder, 'images with a pair')
  rgb = place.pictures(place.present(images, folder))
  known, lacks = {}, {}
  if 'pose' in pairs:
    known['world_from_cam'] = poses(pairs['pose'], folder / 'groundtruth.txt')
  else:
    with place.lacking(lacks, 'depth'):
      paths = [folder / path[0] if isinstance(path, list) else path for path in pairs['depth']]
      codes = place.stacked([files.codes(path) for path in place.present(paths, folder)], folder / 'depth')
      known['depth'] = codes.astype(np.float32) / PER_METRE
  fx, fy, cx, cy = protocol.focal
  K = np.tile(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), (len(rgb), 1, 1))
  return Truth(name=name, rgb=rgb, K=K, lacks=lacks, **known)


def table(path: pathlib.Path) -> tuple[Float64[np.ndarray, 'n'], list[list[str]]]:
  """Time stamps of a list and what stands behind each, without comments. Raises DataError."""
  lines = [line.replace(',', ' ').split() for line in annotations.text(path).splitlines()]
  lines = [line for line in lines if line and not line[0].startswith('#')]
  try:
    stamps = np.array([float(line[0]) for line in lines])
  except ValueError as error:
    raise DataError(f'{path}: a line does not start with a time stamp: {error}') from error
  if not lines or min(map(len, lines)) < 2:
    raise DataError(f'{path}: expected lines "stamp value ...", got {len(lines)}, some without a value')
  return stamps, [line[1:] for line in lines]


def associate(a: Float64[np.ndarray, 'n'], b: Float64[np.ndarray, 'm'], *, within: float) -> list[tuple[int, int]]:
  """Pairs of stamps less than ``within`` apart, each used once, the closest first (TUM's associate.py); by ``a``."""
  order = np.argsort(b, kind='stable')
  low, high = (np.searchsorted(b[order], a + side * within) for side in (-1, 1))
  near = [(abs(a[i] - b[j]), a[i], b[j], i, j) for i in range(len(a)) for j in order[max(low[i] - 1, 0) : high[i] + 1]]
  free_a, free_b, pairs = set(range(len(a))), set(range(len(b))), []
  for gap, _, _, i, j in sorted(near):
    if gap < within and i in free_a and j in free_b:
      free_a.remove(i)
      free_b.remove(j)
      pairs.append((i, int(j)))
  return sorted(pairs, key=lambda pair: a[pair[0]])


def poses(rows: list[list[str]], path: pathlib.Path) -> Float64[np.ndarray, 'F 4 4']:
  """World-from-camera matrices of rows ``tx ty tz qx qy qz qw``. Raises DataError."""
  try:
    numbers = np.array(rows, np.float64)
  except ValueError as error:
    raise DataError(f'{path}: a pose is not made of numbers: {error}') from error
  if numbers.ndim != 2 or numbers.shape[1] != 7:
    raise DataError(f'{path}: expected 7 numbers behind a stamp (tx ty tz qx qy qz qw), got {numbers.shape[1:]}')
  return annotations.rigid(numbers[:, 3:], numbers[:, :3])


def _sorted(folder: pathlib.Path) -> list[pathlib.Path]:
  with reading(folder):
    return sorted(path for path in folder.iterdir() if path.suffix == '.png')
