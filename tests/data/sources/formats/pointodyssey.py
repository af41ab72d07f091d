"""Writes PointOdyssey's layout, one sequence to a split in turn."""

import pathlib

import numpy as np
from PIL import Image

from one4d_jax.data.clip import Clip
from tests.data.sources.formats import handheld

SPLITS = ('train', 'val', 'test')
SEQUENCES = ('cnb_dlab_0215_3rd', 'dancing', 'kitchen_gfloor_ego1')
FARTHEST = 1000.0


def write(
  root: pathlib.Path, *, recordings: int = 1, frames: int = 17, size: tuple[int, int] = (54, 96), seed: int = 0
) -> dict[str, Clip]:
  """The truth by name of recording; its world is not that of the files."""
  truth = {}
  for k in range(recordings):
    name = f'{SPLITS[k % 3]}/{SEQUENCES[k % 3]}' + (f'_{k // 3}' if k >= 3 else '')
    truth[name] = handheld.clip(seed + k, frames=frames, size=size)
    _write(root / name, truth[name], handheld.world(seed + k))
  return truth


def _write(folder: pathlib.Path, clip: Clip, world: np.ndarray) -> None:
  for name in ('rgbs', 'depths'):
    (folder / name).mkdir(parents=True)
  depth = np.where(clip.sky, 1e10, clip.depth)  # what Blender gives where nothing is hit
  codes = (np.clip(depth, 0, FARTHEST) * 65535 / FARTHEST).astype(np.uint16)  # cut off, not rounded
  for i in range(clip.frames):
    Image.fromarray(clip.rgb[i]).save(folder / 'rgbs' / f'rgb_{i:05d}.jpg', quality=95)
    Image.fromarray(codes[i]).save(folder / 'depths' / f'depth_{i:05d}.png')
  tracks = np.zeros((clip.frames, 4, 3), np.float32)
  annotation = {
    'intrinsics': clip.K,
    'extrinsics': np.linalg.inv(world @ clip.world_from_cam.astype(np.float64)).astype(np.float32),
    'trajs_3d': tracks,
  }
  np.savez(folder / 'anno.npz', **annotation)
  np.savez(folder / 'info.npz', **{name: array.shape for name, array in annotation.items()})
