"""Write a scene for other programs: ``python -m one4d_jax.export out/ --export ply,colmap``. Nothing is made anew."""

import argparse
import sys

from one4d_jax import cli


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
  p.add_argument('--export', metavar='NAME,...', required=True, help='what to write into it, see below')
  p.add_argument('--overwrite', action='store_true', help='replace exports that are there')
  return p


def main(args: argparse.Namespace) -> None:
  """Loads the scene, writes the exports with a progress bar for each, and lists their paths."""
  import pathlib

  from one4d_jax.sample import Bar
  from one4d_jax.view import playback_rate
  from one4d_jax.viewer import export
  from one4d_jax.viewer import scene as scenes

  names = export.check_exports(args.export)
  scene = scenes.load(args.scene)
  folder = pathlib.Path(args.scene)
  folder = folder if folder.is_dir() else folder.parent
  with Bar() as bar:
    paths = export.write_exports(
      scene, folder, names, fps=playback_rate(folder), overwrite=args.overwrite, progress=bar
    )
  print(*paths, sep='\n')


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
