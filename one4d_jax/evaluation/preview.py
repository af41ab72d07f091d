"""Pictures of a row of an evaluation, kept beside its numbers: a strip of frames over their depth."""

import io
import pathlib

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from one4d_jax.evaluation.report import write
from one4d_jax.viewer.pictures import depth_colours

FOLDER = 'previews'  # of a run; in it a folder a method
TRUTH = 'truth'  # stands there among the methods
COLUMNS, _HEIGHT = 4, 80


def near_far(depth: Float[np.ndarray, 'F H W'], valid: Bool[np.ndarray, 'F H W']) -> tuple[float, float]:
  """The depths that colours span: the 2% and 98% quantiles of the true one, so that pictures of a clip compare."""
  known = depth[valid]
  return tuple(float(q) for q in np.quantile(known, [0.02, 0.98])) if known.size else (0.0, 0.0)


def strip(
  rgb: UInt8[np.ndarray, 'F H W 3'] | None,
  depth: Float[np.ndarray, 'F H W'],
  valid: Bool[np.ndarray, 'F H W'],
  *,
  span: tuple[float, float],
) -> UInt8[np.ndarray, 'h w 3']:
  """``COLUMNS`` frames spread over the clip, colours above depth; a method without colours shows depth alone."""
  chosen = np.linspace(0, len(depth) - 1, min(COLUMNS, len(depth))).round().astype(int)
  rows = [] if rgb is None else [rgb[chosen]]
  rows.append(depth_colours(depth[chosen], valid[chosen], near_far=span))
  return np.concatenate([np.concatenate([_small(frame) for frame in row], axis=1) for row in rows])


def _small(frame: UInt8[np.ndarray, 'H W 3']) -> np.ndarray:
  picture = Image.fromarray(frame)
  width = max(round(picture.width * _HEIGHT / picture.height), 1)
  return np.asarray(picture.resize((width, _HEIGHT), Image.Resampling.BOX))


def save(picture: UInt8[np.ndarray, 'h w 3'], run: pathlib.Path, method: str, name: str) -> None:
  """Keeps the picture of a row of ``run``."""
  content = io.BytesIO()
  Image.fromarray(picture).save(content, format='jpeg', quality=85)
  write(path(run, method, name), content.getvalue())


def path(run: pathlib.Path, method: str, name: str) -> pathlib.Path:
  """Where the picture of a row is, if it was kept."""
  return run / FOLDER / method / f'{name}.jpg'
