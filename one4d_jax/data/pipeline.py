"""Shuffled, endless, resumable batches (Grain), the same whatever the number of threads.

The order, the epochs and the random choices of `transform` are functions of the seed and the position in the global
stream; processes take turns in that stream. So batch n does not depend on whether reading started at 0 or resumed at n,
and the batches of all processes together do not depend on how many share the work.
"""

from collections.abc import Callable, Sequence

import grain
import numpy as np

from one4d_jax.errors import DataError

_SHUFFLE, _TRANSFORM = 0, 1  # independent streams of the one seed


def batches(
  source: Sequence[dict],
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  transform: Callable[[dict, np.random.Generator], dict] | None = None,
  threads: int = 2,
  start: int = 0,
) -> grain.DatasetIterator:
  """An endless iterator over batches: dicts of arrays [batch_size ...] (strings become an array of strings).

  Its `get_state()` is JSON-able and `set_state(state)` continues exactly; `start=n` is the same as n calls of `next`.

  Args:
    source: `len` and random access, e.g. `shards.open(folder)`.
    batch_size: of this process; the global batch is `process_count` times as large.
    seed: of the order and of what `transform` draws.
    process_index: this process takes elements `process_index`, `process_index + process_count`, ...
    process_count: how many processes share the stream.
    transform: a record and a generator of its own to a dict of equally shaped arrays; must not keep the generator.
    threads: that read and transform ahead; 0 does all in the caller's thread.
    start: first batch, as a number of batches.

  Raises:
    DataError: an empty source, or numbers that make no sense.
  """
  if not len(source):
    raise DataError('the data set is empty; build it with at least one record')
  if batch_size < 1 or threads < 0 or start < 0:
    raise DataError(f'need batch_size >= 1, threads >= 0, start >= 0; got {batch_size}, {threads}, {start}')
  if not 0 <= process_index < process_count:
    raise DataError(f'process_index must be in 0 .. {process_count - 1}; got {process_index}')
  shuffle_seed, transform_seed = (int(_stream(seed, which)) for which in (_SHUFFLE, _TRANSFORM))
  data = grain.MapDataset.source(source).shuffle(seed=shuffle_seed).repeat()
  if transform is not None:
    data = data.random_map(transform, seed=transform_seed)  # after repeat: fresh draws every epoch
  data = data[process_index::process_count]
  data = data.batch(batch_size, drop_remainder=True)  # else the length of the endless stream overflows
  ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)  # counted in batches
  iterator = iter(data.to_iter_dataset(ahead))
  if start:
    grain.experimental.set_next_index(iterator, start)
  return iterator


def _stream(seed: int, which: int) -> np.uint32:
  return np.random.SeedSequence([seed, which]).generate_state(1)[0]
