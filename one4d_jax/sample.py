"""Make a 4D scene from text, an image, some frames or a video.

python -m one4d_jax.sample                                     the embedded model on the bundled example
python -m one4d_jax.sample --input clip.mp4 --out out/         a whole video
python -m one4d_jax.sample --input clip.mp4 --observed 0,8,16  some of its frames
python -m one4d_jax.sample --input photo.jpg --prompt "..."    an image
python -m one4d_jax.sample --prompt "a red ball rolls"         text alone
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import itertools
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Callable

from one4d_jax import cli

SOLVERS = ('euler', 'unipc', 'dpm++')
SLOWEST = 5.0  # frames a second at which a scene is played; frames chosen from a long clip lie further apart


def parser() -> argparse.ArgumentParser:
  """The command line."""
  p = argparse.ArgumentParser(
    prog='python -m one4d_jax.sample', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--input', metavar='FILE_OR_FOLDER', help='image, video, animation, or folder of frames')
  text = p.add_mutually_exclusive_group()
  text.add_argument('--prompt', metavar='TEXT', help='what the scene shows')
  text.add_argument('--prompt-file', metavar='FILE', help='the same from a text file')
  p.add_argument('--out', metavar='DIR', default='out', help='folder of the scene (default: %(default)s)')
  p.add_argument('--overwrite', action='store_true', help='replace a scene that is there')
  p.add_argument('--observed', metavar='I,J,...', help='frames given to the model, counted after frame choice; '
                 'default: all')  # fmt: skip
  p.add_argument('--sparsity', metavar='FRACTION', type=float, help='or: this part of them, first and last included')
  p.add_argument('--frames', metavar='N|all', help='frames of the scene; more than the model takes go in windows')
  p.add_argument('--overlap', metavar='K', type=int, help='frames that neighbouring windows share')
  p.add_argument('--weights', metavar='DIR', help='a bundle; default: the embedded tiny model')
  p.add_argument('--seed', metavar='N', type=int, default=0, help='default: %(default)s')
  own = 'default: the bundle says'
  p.add_argument('--steps', metavar='N', type=int, help=f'solver steps; {own}')
  p.add_argument('--guidance', metavar='G', type=float, help=f'classifier-free guidance; {own}')
  p.add_argument('--shift', metavar='S', type=float, help=f'timestep shift; {own}')
  p.add_argument('--solver', choices=SOLVERS, help=own)
  return p


def main(args: argparse.Namespace) -> None:
  """``produce`` with a progress bar and the list of files."""
  with Bar() as bar:
    paths = produce(args, report=bar)
  print(*paths, sep='\n')


def load_bundle(path):
  """The networks of a folder. Imports JAX."""
  from one4d_jax.model import bundle

  return bundle.load(path)


def produce(
  args: argparse.Namespace,
  *,
  report: Callable[[str, int, int], None],
  load: Callable | None = None,
  tell: Callable[[str], None] = print,
) -> list[pathlib.Path]:
  """Everything that the command does: checks, reads, loads, samples, fits cameras and writes. Returns the files.

  Args:
    report: called with (stage, done, total): ``load``, ``sample`` (total: solver steps), ``fit cameras``, ``write``.
    load: gives the bundle of a folder; a server passes one that remembers.
    tell: takes lines for people: what was read and how.

  Raises UserError for whatever is wrong with the request, before work is spent.
  """
  from one4d_jax import request as requests

  request = requests.read(args)
  for line in request.log:
    tell(line)
  clock = Clock(report)
  with clock('load'):
    bundle = (load or load_bundle)(request.weights)
  with clock('sample'):
    made, settings = sample(bundle, request, args, report)
  with clock('fit cameras'):
    scene, focal_std = build_scene(made, request)
  playback = max(request.fps, SLOWEST)
  if playback != request.fps:
    request.log.append(f'playback: {playback:g} fps, faster than life: the frames lie {1 / request.fps:.2f} s apart')
    tell(request.log[-1])
  run = {
    'command': command_line(args),
    'task': request.task,
    'prompt': request.prompt,
    'input': request.policy,
    'observed': request.observed[: request.given].nonzero()[0].tolist(),
    'fps': {'in_time': request.fps, 'playback': playback},
    'seed': args.seed,
    'sampling': settings,
    'config': dataclasses.asdict(bundle.config),
    'weights': {'name': bundle.name, 'hash': bundle.hash, 'path': str(request.weights)},
    'cameras': {
      'focal': float(scene.K[:, 0, 0].mean()),
      'focal_std': float(focal_std),
      'residual': [None if r != r else round(float(r), 6) for r in scene.residual],
      'valid': round(float(scene.valid.mean()), 4),
    },
    'timings_s': clock.seconds,
    'versions': versions(),
    'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }
  from one4d_jax.viewer.export import write_scene

  with clock('write'):
    paths = write_scene(scene, request.out, run=run, overwrite=args.overwrite, fps=playback)
  tell('timings: ' + ', '.join(f'{name} {seconds:.1f} s' for name, seconds in clock.seconds.items()))
  return paths


def command_line(args: argparse.Namespace) -> str:
  """The command that gives these arguments; what equals its default is left out."""
  words = ['python', '-m', 'one4d_jax.sample']
  for action in parser()._actions:
    value = getattr(args, action.dest, action.default)
    if value == action.default:
      continue
    words += [action.option_strings[0], *([] if action.nargs == 0 else [str(value)])]
  return shlex.join([*words, *(f'--config.{override}' for override in getattr(args, 'overrides', ()))])


def sample(bundle, request, args: argparse.Namespace, report: Callable[[str, int, int], None]):
  """``(generated videos, the settings used)``."""
  from one4d_jax.model.generate import generate

  names = ('steps', 'guidance', 'shift', 'solver')
  settings = {n: getattr(bundle.config, n) if getattr(args, n) is None else getattr(args, n) for n in names}
  done = itertools.count(1)

  def progress(step: int) -> None:
    report('sample', next(done), settings['steps'])

  made = generate(
    bundle, request.video, request.observed, request.prompt, seed=args.seed, progress=progress, **settings
  )
  return made, settings


def build_scene(made, request):
  """The scene of generated videos, up to scale, and the uncertainty of its focal length in pixels."""
  import numpy as np

  from one4d_jax.postopt.decode import decode
  from one4d_jax.viewer.pictures import to_uint8
  from one4d_jax.viewer.scene import Scene

  found = decode(np.asarray(made.xyz)[: request.given])
  cameras = found.cameras
  depth = np.where(cameras.depth > 0, cameras.depth, found.z)
  valid = found.valid & (depth > 0)
  scene = Scene(
    rgb=to_uint8(made.rgb[: request.given]),
    pointmap=found.points,
    depth=np.where(valid, depth, 0),
    valid=valid,
    K=cameras.K,
    world_from_cam=cameras.world_from_cam,
    observed=request.observed[: request.given],
    residual=cameras.residual,
  )
  return scene, cameras.focal_std


class Bar:
  """A progress bar for each stage that reports; used as ``with Bar() as report``."""

  def __enter__(self):
    self._stage, self._bar = '', None
    return self

  def __exit__(self, failed, *_):
    if self._bar is not None:
      self._bar.update(0 if failed else self._bar.total - self._bar.n)
      self._bar.close()

  def __call__(self, stage: str, done: int, total: int) -> None:
    from tqdm import tqdm

    if stage != self._stage:
      self.__exit__(None)
      self._stage, self._bar = stage, tqdm(desc=stage)
    self._bar.total = total
    self._bar.update(done - self._bar.n)


class Clock:
  """Wall-clock seconds of named stages, reported as they begin: ``with clock('load'): ...``."""

  def __init__(self, report: Callable[[str, int, int], None]):
    self.seconds: dict[str, float] = {}
    self._report = report

  @contextlib.contextmanager
  def __call__(self, name: str):
    start = time.perf_counter()
    self._report(name, 0, 1)
    yield
    self.seconds[name] = round(time.perf_counter() - start, 2)


def versions() -> dict[str, str]:
  """Of Python, this package, and what the numbers depend on."""
  from one4d_jax import __version__

  packages = ('jax', 'jaxlib', 'flax', 'numpy', 'av', 'pillow', 'viser')
  found = {name: importlib.metadata.version(name) for name in packages}
  return {'one4d_jax': __version__, 'python': platform.python_version(), 'platform': platform.platform(), **found}


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
