"""Any image, video or folder of frames -> a clip of the size that a model takes, and a record of how.

Policy, the same for every input and written to the log and to ``run.json``:

  crop      the largest centred window of the target's aspect (pixel aspect and rotation flags included)
  resize    that window to the target size by Lanczos with antialiasing
  frames    all of them, or N spread over the whole clip: first and last kept, at even times, none twice
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from one4d_jax.data.frames import MissingFrames, Source, open_source


@dataclasses.dataclass(frozen=True)
class Media:
  """A clip ready for a model.

  Attributes:
    video: RGB.
    kind: 'image', 'animation', 'folder' or 'video'.
    fps: rate at which the frames follow each other in time.
    policy: plain values for ``run.json``: source, size, crop, frames.
  """

  video: UInt8[np.ndarray, 'F H W 3']
  kind: str
  fps: float
  policy: dict

  def describe(self) -> list[str]:
    """The policy as lines for a log."""
    source, p = self.policy['source'], self.policy
    rate = '' if source['fps'] is None else f' at {source["fps"]:.4g} fps'
    lines = [
      f'input: {self.kind} {source["path"]}, {source["frames"]} frame(s) of {"x".join(map(str, source["size"]))}{rate}',
      f'crop: centred {"x".join(f"{v:g}" for v in p["crop"][2:])} at {p["crop"][0]:g},{p["crop"][1]:g}; '
      f'resize: {p["resize"]} to {"x".join(map(str, p["size"]))}',
      f'frames: {p["frames"]} {_short(p["indices"])}',
    ]
    return lines + [f'note: {note}' for note in p['notes']]


def read(
  path: str | pathlib.Path, *, frames: int, height: int, width: int, fps: float, source: Source | None = None
) -> Media:
  """Reads at most ``frames`` frames of ``path`` at ``height`` x ``width``; see the policy above.

  ``fps`` stands in where the input has no clock (a folder, an image). ``source`` is ``open_source(path)`` if the
  caller already has it. Raises DataError for anything that cannot be read, decoded or is under 16 pixels.
  """
  source = open_source(path) if source is None else source

  def shrink(image: Image.Image) -> np.ndarray:
    box = crop_box(image.size, (width, height), source.pixel_aspect)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))

  chosen = choose_frames(source.times, frames)
  try:
    pictures = source.frames(chosen, shrink)
  except MissingFrames:
    source.recount()
    chosen = choose_frames(source.times, frames)
    pictures = source.frames(chosen, shrink)

  return Media(
    video=np.stack(pictures),
    kind=source.kind,
    fps=_rate(source, chosen, fps),
    policy=_policy(source, chosen, size=(width, height)),
  )


def choose_frames(times: Sequence[float], count: int) -> list[int]:
  """Indices of at most ``count`` frames: all, or those shown nearest to even times, increasing, ends included."""
  times, n = np.asarray(times, np.float64), len(times)
  if n <= count:
    return list(range(n))
  if count == 1:
    return [0]
  targets = np.linspace(times[0], times[-1], count)
  right = np.clip(np.searchsorted(times, targets), 1, n - 1)
  nearest = np.where(targets - times[right - 1] <= times[right] - targets, right - 1, right)
  steps = np.arange(count)
  forward = np.maximum.accumulate(nearest - steps) + steps  # none twice
  return [int(i) for i in np.minimum(forward, n - count + steps)]  # and room left for the rest


def crop_box(
  size: tuple[int, int], target: tuple[int, int], pixel_aspect: float = 1.0
) -> tuple[float, float, float, float]:
  """The largest centred (left, top, right, bottom) of the target's aspect; sizes are (width, height)."""
  (w, h), aspect = size, target[0] / target[1] / pixel_aspect
  cw, ch = min(w, h * aspect), min(h, w / aspect)
  return (w - cw) / 2, (h - ch) / 2, (w + cw) / 2, (h + ch) / 2


def _rate(source: Source, chosen: list[int], fps: float) -> float:
  if len(chosen) < 2:
    return float(fps)
  seconds = source.times[chosen[-1]] - source.times[chosen[0]]
  if source.rate is None:  # a folder counts frames, not seconds
    seconds = seconds / fps
  return float((len(chosen) - 1) / seconds)


def _policy(source: Source, chosen: list[int], *, size: tuple[int, int]) -> dict:
  left, top, right, bottom = crop_box(source.size, size, source.pixel_aspect)
  spread = len(chosen) < len(source.times)
  return {
    'source': {
      'path': str(source.path),
      'kind': source.kind,
      'frames': len(source.times),
      'fps': None if source.rate is None else round(source.rate, 4),
      'size': list(source.size),
    },
    'size': list(size),
    'crop': [round(v, 2) for v in (left, top, right - left, bottom - top)],
    'resize': 'lanczos, antialiased',
    'frames': f'{len(chosen)} of {len(source.times)}, spread evenly' if spread else 'all',
    'indices': chosen,
    'notes': source.notes,
  }


def _short(indices: list[int]) -> str:
  shown = [str(i) for i in indices]
  return '(' + ', '.join(shown if len(shown) <= 8 else [*shown[:4], '...', *shown[-2:]]) + ')'
