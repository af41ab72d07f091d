"""What ``sample`` was asked for, checked and read before networks are loaded, without JAX: mistakes show fast.

A request is a clip, which of its frames the model may see, a prompt, and where the result goes. The four tasks differ
only in the frames that are seen: none (text), the first (an image), some, or all (a video). The clip is as long as the
scene will be; more frames than the model takes are made in windows.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import pathlib

import numpy as np
from jaxtyping import Bool, UInt8

from one4d_jax.data import media
from one4d_jax.data.frames import open_source
from one4d_jax.errors import CheckpointError, DataError, UserError
from one4d_jax.model.files import EMBEDDED, PARTS, find_parts
from one4d_jax.model.windows import default_overlap, spans
from one4d_jax.viewer.export import check_out

ASSETS = pathlib.Path(__file__).parent / 'assets'
EXAMPLE = ASSETS / 'examples' / 'room.mp4'
MOST_PIXELS = 2000 * 352 * 624  # of all frames of a request; a pixel takes about 130 bytes while the scene is made


@dataclasses.dataclass(frozen=True)
class Request:
  """One scene to make.

  Attributes:
    video: as many frames as the scene will have; those that are not ``observed`` are 0, so that nothing of them leaks.
    observed: what the model is given.
    spans: the windows in which the model makes the frames; one, if it takes them all at once.
    fps: at which the frames follow each other in time.
    policy: how the input became ``video``, for ``run.json``.
    log: the same for people.
  """

  task: str  # 'text', 'image', 'sparse' or 'video'
  video: UInt8[np.ndarray, 'F H W 3']
  observed: Bool[np.ndarray, 'F']
  spans: list[range]
  fps: float
  prompt: str
  weights: pathlib.Path
  out: pathlib.Path
  policy: dict
  log: list[str]


def read(args: argparse.Namespace) -> Request:
  """The request of ``sample``'s arguments. Raises UserError for whatever is wrong with them, cheapest check first."""
  check_numbers(args)
  out = check_out(args.out, overwrite=args.overwrite)
  weights = weights_folder(args)
  sizes = read_sizes(weights)
  prompt = read_prompt(args)
  path = args.input
  if path is None and prompt is None:
    path, prompt = EXAMPLE, read_text(EXAMPLE.with_suffix('.txt'))
  if path is None:
    return text_request(args, sizes, prompt=prompt, weights=weights, out=out)
  source = open_source(path)
  frames = count_frames(args, sizes, known=len(source.times))
  clip = media.read(path, frames=frames, source=source, **{name: sizes[name] for name in ('height', 'width', 'fps')})
  known = len(clip.video)
  task, seen = choose_observed(args, known)
  video = np.zeros((frames if len(source.times) == 1 else known, *clip.video.shape[1:]), np.uint8)
  observed = np.zeros(len(video), bool)
  video[seen], observed[seen] = clip.video[seen], True
  cut = windows(args, sizes, len(video))
  return Request(
    task=task,
    video=video,
    observed=observed,
    spans=cut,
    fps=clip.fps,
    prompt=prompt or '',
    weights=weights,
    out=out,
    policy=clip.policy,
    log=[*clip.describe(), f'task: {task}, {len(seen)} of {len(video)} frame(s) given to the model', *describe(cut)],
  )


def check(args: argparse.Namespace) -> tuple[int, int, int]:
  """The checks of ``read`` as far as they need no look into the input; the folder of the scene is not looked at.

  Returns frames (at most), height and width of the scene. Raises UserError.
  """
  check_numbers(args)
  weights = weights_folder(args)
  sizes, prompt = read_sizes(weights), read_prompt(args)
  if args.input is None:
    return text_request(args, sizes, prompt=prompt or '', weights=weights, out=pathlib.Path(args.out)).video.shape[:3]
  if not os.path.exists(args.input):
    raise DataError(f'{args.input} does not exist')
  if args.observed is not None:
    parse_observed(args.observed)
  windows(args, sizes, 1)
  most = most_frames(sizes) if args.frames == 'all' else count_frames(args, sizes, known=0)
  return most, sizes['height'], sizes['width']


def text_request(
  args: argparse.Namespace, sizes: dict, *, prompt: str, weights: pathlib.Path, out: pathlib.Path
) -> Request:
  """Nothing is seen; the prompt says it all."""
  if args.observed is not None or args.sparsity is not None:
    raise UserError('--observed and --sparsity choose frames of an input; add --input, or leave them out')
  frames, height, width = count_frames(args, sizes, known=0), sizes['height'], sizes['width']
  cut = windows(args, sizes, frames)
  return Request(
    task='text',
    video=np.zeros((frames, height, width, 3), np.uint8),
    observed=np.zeros(frames, bool),
    spans=cut,
    fps=float(sizes['fps']),
    prompt=prompt,
    weights=weights,
    out=out,
    policy={'source': None, 'size': [width, height], 'frames': 'all generated'},
    log=[f'input: none; task: text, {frames} frame(s) of {width}x{height} to generate', *describe(cut)],
  )


def count_frames(args: argparse.Namespace, sizes: dict, *, known: int) -> int:
  """How many frames the scene will have, of an input of ``known`` (1: an image, 0: none, both to be continued).

  Raises UserError where ``--frames`` asks for frames that are not there, or for more than fit in memory.
  """
  if args.frames == 'all':
    count = known
    if known < 2:
      raise UserError('--frames all needs a video; say how many frames to generate')
  elif args.frames is not None:
    count = int(args.frames)
    if count > known > 1:
      raise UserError(f'--frames {count}: the input has {known} frames; give a number up to that, or all')
  else:
    count = min(known, sizes['frames']) if known > 1 else sizes['frames']
  most = most_frames(sizes)
  if count > most:
    raise UserError(
      f'{count} frames of {sizes["width"]}x{sizes["height"]} are too many for one scene; give --frames {most} or fewer'
    )
  return count


def most_frames(sizes: dict) -> int:
  """Of a scene that fits in memory."""
  return MOST_PIXELS // (sizes['height'] * sizes['width'])


def windows(args: argparse.Namespace, sizes: dict, frames: int) -> list[range]:
  """The windows of ``frames`` frames. Raises UserError where ``--overlap`` does not fit them."""
  most = sizes['frames']
  if args.overlap is not None and not 1 <= args.overlap < most:
    raise UserError(f'--overlap {args.overlap} must be from 1 to {most - 1}: windows have {most} frames')
  return spans(frames, most, default_overlap(most) if args.overlap is None else args.overlap)


def describe(cut: list[range]) -> list[str]:
  """The windows as a line for a log, if there are several."""
  if len(cut) == 1:
    return []
  shared = min(a.stop - b.start for a, b in itertools.pairwise(cut))
  return [f'windows: {len(cut)} of {len(cut[0])} frames, each sharing {shared} or more with the next']


def choose_observed(args: argparse.Namespace, known: int) -> tuple[str, list[int]]:
  """The task and the frames (counted after frame choice) that the model may see."""
  if known == 1:
    if args.sparsity is not None or args.observed not in (None, '0'):
      raise UserError('--observed and --sparsity need a video: the input has one frame, which is given as frame 0')
    return 'image', [0]
  if args.sparsity is not None:
    from one4d_jax.model.umc import observed_frames

    return 'sparse', np.flatnonzero(observed_frames('sparse', known, fraction=args.sparsity)).tolist()
  if args.observed is None:
    return 'video', list(range(known))
  chosen = parse_observed(args.observed)
  outside = [i for i in chosen if not 0 <= i < known]
  if outside:
    raise UserError(f'--observed {outside[0]} is out of range: the clip has frames 0 to {known - 1} after frame choice')
  return ('video' if len(chosen) == known else 'sparse'), chosen


def parse_observed(text: str) -> list[int]:
  """The frames of a list like ``0,8,16``, increasing. Raises UserError."""
  try:
    return sorted({int(part) for part in text.split(',')})
  except ValueError as error:
    raise UserError(f'--observed {text!r}: give frame numbers with commas between, such as 0,8,16') from error


def parse_interval(text: str | None) -> tuple[float, float] | None:
  """The noise levels of ``--guidance-interval``, least and largest. Raises UserError."""
  if text is None:
    return None
  try:
    low, high = map(float, text.split(','))
    fits = 0 <= low <= high <= 1
  except ValueError:
    fits = False
  if not fits:
    raise UserError(f'--guidance-interval {text[:40]!r}: give the least and the largest noise level, such as 0.2,0.9')
  return low, high


def check_numbers(args: argparse.Namespace) -> None:
  """Ranges of the numeric flags. Raises UserError naming the flag."""
  rules = {
    'steps': (lambda v: v >= 1, 'must be 1 or more'),
    'guidance': (lambda v: v >= 0, 'must be 0 or more'),
    'shift': (lambda v: v > 0, 'must be above 0'),
    'cache': (lambda v: v >= 0, 'must be 0 (off) or more'),
    'tile': (lambda v: v == 0 or v >= 4, 'must be 0 (whole frames) or 4 and more latent places'),
    'sparsity': (lambda v: 0 < v <= 1, 'must be above 0 and at most 1, the fraction of frames given'),
    'seed': (lambda v: 0 <= v < 2**32, 'must be from 0 to 4294967295'),
  }
  for name, (fits, rule) in rules.items():
    value = getattr(args, name)
    if value is not None and not (abs(value) < math.inf and fits(value)):
      raise UserError(f'--{name} {value} {rule}')
  if args.frames not in (None, 'all') and not _is_count(args.frames):
    raise UserError(f"--frames {args.frames[:20]!r} must be a whole number from 1, or 'all'")
  parse_interval(args.guidance_interval)
  if args.observed is not None and args.sparsity is not None:
    raise UserError('--observed and --sparsity both choose the given frames; use one')


def _is_count(text: str) -> bool:
  try:
    return int(text) >= 1
  except ValueError:
    return False


def weights_folder(args: argparse.Namespace) -> pathlib.Path:
  """The bundle of ``--weights``, by default the embedded one."""
  return pathlib.Path(args.weights) if args.weights else EMBEDDED


def read_sizes(weights: pathlib.Path) -> dict:
  """Frames, height, width, fps, steps and guidance of a bundle. Raises CheckpointError where it is not whole."""
  remedy = 'leave --weights out for the embedded model' if weights != EMBEDDED else 'install the package again'
  path = weights / 'bundle.json'
  if not path.is_file():
    raise CheckpointError(f'no weights at {str(weights)!r}: expected a folder with bundle.json; {remedy}')
  found = find_parts(weights)
  try:
    sizes = json.loads(path.read_text())['sizes']
    wanted = {name: sizes[name] for name in ('frames', 'height', 'width', 'fps', 'steps', 'guidance')}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise CheckpointError(f'{path} cannot be read ({error}); {remedy}') from error
  missing = [part for part in PARTS if part not in found]
  if missing:
    raise CheckpointError(
      f'weights at {str(weights)!r} lack {", ".join(missing)}: a bundle of the one4d stage is needed; {remedy}'
    )
  return wanted


def read_prompt(args: argparse.Namespace) -> str | None:
  """The prompt of ``--prompt`` or ``--prompt-file``; None where neither is given."""
  if args.prompt_file is not None:
    return read_text(pathlib.Path(args.prompt_file))
  if args.prompt is not None and not args.prompt.strip() and args.input is None:
    raise UserError('--prompt is empty and there is no --input; describe the scene, or give an input')
  return args.prompt


def read_text(path: pathlib.Path) -> str:
  """The description in a text file. Raises DataError where it holds none."""
  try:
    text = path.read_text(encoding='utf-8').strip()
  except UnicodeDecodeError as error:
    raise DataError(f'prompt file {path} is not UTF-8 text') from error
  except OSError as error:
    raise DataError(f'prompt file {path} cannot be read: {error.strerror or error}') from error
  if not text or '\0' in text or text.lower() in ('nan', 'null', 'none'):
    raise DataError(f'prompt file {path} holds {text[:20]!r}, not a description; write one or use --prompt')
  return text
