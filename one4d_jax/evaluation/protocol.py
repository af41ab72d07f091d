"""Protocols: what of a benchmark is scored and how, pinned in ``protocols/NAME.json``.

Numbers of two papers can be compared where these agree: which sequences and which of their frames, which pixels, how a
prediction is aligned and cut, how sequences are averaged. Nothing of it is in code that reads or scores.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from one4d_jax.errors import ConfigError
from one4d_jax.structs import from_dict

FOLDER = pathlib.Path(__file__).parent / 'protocols'
NAMES = tuple(sorted(path.stem for path in FOLDER.glob('*.json')))
EVERY = '*'


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One benchmark. ``depth`` and ``trajectory`` list the sequences that are scored so; ``*`` stands for all."""

  about: str  # where the protocol is from, in a sentence for the report
  reader: str  # procedural, sintel, recorded (TUM RGB-D and Bonn), scannet
  lengths: dict[str, int]  # frames of every sequence after the choice; empty: as many as there are
  depth: tuple[str, ...]
  trajectory: tuple[str, ...]
  folder: str = '{}'  # name of a sequence's folder
  frames: tuple[tuple[int, int, int], ...] = ()  # slices (start, stop, step), one after the other; stop 0: to the end
  pairing: str = ''  # recorded: index, depth_time or pose_time
  within: float = 0.02  # seconds that paired time stamps may differ
  focal: tuple[float, ...] = ()  # recorded: fx, fy, cx, cy
  far: float = 0.0  # scored are pixels with 0 < depth < far; 0: no limit
  cut: float = 0.0  # aligned depth is cut here; 0: is not
  align: tuple[str, ...] = ('scale_shift',)  # of depth; the first is the one that curves and plots show
  trajectory_align: str = 'sim3'
  depth_weight: str = 'pixels'  # of a sequence in the pooled row: pixels or sequences

  def chosen(self, count: int) -> list[int]:
    """Which of ``count`` frames are taken."""
    index = list(range(count))
    for start, stop, step in self.frames:
      index = index[slice(start, stop or None, step)]
    return index

  def scores(self, part: str, name: str) -> bool:
    """Whether ``part`` (depth or trajectory) of a sequence is scored."""
    listed = getattr(self, part)
    return name in listed or listed == (EVERY,)

  def only(self, names: Sequence[str]) -> 'Protocol':
    """With these sequences alone. Raises ConfigError naming one that the protocol does not have."""
    if unknown := [name for name in names if name not in self.lengths]:
      raise ConfigError(f'sequences names {unknown[0]!r}; choose from {", ".join(self.lengths)}')
    return dataclasses.replace(self, lengths={name: self.lengths[name] for name in names})


def load(name: str) -> Protocol:
  """The protocol of that name. Raises ConfigError."""
  if name not in NAMES:
    raise ConfigError(f'benchmark={name!r} must be one of {", ".join(NAMES)}')
  return from_dict(json.loads((FOLDER / f'{name}.json').read_text()), Protocol)
