"""Depth of a video against ground truth: one alignment for the whole sequence, then the usual errors (Sec. 4.2).

  Abs Rel   mean |d - g| / g              delta_n   share of pixels with max(d/g, g/d) < 1.25^n
  RMSE      sqrt mean (d - g)^2           log RMSE  sqrt mean (log d - log g)^2

Predicted depth is known up to scale and, by custom, shift: d = s p + t, see ``alignment.py``. As published, d is cut at
the protocol's largest depth for all errors, and from below, where a shift may leave it at or under zero, for those that
divide by d or take its logarithm. NumPy float64.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.errors import DataError, ShapeError
from one4d_jax.evaluation.alignment import alignment

FLOOR = 1e-5  # of d in delta and log RMSE
ERRORS = ('abs_rel', 'delta1', 'delta2', 'delta3', 'rmse', 'log_rmse')


@dataclasses.dataclass(frozen=True)
class DepthMetrics:
  """Errors over the valid pixels of a sequence; ``rmse`` in units of the ground truth, the rest without unit."""

  abs_rel: float
  delta1: float
  delta2: float
  delta3: float
  rmse: float
  log_rmse: float
  scale: float
  shift: float
  pixels: int


def depth_metrics(
  pred: Float[np.ndarray, '*any'],
  gt: Float[np.ndarray, '*any'],
  valid: Bool[np.ndarray, '*any'],
  *,
  align: str = 'scale_shift',
  max_depth: float | None = None,
) -> DepthMetrics:
  """Compares depth ``pred`` with ``gt`` where ``valid``, after one alignment over all of these pixels.

  Args:
    align: one of ``alignment.ALIGNMENTS``.
    max_depth: cuts the aligned prediction from above (70 on Sintel).

  Raises:
    ConfigError: unknown ``align``.
    DataError: no valid pixel, ``gt`` not positive there, or numbers that are not finite.
    ShapeError: arrays of different shapes.
  """
  if not pred.shape == gt.shape == valid.shape:
    raise ShapeError(f'depth: pred, gt, valid need one shape, got {pred.shape}, {gt.shape}, {valid.shape}')
  p, g = (np.asarray(a[valid], np.float64) for a in (pred, gt))
  if not len(g):
    raise DataError('depth: no valid pixel to compare')
  if not (np.isfinite(p).all() and np.isfinite(g).all()):
    raise DataError('depth: pred or gt is not finite at a valid pixel; mask such pixels')
  if g.min() <= 0:
    raise DataError(f'depth: gt must be positive at valid pixels, its minimum is {g.min():g}; mask such pixels')
  scale, shift = alignment(p, g, align)
  return DepthMetrics(**_errors(p, g, scale, shift, max_depth), scale=scale, shift=shift, pixels=len(g))


def frame_errors(
  pred: Float[np.ndarray, 'F h w'],
  gt: Float[np.ndarray, 'F h w'],
  valid: Bool[np.ndarray, 'F h w'],
  found: DepthMetrics,
  *,
  max_depth: float | None = None,
) -> dict[str, list[float | None]]:
  """Abs Rel and delta_1 of each frame under the alignment that was found for all; None without a valid pixel."""
  curves = {'abs_rel': [], 'delta1': []}
  for p, g, seen in zip(pred, gt, valid, strict=True):
    p, g = (a[seen].astype(np.float64) for a in (p, g))
    errors = _errors(p, g, found.scale, found.shift, max_depth) if len(g) else {}
    for name, curve in curves.items():
      curve.append(errors.get(name))
  return curves


def _errors(p: np.ndarray, g: np.ndarray, scale: float, shift: float, max_depth: float | None) -> dict[str, float]:
  d = np.minimum(scale * p + shift, np.inf if max_depth is None else max_depth)
  floored = np.maximum(d, FLOOR)
  ratio = np.maximum(floored / g, g / floored)
  return {
    'abs_rel': float(np.mean(np.abs(d - g) / g)),
    'delta1': float(np.mean(ratio < 1.25)),
    'delta2': float(np.mean(ratio < 1.25**2)),
    'delta3': float(np.mean(ratio < 1.25**3)),
    'rmse': float(np.sqrt(np.mean((d - g) ** 2))),
    'log_rmse': float(np.sqrt(np.mean(np.log(ratio) ** 2))),
  }


def pool(rows: Sequence[dict], *, weight: str = 'pixels') -> dict[str, float]:
  """The mean of each error over sequences, weighted by valid pixels as the published tables do; or all ``sequences``
  alike. ``rows`` are ``DepthMetrics`` as dictionaries.
  """
  weights = [row['pixels'] if weight == 'pixels' else 1 for row in rows]
  return {name: float(np.average([row[name] for row in rows], weights=weights)) for name in ERRORS}
