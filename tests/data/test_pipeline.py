import json

import numpy as np
import pytest

from one4d_jax.data import pipeline, shards
from one4d_jax.errors import DataError

RECORDS = [{'i': np.int32(i), 'caption': f'clip {i}'} for i in range(10)]


def draw(record, rng):
  return {**record, 'noise': rng.random(2)}


def take(n, **options):
  options = {'batch_size': 2, 'seed': 3, 'transform': draw, **options}
  iterator = pipeline.batches(RECORDS, **options)
  return [next(iterator) for _ in range(n)]


def assert_same(found, expected):
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_every_epoch_has_every_record_in_another_order():
  stream = np.concatenate([batch['i'] for batch in take(15)]).reshape(3, 10)
  np.testing.assert_array_equal(np.sort(stream), np.tile(np.arange(10), (3, 1)))
  assert len({tuple(epoch) for epoch in stream}) == 3


def test_fields_are_batched():
  batch = take(1)[0]
  assert batch['i'].shape == (2,) and batch['noise'].shape == (2, 2)
  assert batch['caption'].tolist() == [f'clip {i}' for i in batch['i']]


def test_draws_are_fresh_in_every_epoch():
  noise = np.concatenate([batch['noise'] for batch in take(10)])
  assert len(np.unique(noise)) == noise.size


def test_the_seed_decides():
  assert_same(take(6), take(6))
  assert any((a['i'] != b['i']).any() for a, b in zip(take(6), take(6, seed=4), strict=True))


def test_threads_do_not_matter():
  assert_same(take(8, threads=0), take(8, threads=3))


@pytest.mark.parametrize('threads', [0, 2])
def test_resuming_continues_exactly(threads):
  expected = take(12, threads=threads)
  iterator = pipeline.batches(RECORDS, batch_size=2, seed=3, transform=draw, threads=threads)
  for _ in range(7):
    next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  resumed = pipeline.batches(RECORDS, batch_size=2, seed=3, transform=draw, threads=threads)
  resumed.set_state(state)
  assert_same([next(resumed) for _ in range(5)], expected[7:])
  assert_same(take(5, threads=threads, start=7), expected[7:])


def test_processes_share_one_stream():
  alone = take(4, batch_size=4)
  shared = [take(4, process_index=p, process_count=2) for p in range(2)]
  for step in range(4):
    together = np.stack([shared[p][step]['noise'] for p in range(2)], axis=1).reshape(4, 2)
    np.testing.assert_array_equal(together, alone[step]['noise'])


def test_batch_of_one_and_batches_larger_than_the_set():
  assert take(1, batch_size=1)[0]['i'].shape == (1,)
  assert take(1, batch_size=25)[0]['i'].shape == (25,)


def test_reads_shards(tmp_path):
  shards.write(tmp_path / 'set', RECORDS, shard_records=4)
  iterator = pipeline.batches(shards.open(tmp_path / 'set'), batch_size=2, seed=3, transform=draw)
  assert_same([next(iterator) for _ in range(6)], take(6))


@pytest.mark.parametrize(
  'options', [{'batch_size': 0}, {'threads': -1}, {'start': -1}, {'process_index': 2, 'process_count': 2}]
)
def test_bad_numbers(options):
  with pytest.raises(DataError, match='got'):
    take(1, **options)


def test_empty_source():
  with pytest.raises(DataError, match='empty'):
    pipeline.batches([], batch_size=1, seed=0)


def test_errors_of_a_transform_reach_the_caller():
  def fail(record, rng):
    raise DataError('broken record')

  with pytest.raises(DataError, match='broken record'):
    take(1, transform=fail)
