"""What is compared: a sequence of a benchmark, and what a method says of it. NumPy only.

Either may lack something: files that are not there, or geometry that could not be fitted. ``lacks`` says why, under the
name of the part of the score (``PARTS``) that is skipped for it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8

PARTS = ('depth', 'trajectory', 'video', 'geometry')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
  """One sequence. Conventions are those of ``data.clip.Clip``; None where the benchmark does not say.

  Attributes:
    depth: planar z, 0 where unknown.
    valid: pixels that show a surface, where the benchmark knows it of all of them (others are sky).
    dynamic: pixels on something that moves.
    K: in pixels of ``depth``, or else of ``rgb``.
  """

  name: str
  rgb: UInt8[np.ndarray, 'F H W 3']
  group: str = ''
  caption: str = ''
  depth: Float[np.ndarray, 'F h w'] | None = None
  valid: Bool[np.ndarray, 'F h w'] | None = None
  dynamic: Bool[np.ndarray, 'F h w'] | None = None
  K: Float[np.ndarray, 'F 3 3'] | None = None
  world_from_cam: Float[np.ndarray, 'F 4 4'] | None = None
  lacks: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def frames(self) -> int:
    return len(self.rgb)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """What a method says of a sequence, on a pixel grid of its own; None where it says nothing.

  Attributes:
    depth: planar z, up to scale.
    valid: pixels that show a surface; None: all.
    points: in one world for all frames, up to a similarity.
    rgb: the video that the method generated, in [-1, 1].
    residual: of the camera fit, per frame.
    notes: how the prediction came about, for the row.
  """

  depth: Float[np.ndarray, 'F h w'] | None = None
  valid: Bool[np.ndarray, 'F h w'] | None = None
  points: Float[np.ndarray, 'F h w 3'] | None = None
  K: Float[np.ndarray, 'F 3 3'] | None = None
  world_from_cam: Float[np.ndarray, 'F 4 4'] | None = None
  rgb: Float[np.ndarray, 'F h w 3'] | None = None
  residual: Float[np.ndarray, 'F'] | None = None
  lacks: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Listed:
  """A sequence of a benchmark that is not read yet. ``open`` raises DataError where it cannot be."""

  name: str
  group: str
  open: Callable[[], Truth]
