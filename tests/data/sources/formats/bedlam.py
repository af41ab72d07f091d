"""Writes BEDLAM's layout: a plain scene, then one whose lens zooms, then a portrait filmed with the camera on its side.

Angles come from Unreal's own definition of a rotation (the columns that yaw, pitch and roll give the axes forward,
right and up), not from a product of turns as the reader forms it.
"""

import dataclasses
import pathlib

import numpy as np
import OpenEXR
from PIL import Image

from one4d_jax.data.clip import Clip
from tests.data.sources.formats import handheld

SCENES = (
  '20221013_3_250_batch01hand_orbit_bigOffice',
  '20221020-3-8_250_highbmihand_zoom_highSchoolGym_a',
  '20221012_3-10_500_batch01hand_closeup_suburb_a',
)
HEADER = 'name,x,y,z,yaw,pitch,roll,focal_length,sensor_width,sensor_height,hfov'
SENSOR = 36.0  # mm across
SKY = 1e6  # cm


def write(
  root: pathlib.Path, *, recordings: int = 1, frames: int = 17, size: tuple[int, int] = (72, 128), seed: int = 0
) -> dict[str, Clip]:
  """The truth by name of recording, portraits upright; `size` is that of the stored images, (height, width)."""
  truth = {}
  for k in range(recordings):
    scene, sequence = SCENES[k % len(SCENES)], f'seq_{k:06d}'
    portrait = 'closeup' in scene
    shape = size[::-1] if portrait else size
    clip = _zooming(seed + k, frames, shape) if 'zoom' in scene else _plain(seed + k, frames, shape)
    _write(root / scene, sequence, clip, handheld.world(seed + k), portrait)
    truth[f'{scene}/{sequence}'] = clip
  return truth


def _plain(seed: int, frames: int, size: tuple[int, int]) -> Clip:
  return handheld.clip(seed, frames=frames, size=size)


def _zooming(seed: int, frames: int, size: tuple[int, int]) -> Clip:
  """Frame i is that of a clip rendered with the i-th lens."""
  shots = [handheld.clip(seed, frames=frames, size=size, fov=fov) for fov in np.linspace(70, 40, frames)]
  names = [field.name for field in dataclasses.fields(Clip) if field.name not in ('caption', 'meta')]
  return dataclasses.replace(
    shots[0], **{name: np.stack([getattr(shot, name)[i] for i, shot in enumerate(shots)]) for name in names}
  )


def _write(folder: pathlib.Path, sequence: str, clip: Clip, world: np.ndarray, portrait: bool) -> None:
  for name in ('png', 'depth', 'masks'):
    (folder / name / sequence).mkdir(parents=True)
  (folder / 'ground_truth' / 'camera').mkdir(parents=True)
  turn = (lambda image: np.rot90(image)) if portrait else (lambda image: image)  # clockwise again by the reader
  height, width = clip.size[::-1] if portrait else clip.size
  table = [HEADER]
  for i in range(clip.frames):
    stem = f'{sequence}_{i:04d}'
    pose = world @ clip.world_from_cam[i].astype(np.float64)
    right, down, forward = pose[:3, :3].T
    if portrait:  # what is right in the stored image is down in the upright one, and its down is left there
      right, down = down, -right
    focal = clip.K[i, 0, 0] / width * SENSOR
    numbers = [*_unreal(pose[:3, 3]) * 100, *_angles(*map(_unreal, (forward, right, -down)))]
    numbers += [focal, SENSOR, SENSOR * height / width, np.degrees(2 * np.arctan(SENSOR / 2 / focal))]
    table.append(','.join([f'{stem}.png', *(f'{value:.7f}' for value in numbers)]))
    Image.fromarray(turn(clip.rgb[i])).save(folder / 'png' / sequence / f'{stem}.png')
    depth = np.where(clip.sky[i], np.float32(SKY), clip.depth[i] * np.float32(100))
    header = {'type': OpenEXR.scanlineimage, 'compression': OpenEXR.ZIP_COMPRESSION}
    channels = {'Depth': np.ascontiguousarray(turn(depth))}
    OpenEXR.File(header, channels).write(str(folder / 'depth' / sequence / f'{stem}_depth.exr'))
    people = clip.dynamic[i]
    masks = {'env': ~people & ~clip.sky[i]} | ({'00_body': people} if people.any() else {})
    for name, mask in masks.items():
      Image.fromarray(turn(mask).astype(np.uint8) * 255).save(folder / 'masks' / sequence / f'{stem}_{name}.png')
  (folder / 'ground_truth' / 'camera' / f'{sequence}_camera.csv').write_text('\n'.join(table) + '\n')


def _unreal(vector: np.ndarray) -> np.ndarray:
  """Right, down, forward -> forward, right, up."""
  right, down, forward = vector
  return np.array([forward, right, -down])


def _angles(forward: np.ndarray, right: np.ndarray, up: np.ndarray) -> np.ndarray:
  """Yaw, pitch, roll in degrees of Unreal's axes given in Unreal's coordinates; checked by turning them back."""
  yaw, pitch, roll = np.arctan2(forward[1], forward[0]), np.arcsin(forward[2]), np.arctan2(-right[2], up[2])
  (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
  again = [
    [cp * cy, cp * sy, sp],
    [sr * sp * cy - cr * sy, sr * sp * sy + cr * cy, -sr * cp],
    [-cr * sp * cy - sr * sy, sr * cy - cr * sp * sy, cr * cp],
  ]
  np.testing.assert_allclose(again, [forward, right, up], atol=1e-6)
  return np.degrees([yaw, pitch, roll])
