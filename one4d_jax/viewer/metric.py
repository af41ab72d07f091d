"""From one unknown unit to metres: what a user knows about the scene (``--metric``).

  focal=700          focal length of the input in its own pixels, before crop and resize; focal=26mm: 35 mm equivalent
  baseline=0,16:0.4  the camera of frame 16 stands 0.4 m from that of frame 0
  distance=3:12,40:50,41:1.8   in frame 3, the points at pixels (12, 40) and (50, 41) lie 1.8 m apart
  depth=0:32,32:2.5  in frame 0, the point at pixel (32, 32) has depth 2.5 m (along the view, not along the ray)

A length sets the scale; several give the median of theirs. A focal length sets the shape, not the scale: it replaces
the fitted one. Frames and pixels are those of the scene, columns first. NumPy only.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from one4d_jax.errors import DataError, UserError
from one4d_jax.viewer.scene import Scene

_NUMBER = r'[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?'
_FORMS = {
  'focal': (rf'(?P<value>{_NUMBER})(?P<mm>mm)?', 'focal=PIXELS or focal=26mm'),
  'baseline': (rf'(?P<frames>\d+,\d+):(?P<value>{_NUMBER})', 'baseline=I,J:METRES'),
  'distance': (rf'(?P<frames>\d+):(?P<a>\d+,\d+):(?P<b>\d+,\d+):(?P<value>{_NUMBER})', 'distance=I:U,V:U,V:METRES'),
  'depth': (rf'(?P<frames>\d+):(?P<a>\d+,\d+):(?P<value>{_NUMBER})', 'depth=I:U,V:METRES'),
}
_FULL_FRAME = math.hypot(36, 24)  # mm, the diagonal that equivalent focal lengths refer to
_AGREE = 0.1  # measures that differ by more deserve a word


@dataclasses.dataclass(frozen=True)
class Measure:
  """One thing that is known; ``value`` is in metres, of a focal length in pixels or mm."""

  text: str
  kind: str
  value: float
  frames: tuple[int, ...] = ()
  pixels: tuple[tuple[int, int], ...] = ()  # (u, v)
  mm: bool = False


def parse(texts: Sequence[str]) -> list[Measure]:
  """What ``--metric`` was given. Raises UserError with the form that would do."""
  found = []
  for text in texts:
    kind, _, rest = text.partition('=')
    if kind not in _FORMS:
      raise UserError(f'--metric {text!r}: give one of {", ".join(form for _, form in _FORMS.values())}')
    pattern, form = _FORMS[kind]
    match = re.fullmatch(pattern, rest)
    value = float(match['value']) if match else 0.0
    if not (value > 0 and math.isfinite(value)):
      raise UserError(f'--metric {text!r}: expected {form}, its number above 0')
    parts = match.groupdict()
    pair = lambda name, parts=parts: tuple(map(int, parts[name].split(',')))
    frames = pair('frames') if parts.get('frames') else ()
    pixels = tuple(pair(name) for name in ('a', 'b') if parts.get(name))
    if kind == 'baseline' and frames[0] == frames[1]:
      raise UserError(f'--metric {text!r}: a baseline needs two different frames')
    if kind == 'distance' and pixels[0] == pixels[1]:
      raise UserError(f'--metric {text!r}: a distance needs two different pixels')
    found.append(Measure(text, kind, value, frames, pixels, bool(parts.get('mm'))))
  if sum(measure.kind == 'focal' for measure in found) > 1:
    raise UserError('--metric names two focal lengths; give one')
  return found


def check(measures: Sequence[Measure], *, frames: int, height: int, width: int) -> None:
  """Raises UserError where a measure lies outside of a scene of this size."""
  for measure in measures:
    for i in measure.frames:
      if i >= frames:
        raise UserError(f'--metric {measure.text!r}: frame {i} is out of range, the scene has frames 0 to {frames - 1}')
    for u, v in measure.pixels:
      if u >= width or v >= height:
        raise UserError(
          f'--metric {measure.text!r}: pixel {u},{v} is out of range, the scene has {width} columns and {height} rows'
        )


def known_focal(measures: Sequence[Measure], policy: dict) -> float:
  """The focal length in pixels of the scene, 0 if it is not known; ``policy`` tells how the input was cropped.

  Raises UserError where there is no input that the focal length could belong to.
  """
  focal = next((measure for measure in measures if measure.kind == 'focal'), None)
  if focal is None:
    return 0.0
  if not policy.get('source'):
    raise UserError(f'--metric {focal.text!r} is of a camera that took the input; add --input, or leave it out')
  pixels = focal.value * math.hypot(*policy['source']['size']) / _FULL_FRAME if focal.mm else focal.value
  return pixels * policy['size'][0] / policy['crop'][2]


def apply(scene: Scene, measures: Sequence[Measure]) -> tuple[Scene, dict, list[str]]:
  """The scene with its scale, what to record of it, and what to tell: a measure that the scene does not have.

  The scale stays as it was where no measure could be taken.
  """
  record, notes, scales = {}, [], []
  for measure in measures:
    if measure.kind == 'focal':
      record[measure.text] = float(scene.K[:, 0, 0].mean())
      continue
    try:
      length = _length(scene, measure)
    except DataError as error:
      notes.append(f'--metric {measure.text}: {error}')
      continue
    scales.append(measure.value / length)
    record[measure.text] = scales[-1]
  if not scales:
    if notes:
      notes[-1] += '; the scene keeps its scale'
    return scene, record, notes
  scale = float(np.median(scales))
  if max(scales) - min(scales) > _AGREE * scale:
    shown = ', '.join(f'{value:.4g}' for value in scales)
    notes.append(f'--metric: the measures disagree about the metres in a unit ({shown}); their median is taken')
  return dataclasses.replace(scene, scale=np.float32(scale)), record, notes


def _length(scene: Scene, measure: Measure) -> float:
  """The measured length in units of the scene."""
  if measure.kind == 'baseline':
    a, b = (scene.world_from_cam[i, :3, 3].astype(np.float64) for i in measure.frames)
    length = np.linalg.norm(a - b)
    if not length > 1e-4 * (scene.median_depth or 1.0):
      raise DataError('the camera does not move between these frames')
    return float(length)
  points = [_point(scene, measure.frames[0], *pixel) for pixel in measure.pixels]
  return float(points[0][2] if measure.kind == 'depth' else np.linalg.norm(points[0] - points[1]))


def _point(scene: Scene, i: int, u: int, v: int) -> np.ndarray:
  """The point of a pixel in its camera; depth is the median of the pixels around it."""
  around = np.s_[i, max(v - 1, 0) : v + 2, max(u - 1, 0) : u + 2]
  usable = scene.valid[around] & (scene.depth[around] > 0)
  if not scene.valid[i, v, u] or not usable.any():
    raise DataError(f'pixel {u},{v} of frame {i} shows no surface')
  ray = np.linalg.inv(scene.K[i].astype(np.float64)) @ [u + 0.5, v + 0.5, 1]
  return ray * float(np.median(scene.depth[around][usable]))
