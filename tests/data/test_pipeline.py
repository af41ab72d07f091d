import dataclasses
import itertools
import json
import threading

import numpy as np
import pytest

from one4d_jax.data import pipeline, shards
from one4d_jax.data.pipeline import Component
from one4d_jax.errors import DataError


def records(count, side=2):
  return [{'i': np.int32(i), 'caption': f'clip {i}', 'z': np.full(side, i, np.float32)} for i in range(count)]


def draw(record, rng):
  return {**record, 'noise': rng.random(2), 'task': rng.choice(3, p=(0.35, 0.30, 0.35))}


def component(name, count=10, weight=1.0, bucket=2, transform=draw, fingerprint='v1'):
  named = lambda record, rng: {**transform(record, rng), 'from': name}
  return Component(records(count, bucket), named, weight, bucket, name, fingerprint)


ONE = [component('a')]
MIXTURE = [component('a', 50, 3), component('b', 30, 1), component('c', 40, 2, bucket=3)]


def stream(components, **options):
  return pipeline.batches(components, **{'batch_size': 2, 'seed': 3, **options})


def take(n, components=MIXTURE, **options):
  batches = stream(components, **options)
  found = list(itertools.islice(batches, n))
  batches.close()
  return found


def column(batches, name):
  return np.concatenate([batch[name] for batch in batches])


def assert_same(found, expected):
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      assert a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name])


# -- One data set ---------------------------------------------------------------------------------------------------


def test_every_epoch_has_every_record_in_another_order():
  epochs = column(take(15, ONE), 'i').reshape(3, 10)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (3, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_fields_are_batched():
  batch = take(1, ONE)[0]
  assert batch['i'].shape == (2,) and batch['noise'].shape == (2, 2)
  assert batch['caption'].tolist() == [f'clip {i}' for i in batch['i']]


def test_draws_are_fresh_in_every_epoch():
  noise = column(take(10, ONE), 'noise')
  assert len(np.unique(noise)) == noise.size


def test_the_shares_of_a_draw():
  shares = np.bincount(column(take(30, [component('a', 1000)], batch_size=100), 'task')) / 3000
  np.testing.assert_allclose(shares, (0.35, 0.30, 0.35), atol=0.03)  # 3 standard deviations


def test_batch_of_one_and_batches_larger_than_the_set():
  assert take(1, ONE, batch_size=1)[0]['i'].shape == (1,)
  assert take(1, ONE, batch_size=25)[0]['i'].shape == (25,)


def test_reads_shards(tmp_path):
  shards.write(tmp_path / 'set', records(10), shard_records=4)
  source = shards.open(tmp_path / 'set')
  plain = [Component(records(10), draw)]
  assert_same(take(6, [Component(source, draw, fingerprint=source.fingerprint)]), take(6, plain))


# -- Mixtures and buckets -------------------------------------------------------------------------------------------


def test_samples_of_a_bucket_come_in_proportion_to_the_weights():
  mixture = [component('a', 300, 0.7), component('b', 200, 0.2), component('c', 100, 0.1)]
  names = column(take(100, mixture, batch_size=10), 'from').reshape(100, 10)
  for name, count in (('a', 7), ('b', 2), ('c', 1)):
    assert ((names == name).sum(axis=1) == count).all()
  assert len({tuple(period) for period in names}) > 20, 'the order is not fixed'


def test_a_batch_is_of_one_bucket_and_buckets_come_in_proportion():
  batches = take(300)
  wide = [batch['z'].shape[1] == 3 for batch in batches]
  assert sum(wide) == 100, 'weight 2 of 6'
  assert all((batch['from'] == 'c').all() == is_wide for batch, is_wide in zip(batches, wide, strict=True))
  names, counts = np.unique(column(batches, 'from'), return_counts=True)
  assert dict(zip(names, counts, strict=True)) == {'a': 300, 'b': 100, 'c': 200}


def test_weights_that_no_decimals_can_write_are_still_exact():
  names = column(take(100, [component('a', 99, 2 / 3), component('b', 99, 1 / 3)], batch_size=3), 'from')
  assert ((names.reshape(100, 3) == 'a').sum(axis=1) == 2).all()


def test_a_share_below_a_thousandth_is_one():
  names = column(take(20, [component('a', 999, 10_000), component('b', 999, 1)], batch_size=100), 'from')
  assert (names == 'b').sum() in (1, 2, 3)


def test_weights_that_have_no_short_period_are_rounded():
  mixture = [component('a', 2000, weight=34_000), component('b', 2000, weight=17_123)]
  share = (column(take(12, mixture, batch_size=104), 'from') == 'a').mean()  # two periods of 624
  assert share == pytest.approx(34_000 / 51_123, abs=1e-5)


def test_every_record_of_every_component_once_an_epoch():
  batches = take(60, batch_size=6)
  for name, count in (('a', 50), ('b', 30), ('c', 40)):
    seen = column(batches, 'i')[column(batches, 'from') == name]
    epochs = seen[: len(seen) // count * count].reshape(-1, count)
    assert len(epochs) >= 2
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(count), (len(epochs), 1)))


def test_components_have_orders_of_their_own():
  batches = take(20, [component('a'), component('b')])
  a, b = (column(batches, 'i')[column(batches, 'from') == name] for name in 'ab')
  assert (a != b).any()


# -- The same whatever reads it -------------------------------------------------------------------------------------


def test_the_seed_decides():
  assert_same(take(6), take(6))
  assert any((a['noise'] != b['noise']).any() for a, b in zip(take(6), take(6, seed=4), strict=True))


@pytest.mark.parametrize('place', [None, dict])
def test_threads_do_not_matter(place):
  expected = take(20, threads=0)
  for threads in (2, 4):
    assert_same(take(20, threads=threads, place=place), expected)


def test_processes_share_one_stream():
  alone = take(12, batch_size=4)
  shared = [take(12, process_index=p, process_count=2) for p in range(2)]
  together = [
    {name: np.concatenate([half[name] for half in pair]) for name in pair[0]} for pair in zip(*shared, strict=True)
  ]
  assert_same(together, alone)


def test_no_process_is_left_with_one_data_set():
  """Two data sets in turns, two processes in turns: with a fixed order each would see one only."""
  for p in range(2):
    names = column(
      take(200, [component('a', 99), component('b', 99)], batch_size=1, process_index=p, process_count=2), 'from'
    )
    assert 0.35 < (names == 'a').mean() < 0.65


# -- Resuming -------------------------------------------------------------------------------------------------------

STRAIGHT = take(80)


@pytest.mark.parametrize(('k', 'threads', 'place'), [(0, 2, None), (1, 0, dict), (7, 2, dict), (30, 4, dict)])
def test_the_next_fifty_batches_after_resuming(k, threads, place):
  before = stream(MIXTURE, threads=threads, place=place)
  for _ in range(k):
    next(before)
  state = json.loads(json.dumps(before.get_state()))
  assert state['batch'] == k, 'what is read ahead does not count'
  resumed = stream(MIXTURE, threads=threads, place=place)
  next(resumed)  # a position is set wherever the stream was
  resumed.set_state(state)
  assert_same(list(itertools.islice(resumed, 50)), STRAIGHT[k : k + 50])
  assert resumed.get_state()['batch'] == k + 50


def test_start_is_a_position():
  assert_same(take(5, start=7), STRAIGHT[7:12])


def test_the_position_goes_through_a_checkpoint(tmp_path):
  import jax.numpy as jnp
  import optax

  from one4d_jax.training.checkpoint import Checkpoints
  from one4d_jax.training.step import init_state

  weights = lambda: init_state({'w': jnp.ones(2)}, optax.sgd(0.1), seed=0, ema=0.0)
  batches = stream(MIXTURE, place=dict)
  checkpoints = Checkpoints(tmp_path, every=4, keep=2, weights_hash='')
  for step in range(1, 11):
    next(batches)
    if checkpoints.due(step):
      checkpoints.save(weights(), batches.get_state(), step=step)
  checkpoints.close()
  again = Checkpoints(tmp_path, every=4, keep=2, weights_hash='')
  _, about = again.restore(weights())
  again.close()
  resumed = stream(MIXTURE)
  resumed.set_state(about['data'])
  assert_same(list(itertools.islice(resumed, 50)), STRAIGHT[8:58])


def test_the_seed_and_the_readers_are_no_part_of_the_data_sets_identity():
  state = stream(MIXTURE, seed=1, threads=0, process_count=2).get_state()
  stream(MIXTURE, seed=2).set_state(state)


@pytest.mark.parametrize(
  ('now', 'message'),
  [
    ([MIXTURE[0], component('b', 30, 1, fingerprint='v2'), MIXTURE[2]], 'b has another content .v1 .*v2 now'),
    ([component('a', 51, 3), *MIXTURE[1:]], 'a has another number of records .50 before, 51 now'),
    ([component('a', 50, 4), *MIXTURE[1:]], 'a has another weight .3.0 before, 4.0 now'),
    ([*MIXTURE[:2], component('c', 40, 2, bucket=2)], 'c has another bucket .3 before, 2 now'),
    (MIXTURE[:2], r"was a mixture of \['a', 'b', 'c'\], now of \['a', 'b'\]"),
    ([MIXTURE[1], MIXTURE[0], MIXTURE[2]], r"now of \['b', 'a', 'c'\] \(the order counts\)"),
  ],
)
def test_another_data_set_is_refused(now, message):
  state = stream(MIXTURE).get_state()
  with pytest.raises(DataError, match=f'{message}.*or start afresh'):
    stream(now).set_state(state)


def test_a_data_set_that_was_moved_is_the_same():
  moved = [dataclasses.replace(part, name=f'elsewhere/{part.name}') for part in MIXTURE]
  resumed = stream(moved)
  resumed.set_state(stream(MIXTURE, start=3).get_state())
  assert_same([next(resumed)], take(4)[3:])


@pytest.mark.parametrize('state', [{'next_index': 5}, {'batch': 5}, {}])
def test_a_position_of_another_version_is_refused(state):
  with pytest.raises(DataError, match=r'another version.*start afresh'):
    stream(MIXTURE).set_state(state)


# -- What goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'options', [{'batch_size': 0}, {'threads': -1}, {'start': -1}, {'process_index': 2, 'process_count': 2}]
)
def test_bad_numbers(options):
  with pytest.raises(DataError, match='got'):
    take(1, **options)


@pytest.mark.parametrize('weight', [0, -1.0, float('nan'), float('inf')])
def test_bad_weights(weight):
  with pytest.raises(DataError, match='b: weight must be above 0'):
    stream([component('a'), component('b', weight=weight)])


def test_nothing_to_draw_from():
  with pytest.raises(DataError, match='at least one'):
    stream([])
  with pytest.raises(DataError, match='b is empty'):
    stream([component('a'), component('b', 0)])


@pytest.mark.parametrize('threads', [0, 2])
def test_a_bad_record_is_named_and_never_skipped(threads):
  def fail(record, rng):
    if record['i'] == 4:
      raise DataError('frame 3 is no JPEG')
    return draw(record, rng)

  broken = [component('a'), component('b', transform=fail)]
  healthy = take(30, [component('a'), component('b')])
  batches = stream(broken, threads=threads, place=dict)
  at = next(k for k, batch in enumerate(healthy) if ((batch['from'] == 'b') & (batch['i'] == 4)).any())
  for _ in range(at):
    next(batches)
  for _ in range(2):
    with pytest.raises(DataError, match=r'data set b, record 4 cannot be used: frame 3 is no JPEG'):
      next(batches)
  assert batches.get_state()['batch'] == at


def test_an_error_of_the_source_or_of_placing_reaches_the_caller():
  class Gone(list):
    def __getitem__(self, i):
      raise OSError('disk is gone')

  with pytest.raises(DataError, match=r'number 0, record .*OSError.*disk is gone'):
    take(1, [Component(Gone(records(3)), draw)])

  def place(batch):
    raise MemoryError('device is full')

  with pytest.raises(MemoryError, match='device is full'):
    take(1, place=place)


def test_samples_of_a_bucket_must_agree():
  other = Component(records(10, 3), lambda record, rng: draw(record, rng) | {'from': 'b'}, bucket=2)
  mixed = [component('a', bucket=2), other]
  with pytest.raises(DataError, match=r'bucket 2 holds samples of shapes .*different buckets'):
    take(5, mixed)


def test_closing_ends_the_threads():
  before = set(threading.enumerate())
  batches = stream(MIXTURE, threads=2, place=dict)
  next(batches)
  started = set(threading.enumerate()) - before
  batches.close()
  for thread in started:
    thread.join(timeout=10)
  assert started and not any(thread.is_alive() for thread in started)
