"""ScanNet v2 as its own exporter unpacks a scan: ``SCENE/color/0.jpg``, ``SCENE/pose/0.txt`` (4x4, camera to world).

Where a scan lost its pose, the pose is written as infinities; a sequence that takes such a frame is not scored.
"""

import pathlib

import numpy as np

from one4d_jax.data.sources import annotations, files
from one4d_jax.errors import DataError
from one4d_jax.evaluation import place
from one4d_jax.evaluation.protocol import Protocol
from one4d_jax.evaluation.sequence import Truth


def read(root: pathlib.Path, name: str, protocol: Protocol) -> Truth:
  """One scene. Raises DataError where images are missing."""
  folder = place.folder(root, name)
  images = files.numbered(folder / 'color', r'(\d+)\.jpg')
  numbers = list(images)
  numbers = [numbers[i] for i in protocol.chosen(len(numbers))]
  place.enough(len(numbers), protocol.lengths[name], folder / 'color', 'images')
  known, lacks = {}, {}
  with place.lacking(lacks, 'trajectory'):
    texts = place.present([folder / 'pose' / f'{i}.txt' for i in numbers], folder / 'pose')
    known['world_from_cam'] = np.stack([_pose(path) for path in texts])
  return Truth(name=name, rgb=place.pictures([images[i] for i in numbers]), lacks=lacks, **known)


def _pose(path: pathlib.Path) -> np.ndarray:
  pose = annotations.rows(path, 4)
  if pose.shape != (4, 4) or not np.isfinite(pose).all():
    raise DataError(f'{path} holds no finite 4x4 pose')
  return pose
