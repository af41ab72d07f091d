"""Predictions of other methods: a folder a sequence, in one of two layouts.

  scene.npz                                     what ``python -m one4d_jax.sample`` writes
  pred_traj.txt, pred_intrinsics.txt,           what MonST3R and those that follow it (Geo4D, CUT3R) write: frames count
  frame_0000.npy, frame_0001.npy, ...           from 0, depth is planar z, K is 9 numbers a row in pixels of the depth

Poses map camera to world. A row of ``pred_traj.txt`` is ``t x y z qw qx qy qz``: w comes first, against the order of
TUM's format, which it otherwise resembles. A trajectory in that order is called ``trajectory.tum`` and may stand in its
place. Not all files need to be there: what is missing is not scored, and the row says so.
"""

import hashlib
import pathlib

import numpy as np
from jaxtyping import Float64

from one4d_jax.data.clip import signed
from one4d_jax.data.sources import annotations, files
from one4d_jax.errors import DataError
from one4d_jax.evaluation import place, recorded
from one4d_jax.evaluation.sequence import Prediction
from one4d_jax.model import pointmap
from one4d_jax.viewer import scene

W_FIRST, W_LAST, INTRINSICS = 'pred_traj.txt', 'trajectory.tum', 'pred_intrinsics.txt'


def find(root: pathlib.Path, *names: str) -> pathlib.Path:
  """The folder of a sequence, which may go by any of these names. Raises DataError where there is none."""
  for name in names:
    if (root / name).is_dir():
      return root / name
  raise DataError(f'{root} has no prediction of it: no folder {" or ".join(dict.fromkeys(names))}')


def read(folder: pathlib.Path) -> Prediction:
  """The prediction in a folder of either layout. Raises DataError where there is nothing to score."""
  if (folder / scene.FILE).is_file():
    found = scene.load(folder)
    return Prediction(
      depth=found.depth,
      valid=found.valid,
      points=found.pointmap,
      K=found.K,
      world_from_cam=found.world_from_cam,
      rgb=signed(found.rgb),
      residual=found.residual,
      notes=(scene.FILE,),
    )
  maps = files.numbered(folder, r'frame_(\d+)\.npy')
  trajectory = next((folder / name for name in (W_FIRST, W_LAST) if (folder / name).is_file()), None)
  if not maps and trajectory is None:
    raise DataError(f'{folder} holds no prediction: expected {scene.FILE}, or {W_FIRST} and frame_0000.npy')
  known, lacks, notes = {}, {}, []
  if maps:
    with place.lacking(lacks, 'depth'):
      known['depth'] = _depth(folder, maps)
      notes.append(f'{len(maps)} depth maps')
  else:
    lacks['depth'] = f'{folder} holds no frame_0000.npy'
  if trajectory is None:
    lacks['trajectory'] = f'{folder} holds neither {W_FIRST} nor {W_LAST}'
  else:
    with place.lacking(lacks, 'trajectory'):
      known['world_from_cam'] = poses(trajectory)
      notes.append(f'{trajectory.name}, quaternions with w {"first" if trajectory.name == W_FIRST else "last"}')
  if (folder / INTRINSICS).is_file():
    with place.lacking(lacks, 'geometry'):
      known['K'] = _intrinsics(folder / INTRINSICS)
  if {'depth', 'K', 'world_from_cam'} <= known.keys() and len({len(value) for value in known.values()}) == 1:
    known['points'] = pointmap.from_depth(known['depth'], known['K'], known['world_from_cam'])
  return Prediction(**known, lacks=lacks, notes=tuple(notes))


def poses(path: pathlib.Path) -> Float64[np.ndarray, 'F 4 4']:
  """World-from-camera matrices of a trajectory file, in the order that its name stands for. Raises DataError."""
  _, rows = recorded.table(path)
  if path.name == W_FIRST:
    rows = [row[:3] + row[4:] + row[3:4] for row in rows]
  return recorded.poses(rows, path)


def _intrinsics(path: pathlib.Path) -> Float64[np.ndarray, 'F 3 3']:
  K = annotations.rows(path, 9).reshape(-1, 3, 3)
  wrong = ~(np.isfinite(K).all(axis=(1, 2)) & (K[:, [0, 1], [0, 1]] > 0).all(axis=1))
  if wrong.any():
    raise DataError(f'{path}: row {wrong.argmax() + 1} is no K with positive focal lengths ({wrong.sum()} such rows)')
  return K


def _depth(folder: pathlib.Path, maps: dict[int, pathlib.Path]) -> np.ndarray:
  paths = [folder / f'frame_{i:04d}.npy' for i in range(max(maps) + 1)]
  depth = place.stacked([files.array(path) for path in place.present(paths, folder)], folder)
  if depth.ndim != 3 or depth.dtype.kind not in 'fiu':
    raise DataError(f'{folder}: expected depth [H W] in numbers, got {depth.dtype} {list(depth.shape[1:])}')
  return depth.astype(np.float32)


def identity(root: pathlib.Path) -> str:
  """What tells these predictions from others: a hash of the names and sizes of all files, 16 hex digits."""
  listed = sorted((str(path.relative_to(root)), path.stat().st_size) for path in root.rglob('*') if path.is_file())
  return hashlib.sha256(repr(listed).encode()).hexdigest()[:16]
