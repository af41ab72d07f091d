"""Make a 4D scene from text, an image, some frames or a video.

python -m one4d_jax.sample                                     the embedded model on the bundled example
python -m one4d_jax.sample --input clip.mp4 --out out/         a whole video
python -m one4d_jax.sample --input clip.mp4 --observed 0,8,16  some of its frames
python -m one4d_jax.sample --input photo.jpg --prompt "..."    an image
python -m one4d_jax.sample --prompt "a red ball rolls"         text alone
python -m one4d_jax.sample --input list.jsonl --out scenes/    many scenes, one a line; the same command continues
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import itertools
import math
import pathlib
import platform
import sys
import time
from collections.abc import Callable

from one4d_jax import cli
from one4d_jax.errors import UserError
from one4d_jax.postopt.options import FitOptions

SOLVERS = ('euler', 'unipc', 'dpm++')
LIST = '.jsonl'  # what a list of scenes is known by
SLOWEST = 5.0  # frames a second at which a scene is played; frames chosen from a long clip lie further apart


def parser() -> argparse.ArgumentParser:
  """The command line."""
  p = argparse.ArgumentParser(
    prog='python -m one4d_jax.sample', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--input', metavar='FILE_OR_FOLDER', help='image, video, animation, folder of frames, or list of '
                 'scenes (.jsonl), for whose lines the other flags are the defaults')  # fmt: skip
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
  p.add_argument('--export', metavar='NAME,...', help='also write: ply, cloud, glb, colmap, nerfstudio, depth16, exr, '
                 'frames, orbit')  # fmt: skip
  p.add_argument('--metric', metavar='KNOWN', action='append',
                 help='metres from what is known, may be repeated: baseline=I,J:METRES, distance=I:U,V:U,V:METRES, '
                 'depth=I:U,V:METRES; or focal=PIXELS, focal=26mm of the input')  # fmt: skip
  cli.add_config(p, about='how cameras are fitted (configs/postopt.py)')
  p.add_argument('--weights', metavar='DIR', help='a bundle; default: the embedded tiny model')
  p.add_argument('--seed', metavar='N', type=int, default=0, help='default: %(default)s')
  own = 'default: the bundle says'
  p.add_argument('--steps', metavar='N', type=int, help=f'solver steps; {own}')
  p.add_argument('--guidance', metavar='G', type=float, help=f'classifier-free guidance; {own}')
  p.add_argument('--guidance-interval', metavar='LOW,HIGH', help=f'noise levels with guidance, of 0 to 1; {own}')
  p.add_argument('--shift', metavar='S', type=float, help=f'timestep shift; {own}')
  p.add_argument('--solver', choices=SOLVERS, help=own)
  p.add_argument('--cache', metavar='CHANGE', type=float, help='do not compute steps whose first layer changes by '
                 f'less, as in 0.05; 0: compute all; {own}')  # fmt: skip
  p.add_argument('--tile', metavar='PLACES', type=int, help='decode tiles of this side, in latent places, which takes '
                 f'less memory; 0: whole frames; {own}')  # fmt: skip
  p.add_argument('--mesh', metavar='AXES', help="spread one scene over this machine's devices, as in "
                 'cfg=2,modality=2,sequence=2; default: one device')  # fmt: skip
  p.add_argument('--profile', metavar='DIR', help='trace the sampling into this folder, for XProf or Perfetto')
  p.add_argument('--no-plan-check', action='store_true', help='begin even if the memory cannot suffice')
  p.add_argument('--process', metavar='I/N', help='of a list: take every N-th scene from the I-th on (default: as JAX '
                 'says)')  # fmt: skip
  p.add_argument('--strict', action='store_true', help='of a list: stop at a scene that cannot be made')
  return p


def main(args: argparse.Namespace) -> None:
  """``produce`` with a progress bar and the list of files; or all scenes of a list."""
  if args.input and args.input.endswith(LIST):
    from one4d_jax import batch

    return batch.main(args)
  if args.process or args.strict:
    raise UserError(f'--process and --strict are for a list of scenes; give --input list{LIST}, or leave them out')
  with Bar() as bar:
    paths = produce(args, report=bar)
  print(*paths, sep='\n')


def load_bundle(path, mesh: str | None = None, *, plan_check: bool = True):
  """The networks of a folder, on one device or on a mesh, unless a scene could not fit there. Imports JAX."""
  from one4d_jax import compiler
  from one4d_jax.model import bundle
  from one4d_jax.parallel import load
  from one4d_jax.planning import guard

  compiler.check()
  if plan_check:
    guard.check_scene(path, mesh)
  return load.load_bundle(path, mesh) if mesh else bundle.on_device(bundle.load(path))


def loader(args: argparse.Namespace) -> Callable:
  """``load_bundle`` as it was asked for."""
  options = {'mesh': args.mesh} if args.mesh else {}
  options |= {'plan_check': False} if args.no_plan_check else {}
  return functools.partial(load_bundle, **options) if options else load_bundle


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
  from one4d_jax import profile
  from one4d_jax import request as requests
  from one4d_jax.viewer import export, metric
  from one4d_jax.viewer.pictures import depth_legend

  exports, measures, options = export.check_exports(args.export), metric.parse(args.metric or ()), fit_options(args)
  request = requests.read(args)
  frames, height, width = request.video.shape[:3]
  metric.check(measures, frames=frames, height=height, width=width)
  options = dataclasses.replace(
    options, known_focal=metric.known_focal(measures, request.policy) or options.known_focal
  )
  for line in request.log:
    tell(line)
  clock = Clock(report)
  with clock('load'):
    bundle = (load or loader(args))(request.weights)
  with clock('sample'), profile.trace(args.profile):
    made, settings = sample(bundle, request, args, report)
  with clock('fit cameras'):
    scene, cameras, seams = build_scene(made, request, options)
  scene, measured, notes = metric.apply(scene, measures)
  for line in [
    *(seam.describe() for seam in seams.seams),
    *(f'warning: {text}' for text in (*cameras.warnings, *notes)),
  ]:
    tell(line)
  playback = max(request.fps, SLOWEST)
  if playback != request.fps:
    tell(f'playback: {playback:g} fps, faster than life: the frames lie {1 / request.fps:.2f} s apart')
  run = {
    'command': cli.command(parser(), args),
    'task': request.task,
    'prompt': request.prompt,
    'input': request.policy,
    'observed': request.observed.nonzero()[0].tolist(),
    'fps': {'in_time': request.fps, 'playback': playback},
    'seed': args.seed,
    'sampling': settings,
    'config': dataclasses.asdict(bundle.config),
    'weights': {'name': bundle.name, 'hash': bundle.hash, 'path': args.weights or 'embedded'},
    'cameras': {
      'focal': number(scene.K[:, 0, 0].mean()),
      'focal_std': number(cameras.focal_std),
      'residual': [number(r) for r in scene.residual],
      'valid': number(scene.valid.mean()),
      'warnings': [*cameras.warnings, *notes],
      'fit': dataclasses.asdict(options),
    },
    'windows': {'spans': [[span.start, span.stop] for span in request.spans], **seams.record()},
    'metric': {'scale': number(scene.scale), 'from': measured},
    'depth_mp4': depth_legend(scene),
    'timings_s': clock.seconds,
    'versions': versions(),
    'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }
  with clock('write'):
    paths = export.write_scene(
      scene, request.out, run=run, overwrite=args.overwrite, fps=playback, exports=exports, progress=report
    )
  tell('timings: ' + ', '.join(f'{name} {seconds:.1f} s' for name, seconds in clock.seconds.items()))
  return paths


def number(value) -> float | None:
  """For JSON, which has no NaN."""
  return round(float(value), 6) if math.isfinite(value) else None


def fit_options(args: argparse.Namespace):
  """How cameras are fitted; a configuration is only read, and JAX loaded with it, where one is asked for."""
  if args.config or args.overrides:
    from one4d_jax import presets

    return presets.read(args.config or '', args.overrides, FitOptions)
  return FitOptions()


def sample(bundle, request, args: argparse.Namespace, report: Callable[[str, int, int], None]):
  """``(generated windows, the settings used)``."""
  from one4d_jax.model.generate import SETTINGS, with_defaults
  from one4d_jax.model.windows import generate_windows
  from one4d_jax.request import parse_interval

  asked = {name: getattr(args, name) for name in SETTINGS}
  asked['guidance_interval'] = parse_interval(args.guidance_interval)
  settings = with_defaults(bundle.config, asked)
  total = settings['steps'] * len(request.spans)
  done = itertools.count(1)
  made = generate_windows(
    bundle,
    request.video,
    request.observed,
    request.prompt,
    spans=request.spans,
    seed=args.seed,
    progress=lambda _: report('sample', next(done), total),
    **settings,
  )
  return made, settings


def build_scene(made, request, options: FitOptions):
  """The scene of generated windows, up to scale; its cameras as they were fitted; the seams between the windows."""
  import numpy as np

  from one4d_jax.postopt.windows import blend, decode_windows
  from one4d_jax.viewer.pictures import to_uint8
  from one4d_jax.viewer.scene import Scene

  found, seams = decode_windows([window.xyz for window in made], request.spans, options=options)
  cameras = found.cameras
  depth = np.where(cameras.depth > 0, cameras.depth, found.z)
  valid = found.valid & (depth > 0)
  scene = Scene(
    rgb=to_uint8(blend([window.rgb for window in made], request.spans)),
    pointmap=found.points,
    depth=np.where(valid, depth, 0),
    valid=valid,
    K=cameras.K,
    world_from_cam=cameras.world_from_cam,
    observed=request.observed,
    residual=cameras.residual,
  )
  return scene, cameras, seams


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
