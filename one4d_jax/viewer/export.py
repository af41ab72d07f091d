"""A scene as a folder of files that other programs open; all of them, or none.

Everything is written into a temporary folder, which takes its final name when it is whole.
"""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float, UInt8

from one4d_jax.errors import DataError
from one4d_jax.viewer import html, pictures
from one4d_jax.viewer import scene as scenes
from one4d_jax.viewer.scene import Scene

FILES = (
  scenes.FILE,
  'rgb.mp4',
  'xyz.mp4',
  'depth.mp4',
  'preview.png',
  'cameras.json',
  'trajectory.tum',
  'scene.html',
  'run.json',
)
_EXTRAS = ('colmap', 'points', 'scene.glb')  # exports on request: they belong to the scene that is replaced
_SHOWN_HEIGHT = 256  # smaller videos are enlarged by whole numbers for players


def write_scene(
  scene: Scene, out: str | pathlib.Path, *, run: dict, overwrite: bool = False, fps: float
) -> list[pathlib.Path]:
  """Writes the files of ``FILES`` to the folder ``out`` and returns their paths.

  ``run`` becomes ``run.json``; ``fps`` is the rate of the videos, the trajectory and the viewer. An existing scene
  is replaced only with ``overwrite``, and stays until the new one is whole; files in it that no scene has are kept.
  Raises DataError as ``check_out``; after any failure ``out`` is as it was.
  """
  out = check_out(out, overwrite=overwrite)
  with _whole_folder(out) as folder:
    scene.save(folder)
    write_video(folder / 'rgb.mp4', scene.rgb, fps)
    write_video(folder / 'xyz.mp4', pictures.xyz_colours(scene.pointmap, scene.valid), fps)
    write_video(folder / 'depth.mp4', pictures.depth_colours(scene.depth, scene.valid), fps)
    pictures.contact_sheet(scene).save(folder / 'preview.png')
    _write_json(folder / 'cameras.json', nerfstudio(scene))
    (folder / 'trajectory.tum').write_text(tum(scene.world_from_cam, fps))
    (folder / 'scene.html').write_text(html.scene_html(scene, fps=fps), encoding='utf-8')
    _write_json(folder / 'run.json', run)
  return [out / name for name in FILES]


def check_out(out: str | pathlib.Path, *, overwrite: bool) -> pathlib.Path:
  """The absolute folder, if a scene can be written there; else raises DataError with the remedy."""
  path = pathlib.Path(out).expanduser().resolve()
  if path.exists() and not path.is_dir():
    raise DataError(f'--out {out} is a file; name a folder')
  if path.is_dir() and any(path.iterdir()):
    if not (path / scenes.FILE).is_file():
      raise DataError(f'--out {out} is a folder with other files in it; name a new or an empty one')
    if not overwrite:
      raise DataError(f'--out {out} already holds a scene; add --overwrite to replace it, or name another folder')
  try:
    with tempfile.TemporaryFile(dir=_existing(path.parent)):
      pass
  except OSError as error:
    raise DataError(f'--out {out} cannot be written ({error.strerror}); name another folder') from error
  return path


def write_video(path: pathlib.Path, frames: UInt8[np.ndarray, 'F H W 3'], fps: float) -> None:
  """H.264, yuv420p: enlarged by a whole number to at least 256 lines, edges repeated to even sizes."""
  factor = max(-(-_SHOWN_HEIGHT // frames.shape[1]), 1)
  height, width = frames.shape[1] * factor, frames.shape[2] * factor
  pad = ((0, height % 2), (0, width % 2), (0, 0))
  rate = Fraction(fps).limit_denominator(1001)
  with av.open(str(path), 'w', options={'movflags': 'faststart'}) as container:
    stream = container.add_stream('libx264', rate=rate, options={'crf': '16', 'preset': 'medium'})
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, 'yuv420p'
    for frame in frames:
      shown = np.pad(frame.repeat(factor, axis=0).repeat(factor, axis=1), pad, mode='edge')
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format='rgb24')))
    container.mux(stream.encode(None))


def nerfstudio(scene: Scene) -> dict:
  """The cameras as nerfstudio's transforms: camera to world, camera axes of OpenGL (x right, y up, z backward)."""
  height, width = scene.size
  opengl = scene.world_from_cam.astype(np.float64) * np.array([1, -1, -1, 1])  # negates the y and z columns
  frames = [
    {
      'file_path': f'images/frame_{i:05d}.png',
      'fl_x': float(K[0, 0]),
      'fl_y': float(K[1, 1]),
      'cx': float(K[0, 2]),
      'cy': float(K[1, 2]),
      'w': width,
      'h': height,
      'transform_matrix': opengl[i].tolist(),
    }
    for i, K in enumerate(scene.K)
  ]
  return {
    'camera_model': 'PINHOLE',
    'description': (
      'transform_matrix maps camera to world. Camera axes are those of OpenGL: x right, y up, z backward. The world '
      'is the first camera in OpenCV axes: x right, y down, z forward. Pixel centres lie at (u + 0.5, v + 0.5). '
      'The images are the array rgb of scene.npz, in this order.'
    ),
    'frames': frames,
  }


def tum(world_from_cam: Float[np.ndarray, 'F 4 4'], fps: float) -> str:
  """The trajectory in TUM's order, ``t tx ty tz qx qy qz qw``, camera to world, OpenCV axes, seconds."""
  lines = ['# t tx ty tz qx qy qz qw: camera to world, OpenCV axes, world = first camera']
  for i, pose in enumerate(world_from_cam.astype(np.float64)):
    values = [i / fps, *pose[:3, 3], *quaternion_xyzw(pose[:3, :3])]
    lines.append(' '.join(f'{v:.9g}' for v in values))
  return '\n'.join(lines) + '\n'


def quaternion_xyzw(rotation: Float[np.ndarray, '3 3']) -> Float[np.ndarray, '4']:
  """Unit quaternion with w >= 0: the dominant eigenvector of Bar-Itzhack's matrix, stable for every rotation."""
  (a, b, c), (d, e, f), (g, h, i) = rotation
  K = np.array(
    [
      [a - e - i, b + d, c + g, h - f],
      [b + d, e - a - i, f + h, c - g],
      [c + g, f + h, i - a - e, d - b],
      [h - f, c - g, d - b, a + e + i],
    ]
  )
  q = np.linalg.eigh(K)[1][:, -1]
  return q if q[3] >= 0 else -q


def _write_json(path: pathlib.Path, value: dict) -> None:
  path.write_text(json.dumps(value, indent=2, default=str) + '\n')


@contextlib.contextmanager
def _whole_folder(out: pathlib.Path):
  """A temporary folder beside ``out`` that becomes ``out`` if the block succeeds and vanishes if not."""
  home = _existing(out.parent)
  folder = pathlib.Path(tempfile.mkdtemp(prefix=f'.{out.name}.new-', dir=home))
  try:
    yield folder
    folder.chmod(0o777 & ~_umask())
    out.parent.mkdir(parents=True, exist_ok=True)
    _replace(out, folder)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _replace(out: pathlib.Path, folder: pathlib.Path) -> None:
  """Moves ``folder`` to ``out``; what was there is put back if that fails."""
  if not out.exists():
    folder.rename(out)
    return
  old = pathlib.Path(tempfile.mkdtemp(prefix=f'.{out.name}.old-', dir=out.parent))
  out.rename(old)  # over the empty folder
  try:
    folder.rename(out)
  except BaseException:
    old.rename(out)
    raise
  for item in old.iterdir():
    if item.name not in (*FILES, *_EXTRAS):
      item.rename(out / item.name)
  shutil.rmtree(old, ignore_errors=True)


def _existing(path: pathlib.Path) -> pathlib.Path:
  """The path or its nearest parent that exists."""
  return next(p for p in (path, *path.parents) if p.exists())


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
