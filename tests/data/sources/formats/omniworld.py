"""Writes OmniWorld-Game's layout: two splits to a scene, each with a world of its own, not starting at frame 0."""

import json
import pathlib

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from one4d_jax.data.clip import Clip
from tests.data.sources.formats import handheld

GAP = 3  # frames that no split has, before each


def write(
  root: pathlib.Path, *, recordings: int = 1, frames: int = 17, size: tuple[int, int] = (72, 128), seed: int = 0
) -> dict[str, Clip]:
  """The truth by name of recording; its world is not that of the files."""
  truth = {}
  for first in range(0, recordings, 2):
    folder = root / f'{0xB04F88D1F85A + first:x}'
    for name in ('color', 'depth', 'camera', 'gdino_mask', 'text'):
      (folder / name).mkdir(parents=True)
    splits = []
    for i in range(min(2, recordings - first)):
      clip = handheld.clip(seed + first + i, frames=frames, size=size)
      numbers = [GAP + i * (frames + GAP) + k for k in range(frames)]
      _write_pixels(folder, clip, numbers)
      (folder / f'camera/split_{i}.json').write_text(json.dumps(_cameras(clip, handheld.world(seed + first + i))))
      caption = {'overall': {'summary': clip.caption}, 'tags': [f'split {i}', ' '], 'count': 3}
      (folder / f'text/{numbers[0]}_{numbers[-1] + 1}.json').write_text(json.dumps(caption))
      splits.append(numbers)
      truth[f'{folder.name}/split_{i}'] = clip
    (folder / 'split_info.json').write_text(json.dumps({'split_num': len(splits), 'split': splits}))
    (folder / 'fps.txt').write_text('24.0\n')
  return truth


def code(depth: np.ndarray, sky: np.ndarray) -> np.ndarray:
  """uint16: planes at 1 and 1000 of units that are 1/250 of the camera's."""
  near = depth.astype(np.float64) * 0.004
  return np.where(sky, 65535, np.round(65535 * 1000 * near / (1 + 999 * near))).astype(np.uint16)


def _write_pixels(folder: pathlib.Path, clip: Clip, numbers: list[int]) -> None:
  for k, number in enumerate(numbers):
    Image.fromarray(clip.rgb[k]).save(folder / f'color/{number:06d}.png')
    Image.fromarray(code(clip.depth[k], clip.sky[k])).save(folder / f'depth/{number:06d}.png')
    Image.fromarray(clip.dynamic[k].astype(np.uint8) * 255).save(folder / f'gdino_mask/{number:06d}.png')


def _cameras(clip: Clip, world: np.ndarray) -> dict:
  cam_from_world = np.linalg.inv(world @ clip.world_from_cam.astype(np.float64))
  x, y, z, w = Rotation.from_matrix(cam_from_world[:, :3, :3]).as_quat().T
  return {
    'focals': clip.K[:, 0, 0].tolist(),
    'cx': float(clip.K[0, 0, 2]),
    'cy': float(clip.K[0, 1, 2]),
    'quats': np.stack([w, x, y, z], axis=1).tolist(),
    'trans': cam_from_world[:, :3, 3].tolist(),
  }
