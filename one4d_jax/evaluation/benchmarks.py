"""What is evaluated: held-out clips of the procedural world, whose depth and cameras are exact.

Their split is never trained on, and a part of their shapes, motions and textures does not occur in training
(``meta['held_out']``). Clips are rendered on the fly: a benchmark is a list of names.
"""

import dataclasses
from collections.abc import Sequence

from one4d_jax.data import render
from one4d_jax.data.clip import Clip
from one4d_jax.errors import ConfigError
from one4d_jax.evaluation.depth import ALIGNMENTS
from one4d_jax.model.umc import TASKS
from one4d_jax.postopt.options import FitOptions

# The last two see exact pointmaps: what the VAE's round trip, or coding and fit alone, leave of them.
METHODS = ('model', 'mean', 'untrained', 'vae', 'truth')


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """One benchmark. A zero or empty sampling value means the one that the weights were made for."""

  benchmark: str = 'procedural'
  methods: tuple[str, ...] = ('model', 'mean', 'untrained')
  clips: int = 32
  levels: tuple[str, ...] = ('easy', 'medium', 'hard')  # clips take turns
  task: str = 'video'  # what is observed: image, sparse or video
  fraction: float = 0.25  # of frames observed in the sparse task
  prompt: bool = True  # give the true caption, else none
  align: str = 'scale_shift'  # of depth
  train_clips: int = 300  # that the mean-pointmap baseline averages
  train_levels: tuple[str, ...] = ('easy', 'medium')  # hard clips are held out
  seed: int = 0
  solver: str = ''
  steps: int = 0
  guidance: float = 0.0
  postopt: FitOptions = FitOptions()  # how cameras are fitted

  def check(self) -> None:
    """Raises ``ConfigError`` with all that does not fit."""
    problems = []
    if self.benchmark != 'procedural':
      problems.append(f'benchmark={self.benchmark!r} must be procedural')
    for name in self.methods:
      if name not in METHODS:
        problems.append(f'methods names {name!r}; choose from {", ".join(METHODS)}')
    if self.clips < 1 or self.train_clips < 1 or not (self.levels and self.train_levels):
      problems.append('clips and train_clips must be at least 1, levels and train_levels not empty')
    if self.task not in TASKS:
      problems.append(f'task={self.task!r} must be one of {", ".join(TASKS)}')
    if not 0 < self.fraction <= 1:
      problems.append(f'fraction={self.fraction} must be in (0, 1]')
    if self.align not in ALIGNMENTS:
      problems.append(f'align={self.align!r} must be one of {", ".join(ALIGNMENTS)}')
    if problems:
      raise ConfigError('; '.join(problems))


def names(levels: Sequence[str], count: int) -> list[tuple[str, int]]:
  """``(level, seed)`` of each clip; levels take turns."""
  return [(levels[i % len(levels)], i // len(levels)) for i in range(count)]


def held_out_clip(level: str, seed: int, *, frames: int, height: int, width: int) -> Clip:
  """One held-out clip."""
  return render.clip(seed, level=level, split='test', frames=frames, height=height, width=width)


def train_clip(level: str, seed: int, *, frames: int, height: int, width: int) -> Clip:
  """One training clip, for its geometry; colours are not smoothed."""
  return render.clip(seed, level=level, split='train', frames=frames, height=height, width=width, supersample=1)
