"""Scale and shift that take predicted depth to ground truth, d = s p + t: six ways of fitting them.

  none              1, 0                       scale          min_s   sum |s p - g|, exactly
  median            med g / med p, 0           scale_shift    min_s,t sum |s p + t - g|, exactly
  least_squares     min_s,t sum (s p + t - g)^2
  adam_1e-4_1000    Adam on sum |s p + t - g| from (med g / med p, 0): step size 1e-4, 1000 steps (MonST3R, CUT3R)
  adam_1e-2_5000    the same with 1e-2 and 5000 (Geo4D)

The Adam variants are what published tables were made with, and are not the minimum that they descend to: a step of
Adam moves s and t by about its step size, so that the first ends a tenth or two from where it starts, however far the
minimum is. NumPy float64, Adam in JAX float32 as published.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from one4d_jax.errors import ConfigError, DataError
from one4d_jax.geometry.align import scale_shift as least_squares

_ADAM = {'adam_1e-4_1000': (1e-4, 1000), 'adam_1e-2_5000': (1e-2, 5000)}  # step size, steps
ALIGNMENTS = ('scale_shift', 'scale', 'least_squares', 'median', 'none', *_ADAM)
_MANY = 100_000  # values, from which on it pays to look at a thousandth of them first
_ROUNDING = 1e-15  # of a sum of float64, relative
_TOLERANCE = 1e-6  # of the sum of errors: Adam stops when a step changes it by less


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
    return least_squares(p, g)
  if align not in ALIGNMENTS:
    raise ConfigError(f'unknown alignment {align!r}; choose from {", ".join(ALIGNMENTS)}')
  if align in _ADAM and _lower_median(p):
    rate, steps = _ADAM[align]
    return descend(p, g, rate=rate, steps=steps)
  if align == 'scale' and np.any(p):
    some = p != 0
    return _weighted_median(g[some] / p[some], np.abs(p[some])), 0.0
  if align == 'median' and np.median(p):
    return float(np.median(g) / np.median(p)), 0.0
  raise DataError(f'depth: cannot align a prediction of zero by {align!r}')


class _Line(NamedTuple):
  """The best line of slope ``s``, its sum of errors, and a subgradient of that sum in s."""

  s: float
  t: float
  sum: float
  slope: float


def least_absolute(p: Float[np.ndarray, 'n'], g: Float[np.ndarray, 'n']) -> tuple[float, float]:
  """The ``(s, t)`` that minimise ``sum |s p + t - g|``: no other line's sum is smaller by more than its last bits.

  For a given s the best t is the median of ``g - s p``. What remains is convex in s: the sign of a subgradient tells on
  which side the minimum lies, and its size how much lower the sum can be there. Secants (Illinois) come close in a few
  steps where values are many and subgradients change little by little; every third step halves, for where they do not.
  A constant ``p`` gets s = 0.
  """
  p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
  middle_p = np.median(p)
  p = p - middle_p
  low, high = _bracket(p, g)
  below, above, step, side = low.slope, high.slope, 0, 0
  while low.s < (middle := low.s + (high.s - low.s) / 2) < high.s and _improvable(low, high):
    step += 1
    secant = low.s - below * (high.s - low.s) / (above - below)
    line = _line(p, g, secant if step % 3 and low.s < secant < high.s else middle)
    if line.slope <= 0:
      low, below, above, side = line, line.slope, above / 2 if side < 0 else above, -1
    if line.slope >= 0:
      high, above, below, side = line, line.slope, below / 2 if side > 0 else below, 1
  best = min(low, high, key=lambda line: line.sum)
  return best.s, float(best.t - best.s * middle_p)


def _improvable(low: _Line, high: _Line) -> bool:
  """Whether a line between the two may be better than both by more than the rounding of their sums.

  The sum lies above its tangents, and thus above where the two cross.
  """
  width = high.s - low.s
  crossing = (high.sum - low.sum - high.slope * width) / (low.slope - high.slope)
  return low.sum + low.slope * crossing < (1 - _ROUNDING) * min(low.sum, high.sum)


def _bracket(p: np.ndarray, g: np.ndarray) -> tuple[_Line, _Line]:
  """Two lines with the minimum between them, by growing steps from 0 or, with many values, from what some say."""
  spread = np.abs(p).mean()
  start, step = 0.0, np.abs(g - np.median(g)).mean() / spread if spread > 0 else 0.0
  if len(p) > _MANY:
    start, _ = least_absolute(p[:: _MANY // 100], g[:: _MANY // 100])
    step = 1e-3 * abs(start) or step
  near = _line(p, g, start)
  if near.slope == 0 or step == 0:
    return near, near
  step *= -np.sign(near.slope)
  far = _line(p, g, start + step)
  while step * far.slope < 0:
    step *= 4
    near, far = far, _line(p, g, start + step)
  return (near, far) if near.s < far.s else (far, near)


def _line(p: np.ndarray, g: np.ndarray, s: float) -> _Line:
  """Residuals equal to the median may take any sign in [-1, 1] as long as all signs sum to 0; they share one value."""
  residual = g - s * p
  middle = (len(residual) - 1) // 2
  t = np.partition(residual, middle)[middle]
  residual -= t
  sign = np.sign(residual)
  tied = sign == 0
  slope = -(sign @ p) + sign.sum() / tied.sum() * p[tied].sum()
  return _Line(float(s), float(t), float(np.abs(residual).sum()), float(slope))


def _weighted_median(x: np.ndarray, weight: np.ndarray) -> float:
  """Minimises ``sum weight |x - m|`` over m."""
  order = np.argsort(x)
  total = np.cumsum(weight[order])
  return float(x[order][np.searchsorted(total, total[-1] / 2)])


def _lower_median(x: np.ndarray) -> np.float32:
  """The median as PyTorch has it: of an even number of values the lower middle one."""
  middle = (len(x) - 1) // 2
  return np.float32(np.partition(x, middle)[middle])


def descend(p: Float[np.ndarray, 'n'], g: Float[np.ndarray, 'n'], *, rate: float, steps: int) -> tuple[float, float]:
  """``(s, t)`` after at most ``steps`` steps of Adam on ``sum |s p + t - g|``, from the ratio of medians and 0."""
  start = jnp.asarray([_lower_median(g) / _lower_median(p), 0], jnp.float32)
  s, t = _adam(jnp.asarray(p, jnp.float32), jnp.asarray(g, jnp.float32), start, rate=rate, steps=steps)
  return float(s), float(t)


@functools.partial(jax.jit, static_argnames=('rate', 'steps'))
def _adam(p, g, start, *, rate: float, steps: int):
  b1, b2, epsilon = (jnp.float32(v) for v in (0.9, 0.999, 1e-8))  # PyTorch's defaults

  def step(state):
    i, x, mean, square, before, _ = state
    residual = x[0] * p + x[1] - g
    loss, sign = jnp.abs(residual).sum(), jnp.sign(residual)
    slope = jnp.stack([(sign * p).sum(), sign.sum()])
    i, mean, square = i + 1, b1 * mean + (1 - b1) * slope, b2 * square + (1 - b2) * slope**2
    n = i.astype(jnp.float32)
    x = x - rate * (mean / (1 - b1**n)) / (jnp.sqrt(square / (1 - b2**n)) + epsilon)
    return i, x, mean, square, loss, jnp.abs(loss - before) < _TOLERANCE

  zero = jnp.zeros(2, jnp.float32)
  state = (jnp.int32(0), start, zero, zero, jnp.float32(jnp.inf), jnp.bool_(False))
  return jax.lax.while_loop(lambda state: (state[0] < steps) & ~state[-1], step, state)[1]
