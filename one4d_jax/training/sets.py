"""The data sets that ``data.source`` names, each as records of one clip size."""

import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import safetensors.numpy
import tqdm

from one4d_jax.data import pipeline, prepared, procedural, shards
from one4d_jax.errors import DataError

CONSTANTS = 'constants.safetensors'  # of an encoded set, beside its index


@dataclasses.dataclass(frozen=True)
class Set:
  """Records of one size.

  Attributes:
    records: clips (``procedural.to_record``) or, if there is ``meta``, what ``encode`` made of them.
    size: (frames, height, width).
    weight: share of samples, relative to other sets.
    meta: of an encoded set.
    null: features of the empty prompt, of an encoded set, float16 ``[n c]``.
  """

  records: Sequence[dict]
  size: tuple[int, int, int]
  weight: float
  name: str
  meta: dict | None = None
  null: np.ndarray | None = None

  def component(self, draw: Callable, bucket: Hashable = ()) -> pipeline.Component:
    """It as part of a mixture."""
    return pipeline.Component(self.records, draw, self.weight, bucket, self.name, self.records.fingerprint)


@dataclasses.dataclass(frozen=True)
class Clips(Sequence):
  """Some clips of a prepared set, as records of pixels."""

  source: prepared.Source
  rows: tuple[int, ...]

  @property
  def fingerprint(self) -> str:
    return self.source.fingerprint

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, i: int) -> dict:
    return procedural.to_record(self.source[self.rows[i]])


def training(data) -> list[Set]:
  """All that ``config.data`` says to train on; a source of several sizes shares its weight by their numbers of clips.

  Raises:
    ConfigError, DataError: a source that is malformed, missing, damaged or without clips to train on.
  """
  return [found for source, weight in data.sources for found in _training(source, weight, data)]


def validation(data) -> Set:
  """The first ``validation_clips`` of the first source: of its held-out clips or, without those, of the others."""
  source, weight = data.sources[0]
  held_out = _open(source, 'test', weight, data)
  if not held_out:
    tqdm.tqdm.write(f'{source} holds out no clips: validation is on clips of the training', file=sys.stderr)
  found = (held_out or _training(source, weight, data))[0]
  count = min(data.validation_clips, len(found.records))
  return dataclasses.replace(found, records=procedural.First(found.records, count))


def _training(source: str, weight: float, data) -> list[Set]:
  if not (found := _open(source, 'train', weight, data)):
    raise DataError(
      f'{source} has no clips to train on; loosen the limits with which it was prepared, or leave it out of data.source'
    )
  return found


def _open(source: str, split: str, weight: float, data) -> list[Set]:
  """The sets of a split of one source, largest first."""
  if source == 'procedural':
    return [_procedural(split, weight, data)]
  folder = pathlib.Path(source)
  encoded = sorted(folder.glob(f'*-*x*x*/{shards.INDEX}'))
  found = _encoded(encoded, split) if encoded else _prepared(folder, split)
  total = sum(len(one.records) for one in found)
  found = [dataclasses.replace(one, weight=weight * len(one.records) / total) for one in found]
  return sorted(found, key=lambda one: -len(one.records))


def _procedural(split: str, weight: float, data) -> Set:
  size = (data.frames, data.height, data.width)
  split, clips = {'train': ('train', data.clips), 'test': ('val', data.validation_clips)}[split]
  names = dict(zip(('frames', 'height', 'width'), size, strict=True))
  records = procedural.build(pathlib.Path(data.cache), split=split, clips=clips, levels=data.levels, **names)
  return Set(records, size, weight, 'procedural')


def _prepared(folder: pathlib.Path, split: str) -> list[Set]:
  if split not in prepared.splits(folder):
    return []
  source = prepared.open(folder, split)
  rows = {}
  for i, row in enumerate(source.rows):
    rows.setdefault(tuple(row['size']), []).append(i)
  return [Set(Clips(source, tuple(some)), size, 1.0, str(folder)) for size, some in rows.items()]


def _encoded(indices: Sequence[pathlib.Path], split: str) -> list[Set]:
  found = []
  for folder in (path.parent for path in indices):
    records = shards.open(folder)
    if records.meta.get('kind') != 'latents':
      raise DataError(f'{folder} was not written by python -m one4d_jax.encode')
    if records.meta['split'] == split:
      found.append(Set(records, tuple(records.meta['size']), 1.0, str(folder), records.meta, _null(folder, records)))
  return found


def _null(folder: pathlib.Path, records: shards.Source) -> np.ndarray:
  path = folder / CONSTANTS
  content = path.read_bytes() if path.is_file() else b''
  if hashlib.sha256(content).hexdigest() != records.meta['constants']:
    raise DataError(f'{path} is missing or damaged; copy it again, or remove it and encode again')
  return safetensors.numpy.load(content)['null']
