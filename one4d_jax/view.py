"""Look at a scene in the browser, or make one there. Ctrl-C ends it.

python -m one4d_jax.view out/     a scene that is there
python -m one4d_jax.view --app    a page that makes scenes of clips, images and prompts
"""

import argparse
import contextlib
import sys

from one4d_jax import cli
from one4d_jax.errors import UserError


def parser() -> argparse.ArgumentParser:
  """The command line."""
  p = argparse.ArgumentParser(
    prog='python -m one4d_jax.view', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('scene', metavar='DIR', nargs='?', help='a folder written by python -m one4d_jax.sample')
  p.add_argument('--port', type=int, help='default: 8080; the viewer takes the next free one')
  p.add_argument('--host', default='127.0.0.1', help='0.0.0.0 lets other machines connect (default: %(default)s)')
  p.add_argument('--app', action='store_true', help="the page that makes scenes; needs pip install '.[app]'")
  app = p.add_argument_group('with --app')
  app.add_argument('--weights', metavar='DIR', help='a bundle; default: the embedded tiny model')
  app.add_argument('--jobs', metavar='DIR', help='where scenes are made and stay; default: a temporary folder')
  app.add_argument('--keep', metavar='N', type=int, help='newest scenes that are kept; default: 20')
  app.add_argument('--token', nargs='?', const='', help='ask for it, or for one that is made up and shown in the link')
  app.add_argument('--upload-limit', metavar='MB', type=float, help='size of one upload; default: 500')
  return p


def main(args: argparse.Namespace) -> None:
  """The viewer of a scene, or the app."""
  of_app = {'weights': args.weights, 'folder': args.jobs, 'keep': args.keep, 'upload_limit': args.upload_limit}
  of_app['token'] = args.token
  of_app = {name: value for name, value in of_app.items() if value is not None}
  if args.app == (args.scene is not None):
    raise UserError('give the folder of a scene to look at, or --app to make scenes')
  if args.app:
    from one4d_jax.app import server

    port = {} if args.port is None else {'port': args.port}
    return server.serve(host=args.host, **port, **of_app)
  if of_app:
    raise UserError('--weights, --jobs, --keep, --upload-limit and --token go with --app')
  show(args)


def show(args: argparse.Namespace) -> None:
  """Loads the scene, serves it, and plays it until interrupted."""
  from one4d_jax.viewer import scene as scenes
  from one4d_jax.viewer.serve import Viewer
  from one4d_jax.viewer.stage import serving

  scene = scenes.load(args.scene)
  with serving(host=args.host, port=args.port) as server, contextlib.suppress(KeyboardInterrupt):
    viewer = Viewer(server, scene, fps=scenes.playback_rate(args.scene))
    print(f'http://{args.host}:{server.get_port()}  (Ctrl-C to end)', flush=True)
    viewer.run()


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
