"""A scene as a folder of files that other programs open; every result whole, or not there.

Everything is written under a temporary name and takes its final one when it is complete.
"""

import contextlib
import functools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

from one4d_jax.errors import DataError
from one4d_jax.viewer import formats, html, pictures
from one4d_jax.viewer import scene as scenes
from one4d_jax.viewer.formats import tum, write_json, write_video
from one4d_jax.viewer.scene import Scene

FILES = (
  scenes.FILE,
  'rgb.mp4',
  'xyz.mp4',
  'depth.mp4',
  'preview.png',
  'trajectory.png',
  'cameras.json',
  'trajectory.tum',
  'scene.html',
  'run.json',
)


class Export(NamedTuple):
  """A result on request: the file or folder it becomes, what makes it, and what for."""

  target: str
  write: Callable[[formats.Work, pathlib.Path, formats.Report], None]
  about: str


EXPORTS = {
  'ply': Export('points', formats.ply, 'a point cloud for every frame'),
  'cloud': Export('cloud.ply', formats.static_ply, 'the static points of all frames in one cloud'),
  'glb': Export('scene.glb', formats.glb, 'points that play in glTF viewers'),
  'colmap': Export('colmap', formats.colmap, 'COLMAP text model with images'),
  'nerfstudio': Export('nerfstudio', formats.nerfstudio, 'transforms.json with images, depth, masks and points'),
  'depth16': Export('depth', formats.depth16, 'depth as 16-bit PNG, with its scale'),
  'exr': Export('exr', formats.exr, 'depth as float32 OpenEXR'),
  'frames': Export('frames', formats.frames, 'PNG images'),
  'orbit': Export('orbit.mp4', formats.orbit, 'video around the points'),
}
_OF_A_SCENE = {*FILES, *(export.target for export in EXPORTS.values())}  # replaced together with it


def _silent(stage: str, done: int, total: int) -> None:
  """Progress that nobody follows."""


def write_scene(
  scene: Scene,
  out: str | pathlib.Path,
  *,
  run: dict,
  overwrite: bool = False,
  fps: float,
  exports: Sequence[str] = (),
  progress: Callable[[str, int, int], None] = _silent,
) -> list[pathlib.Path]:
  """Writes the files of ``FILES`` to the folder ``out``, then ``exports`` into it, and returns their paths.

  ``run`` becomes ``run.json``; ``fps`` is the rate of the videos, the trajectory and the viewer. An existing scene
  is replaced only with ``overwrite``, and stays until the new one is whole; files in it that no scene has are kept.
  ``progress`` is called with (stage, done, total), the stages being ``write`` and ``export NAME``.
  Raises DataError as ``check_out``; after a failure before the exports ``out`` is as it was, and one in an export
  leaves the scene and the exports before it.
  """
  out = check_out(out, overwrite=overwrite)
  metric = scene.metric()
  writers = {
    scenes.FILE: lambda path: scene.save(path.parent),
    'rgb.mp4': lambda path: write_video(path, scene.rgb, fps),
    'xyz.mp4': lambda path: write_video(path, pictures.xyz_colours(scene.pointmap, scene.valid), fps),
    'depth.mp4': lambda path: write_video(path, pictures.depth_colours(scene.depth, scene.valid), fps),
    'preview.png': lambda path: pictures.contact_sheet(scene).save(path),
    'trajectory.png': lambda path: pictures.trajectory_plot(scene).save(path),
    'cameras.json': lambda path: write_json(path, formats.transforms(metric, images=EXPORTS['frames'].target)),
    'trajectory.tum': lambda path: path.write_text(tum(metric, fps)),
    'scene.html': lambda path: path.write_text(html.scene_html(scene, fps=fps), encoding='utf-8'),
    'run.json': lambda path: write_json(path, run),
  }
  with _whole_folder(out) as folder:
    for done, name in enumerate(FILES):
      progress('write', done, len(FILES))
      writers[name](folder / name)
  progress('write', len(FILES), len(FILES))
  return [out / name for name in FILES] + write_exports(scene, out, exports, fps=fps, progress=progress)


def check_exports(text: str | None) -> tuple[str, ...]:
  """The exports that a list like ``ply,glb`` names, each once. Raises DataError with the names there are."""
  names = dict.fromkeys(name.strip() for name in (text or '').split(',') if name.strip())
  unknown = [name for name in names if name not in EXPORTS]
  if unknown:
    raise DataError(f'--export {text}: there is no {", ".join(unknown)}; choose from {", ".join(EXPORTS)}')
  return tuple(names)


def write_exports(
  scene: Scene,
  folder: str | pathlib.Path,
  names: Sequence[str],
  *,
  fps: float,
  overwrite: bool = False,
  progress: Callable[[str, int, int], None] = _silent,
) -> list[pathlib.Path]:
  """Writes exports into an existing scene folder, one after another, and returns their paths.

  Each is whole or not there; one that is there is replaced, as a whole, only with ``overwrite``.
  Raises DataError where there is one without it, or where the scene's cameras are not finite.
  """
  folder = pathlib.Path(folder)
  chosen = {name: EXPORTS[name] for name in names}
  there = [name for name, export in chosen.items() if (folder / export.target).exists()]
  if there and not overwrite:
    raise DataError(f'{folder} already holds {", ".join(there)}; add --overwrite to replace it')
  if not chosen:
    return []
  with tempfile.TemporaryDirectory(prefix='.export-', dir=folder, ignore_cleanup_errors=True) as temporary:
    shared = pathlib.Path(temporary, 'shared')
    shared.mkdir()
    work = formats.Work(scene.metric(), fps, shared)
    for name, export in chosen.items():
      made, old = pathlib.Path(temporary, export.target), pathlib.Path(temporary, f'old-{export.target}')
      report = functools.partial(progress, f'export {name}')
      report(0, 1)
      export.write(work, made, report)
      _swap(folder / export.target, made, old)
  return [folder / export.target for export in chosen.values()]


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
  _swap(out, folder, old)
  for item in old.iterdir():
    if item.name not in _OF_A_SCENE:
      item.rename(out / item.name)
  shutil.rmtree(old, ignore_errors=True)


def _swap(place: pathlib.Path, new: pathlib.Path, old: pathlib.Path) -> None:
  """Moves ``new`` to ``place``, and what is there to ``old``: a free name or an empty folder."""
  if not place.exists():
    new.rename(place)
    return
  place.rename(old)
  try:
    new.rename(place)
  except BaseException:
    old.rename(place)
    raise


def _existing(path: pathlib.Path) -> pathlib.Path:
  """The path or its nearest parent that exists."""
  return next(p for p in (path, *path.parents) if p.exists())


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
