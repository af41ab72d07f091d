"""What was written and read again, compared with the truth."""

from collections.abc import Sequence

import numpy as np
import pytest

from one4d_jax.data.clip import Clip
from one4d_jax.data.sources.recording import Listed, Recording, cuts
from one4d_jax.errors import DataError


def clips(listed: Sequence[Listed]) -> list[Clip]:
  """Every clip of the recordings, as ``prepare`` cuts them, at full size."""
  recordings = [found.open() for found in listed]
  return [recording.read(indices) for recording in recordings for indices in cuts(len(recording), recording.fps)]


def relative(world_from_cam: np.ndarray) -> np.ndarray:
  """[F 4 4] in float64: as seen from the first camera."""
  poses = world_from_cam.astype(np.float64)
  return np.linalg.inv(poses[0]) @ poses


def pose_error(recording: Recording, truth: Clip) -> float:
  """The largest difference of an entry of the relative poses."""
  return np.abs(relative(recording.world_from_cam) - relative(truth.world_from_cam)).max()


def points(K: np.ndarray, world_from_cam: np.ndarray, depth: np.ndarray, u: int, v: int) -> np.ndarray:
  """[F 3]: where pixel (u, v) of each frame lies, in coordinates of the first camera."""
  rays = np.linalg.inv(K.astype(np.float64)) @ [u + 0.5, v + 0.5, 1]
  poses = relative(world_from_cam)
  return (poses[:, :3, :3] @ (rays * depth[:, v, u, None])[..., None])[..., 0] + poses[:, :3, 3]


def agreement(clip: Clip) -> float:
  """The share of static pixels of the first frame whose depth the last frame confirms to a tenth of a percent.

  Knows nothing of the truth: only a clip whose cameras, intrinsics and depth fit each other scores high.
  """
  height, width = clip.size
  still = clip.valid & ~clip.dynamic
  v, u = np.nonzero(still[0])
  K = clip.K[0].astype(np.float64)
  rays = np.linalg.inv(K) @ np.stack([u + 0.5, v + 0.5, np.ones(len(u))])
  last_from_first = np.linalg.inv(relative(clip.world_from_cam)[-1])
  seen = last_from_first[:3, :3] @ (rays * clip.depth[0, v, u]) + last_from_first[:3, 3:]
  x, y = (K @ seen)[:2] / seen[2] - 0.5
  inside = (seen[2] > 0) & (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
  x, y, z = x[inside], y[inside], seen[2, inside]
  left, top = x.astype(int), y.astype(int)
  corners = [(top + i, left + j, abs(1 - i - (y - top)) * abs(1 - j - (x - left))) for i in (0, 1) for j in (0, 1)]
  known = np.all([still[-1][i, j] for i, j, _ in corners], axis=0)
  inverse = sum(weight / np.where(known, clip.depth[-1][i, j], 1) for i, j, weight in corners)  # linear on a plane
  return float((np.abs(z * inverse - 1) < 1e-3)[known].mean())


def check_frame_1_alone_is_spoilt(recording: Recording, says: str) -> None:
  """Damage to its files does not keep the recording from opening, nor other frames from being read."""
  assert len(recording) == 6
  recording.frame(0)
  with pytest.raises(DataError, match=says):
    recording.frame(1)
