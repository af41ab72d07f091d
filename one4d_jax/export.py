"""Write a scene for other programs, or bring it to metres. Nothing is generated anew.

python -m one4d_jax.export out/ --export ply,colmap
python -m one4d_jax.export out/ --metric baseline=0,16:0.4    a scene in metres; older exports of it go
"""

import argparse
import json
import pathlib
import sys

from one4d_jax import cli
from one4d_jax.errors import DataError, UserError


def parser() -> argparse.ArgumentParser:
  """The command line."""
  from one4d_jax.viewer.export import EXPORTS

  p = argparse.ArgumentParser(
    prog='python -m one4d_jax.export',
    description=__doc__,
    epilog='exports:\n' + '\n'.join(f'  {name:12}{e.target:12}{e.about}' for name, e in EXPORTS.items()),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  p.add_argument('scene', metavar='DIR', help='a folder written by python -m one4d_jax.sample')
  p.add_argument('--export', metavar='NAME,...', help='what to write into it, see below')
  p.add_argument('--metric', metavar='KNOWN', action='append',
                 help='metres: baseline=I,J:METRES, distance=I:U,V:U,V:METRES or depth=I:U,V:METRES')  # fmt: skip
  p.add_argument('--overwrite', action='store_true', help='replace exports that are there')
  return p


def main(args: argparse.Namespace) -> None:
  """Loads the scene, writes the exports with a progress bar for each, and lists their paths."""
  from one4d_jax.sample import Bar
  from one4d_jax.viewer import export, metric
  from one4d_jax.viewer import scene as scenes

  names, measures = export.check_exports(args.export), metric.parse(args.metric or ())
  if not names and not measures:
    raise UserError('name something to --export, or something known to --metric; see --help')
  if any(measure.kind == 'focal' for measure in measures):
    raise UserError('a focal length changes the cameras; give it to python -m one4d_jax.sample')
  scene = scenes.load(args.scene)
  folder = pathlib.Path(args.scene)
  folder = folder if folder.is_dir() else folder.parent
  height, width = scene.size
  metric.check(measures, frames=scene.frames, height=height, width=width)
  fps = scenes.playback_rate(folder)
  with Bar() as bar:
    if measures:
      scene, run = measured(scene, measures, folder)
      paths = export.write_scene(scene, folder, run=run, overwrite=True, fps=fps, exports=names, progress=bar)
    else:
      paths = export.write_exports(scene, folder, names, fps=fps, overwrite=args.overwrite, progress=bar)
  print(*paths, sep='\n')


def measured(scene, measures, folder):
  """The scene in metres, and its record. Raises DataError where nothing could be measured."""
  from one4d_jax.viewer import metric, pictures

  run = read_run(folder)
  found, record, notes = metric.apply(scene, measures)
  if not record:
    raise DataError('; '.join(notes))
  print(*notes, sep='\n', end='\n' if notes else '')
  changed = {'metric': {'scale': float(found.scale), 'from': record}, 'depth_mp4': pictures.depth_legend(found)}
  return found, run | changed


def read_run(folder: pathlib.Path) -> dict:
  """``run.json`` of a scene; empty where there is none. Raises DataError where it is damaged."""
  path = folder / 'run.json'
  try:
    run = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
  except (OSError, ValueError) as error:
    raise DataError(f'{path} cannot be read ({error}); delete it to go on without the record of the run') from error
  if not isinstance(run, dict):
    raise DataError(f'{path} is not the record of a run; delete it to go on without')
  return run


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
