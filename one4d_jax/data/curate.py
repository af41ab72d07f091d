"""Which clips are good enough to train on: every clip is fitted to a size, measured, and kept or named a reason.

The numbers do not depend on the limits, so they are stored and limits can change later without reading the data again.
NumPy and Pillow only.
"""

import dataclasses
import hashlib
import itertools
import operator
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from one4d_jax.data import consistency
from one4d_jax.data.clip import Clip
from one4d_jax.data.sources.recording import FPS, FRAMES, Frame
from one4d_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a clip must keep to. Shares are of pixels and in 0..1."""

  fps: float = 8.0  # at least
  known: float = 0.6  # at least: pixels with depth or sky, over all frames
  known_frame: float = 0.3  # at least, in every frame
  sky: float = 0.6  # at most
  depth_range: float = 300.0  # at most: 98th over 2nd percentile
  nearest: float = 0.05  # median depth at least, in units of the source
  farthest: float = 200.0  # median depth at most
  rotation: float = 12.0  # degrees a step, at most
  translation: float = 0.25  # median depths a step, at most
  jump: float = 6.0  # median steps, at most
  pose_error: float = 1e-3  # |R R^T - 1| at most
  path: float = 0.03  # motion: median depths that the camera travels, ...
  dynamic: float = 0.01  # ... or pixels that move, ...
  change: float = 2.0  # ... or difference of consecutive frames, of 255; one of the three at least
  frozen: float = 0.5  # steps that repeat the frame before, at most
  dark: float = 20.0  # mean luminance at least, of 255
  bright: float = 235.0  # at most
  cut: float = 0.4  # change of the histogram in a step that is a cut, ...
  cut_ratio: float = 8.0  # ... if it is also so many times the median step's
  consistency: float = 0.55  # at least: points that agree between frames an eighth of the clip apart
  consistency_long: float = 0.2  # at least, half of the clip apart
  consistency_seen: float = 0.1  # at least: points that come to lie in the picture at all
  margin: float = 0.2  # at most: by how much an alternative geometry may win ...
  told: float = 0.01  # ... among the points that decide, if these are so many
  duplicate: float = 12.0  # bits, of 192, in which the hashes of two clips differ if they are not the same


@dataclasses.dataclass(frozen=True)
class Curation:
  """How recordings become clips.

  Attributes:
    shortest: frames of the shortest clip that is made of a short recording.
    sizes: (height, width) to choose from by aspect.
    held_out: share of scenes kept for the test split.
    quality: of JPEG.
  """

  frames: int = FRAMES
  fps: float = FPS
  shortest: int = 33
  sizes: tuple[tuple[int, int], ...] = ((352, 624), (624, 352), (352, 480))
  held_out: float = 0.02
  quality: int = 92
  limits: Limits = Limits()

  def check(self) -> None:
    """Raises ConfigError naming every value that cannot be."""
    problems = []
    for name in ('frames', 'shortest'):
      count = getattr(self, name)
      if count < 5 or count % 4 != 1:
        problems.append(f'{name}={count} must be 4n+1 and at least 5')
    if self.shortest > self.frames:
      problems.append(f'shortest={self.shortest} must not exceed frames={self.frames}')
    if self.fps <= 0:
      problems.append(f'fps={self.fps} must be above 0')
    if not self.sizes or any(len(size) != 2 or min(size) < 16 or size[0] % 16 or size[1] % 16 for size in self.sizes):
      problems.append(f'sizes={self.sizes} must be pairs (height, width) of multiples of 16')
    if not 0 <= self.held_out < 1:
      problems.append(f'held_out={self.held_out} must be in [0, 1)')
    if not 1 <= self.quality <= 95:
      problems.append(f'quality={self.quality} must be in 1 .. 95')
    if problems:
      raise ConfigError('; '.join(problems))


@dataclasses.dataclass(frozen=True)
class Fit:
  """A view of frames: scaled to cover ``target``, the middle cut out. Colours are averaged, all else is picked."""

  source: tuple[int, int]  # (height, width)
  target: tuple[int, int]

  @property
  def scaled(self) -> tuple[int, int]:
    """Whole (height, width) before the cut: what the true ratios follow from."""
    scale = max(self.target[0] / self.source[0], self.target[1] / self.source[1])
    return tuple(max(round(n * scale), t) for n, t in zip(self.source, self.target, strict=True))

  @property
  def kept(self) -> float:
    """Share of the picture that is left."""
    return float(np.prod(self.target) / np.prod(self.scaled))

  def __call__(self, frame: Frame) -> Frame:
    ratios = [s / n for s, n in zip(self.scaled, self.source, strict=True)]
    corner = [(s - t) // 2 for s, t in zip(self.scaled, self.target, strict=True)]
    rows, columns = (
      np.minimum(((np.arange(n) + start + 0.5) / ratio).astype(int), whole - 1)
      for n, start, ratio, whole in zip(self.target, corner, ratios, self.source, strict=True)
    )
    pick = lambda image: image[rows[:, None], columns]
    (top, left), (height, width), (down, across) = corner, self.target, ratios
    box = (left / across, top / down, (left + width) / across, (top + height) / down)
    box = tuple(min(edge, n) for edge, n in zip(box, self.source[::-1] * 2, strict=True))  # of rounding
    rgb = Image.fromarray(frame.rgb).resize((width, height), Image.Resampling.LANCZOS, box=box)
    return dataclasses.replace(
      frame,
      **{name: pick(getattr(frame, name)) for name in ('depth', 'valid', 'sky', 'dynamic')},
      rgb=np.asarray(rgb),
      K=np.array([[across, 0, -left], [0, down, -top], [0, 0, 1]]) @ frame.K,
    )


def fit(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> Fit:
  """The view that brings frames of ``size`` = (height, width) to the one of ``sizes`` with the nearest aspect."""
  aspect = lambda size: np.log(size[1] / size[0])
  return Fit(tuple(size), tuple(min(sizes, key=lambda target: abs(aspect(target) - aspect(size)))))


def statistics(clip: Clip) -> dict[str, float | str | None]:
  """Everything that the limits look at, and more; plain values, None for what cannot be told.

  Depths and lengths are in units of the source unless called a ratio. Raises DataError if cameras are not finite.
  """
  if not (np.isfinite(clip.K).all() and np.isfinite(clip.world_from_cam).all()):
    raise DataError(f'{clip.meta.get("id", "a clip")}: cameras are not finite')
  stats = {
    'frames': clip.frames,
    'fps': clip.meta.get('fps'),
    'focal': np.mean(clip.K[:, 0, 0]),
    'focal_change': clip.K[:, 0, 0].max() / clip.K[:, 0, 0].min(),  # a zoom
    **_areas(clip),
    **_depths(clip),
    **_colours(clip),
    **consistency.measure(clip),
  }
  stats |= _motion(clip, stats['depth_p50'])
  stats |= {f'hash_{i}': dhash(clip.rgb[frame]) for i, frame in enumerate((0, clip.frames // 2, clip.frames - 1))}
  return {name: _plain(value) for name, value in stats.items()}


def _plain(value):
  if value is None or isinstance(value, str):
    return value
  return float(f'{value:.6g}') if np.isfinite(value) else None  # sums differ in the last bits between machines


def _areas(clip: Clip) -> dict:
  known = (clip.valid | clip.sky).mean(axis=(1, 2))
  return {
    'known': known.mean(),
    'known_min': known.min(),
    'sky': clip.sky.mean(),
    'dynamic': clip.dynamic.mean(),
  }


def _depths(clip: Clip) -> dict:
  """Percentiles over every 4th row and column."""
  depth = clip.depth[:, ::4, ::4][clip.valid[:, ::4, ::4]]
  low, middle, high = np.percentile(depth, (2, 50, 98)) if depth.size else [np.nan] * 3
  return {'depth_p2': low, 'depth_p50': middle, 'depth_p98': high, 'depth_range': high / low}


def _motion(clip: Clip, depth: float) -> dict:
  """Of the camera, per step."""
  R, eye = clip.world_from_cam[:, :3, :3].astype(np.float64), clip.world_from_cam[:, :3, 3].astype(np.float64)
  steps = np.linalg.norm(np.diff(eye, axis=0), axis=1)
  chord = np.linalg.norm(np.diff(R, axis=0), axis=(1, 2)) / np.sqrt(8)  # sin of half the angle; exact near 0
  angles = np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))
  error = np.abs(R @ np.swapaxes(R, 1, 2) - np.eye(3)).max()
  middle = np.median(steps) if len(steps) else 0
  return {
    'pose_error': error if (np.linalg.det(R) > 0).all() else 2.0,  # a reflection
    'rotation_max': angles.max(initial=0),
    'rotation_sum': angles.sum(),
    'translation_max': steps.max(initial=0) / depth,
    'translation_jump': steps.max() / middle if middle > 1e-4 * depth else None,  # at rest any step is a jump
    'path': steps.sum() / depth,
  }


def _colours(clip: Clip) -> dict:
  """Over every 2nd row and column: brightness, change from frame to frame, the largest change of the histogram."""
  rgb = clip.rgb[:, ::2, ::2]
  change = np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in itertools.pairwise(rgb)])
  bins = (rgb[..., 0] >> 5).astype(np.int32) << 6 | (rgb[..., 1] >> 5).astype(np.int32) << 3 | rgb[..., 2] >> 5
  histograms = np.stack([np.bincount(frame.ravel(), minlength=512) for frame in bins]) / bins[0].size
  jumps = np.abs(np.diff(histograms, axis=0)).sum(1) / 2
  return {
    'luminance': rgb.mean(axis=(0, 1, 2)) @ [0.299, 0.587, 0.114],
    'change': change.mean() if len(change) else 0,
    'frozen': (change < 0.02).mean() if len(change) else 0,
    'cut': jumps.max(initial=0),
    'cut_ratio': jumps.max(initial=0) / max(np.median(jumps), 0.01) if len(jumps) else 0,
  }


def dhash(image: UInt8[np.ndarray, 'H W 3']) -> str:
  """64 bits in hex: whether each cell of 8 x 9 grey means is darker than its right neighbour. Survives a resize."""
  grey = np.asarray(Image.fromarray(image).convert('L').resize((9, 8), Image.Resampling.BOX), np.int16)
  return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


def hashes(stats: dict) -> list[str]:
  """Those of a clip's first, middle and last frame, from its statistics."""
  return [stats[f'hash_{i}'] for i in range(3)]


_AT_LEAST, _AT_MOST = operator.ge, operator.le
_RULES = (  # name of filter, statistic, how, limit, in words
  ('fps', 'fps', _AT_LEAST, 'fps', 'frames per second'),
  ('known', 'known', _AT_LEAST, 'known', 'share of pixels with depth or sky'),
  ('known_frame', 'known_min', _AT_LEAST, 'known_frame', 'share of pixels with depth or sky in the worst frame'),
  ('sky', 'sky', _AT_MOST, 'sky', 'share of sky'),
  ('depth_range', 'depth_range', _AT_MOST, 'depth_range', 'far over near depth (98th over 2nd percentile)'),
  ('nearest', 'depth_p50', _AT_LEAST, 'nearest', 'median depth'),
  ('farthest', 'depth_p50', _AT_MOST, 'farthest', 'median depth'),
  ('rotation', 'rotation_max', _AT_MOST, 'rotation', "the camera's fastest turn in degrees a step"),
  ('translation', 'translation_max', _AT_MOST, 'translation', "the camera's longest step in median depths"),
  ('jump', 'translation_jump', _AT_MOST, 'jump', "the camera's longest over its median step"),
  ('pose_error', 'pose_error', _AT_MOST, 'pose_error', 'error of the rotations'),
  ('frozen', 'frozen', _AT_MOST, 'frozen', 'share of frames that repeat the one before'),
  ('dark', 'luminance', _AT_LEAST, 'dark', 'mean luminance'),
  ('bright', 'luminance', _AT_MOST, 'bright', 'mean luminance'),
  ('consistency', 'consistency', _AT_LEAST, 'consistency', 'share of points that agree between near frames'),
  ('consistency_long', 'consistency_long', _AT_LEAST, 'consistency_long', 'share that agrees half a clip apart'),
  ('consistency_seen', 'consistency_seen', _AT_LEAST, 'consistency_seen', 'share of points that stay in the picture'),
)  # fmt: skip


def reasons(stats: dict, limits: Limits) -> dict[str, str]:
  """Why a clip is dropped: name of the filter -> sentence with value and limit; empty if it is kept.

  A statistic that is None (cannot be told) or missing drops nothing, but for depth: a clip without any is of no use.
  """
  found = {}
  for name, statistic, keeps, limit, words in _RULES:
    value, bound = stats.get(statistic), getattr(limits, limit)
    if value is not None and not keeps(value, bound):
      found[name] = f'{words} is {value:.4g}; at {"least" if keeps is _AT_LEAST else "most"} {bound:g} is kept'
  if stats.get('depth_p50') is None:
    found['depth'] = 'no pixel has a depth; at least one must'
  moves = [(name, stats.get(name), getattr(limits, name)) for name in ('path', 'dynamic', 'change')]
  if all(value is None or value < bound for _, value, bound in moves):
    values = ', '.join(f'{name} {0 if value is None else value:.4g} of {bound:g}' for name, value, bound in moves)
    found['motion'] = f'next to nothing moves: {values}; one must be reached'
  cut, ratio = stats.get('cut') or 0, stats.get('cut_ratio') or 0
  if cut > limits.cut and ratio > limits.cut_ratio:
    found['cut'] = (
      f'the histogram changes by {cut:.3g} in a step, {ratio:.3g} times the median; '
      f'over {limits.cut:g} and {limits.cut_ratio:g} times is a cut'
    )
  for name, words in consistency.ALTERNATIVES.items():
    margin, told = stats.get(f'{name}_margin'), stats.get(f'{name}_told')
    if margin is not None and margin > limits.margin and told >= limits.told:
      found[name] = (
        f'{words} would fit better: by {margin:.2f} of the {told:.1%} of points that tell; '
        f'at most {limits.margin:g} is kept'
      )
  return found


def notes(stats: dict) -> dict[str, str]:
  """What a person should look at though no clip is dropped for it: name -> sentence.

  The principal point is noted from 0.3 pixels on, three standard errors, where a pixel of it moves points by 0.1.
  """
  found = {}
  for axis in 'xy':
    off, error, told = (stats.get(f'principal_{axis}{what}') for what in ('', '_error', '_told'))
    if off is not None and told >= 0.1 and abs(off) >= max(0.3, 3 * error):
      found[f'principal_{axis}'] = f'the principal point fits better {off:+.2f} pixels along {axis} (error {error:.2f})'
  return found


def duplicates(hashes: dict[str, list[str]], limits: Limits) -> dict[str, str]:
  """Clips whose hashes all but equal those of an earlier clip that is kept: id -> id of that clip.

  Args:
    hashes: id -> hexadecimal hashes (``hashes``), in the order in which clips are kept.
  """
  names = list(hashes)
  if not names:
    return {}
  codes = np.frombuffer(bytes.fromhex(''.join(''.join(hashes[name]) for name in names)), np.uint64)
  codes = np.ascontiguousarray(codes.reshape(len(names), -1).T)
  repeats = np.full(len(names), -1)
  block = 128  # clips against all later ones: bounds the memory, 40 MB for 34k clips
  for start in range(0, len(names), block):
    one, all_ = codes[:, start : start + block, None], codes[:, None, start:]
    near, far = np.nonzero(np.bitwise_count(one[0] ^ all_[0]) <= limits.duplicate)
    near, far = near[far > near], far[far > near]
    distance = sum(np.bitwise_count(a[near, 0] ^ b[0, far]).astype(int) for a, b in zip(one, all_, strict=True))
    close = distance <= limits.duplicate
    for i, j in zip(near[close] + start, far[close] + start, strict=True):  # sorted by i
      if repeats[i] < 0 and repeats[j] < 0:
        repeats[j] = i
  return {names[j]: names[repeats[j]] for j in np.flatnonzero(repeats >= 0)}


def held_out(scene: str, share: float) -> bool:
  """Whether a scene belongs to the test split: by hash of its name, whatever else is in the set."""
  number = int.from_bytes(hashlib.sha256(scene.encode()).digest()[:8], 'big')
  return number < share * 2**64
