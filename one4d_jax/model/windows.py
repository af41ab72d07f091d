"""Clips of any length through a model of fixed length: overlapping windows, each padded to the 4n+1 frames it takes.

A later window is shown, beside the frames it was given, what the earlier ones made of the frames they share. A clip
that starts from text, an image or some frames thus goes on as the same video. Windows are of equal length, so one
compilation serves them all. How their pointmaps become one scene is ``postopt/windows.py``.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from one4d_jax.errors import ConfigError, ShapeError


def spans(frames: int, most: int, overlap: int) -> list[range]:
  """The windows of a clip: one if it fits, else as few as possible of exactly ``most`` frames, spread evenly.

  Neighbours share ``overlap`` frames or more.

  Raises:
    ConfigError: no frame, or an overlap that is not within 1 to ``most`` - 1 although windows are needed.
  """
  if frames < 1 or most < 1:
    raise ConfigError(f'a clip of {frames} frames in windows of {most}: both must be 1 or more')
  if frames <= most:
    return [range(frames)]
  if not 1 <= overlap < most:
    raise ConfigError(f'{frames} frames take windows of {most}, which can share 1 to {most - 1} frames, not {overlap}')
  count = 1 + -(-(frames - most) // (most - overlap))
  starts = [i * (frames - most) // (count - 1) for i in range(count)]
  return [range(start, start + most) for start in starts]


def default_overlap(most: int) -> int:
  """Frames that neighbours share unless told otherwise: a quarter of a window, and at least 2."""
  return max(most // 4, min(2, most - 1))


def check_spans(spans: Sequence[range], frames: int) -> None:
  """Raises ShapeError unless ``spans`` cover frames 0 to ``frames`` - 1 in order, each sharing some with the next."""
  whole = len(spans) > 0 and spans[0].start == 0 and spans[-1].stop == frames
  joined = all(a.start < b.start < a.stop < b.stop for a, b in itertools.pairwise(spans))
  if not whole or not joined or any(span.step != 1 or not len(span) for span in spans):
    shown = ', '.join(f'{span.start}-{span.stop - 1}' for span in spans)
    raise ShapeError(f'windows [{shown}] do not cover {frames} frames in order, each sharing frames with the next')


def window_seed(seed: int, i: int) -> int:
  """The seed of window ``i``: the first has the clip's own, so that a clip of one window is as without windows."""
  return seed if i == 0 else int(np.random.SeedSequence([seed, i]).generate_state(1)[0])


def generate_windows(
  bundle,
  video: np.ndarray,
  observed: np.ndarray,
  prompt: str,
  *,
  spans: Sequence[range],
  seed: int = 0,
  progress: Callable[[int], None] | None = None,
  **settings,
) -> list['Generated']:
  """One ``Generated`` for each of ``spans``, with exactly its frames. ``settings`` are those of ``generate``.

  Args:
    video: ``[F H W 3]``, uint8 or float32 in [-1, 1], of any length; frames that are not observed are ignored.
    observed: bool ``[F]``.
    progress: called with the number of each step, counted on from window to window.

  Raises:
    ShapeError: arrays or spans that do not belong together, or sides that are not multiples of 16.
  """
  from one4d_jax.model.generate import generate  # here, as it loads JAX: requests need the functions above only

  if video.ndim != 4 or observed.shape != video.shape[:1]:
    raise ShapeError(f'video {video.shape} with observed {observed.shape}: expected [F H W 3] and [F]')
  check_spans(spans, len(video))
  steps = bundle.config.steps if settings.get('steps') is None else settings['steps']
  made = []
  for i, span in enumerate(spans):
    clip, seen = _signed(video[span.start : span.stop]), observed[span.start : span.stop].copy()
    for before, piece in zip(spans, made, strict=False):
      for frame in range(max(before.start, span.start), min(before.stop, span.stop)):
        if not observed[frame]:
          clip[frame - span.start] = piece.rgb[frame - before.start].clip(-1, 1)
          seen[frame - span.start] = True
    padding = -(len(span) - 1) % 4
    clip = np.concatenate([clip, np.repeat(clip[-1:], padding, axis=0)])
    seen = np.concatenate([seen, np.repeat(seen[-1:], padding)])
    count = None if progress is None else lambda step, done=i * steps: progress(done + step)
    whole = generate(bundle, clip, seen, prompt, seed=window_seed(seed, i), progress=count, **settings)
    made.append(type(whole)(whole.rgb[: len(span)], whole.xyz[: len(span)]))
  return made


def _signed(rgb: np.ndarray) -> np.ndarray:
  """Colours 0..255 as values in [-1, 1]; a copy of what is there already."""
  return rgb.astype(np.float32) / 127.5 - 1 if rgb.dtype == np.uint8 else rgb.astype(np.float32)
