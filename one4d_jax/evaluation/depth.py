"""Depth of a video against ground truth: one alignment for the whole sequence, then the usual errors (Sec. 4.2).

  Abs Rel   mean |d - g| / g              delta_n   share of pixels with max(d/g, g/d) < 1.25^n
  RMSE      sqrt mean (d - g)^2           log RMSE  sqrt mean (log d - log g)^2

Predicted depth is known up to scale and, by custom, shift: d = s p + t. Published numbers fit s and t by a few steps of
Adam on sum |s p + t - g|, and depend on its step size; here the minimum of that sum is found exactly. NumPy float64.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.errors import ConfigError, DataError, ShapeError
from one4d_jax.geometry.align import scale_shift

ALIGNMENTS = ('scale_shift', 'scale', 'least_squares', 'median', 'none')
FLOOR = 1e-5  # aligned depth is cut here: a shift may leave some of it at or below zero


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
    align: ``scale_shift`` and ``scale`` minimise the sum of absolute errors exactly, ``least_squares`` fits scale and
      shift to squared errors, ``median`` matches the medians, ``none`` takes ``pred`` as it is.
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
  d = np.clip(scale * p + shift, FLOOR, max_depth)
  ratio = np.maximum(d / g, g / d)
  return DepthMetrics(
    abs_rel=float(np.mean(np.abs(d - g) / g)),
    delta1=float(np.mean(ratio < 1.25)),
    delta2=float(np.mean(ratio < 1.25**2)),
    delta3=float(np.mean(ratio < 1.25**3)),
    rmse=float(np.sqrt(np.mean((d - g) ** 2))),
    log_rmse=float(np.sqrt(np.mean((np.log(d) - np.log(g)) ** 2))),
    scale=scale,
    shift=shift,
    pixels=len(g),
  )


def pool(rows: Sequence[DepthMetrics]) -> dict[str, float]:
  """The mean of each error over sequences, weighted by valid pixels, as the published tables do."""
  names = ('abs_rel', 'delta1', 'delta2', 'delta3', 'rmse', 'log_rmse')
  weights = [row.pixels for row in rows]
  return {name: float(np.average([getattr(row, name) for row in rows], weights=weights)) for name in names}


def alignment(p: Float[np.ndarray, 'n'], g: Float[np.ndarray, 'n'], align: str) -> tuple[float, float]:
  """``(s, t)`` such that ``s p + t`` fits ``g`` in the sense of ``align``.

  Raises:
    ConfigError: unknown ``align``.
    DataError: a prediction of zero, or a constant one for ``least_squares``.
  """
  if align == 'none':
    return 1.0, 0.0
  if align == 'scale_shift':
    return least_absolute(p, g)
  if align == 'least_squares':
    return scale_shift(p, g)
  if align not in ALIGNMENTS:
    raise ConfigError(f'unknown alignment {align!r}; choose from {", ".join(ALIGNMENTS)}')
  if align == 'scale' and np.any(p):
    some = p != 0
    return _weighted_median(g[some] / p[some], np.abs(p[some])), 0.0
  if align == 'median' and np.median(p):
    return float(np.median(g) / np.median(p)), 0.0
  raise DataError(f'depth: cannot align a prediction of zero by {align!r}')


def least_absolute(p: Float[np.ndarray, 'n'], g: Float[np.ndarray, 'n']) -> tuple[float, float]:
  """The ``(s, t)`` that minimise ``sum |s p + t - g|``, exact to the last bits of ``s``.

  For a given s the best t is the median of ``g - s p``. What remains is convex in s: the sign of a subgradient tells
  on which side the minimum lies, and bisection ends when no number is left in between, after some 60 medians.
  A constant ``p`` gets s = 0.
  """
  p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
  middle_p = np.median(p)
  p = p - middle_p
  low, high = _bracket(p, g)
  while low < (middle := low + (high - low) / 2) < high:
    slope = _slope(p, g, middle)
    low, high = (middle, high) if slope < 0 else (low, middle) if slope > 0 else (middle, middle)
  fits = [(float(s), float(np.median(g - s * p))) for s in (low, high)]
  s, t = min(fits, key=lambda fit: np.abs(fit[0] * p + fit[1] - g).sum())
  return s, float(t - s * middle_p)


def _bracket(p: np.ndarray, g: np.ndarray) -> tuple[float, float]:
  """Two values of s with the minimum between them, found by growing steps from 0."""
  spread = np.abs(p).mean()
  step = np.abs(g - np.median(g)).mean() / spread if spread > 0 else 0.0
  slope = _slope(p, g, 0.0)
  if slope == 0 or step == 0:
    return 0.0, 0.0
  sign = -np.sign(slope)
  near, far = 0.0, sign * step
  while sign * _slope(p, g, far) < 0:
    near, far = far, 4 * far
  return min(near, far), max(near, far)


def _slope(p: np.ndarray, g: np.ndarray, s: float) -> float:
  """A subgradient in s of ``min_t sum |s p + t - g|``.

  Residuals equal to the median may take any sign in [-1, 1] as long as all signs sum to 0; they share one value.
  """
  residual = g - s * p
  middle = (len(residual) - 1) // 2
  t = np.partition(residual, middle)[middle]
  sign = np.sign(residual - t)
  tied = sign == 0
  return float(-(sign @ p) + sign.sum() / tied.sum() * p[tied].sum())


def _weighted_median(x: np.ndarray, weight: np.ndarray) -> float:
  """Minimises ``sum weight |x - m|`` over m."""
  order = np.argsort(x)
  total = np.cumsum(weight[order])
  return float(x[order][np.searchsorted(total, total[-1] / 2)])
