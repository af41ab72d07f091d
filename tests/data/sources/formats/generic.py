"""Writes rendered clips in the three layouts of a user's own footage."""

import json
import pathlib

import numpy as np
import OpenEXR
from PIL import Image

from one4d_jax.data.clip import Clip
from one4d_jax.viewer.scene import Scene
from tests.data.sources.formats import films, handheld

UNIT = 1 / 1000  # of 16-bit depth
SKY = 65535


def write(
  root: pathlib.Path, *, recordings: int = 1, frames: int = 17, size: tuple[int, int] = (48, 64), seed: int = 0
) -> dict[str, Clip]:
  """The truth by name of recording; layouts by turns, each in a world of its own."""
  truth = {}
  for i in range(recordings):
    clip = handheld.clip(seed + i, frames=frames, size=size)
    name = f'take_{i}/shot'
    path = root / name
    path.parent.mkdir(parents=True)
    (write_images, write_video, write_scene)[i % 3](path, clip, handheld.world(seed + i))
    truth[name] = clip
  return truth


def write_images(path: pathlib.Path, clip: Clip, world: np.ndarray, *, suffix: str = '.png', **stated) -> dict:
  """`stated` are keys of cameras.json as the files are to be written; returns all of them."""
  stored = {
    'fps': 16, 'size': list(clip.size), 'axes': 'opencv', 'pose': 'world_from_cam', 'pixel_centre': 0.5, 'depth': 'z',
    'depth_scale': UNIT, 'invalid': 0, 'sky': SKY, 'metric': True, 'provenance': 'exact', 'caption': clip.caption,
  } | stated  # fmt: skip
  for name in ('rgb', 'depth'):
    (path / name).mkdir(parents=True)
  stored['frames'] = []
  for i in range(clip.frames):
    K = clip.K[i].astype(np.float64)
    distance = clip.depth[i].astype(np.float64)
    if stored['depth'] == 'ray':
      distance = np.linalg.norm(points(distance, K), axis=-1)
    K[:2, 2] += stored['pixel_centre'] - 0.5
    pose = world @ clip.world_from_cam[i].astype(np.float64)
    if stored['axes'] == 'opengl':  # x right, y up, z backwards
      pose = np.stack([pose[:, 0], -pose[:, 1], -pose[:, 2], pose[:, 3]], axis=1)
    if stored['pose'] == 'cam_from_world':
      pose = np.linalg.inv(pose)
    stem = f'{i + 1}'
    Image.fromarray(clip.rgb[i]).save(path / 'rgb' / f'{stem}.png')
    write_depth(path / 'depth' / f'{stem}{suffix}', distance / stored['depth_scale'], clip.sky[i], stored['sky'])
    stored['frames'].append({'name': stem, 'K': K.tolist(), 'pose': pose.tolist()})
  (path / 'cameras.json').write_text(json.dumps(stored))
  return stored


def write_depth(path: pathlib.Path, values: np.ndarray, sky: np.ndarray, code: float) -> None:
  values = np.where(sky, code, values)
  match path.suffix:
    case '.png':
      Image.fromarray(np.round(values).astype(np.uint16)).save(path)
    case '.npy':
      np.save(path, values.astype(np.float32))
    case '.npz':
      np.savez_compressed(path, depth=values.astype(np.float32), other=np.zeros(3))
    case '.exr':
      OpenEXR.File({'type': OpenEXR.scanlineimage}, {'Z': values.astype(np.float32)}).write(str(path))


def write_video(path: pathlib.Path, clip: Clip, world: np.ndarray, *, step: int = 1, **arrays) -> dict:
  """`arrays` replace or add to those of the .npz; None leaves one out."""
  films.write(path.with_name(path.name + '.mp4'), films.between(clip.rgb, step), fps=16 * step)
  stored = {
    'depth': np.where(clip.sky, np.nan, clip.depth),
    'K': clip.K,
    'world_from_cam': world @ clip.world_from_cam.astype(np.float64),
    'frames': np.arange(clip.frames) * step,
    'sky': clip.sky,
    'provenance': 'pseudo:renderer',
    'caption': clip.caption,
  } | arrays
  stored = {key: value for key, value in stored.items() if value is not None}
  np.savez_compressed(path.with_name(path.name + '.npz'), **stored)
  return stored


def write_scene(path: pathlib.Path, clip: Clip, world: np.ndarray, *, scale: float = 2.0) -> None:
  """As the sampler leaves it, lengths in units of `scale` metres."""
  pose = world @ clip.world_from_cam.astype(np.float64)
  pose[:, :3, 3] /= scale
  path.mkdir()
  Scene(
    rgb=clip.rgb,
    pointmap=np.zeros((*clip.rgb.shape[:3], 3)),
    depth=clip.depth / np.float32(scale),
    valid=clip.valid,
    K=clip.K,
    world_from_cam=pose,
    observed=np.ones(clip.frames),
    residual=np.zeros(clip.frames),
    scale=scale,
  ).save(path)
  (path / 'run.json').write_text(json.dumps({'fps': {'in_time': 16.0, 'playback': 16.0}, 'prompt': clip.caption}))
  (path / 'cameras.json').write_text('{"camera_model": "OPENCV", "frames": []}')  # another program's, beside it


def points(depth: np.ndarray, K: np.ndarray) -> np.ndarray:
  """[H W 3] in the camera, of planar depth with pixel centres at + 0.5."""
  v, u = np.indices(depth.shape) + 0.5
  return depth[..., None] * np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], axis=-1)
