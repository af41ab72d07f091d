"""A user's own footage with known or reconstructed geometry, in any of three layouts at any depth under the root.

Folder      ``rgb/`` or ``images/`` (an image each frame), ``depth/`` (the same stems: 16-bit .png, .npy, .npz with
            one array or ``depth``, .exr) and ``cameras.json``, which states every convention:

  {"fps": 30, "size": [480, 640], "axes": "opencv", "pose": "world_from_cam", "pixel_centre": 0.5,
   "depth": "z", "depth_scale": 0.001, "invalid": 0, "sky": null, "metric": true, "provenance": "exact",
   "frames": [{"name": "000000", "K": [[...], ...], "pose": [[...], ...]}, ...]}

            ``size`` is [height, width] of the depth, and ``K`` (or ``fx fy cx cy``) is in its pixels; either may
            stand beside ``frames`` for all of them. ``pose`` of a frame is 4x4, or null where it is unknown.
            ``depth_scale`` is the length of one stored unit; ``invalid`` and ``sky`` are values as stored.
            Optional: caption, scene (what is held out as a whole), licence, provenance, metric.
Video       ``NAME.mp4`` beside ``NAME.npz``: depth [N h w] (planar z; what is not positive and finite is unknown),
            K [N 3 3] in pixels of the depth's h x w, world_from_cam [N 4 4], frames [N] (indices into the video at an
            even step). OpenCV axes, pixel centres at + 0.5. Optional [N h w]: valid, sky, dynamic, confidence (then
            with the number confidence_at_least). Optional 0-d: metric, fps (of the video, where its container does
            not tell), and the texts caption, scene, licence, provenance.
Scene       a folder that ``python -m one4d_jax.sample`` wrote (``scene.npz``, ``run.json``).

The depth's grid is kept, as resampling depth would invent surfaces at edges: RGB of another size is resized to it.
"""

import functools
import os
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64

from one4d_jax.data.frames import natural_key
from one4d_jax.data.images import SUFFIXES, load_image, reading
from one4d_jax.data.sources import annotations, cameras, exr, files, reconstructed
from one4d_jax.data.sources.npz import Npz, opened
from one4d_jax.data.sources.recording import Listed, Pixels, Recording
from one4d_jax.errors import DataError

CAMERAS, SCENE = 'cameras.json', 'scene.npz'
VIDEOS = ('.mp4', '.mov', '.mkv', '.webm', '.avi')
_IMAGES, _DEPTHS = ('rgb', 'images'), ('.png', '.npy', '.npz', '.exr')
_DEPTH_CHANNELS = ('Z', 'Depth', 'depth', 'Y', 'V', 'R')


def find(root: str | pathlib.Path) -> list[Listed]:
  """Every recording under the root, whole or not. Raises DataError where there is none."""
  root = pathlib.Path(root)
  with reading(root):
    os.listdir(root)
  found: dict[str, Callable] = {}

  def add(path: pathlib.Path, read: Callable) -> None:
    name = path.relative_to(root).as_posix() if path != root else root.resolve().name
    if name in found:
      raise DataError(f'{root}: two recordings are called {name}; rename one')
    found[name] = functools.partial(read, path, name)

  for folder, folders, names in os.walk(root):
    here = pathlib.Path(folder)
    framed = 'depth' in folders and any(name in folders for name in _IMAGES)
    if SCENE in names or CAMERAS in names or framed:
      add(here, scene if SCENE in names else images)
      folders.clear()
      continue
    for name in names:
      if name.endswith('.npz') and name[0] != '.':
        add((here / name).with_suffix(''), video)
  if not found:
    raise DataError(
      f'{root} holds no recording; expected folders with rgb/, depth/ and {CAMERAS}, videos NAME.mp4 beside NAME.npz, '
      f'or folders with {SCENE}'
    )
  return [Listed(name, found[name]) for name in sorted(found, key=natural_key)]


# -- Video beside NAME.npz --------------------------------------------------------------------------------------------


def video(path: pathlib.Path, name: str) -> Recording:
  """The recording of ``PATH.npz`` and ``PATH.mp4``. Raises DataError."""
  file = next((p for suffix in VIDEOS if (p := path.with_name(path.name + suffix)).is_file()), None)
  if file is None:
    raise DataError(f'{path}.npz has no video {path.name}.mp4 beside it ({" ".join(VIDEOS)})')
  return reconstructed.recording(path.with_name(path.name + '.npz'), file, name)


# -- Folder of images and depth ---------------------------------------------------------------------------------------


def images(folder: pathlib.Path, name: str) -> Recording:
  """The recording of a folder with ``cameras.json``. Raises DataError."""
  place = folder / CAMERAS
  stated = cameras.read(place)
  pictures = next((folder / sub for sub in _IMAGES if (folder / sub).is_dir()), folder / _IMAGES[0])
  shown, known = _stems(pictures, SUFFIXES), _stems(folder / 'depth', _DEPTHS)
  stems = [frame['name'] for frame in stated['frames']]
  if unnamed := sorted(shown.keys() - set(stems), key=natural_key):
    raise DataError(
      f'{place} does not name {unnamed[0]} of {pictures.name}/ ({len(unnamed)} such frames); list every image, without '
      'its suffix, with "pose": null where it is unknown'
    )
  K, poses = cameras.canonical(stated)
  return Recording(
    source='generic',
    name=name,
    fps=float(stated['fps']),
    size=tuple(stated['size']),
    K=K,
    world_from_cam=poses,
    pixels=functools.partial(
      _image_pixels,
      tuple(shown.get(stem, pictures / f'{stem}.png') for stem in stems),
      tuple(known.get(stem, folder / 'depth' / f'{stem}.png') for stem in stems),
      {key: stated[key] for key in ('depth', 'depth_scale', 'invalid', 'sky')},
      K,
    ),
    numbers=tuple(range(len(stems))),
    metric=stated.get('metric', False),
    **reconstructed.described(
      {key: stated[key] for key in reconstructed.TEXTS if key in stated}, name, len(stems), place
    ),
  )


def _stems(folder: pathlib.Path, suffixes: tuple[str, ...]) -> dict[str, pathlib.Path]:
  with reading(folder):
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in suffixes and p.name[0] != '.']
  stems = {p.stem: p for p in paths}
  for path in paths:
    if stems[path.stem] != path:
      raise DataError(f'{folder} holds {path.name} and {stems[path.stem].name}: which is meant? Keep one')
  return stems


def _image_pixels(rgb, depth, stated: dict, K: Float64[np.ndarray, 'N 3 3'], i: int) -> Pixels:
  stored = _stored_depth(depth[i])
  is_value = lambda key: np.zeros(stored.shape, bool) if stated[key] is None else stored == np.float32(stated[key])
  scaled = stored * np.float32(stated['depth_scale'])
  if stated['depth'] == 'ray':
    scaled = cameras.planar(scaled, K[i])
  return Pixels(
    rgb=reconstructed.resized(load_image(rgb[i]), stored.shape, rgb[i]),
    depth=scaled,
    valid=~is_value('invalid'),
    sky=is_value('sky'),
  )


def _stored_depth(path: pathlib.Path) -> Float32[np.ndarray, 'H W']:
  """Depth as its file holds it."""
  if path.suffix.lower() == '.png':
    return files.codes(path).astype(np.float32)
  if path.suffix.lower() == '.exr':
    with reading(path):
      return exr.channel(path.read_bytes(), _DEPTH_CHANNELS, path)
  if path.suffix.lower() == '.npz':
    stored = Npz(path)
    array = stored.array(next(iter(stored.names)) if len(stored.names) == 1 else 'depth')
  else:
    array = files.array(path)
  if array.ndim != 2 or array.dtype.kind not in 'fiu':
    raise DataError(f'{path}: expected depth [H W] in numbers, got {array.dtype} {list(array.shape)}')
  return array.astype(np.float32)


# -- Scene of this program --------------------------------------------------------------------------------------------


def scene(folder: pathlib.Path, name: str) -> Recording:
  """The recording of a folder that ``one4d_jax.sample`` wrote. Raises DataError."""
  stored, run = Npz(folder / SCENE), folder / 'run.json'
  K, poses, scale = (stored.array(key).astype(np.float64) for key in ('K', 'world_from_cam', 'scale'))
  metric = bool(np.isfinite(scale))
  unit = float(scale) if metric else 1.0
  shape = stored.shape('depth')
  for key, want in (
    ('rgb', (*shape, 3)),
    ('valid', shape),
    ('K', (shape[0], 3, 3)),
    ('world_from_cam', (shape[0], 4, 4)),
  ):
    reconstructed.expect(stored.path, key, stored.shape(key), want)
  described = annotations.parse_json(run)
  try:
    fps, prompt = float(described['fps']['in_time']), str(described.get('prompt') or '')
  except (KeyError, TypeError, ValueError) as error:
    raise DataError(f'{run} does not tell fps.in_time; it is not of this program') from error
  poses[:, :3, 3] *= unit
  return Recording(
    source='generic',
    name=name,
    fps=fps,
    size=shape[1:],
    K=K,
    world_from_cam=cameras.checked_poses(poses, stored.path),
    pixels=functools.partial(_scene_pixels, stored.path, unit),
    numbers=tuple(range(len(K))),
    metric=metric,
    **reconstructed.described({'caption': prompt, 'provenance': 'pseudo:one4d'}, name, len(K), run),
  )


def _scene_pixels(path: pathlib.Path, unit: float, i: int) -> Pixels:
  stored = opened(path)
  depth = stored.row('depth', i).astype(np.float32) * np.float32(unit)
  return Pixels(rgb=stored.row('rgb', i), depth=depth, valid=stored.row('valid', i) != 0)
