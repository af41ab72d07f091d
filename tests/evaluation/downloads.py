"""Writes procedural clips as the files of each benchmark, and predictions as the folders of other methods."""

import pathlib

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from one4d_jax.data import render
from one4d_jax.data.clip import Clip

TAG = np.float32(202021.25).tobytes()


def clip(seed: int = 0, *, frames: int, height: int = 16, width: int = 32) -> Clip:
  """A clip whose camera moves, sky and all."""
  return render.clip(seed, level='hard', split='test', frames=frames, height=height, width=width, supersample=1)


def sintel(root: pathlib.Path, name: str, clip: Clip, *, depth: bool = True, cameras: bool = True) -> None:
  """``depth`` is infinite where the clip has none, as far as a float goes."""
  for part in ('final', 'depth', 'camdata_left'):
    (root / 'training' / part / name).mkdir(parents=True, exist_ok=True)
  height, width = clip.size
  for i in range(clip.frames):
    at = lambda part, suffix, i=i: root / 'training' / part / name / f'frame_{i + 1:04d}.{suffix}'
    Image.fromarray(clip.rgb[i]).save(at('final', 'png'))
    if depth:
      z = np.where(clip.valid[i], clip.depth[i], 1e10).astype('<f4')
      at('depth', 'dpt').write_bytes(TAG + np.array([width, height], '<i4').tobytes() + z.tobytes())
    if cameras:
      extrinsic = np.linalg.inv(clip.world_from_cam[i].astype(np.float64))[:3]
      content = TAG + clip.K[i].astype('<f8').tobytes() + extrinsic.astype('<f8').tobytes()
      at('camdata_left', 'cam').write_bytes(content)


def recorded(
  folder: pathlib.Path, clip: Clip, *, stamps: np.ndarray, depth_stamps=None, pose_stamps=None, depth=None
) -> None:
  """TUM RGB-D. Images at ``stamps``; depth maps (metres) and poses at their own, if given, one for each image."""
  (folder / 'rgb').mkdir(parents=True)
  names = [f'{stamp:.5f}' for stamp in stamps]
  for name, image in zip(names, clip.rgb, strict=True):
    Image.fromarray(image).save(folder / 'rgb' / f'{name}.png')
  (folder / 'rgb.txt').write_text('# color images\n' + ''.join(f'{name} rgb/{name}.png\n' for name in names))
  if depth_stamps is not None:
    (folder / 'depth').mkdir()
    names = [f'{stamp:.5f}' for stamp in depth_stamps]
    for name, metres in zip(names, depth, strict=True):
      Image.fromarray(np.round(metres * 5000).astype(np.uint16)).save(folder / 'depth' / f'{name}.png')
    (folder / 'depth.txt').write_text('# depth maps\n' + ''.join(f'{name} depth/{name}.png\n' for name in names))
  if pose_stamps is not None:
    rows = [f'{s:.5f} {tum(pose)}\n' for s, pose in zip(pose_stamps, clip.world_from_cam, strict=True)]
    (folder / 'groundtruth.txt').write_text('# ground truth trajectory\n' + ''.join(rows))


def tum(pose: np.ndarray, *, w_first: bool = False) -> str:
  """``tx ty tz qx qy qz qw``."""
  quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat(scalar_first=w_first)
  return ' '.join(f'{x:.17g}' for x in (*pose[:3, 3], *quaternion))


def monst3r(folder: pathlib.Path, *, depth=None, poses=None, K=None) -> None:
  """What MonST3R leaves of a sequence."""
  folder.mkdir(parents=True)
  for i, z in enumerate(() if depth is None else depth):
    np.save(folder / f'frame_{i:04d}.npy', z.astype(np.float32))
  if poses is not None:
    rows = ''.join(f'{i} {tum(pose, w_first=True)}\n' for i, pose in enumerate(poses))
    (folder / 'pred_traj.txt').write_text(rows)
  if K is not None:
    np.savetxt(folder / 'pred_intrinsics.txt', K.reshape(-1, 9))


def similar(poses: np.ndarray, *, seed: int = 0, noise: float = 0.0) -> np.ndarray:
  """The path in another world and unit, its centres off by ``noise``."""
  rng = np.random.default_rng(seed)
  turn, found = Rotation.random(rng=seed).as_matrix(), poses.astype(np.float64).copy()
  centres = found[:, :3, 3] + noise * rng.normal(size=(len(found), 3))
  found[:, :3, :3] = turn @ found[:, :3, :3]
  found[:, :3, 3] = 0.3 * centres @ turn.T + [1, -2, 3]
  return found
