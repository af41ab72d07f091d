"""Shuffled, endless, resumable batches from a mixture of data sets (Grain), the same whatever reads them.

Record, order and random draws of every sample are functions of the seed and of the sample's place in one global stream.
So batch n does not depend on the number of threads, on where reading started, or on how many processes share the work:
each takes its rows of the global batch. Records of a batch have one shape: components of equal shape form a *bucket*,
and a batch is drawn from one bucket.
"""

import dataclasses
import fractions
import functools
import json
import math
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from one4d_jax.errors import DataError

_SHUFFLE, _TRANSFORM, _COMPONENTS, _BUCKETS = range(4)  # independent streams of the one seed
_PERIOD = 1000  # a mixture repeats its proportions after so many draws or fewer; shares are fractions that allow it
_AHEAD = 2  # batches that are placed before they are asked for


@dataclasses.dataclass(frozen=True)
class Component:
  """One data set of a mixture.

  Attributes:
    source: `len` and random access to records, e.g. `shards.open(folder)`.
    transform: a record and a generator of its own to a dict of arrays (or strings); must not keep the generator.
    weight: its share of the samples, relative to the other components; at least a thousandth is drawn.
    bucket: components whose samples may share a batch have equal buckets, e.g. (frames, height, width).
    name: for messages.
    fingerprint: changes when the content does; a position means nothing in another data set.
  """

  source: Sequence
  transform: Callable[[Any, np.random.Generator], dict]
  weight: float = 1.0
  bucket: Hashable = ()
  name: str = ''
  fingerprint: str = ''


def batches(
  components: Sequence[Component],
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
  start: int = 0,
  place: Callable[[dict], dict] | None = None,
) -> 'Stream':
  """The endless stream of batches: dicts of arrays [batch_size ...] (strings become an array of strings).

  Samples are drawn from the components of a bucket, and batches from buckets, in proportion to the weights, shuffled
  within each period (of 4 draws for weights 3 and 1). A component is shuffled anew each epoch, every record once.

  Args:
    components: of the mixture; their order is part of the stream's identity.
    batch_size: of this process; the global batch is `process_count` times as large.
    seed: of the order and of what the transforms draw.
    process_index: this process takes rows `process_index * batch_size ...` of every global batch.
    process_count: how many processes share the stream.
    threads: that read and transform ahead, a batch each; 0 does all in the caller's thread.
    start: first batch, as a number of batches.
    place: applied to each batch ahead of time, e.g. `jax.device_put`.

  Raises:
    DataError: no components, an empty one, or numbers that make no sense.
  """
  if batch_size < 1 or threads < 0 or start < 0:
    raise DataError(f'need batch_size >= 1, threads >= 0, start >= 0; got {batch_size}, {threads}, {start}')
  if not 0 <= process_index < process_count:
    raise DataError(f'process_index must be in 0 .. {process_count - 1}; got {process_index}')
  if not components:
    raise DataError('no data set to draw from; give at least one')
  for i, component in enumerate(components):
    if not len(component.source):
      raise DataError(f'data set {_name(component, i)} is empty; build it with at least one record')
    if not 0 < component.weight < math.inf:
      raise DataError(f'data set {_name(component, i)}: weight must be above 0; got {component.weight}')
  buckets = list(dict.fromkeys(component.bucket for component in components))
  streams, weights = [], []
  for b, bucket in enumerate(buckets):
    inside = [(i, component) for i, component in enumerate(components) if component.bucket == bucket]
    shares = [component.weight for _, component in inside]
    samples = _mix([_samples(component, i, seed) for i, component in inside], shares, _seed(seed, _COMPONENTS, b))
    whole = samples.batch(batch_size, drop_remainder=True, batch_fn=functools.partial(_stack, bucket=bucket))
    streams.append(whole[process_index::process_count])
    weights.append(sum(fractions.Fraction(str(share)) for share in shares))
  return Stream(_mix(streams, weights, _seed(seed, _BUCKETS)), _fingerprint(components), threads, place, start)


class Stream(Iterator[dict]):
  """Batches and the position among them, counted in batches that were handed out, whatever was read ahead.

  The same position continues on another number of processes as long as the global batch keeps its size. A record that
  cannot be read or transformed raises DataError, again at each call: nothing is skipped.
  """

  def __init__(self, data: grain.MapDataset, fingerprint: str, threads: int, place: Callable | None, start: int):
    self._data, self._fingerprint, self._threads, self._place = data, fingerprint, threads, place
    self._batch, self._ahead = start, None

  def __next__(self) -> dict:
    if self._ahead is None:
      self._ahead = self._open()
    try:
      batch = next(self._ahead)
    except BaseException:  # what is read ahead no longer follows from here; the next call starts from the position
      self.close()
      raise
    self._batch += 1
    return batch

  def get_state(self) -> dict:
    """The position, JSON-able: `batch`, and `fingerprint` of what it is a position in."""
    return {'batch': self._batch, 'fingerprint': self._fingerprint}

  def set_state(self, state: dict) -> None:
    """Continues from a position. Raises DataError, naming what differs, if it was taken in another data set."""
    if state.keys() != {'batch', 'fingerprint'}:
      raise DataError(
        f'the position {state} was written by another version, so where it was in the data is unknown; '
        'start afresh in another --workdir'
      )
    before, now = json.loads(state['fingerprint']), json.loads(self._fingerprint)
    if [fact[1:] for fact in before] != [fact[1:] for fact in now]:  # a set may have another name by now
      raise DataError(
        f'the data set is not the one training began with: {_difference(before, now)}; '
        'give the same data.source and data as before, or start afresh in another --workdir'
      )
    self.close()
    self._batch = state['batch']

  def close(self) -> None:
    """Drops what was read ahead and ends the threads that read it."""
    if self._ahead is not None:
      self._ahead.close()
      self._ahead = None

  def _open(self) -> grain.DatasetIterator:
    options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=2 * self._threads)  # in batches
    data = self._data[self._batch :].to_iter_dataset(options)
    if self._place is not None:
      data = data.map(self._place)
      data = grain.experimental.ThreadPrefetchIterDataset(data, prefetch_buffer_size=_AHEAD if self._threads else 0)
    return iter(data)


class _Interleave(grain.transforms.DatasetSelectionMap):
  """Which data set the k-th element comes from: each in proportion in every period, the order within it shuffled.

  A fixed order would give one process the same data set time and again when its length divides the batch.
  """

  def __init__(self, weights: Sequence, seed: int):
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    least = fractions.Fraction(1, _PERIOD)
    shares = [max(least, (weight / sum(exact)).limit_denominator(_PERIOD)) for weight in exact]
    counts = [int(share * math.lcm(*(share.denominator for share in shares))) for share in shares]
    if sum(counts) > _PERIOD:
      counts = [round(share / least) for share in shares]
    self._counts, self._seed = tuple(counts), seed

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> tuple[int, int]:
    period, place = divmod(index, sum(self._counts))
    order = _order(self._counts, self._seed, period)
    which = int(order[place])
    return which, period * self._counts[which] + int(np.count_nonzero(order[:place] == which))


@functools.lru_cache(64)
def _order(counts: tuple[int, ...], seed: int, period: int) -> np.ndarray:
  return np.random.default_rng([seed, period]).permutation(np.repeat(np.arange(len(counts)), counts))


def _mix(parts: list[grain.MapDataset], weights: Sequence, seed: int) -> grain.MapDataset:
  return grain.MapDataset.select_from_datasets(parts, _Interleave(weights, seed)) if len(parts) > 1 else parts[0]


def _samples(component: Component, number: int, seed: int) -> grain.MapDataset:
  """All epochs of a component. Drawing comes after repeating: fresh draws every epoch."""

  def sample(i: int, rng: np.random.Generator) -> dict:
    try:
      return component.transform(component.source[int(i)], rng)
    except Exception as error:
      cause = error if isinstance(error, DataError) else repr(error)
      raise DataError(
        f'data set {_name(component, number)}, record {i} cannot be used: {cause}; verify the set, or build it again'
      ) from error

  order = grain.MapDataset.range(len(component.source)).shuffle(seed=_seed(seed, _SHUFFLE, number)).repeat()
  return order.random_map(sample, seed=_seed(seed, _TRANSFORM, number))


def _stack(samples: Sequence[dict], bucket: Hashable) -> dict:
  """A batch of samples, which must agree in names and shapes."""
  kinds = [{name: np.shape(value) for name, value in sample.items()} for sample in samples]
  other = next((kind for kind in kinds if kind != kinds[0]), None)
  if other is not None:
    raise DataError(f'bucket {bucket} holds samples of shapes {kinds[0]} and {other}; give them different buckets')
  return {name: np.stack([sample[name] for sample in samples]) for name in kinds[0]}


def _seed(*numbers: int) -> int:
  return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _name(component: Component, number: int) -> str:
  return component.name or f'number {number}'


def _fingerprint(components: Sequence[Component]) -> str:
  """A JSON list with what makes up each component, so that a difference can be named."""
  facts = [[c.name, len(c.source), c.fingerprint, str(float(c.weight)), str(c.bucket)] for c in components]
  return json.dumps(facts)


def _difference(before: list, now: list) -> str:
  names = [[fact[0] for fact in facts] for facts in (before, now)]
  if names[0] != names[1]:
    return f'it was a mixture of {names[0]}, now of {names[1]} (the order counts)'
  what = ('number of records', 'content', 'weight', 'bucket')
  changes = (
    f'{old[0] or f"number {i}"} has another {label} ({a} before, {b} now)'
    for i, (old, new) in enumerate(zip(before, now, strict=True))
    for label, a, b in zip(what, old[1:], new[1:], strict=True)
    if a != b
  )
  return ', '.join(changes)
