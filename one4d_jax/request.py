"""What ``sample`` was asked for, checked and read before networks are loaded, without JAX: mistakes show fast.

A request is a clip, which of its frames the model may see, a prompt, and where the result goes. The four tasks differ
only in the frames that are seen: none (text), the first (an image), some, or all (a video).
"""

import argparse
import dataclasses
import json
import math
import pathlib

import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.data import media
from one4d_jax.data.frames import open_source
from one4d_jax.errors import CheckpointError, DataError, UserError
from one4d_jax.model.files import EMBEDDED, PARTS, find_parts
from one4d_jax.viewer.export import check_out

ASSETS = pathlib.Path(__file__).parent / 'assets'
EXAMPLE = ASSETS / 'examples' / 'room.mp4'


@dataclasses.dataclass(frozen=True)
class Request:
  """One scene to make.

  Attributes:
    video: in [-1, 1]; frames that are not ``observed`` are 0, the middle, so that nothing of them can leak.
    observed: what the model is given; padding counts like the frame it repeats.
    given: number of frames the scene will have: padding is cut, frames to generate are not.
    fps: at which the frames follow each other in time.
    policy: how the input became ``video``, for ``run.json``.
    log: the same for people.
  """

  task: str  # 'text', 'image', 'sparse' or 'video'
  video: Float[np.ndarray, 'F H W 3']
  observed: Bool[np.ndarray, 'F']
  given: int
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
  weights = pathlib.Path(args.weights) if args.weights else EMBEDDED
  sizes = read_sizes(weights)
  prompt = read_prompt(args)
  path = args.input
  if path is None and prompt is None:
    path, prompt = EXAMPLE, read_text(EXAMPLE.with_suffix('.txt'))
  if path is None:
    return text_request(args, sizes, prompt=prompt, weights=weights, out=out)
  source = open_source(path)
  clip = media.read(path, source=source, **{name: sizes[name] for name in ('frames', 'height', 'width', 'fps')})
  task, seen = choose_observed(args, clip.known)
  observed = np.isin(np.minimum(np.arange(len(clip.video)), clip.known - 1), seen)
  if clip.known == 1:
    observed[1:] = False
  return Request(
    task=task,
    video=np.where(observed[:, None, None, None], clip.video, np.float32(0)),
    observed=observed,
    given=len(clip.video) if clip.known == 1 else clip.known,
    fps=clip.fps,
    prompt=prompt or '',
    weights=weights,
    out=out,
    policy=clip.policy,
    log=[*clip.describe(), f'task: {task}, {len(seen)} of {clip.known} frame(s) given to the model'],
  )


def text_request(
  args: argparse.Namespace, sizes: dict, *, prompt: str, weights: pathlib.Path, out: pathlib.Path
) -> Request:
  """Nothing is seen; the prompt says it all."""
  if args.observed is not None or args.sparsity is not None:
    raise UserError('--observed and --sparsity choose frames of an input; add --input, or leave them out')
  return Request(
    task='text',
    video=np.zeros((sizes['frames'], sizes['height'], sizes['width'], 3), np.float32),
    observed=np.zeros(sizes['frames'], bool),
    given=sizes['frames'],
    fps=float(sizes['fps']),
    prompt=prompt,
    weights=weights,
    out=out,
    policy={'source': None, 'size': [sizes['width'], sizes['height']], 'frames': 'all generated', 'padding': 0},
    log=[f'input: none; task: text, {sizes["frames"]} frames of {sizes["width"]}x{sizes["height"]} to generate'],
  )


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
  try:
    chosen = sorted({int(part) for part in args.observed.split(',')})
  except ValueError as error:
    raise UserError(f'--observed {args.observed!r}: give frame numbers with commas between, such as 0,8,16') from error
  outside = [i for i in chosen if not 0 <= i < known]
  if outside:
    raise UserError(f'--observed {outside[0]} is out of range: the clip has frames 0 to {known - 1} after frame choice')
  return ('video' if len(chosen) == known else 'sparse'), chosen


def check_numbers(args: argparse.Namespace) -> None:
  """Ranges of the numeric flags. Raises UserError naming the flag."""
  rules = {
    'steps': (lambda v: v >= 1, 'must be 1 or more'),
    'guidance': (lambda v: v >= 0, 'must be 0 or more'),
    'shift': (lambda v: v > 0, 'must be above 0'),
    'sparsity': (lambda v: 0 < v <= 1, 'must be above 0 and at most 1, the fraction of frames given'),
    'seed': (lambda v: 0 <= v < 2**32, 'must be from 0 to 4294967295'),
  }
  for name, (fits, rule) in rules.items():
    value = getattr(args, name)
    if value is not None and not (math.isfinite(value) and fits(value)):
      raise UserError(f'--{name} {value} {rule}')
  if args.observed is not None and args.sparsity is not None:
    raise UserError('--observed and --sparsity both choose the given frames; use one')


def read_sizes(weights: pathlib.Path) -> dict:
  """``sizes`` of a bundle: frames, height, width, fps and more. Raises CheckpointError where it is not whole."""
  remedy = 'leave --weights out for the embedded model' if weights != EMBEDDED else 'install the package again'
  path = weights / 'bundle.json'
  if not path.is_file():
    raise CheckpointError(f'no weights at {str(weights)!r}: expected a folder with bundle.json; {remedy}')
  try:
    found = find_parts(weights)
    sizes = json.loads(path.read_text())['sizes']
    wanted = {name: sizes[name] for name in ('frames', 'height', 'width', 'fps')}
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
