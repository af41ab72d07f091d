"""Line plots as SVG, small enough to stand in a page: axes, lines with a mark at every given point, a legend below.

Names are shown as they are: whatever is in them is text.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#7a5195', '#444444')  # Okabe and Ito
_DASHES = ('none', '7 4', '2 3')  # when the colours are used up
_WIDTH, _HEIGHT, _LEFT, _TOP, _LINE = 560, 300, 64, 34, 18  # in pixels; the legend has _LINE a line
_ACROSS, _UP = _WIDTH - _LEFT - 16, _HEIGHT - _TOP - 44  # size of what is between the axes


class Line(NamedTuple):
  """A named curve; where ``y`` is None or not finite it has a gap. ``index`` chooses its colour."""

  name: str
  x: Sequence[float]
  y: Sequence[float | None]
  index: int


def svg(
  lines: Sequence[Line],
  *,
  title: str,
  x_name: str,
  y_name: str,
  marks: bool = True,
  x_ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
  """The plot as an ``<svg>`` element. ``x_ticks`` are places on the x axis with their labels, by default round numbers.

  The y axis starts at 0 unless all values lie far above it.
  """
  xs = [x for line in lines for x in line.x]
  ys = [y for line in lines for y in line.y if _known(y)]
  low, high = (min(ys), max(ys)) if ys else (0.0, 1.0)
  low = 0.0 if 0 <= low < 0.6 * high else low - 0.1 * (high - low or abs(high) or 1)
  high = high + 0.08 * (high - low or 1)
  left, right = (min(xs), max(xs)) if xs else (0.0, 1.0)
  left, right = (left, right) if right > left else (left - 0.5, right + 0.5)
  at_x = lambda x: _LEFT + (x - left) / (right - left) * _ACROSS
  at_y = lambda y: _TOP + (high - y) / (high - low) * _UP
  x_ticks = [(t, f'{t:g}') for t in round_numbers(left, right)] if x_ticks is None else x_ticks
  turned = f'transform="rotate(-90 14 {_TOP + _UP / 2:.0f})"'
  parts = [
    _text(_WIDTH / 2, 18, title, 'middle', 'font-weight="600"'),
    *(_level(at_y(y), f'{y:g}') for y in round_numbers(low, high)),
    *(_tick(at_x(x), label) for x, label in x_ticks),
    f'<path d="M{_LEFT} {_TOP}v{_UP}h{_ACROSS}" stroke="#626a78" fill="none"/>',
    _text(_LEFT + _ACROSS / 2, _HEIGHT - 8, x_name, 'middle'),
    _text(14, _TOP + _UP / 2, y_name, 'middle', turned),
  ]
  labels = dict(x_ticks)
  for k, line in enumerate(lines):
    style = f'stroke-width="2" stroke="{_colour(line)}" stroke-dasharray="{_dashes(line)}"'
    points = [(at_x(x), at_y(y)) if _known(y) else None for x, y in zip(line.x, line.y, strict=True)]
    parts.append(f'<path d="{_path(points)}" fill="none" {style}/>')
    for point, x, y in zip(points, line.x, line.y, strict=True):
      parts += [_mark(point, line, f'{labels.get(x, x)}: {y:.4g}')] if marks and point else []
    base = _HEIGHT + 12 + k * _LINE
    parts += [f'<path d="M{_LEFT} {base - 4}h22" {style}/>', _text(_LEFT + 30, base, line.name, 'start')]
  height = _HEIGHT + 4 + len(lines) * _LINE
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
    f'font-family="system-ui, sans-serif" font-size="12" fill="#1b1f27" role="img">{"".join(parts)}</svg>'
  )


def round_numbers(low: float, high: float) -> list[float]:
  """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``, about five."""
  rough = (high - low) / 5
  power = 10.0 ** math.floor(math.log10(rough))
  step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
  return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _known(y: float | None) -> bool:
  return y is not None and math.isfinite(y)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
  pieces, pen = [], 'M'
  for point in points:
    pieces += [f'{pen}{point[0]:.1f} {point[1]:.1f}'] if point else []
    pen = 'L' if point else 'M'
  return ''.join(pieces)


def _colour(line: Line) -> str:
  return COLOURS[line.index % len(COLOURS)]


def _dashes(line: Line) -> str:
  return _DASHES[line.index // len(COLOURS) % len(_DASHES)]


def _mark(point: tuple[float, float], line: Line, tip: str) -> str:
  """A dot that shows its numbers under the mouse."""
  place = f'cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="3.5" fill="{_colour(line)}"'
  return f'<circle {place}><title>{html.escape(f"{line.name}, {tip}")}</title></circle>'


def _level(y: float, label: str) -> str:
  line = f'<path d="M{_LEFT} {y:.1f}h{_ACROSS}" stroke="#e3e6eb"/>'
  return line + _text(_LEFT - 6, y + 4, label, 'end')


def _tick(x: float, label: str) -> str:
  return f'<path d="M{x:.1f} {_TOP + _UP}v4" stroke="#626a78"/>' + _text(x, _TOP + _UP + 17, label, 'middle')


def _text(x: float, y: float, text: str, anchor: str, more: str = '') -> str:
  return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{html.escape(text)}</text>'
