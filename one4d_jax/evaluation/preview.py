"""Pictures of a row of an evaluation, kept beside its numbers: a strip of frames over their depth."""

import io
import pathlib

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from one4d_jax.evaluation.report import write
from one4d_jax.evaluation.sequence import Prediction, Truth
from one4d_jax.viewer.pictures import depth_colours, to_uint8

FOLDER = 'previews'  # of a run; in it a folder a method
TRUTH = '_truth'  # stands there among the methods, one of which is called truth
COLUMNS, _HEIGHT = 4, 80


def keep(run: pathlib.Path, method: str, truth: Truth, found: Prediction, row: dict) -> None:
  """Keeps the pictures of a prediction and, once, of its sequence; ``row`` says how depth was aligned."""
  depth, valid, span = None, None, (0.0, 0.0)
  if found.depth is not None:
    aligned = next(iter(row.get('depth', {}).values()), {'scale': 1.0, 'shift': 0.0})
    depth = (aligned['scale'] * found.depth + aligned['shift']).astype(np.float32)
    valid = np.isfinite(depth) if found.valid is None else found.valid & np.isfinite(depth)
    span = near_far(depth, valid & (depth > 0))
  if truth.depth is not None:
    known = np.isfinite(truth.depth) & (truth.depth > 0)
    span = near_far(truth.depth, known)
  else:
    known = None
  rgb = None if found.rgb is None else to_uint8(found.rgb)
  if rgb is not None or depth is not None:
    save(strip(rgb, depth, valid, span=span), run, method, truth.name)
  if not path(run, TRUTH, truth.name).is_file():
    save(strip(truth.rgb, truth.depth, known, span=span), run, TRUTH, truth.name)


def near_far(depth: Float[np.ndarray, 'F H W'], valid: Bool[np.ndarray, 'F H W']) -> tuple[float, float]:
  """The depths that colours span, those of the truth for all pictures of a sequence: its 2% and 98% quantiles."""
  known = depth[valid]
  return tuple(float(q) for q in np.quantile(known, [0.02, 0.98])) if known.size else (0.0, 0.0)


def strip(
  rgb: UInt8[np.ndarray, 'F H W 3'] | None,
  depth: Float[np.ndarray, 'F h w'] | None,
  valid: Bool[np.ndarray, 'F h w'] | None,
  *,
  span: tuple[float, float],
) -> UInt8[np.ndarray, 'y x 3']:
  """``COLUMNS`` frames spread over the clip, colours above depth; without one of them, the other alone."""
  frames = len(depth if rgb is None else rgb)
  chosen = np.linspace(0, frames - 1, min(COLUMNS, frames)).round().astype(int)
  rows = [] if rgb is None else [rgb[chosen]]
  if depth is not None:
    chosen = np.minimum(chosen, len(depth) - 1)
    rows.append(depth_colours(depth[chosen], valid[chosen], near_far=span))
  width = max(round(rows[0].shape[2] * _HEIGHT / rows[0].shape[1]), 1)
  return np.concatenate([np.concatenate([_small(frame, width) for frame in row], axis=1) for row in rows])


def _small(frame: UInt8[np.ndarray, 'H W 3'], width: int) -> np.ndarray:
  return np.asarray(Image.fromarray(frame).resize((width, _HEIGHT), Image.Resampling.BOX))


def save(picture: UInt8[np.ndarray, 'h w 3'], run: pathlib.Path, method: str, name: str) -> None:
  """Keeps the picture of a row of ``run``."""
  content = io.BytesIO()
  Image.fromarray(picture).save(content, format='jpeg', quality=85)
  write(path(run, method, name), content.getvalue())


def path(run: pathlib.Path, method: str, name: str) -> pathlib.Path:
  """Where the picture of a row is, if it was kept."""
  return run / FOLDER / method / f'{name}.jpg'
