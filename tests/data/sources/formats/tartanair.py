"""Writes TartanAir's layout, version 1 or 2: two trajectories to an environment, one easy and one hard."""

import pathlib

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from one4d_jax.data.clip import Clip
from tests.data.sources.formats import handheld

SKY = 10000.0
NED = [2, 0, 1]  # forward, right, down out of right, down, forward


def write(
  root: pathlib.Path,
  *,
  recordings: int = 1,
  frames: int = 17,
  size: tuple[int, int] = (60, 80),
  seed: int = 0,
  version: int = 1,
) -> dict[str, Clip]:
  """The truth by name of recording; its world is not that of the files."""
  truth = {}
  for i in range(recordings):
    difficulty = (('Easy', 'Hard') if version == 1 else ('Data_easy', 'Data_hard'))[i % 2]
    name = f'{"office" if version == 1 else "Office"}{i // 2}/{difficulty}/P{i:03d}'
    clip = handheld.clip(seed + i, frames=frames, size=size, fov=90.0)
    _write(root / name, clip, _poses(clip, handheld.world(seed + i)), version)
    truth[name] = clip
  return truth


def _poses(clip: Clip, world: np.ndarray) -> np.ndarray:
  """[F 7]: camera to world with the axes of both renamed, quaternion x y z w."""
  world_from_cam = world @ clip.world_from_cam.astype(np.float64)
  rotation = world_from_cam[:, :3, :3][:, NED][:, :, NED]
  return np.concatenate([world_from_cam[:, NED, 3], Rotation.from_matrix(rotation).as_quat()], axis=1)


def _write(folder: pathlib.Path, clip: Clip, poses: np.ndarray, version: int) -> None:
  camera = 'left' if version == 1 else 'lcam_front'
  images, depths = folder / f'image_{camera}', folder / f'depth_{camera}'
  for made in (images, depths):
    made.mkdir(parents=True)
  np.savetxt(folder / f'pose_{camera}.txt', poses, fmt='%.17g')
  for k, (rgb, depth) in enumerate(zip(clip.rgb, np.where(clip.sky, np.float32(SKY), clip.depth), strict=True)):
    Image.fromarray(rgb).save(images / f'{k:06d}_{camera}.png')
    if version == 1:
      np.save(depths / f'{k:06d}_{camera}_depth.npy', depth)
    else:
      Image.fromarray(packed(depth)).save(depths / f'{k:06d}_{camera}_depth.png')


def packed(depth: np.ndarray) -> np.ndarray:
  """uint8 [H W 4]: the bytes of float32, the lowest as blue, as OpenCV writes four channels."""
  b, g, r, a = (depth.astype('<f4').view('<u4') >> shift & 255 for shift in (0, 8, 16, 24))
  return np.stack([r, g, b, a], axis=-1).astype(np.uint8)
