"""What is evaluated: the choices of a run, and the sequences of its benchmark.

The procedural world needs no files: its held-out clips are never trained on, a part of their shapes, motions and
textures does not occur in training (``meta['held_out']``), and they are rendered on the fly. Other benchmarks are read
from the folder they were unpacked into; what is scored and how is their protocol's (``protocol.py``).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from one4d_jax.data import render, scenes
from one4d_jax.data.clip import Clip
from one4d_jax.errors import ConfigError, DataError
from one4d_jax.evaluation import paper, recorded, scannet, sintel
from one4d_jax.evaluation import protocol as protocols
from one4d_jax.evaluation.alignment import ALIGNMENTS
from one4d_jax.evaluation.protocol import Protocol
from one4d_jax.evaluation.sequence import Listed, Truth
from one4d_jax.model.umc import TASKS
from one4d_jax.postopt.options import FitOptions

# The last two see exact pointmaps: what the VAE's round trip, or coding and fit alone, leave of them.
METHODS = ('model', 'mean', 'untrained', 'vae', 'truth')
EXACT = ('mean', 'vae', 'truth')  # those that need the procedural world
READERS = {'sintel': sintel.read, 'recorded': recorded.read, 'scannet': scannet.read}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """One benchmark. A zero or empty sampling value means the one that the weights were made for."""

  benchmark: str = 'procedural'  # see protocols/
  table: str = ''  # of the paper: its benchmarks and settings take the place of those here
  methods: tuple[str, ...] = ('model', 'mean', 'untrained')  # without --predictions
  sequences: tuple[str, ...] = ()  # of the protocol; empty: all
  align: tuple[str, ...] = ()  # of depth; empty: the protocol's
  lpips: bool = False  # of generated RGB; needs the lpips package
  clips: int = 32  # of the procedural world
  levels: tuple[str, ...] = ('easy', 'medium', 'hard')  # clips take turns
  train_clips: int = 300  # that the mean-pointmap baseline averages
  train_levels: tuple[str, ...] = ('easy', 'medium')  # hard clips are held out
  task: str = 'video'  # what is observed: image, sparse or video
  fraction: float = 0.25  # of frames observed in the sparse task
  prompt: bool = True  # give the true caption, where there is one
  height: int = 0  # of what the model sees; 0: as many pixels as in training, in the sequence's aspect
  width: int = 0
  seed: int = 0
  solver: str = ''
  steps: int = 0
  guidance: float = 0.0
  postopt: FitOptions = FitOptions()  # how cameras are fitted

  def check(self) -> None:
    """Raises ``ConfigError`` with all that does not fit."""
    problems = []
    if self.benchmark not in protocols.NAMES:
      problems.append(f'benchmark={self.benchmark!r} must be one of {", ".join(protocols.NAMES)}')
    for name in self.methods:
      if name not in METHODS:
        problems.append(f'methods names {name!r}; choose from {", ".join(METHODS)}')
      elif name in EXACT and self.benchmark != 'procedural':
        problems.append(f'method {name!r} needs the exact pointmaps of the procedural benchmark')
    if self.table and self.table not in paper.names():
      problems.append(f'table={self.table!r} must be one of {", ".join(paper.names())}, or empty')
    if not self.methods:
      problems.append(f'methods must name some of {", ".join(METHODS)}')
    if self.clips < 1 or self.train_clips < 1 or not (self.levels and self.train_levels):
      problems.append('clips and train_clips must be at least 1, levels and train_levels not empty')
    trained = tuple(level for level in scenes.LEVELS if level != 'hard')
    for which, some, known in (('levels', self.levels, scenes.LEVELS), ('train_levels', self.train_levels, trained)):
      problems += [f'{which} names {name!r}; choose from {", ".join(known)}' for name in some if name not in known]
    if self.task not in TASKS:
      problems.append(f'task={self.task!r} must be one of {", ".join(TASKS)}')
    if not 0 < self.fraction <= 1:
      problems.append(f'fraction={self.fraction} must be in (0, 1]')
    problems += [
      f'align names {name!r}; choose from {", ".join(ALIGNMENTS)}' for name in self.align if name not in ALIGNMENTS
    ]
    if self.sequences and self.benchmark == 'procedural':
      problems.append(f'sequences={self.sequences} are for other benchmarks; procedural clips follow clips and levels')
    if not 0 <= self.seed < 2**32:
      problems.append(f'seed={self.seed} must be in 0 .. {2**32 - 1}')
    if min(self.height, self.width) < 0 or (self.height > 0) != (self.width > 0) or self.height % 16 or self.width % 16:
      problems.append(f'height={self.height} and width={self.width} must be multiples of 16, or both 0')
    if problems:
      raise ConfigError('; '.join(problems))

  def protocol(self) -> Protocol:
    """The benchmark's, with the sequences and alignments chosen here. Raises ConfigError."""
    found = protocols.load(self.benchmark)
    if self.sequences:
      found = found.only(self.sequences)
    return dataclasses.replace(found, align=self.align) if self.align else found


def listed(cfg: EvalConfig, protocol: Protocol, *, root: pathlib.Path | None, size: dict[str, int]) -> list[Listed]:
  """The sequences of the benchmark, in order.

  Args:
    root: the folder of a downloaded benchmark.
    size: frames, height and width of procedural clips.

  Raises:
    ConfigError: no folder for a benchmark that needs one.
    DataError: a folder with none of its sequences.
  """
  if protocol.reader == 'procedural':
    names_ = names(cfg.levels, cfg.clips)
    clip = lambda level, seed: lambda: truth(held_out_clip(level, seed, **size), f'{level}-{seed:04d}')
    return [Listed(f'{level}-{seed:04d}', level, clip(level, seed)) for level, seed in names_]
  if root is None:
    raise ConfigError(f'the benchmark {cfg.benchmark} is read from where it was unpacked: add --root DIR')
  read = functools.partial(READERS[protocol.reader], protocol=protocol)
  found = [Listed(name, '', functools.partial(read, root, name)) for name in protocol.lengths]
  folders = [protocol.folder.format(name) for name in protocol.lengths]
  above = ('', '*/', '*/*/')  # Sintel's own folders, or one of an archive
  if not any(path.is_dir() for name in folders for up in above for path in root.glob(f'{up}{name}')):
    raise DataError(f'{root} holds no sequence of {cfg.benchmark}; expected folders such as {folders[0]} in it')
  return found


def names(levels: Sequence[str], count: int) -> list[tuple[str, int]]:
  """``(level, seed)`` of each clip; levels take turns."""
  return [(levels[i % len(levels)], i // len(levels)) for i in range(count)]


def held_out_clip(level: str, seed: int, *, frames: int, height: int, width: int) -> Clip:
  """One held-out clip."""
  return render.clip(seed, level=level, split='test', frames=frames, height=height, width=width)


def train_clip(level: str, seed: int, *, frames: int, height: int, width: int) -> Clip:
  """One training clip, for its geometry; colours are not smoothed."""
  return render.clip(seed, level=level, split='train', frames=frames, height=height, width=width, supersample=1)


def truth(clip: Clip, name: str) -> Truth:
  """A clip with exact geometry as a sequence."""
  return Truth(
    name=name,
    group=clip.meta['level'],
    caption=clip.caption,
    rgb=clip.rgb,
    depth=clip.depth,
    valid=clip.valid,
    dynamic=clip.dynamic,
    K=clip.K,
    world_from_cam=clip.world_from_cam,
  )
