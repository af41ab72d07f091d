"""The optimisation step: accumulation, averaging, resuming."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import CheckpointError
from one4d_jax.training import optimizer as optimizers
from one4d_jax.training.checkpoint import DAMAGED, OUTDATED, Checkpoints, difference
from one4d_jax.training.step import SETTLED, init_state, make_step, mean


def loss(params, frozen, batch, key):
  """A linear fit; the key adds noise, so that resuming must restore it."""
  error = batch['x'] @ params['w'] + params['b'] - batch['y'] * frozen['scale']
  value = jnp.mean(jnp.square(error)) + 1e-3 * jax.random.normal(key) * jnp.sum(params['w'])
  return value, {'error': mean(jnp.abs(error))}


def value(metric):
  """The mean that a metric stands for."""
  return float(metric[0] / metric[1])


def adam(steps=100):
  return optimizers.make(learning_rate=0.05, warmup=2, steps=steps, kind='cosine', weight_decay=0.01, clip_norm=1.0)


def fresh(ema=0.9):
  params = {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}
  return init_state(params, adam(), seed=0, ema=ema)


def batch(i, rows=8):
  rng = np.random.default_rng(i)
  x = rng.standard_normal((rows, 3)).astype(np.float32)
  return {'x': x, 'y': x[:, :2] - x[:, 1:]}


FROZEN = {'scale': jnp.float32(2.0)}


def test_it_learns_and_reports():
  step = make_step(loss, adam(), accumulation=1, ema=0.9)
  state, values = fresh(), []
  for i in range(100):
    state, metrics = step(state, FROZEN, batch(i))
    values.append(value(metrics['loss']))
  assert values[-1] < 0.05 * values[0] and int(state.step) == 100
  assert set(metrics) == {'loss', 'error', 'gradient_norm', 'skipped', 'skipped_in_a_row'}
  assert value(metrics['skipped']) == 0 and metrics['error'][1] == 16


def test_accumulation_gives_the_gradient_of_the_whole_batch():
  without_key = lambda params, frozen, batch, key: loss(params, frozen, batch, jax.random.key(0))
  steps = [make_step(without_key, adam(), accumulation=n, ema=0.0) for n in (1, 4)]
  one, four = (step(fresh(ema=0.0), FROZEN, batch(0)) for step in steps)
  np.testing.assert_allclose(*(value(metrics['gradient_norm']) for _, metrics in (one, four)), rtol=1e-5)
  np.testing.assert_allclose(one[0].params['w'], four[0].params['w'], rtol=1e-5)


def test_microbatches_take_every_nth_sample():
  """Sample i goes into microbatch i mod n: what a device holds of a batch stays there."""
  first = lambda params, frozen, batch, key: (params['w'].sum() * batch['y'][0, 0], {'first': mean(batch['y'][0, 0])})
  _, metrics = make_step(first, adam(), accumulation=4, ema=0.0)(fresh(ema=0.0), FROZEN, batch(0))
  np.testing.assert_allclose(metrics['first'][0], batch(0)['y'][:4, 0].sum(), rtol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing():
  step = make_step(loss, adam(), accumulation=2, ema=0.9)
  state, _ = step(fresh(), FROZEN, batch(0))
  before = jax.tree.map(np.asarray, state)
  for i, bad in enumerate((np.nan, np.inf)):
    spoilt = batch(1)
    spoilt['x'][5, 0] = bad
    state, metrics = step(state, FROZEN, spoilt)
    assert metrics['skipped'][0] == 1 and metrics['skipped_in_a_row'][0] == i + 1
  assert int(state.step) == 3, 'later steps draw other noise'
  for name in ('params', 'average', 'optimizer'):
    jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(state, name))
  state, metrics = step(state, FROZEN, batch(2))
  assert metrics['skipped'][0] == 0 and metrics['skipped_in_a_row'][0] == 0
  assert np.any(np.asarray(state.params['w']) != before.params['w'])


def test_a_spike_is_skipped_once_it_is_known_what_is_usual():
  step = make_step(loss, adam(), accumulation=1, ema=0.0, spike=10.0)
  long = {name: 100 * value for name, value in batch(0).items()}
  state, metrics = step(fresh(ema=0.0), FROZEN, long)
  assert metrics['skipped'][0] == 0, 'the first gradients may be of any length'
  state = fresh(ema=0.0)
  for i in range(SETTLED):
    state, _ = step(state, FROZEN, batch(i))
  state, metrics = step(state, FROZEN, long)
  assert metrics['skipped'][0] == 1 and value(metrics['gradient_norm']) > 10 * float(state.health.norm)
  _, metrics = make_step(loss, adam(), accumulation=1, ema=0.0)(state, FROZEN, long)
  assert metrics['skipped'][0] == 0, 'spike=0 takes any that is finite'


def test_the_average_trails_the_parameters():
  step = make_step(loss, adam(), accumulation=1, ema=0.9)
  state = fresh()
  expected = np.ones((3, 2))
  for i in range(20):
    state, _ = step(state, FROZEN, batch(i))
    decay = min(0.9, (1 + i) / (10 + i))
    expected = decay * expected + (1 - decay) * np.asarray(state.params['w'])
  np.testing.assert_allclose(state.average['w'], expected, rtol=1e-5)
  assert fresh(ema=0.0).average == {}


def test_schedule_rises_and_falls_to_a_tenth():
  rate = optimizers.schedule(learning_rate=1.0, warmup=10, steps=100, kind='cosine')
  rate = lambda step, rate=rate: rate(jnp.float32(step))
  assert (float(rate(0)), float(rate(10))) == (0.0, 1.0)
  np.testing.assert_allclose(float(rate(100)), 0.1, rtol=1e-5)
  constant = optimizers.schedule(learning_rate=1.0, warmup=10, steps=100, kind='constant')
  assert float(constant(jnp.float32(99))) == 1.0


def test_weight_decay_spares_vectors_those_of_stacked_layers_too():
  params = {
    'blocks': {'q': {'kernel': jnp.ones((2, 3, 3)), 'bias': jnp.ones((2, 3))}, 'norm': {'scale': jnp.ones((2, 3))}},
    'head': {'modulation': jnp.ones((2, 3)), 'kernel': jnp.ones((3, 3)), 'gamma': jnp.ones(3)},
  }
  recipe = {'learning_rate': 0.1, 'warmup': 1, 'steps': 10, 'kind': 'constant', 'clip_norm': 1.0}
  tx = optimizers.make(**recipe, weight_decay=0.5)
  state, none = tx.init(params), jax.tree.map(jnp.zeros_like, params)
  with jax.numpy_dtype_promotion('standard'):  # optax promotes internally
    for _ in range(2):  # the first is at the rate 0
      updates, state = tx.update(none, state, params)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  decayed = [name(path) for path, update in jax.tree.leaves_with_path(updates) if update.any()]
  assert decayed == ['blocks/q/kernel', 'head/kernel']


def test_resuming_repeats_the_run_exactly(tmp_path):
  step = make_step(loss, adam(), accumulation=2, ema=0.9)
  straight = fresh()
  for i in range(10):
    straight, _ = step(straight, FROZEN, batch(i))

  checkpoints = Checkpoints(tmp_path, every=5, keep=2, weights_hash='abc')
  state = fresh()
  for i in range(7):
    state, _ = step(state, FROZEN, batch(i))
    if checkpoints.due(i + 1):
      checkpoints.save(state, {'next_index': i + 1}, step=i + 1)
  checkpoints.close()

  again = Checkpoints(tmp_path, every=5, keep=2, weights_hash='abc')
  assert again.latest == 5
  state, position = again.restore(fresh())
  assert position['data'] == {'next_index': 5} and int(state.step) == 5
  for i in range(5, 10):
    state, _ = step(state, FROZEN, batch(i))
  jax.tree.map(np.testing.assert_array_equal, straight, state)
  again.close()


def test_a_checkpoint_of_other_weights_or_shapes_is_refused(tmp_path):
  checkpoints = Checkpoints(tmp_path, every=1, keep=1, weights_hash='abc')
  checkpoints.save(fresh(), {}, step=1)
  checkpoints.close()
  other = Checkpoints(tmp_path, every=1, keep=1, weights_hash='xyz')
  with pytest.raises(CheckpointError, match=r"'abc'.*'xyz'"):
    other.restore(fresh())
  other.close()
  same = Checkpoints(tmp_path, every=1, keep=1, weights_hash='abc')
  wider = init_state({'w': jnp.ones((4, 2)), 'b': jnp.zeros(2)}, adam(), seed=0, ema=0.9)
  with pytest.raises(CheckpointError, match='step 1 is damaged or does not fit'):
    same.restore(wider)
  same.close()


def test_reads_that_end_after_the_first_bad_one_say_nothing(tmp_path, monkeypatch):
  """By hand: when TensorStore tells of them is up to its threads."""
  seen, closed, other = [], RuntimeError('Event loop is closed'), RuntimeError('another')
  monkeypatch.setattr(sys, 'unraisablehook', lambda what: seen.append(what.exc_value))
  checkpoints = Checkpoints(tmp_path, every=1, keep=1, weights_hash='abc')

  def read(*_):
    for error in (closed, other):
      sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    return fresh(), {}

  monkeypatch.setattr(checkpoints, '_read', read)
  checkpoints.save(fresh(), {}, step=1)
  checkpoints.wait()
  checkpoints.restore(fresh())
  assert other in seen and closed not in seen
  sys.unraisablehook(types.SimpleNamespace(exc_value=closed))
  assert closed in seen, 'only while a checkpoint is read'
  checkpoints.close()


@pytest.mark.parametrize('damage', ['cut', 'empty', 'gone'])
@pytest.mark.parametrize('pattern', ['state/manifest.ocdbt', 'state/d/*', 'state/_METADATA', 'about/metadata'])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, pattern, damage):
  checkpoints = Checkpoints(tmp_path, every=1, keep=3, weights_hash='abc')
  for step in (1, 2, 3):
    checkpoints.save(fresh(), {'next_index': step}, step=step)
  checkpoints.close()
  for step in (2, 3):
    for file in (tmp_path / 'checkpoints' / str(step)).glob(pattern):
      content = file.read_bytes()
      file.unlink()
      if damage != 'gone':
        file.write_bytes(content[: len(content) // 2 if damage == 'cut' else 0])
  again, told = Checkpoints(tmp_path, every=1, keep=3, weights_hash='abc'), []
  state, about = again.restore(fresh(), told.append)
  assert about['data'] == {'next_index': 1}
  jax.tree.map(np.testing.assert_array_equal, state, fresh())
  assert ['step 3' in told[0], 'step 2' in told[1]] == [True, True] and all('damaged/' in line for line in told)
  assert {path.name for path in (tmp_path / DAMAGED).iterdir()} == {'2', '3'}
  again.save(fresh(), {'next_index': 9}, step=2)  # the run comes by there again
  again.close()
  assert Checkpoints(tmp_path, every=1, keep=3, weights_hash='abc').latest == 2


def test_what_is_kept(tmp_path):
  """The newest two and every tenth; an outdated one gives up its name before its files."""
  checkpoints = Checkpoints(tmp_path, every=1, keep=2, keep_every=10, weights_hash='abc', config={'a': 1})
  for step in (9, 10, 11, 12, 13):
    checkpoints.save(fresh(), {}, step=step)
    checkpoints.wait()
  names = lambda: {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert names() == {'10', '12', '13', OUTDATED}
  checkpoints.close()
  assert names() == {'10', '12', '13'}
  again = Checkpoints(tmp_path, every=1, keep=2, weights_hash='abc')
  assert again.restore(fresh())[1]['config'] == {'a': 1} and again.latest == 13
  again.close()


def test_differences_of_configurations():
  before = {'train': {'steps': 10, 'batch': 8}, 'workdir': 'a', 'old': 1}
  now = {'train': {'steps': 20, 'batch': 8}, 'workdir': 'a', 'new': 2}
  assert difference(before, before) == []
  assert difference(before, now) == ['new: None -> 2', 'old: 1 -> None', 'train.steps: 10 -> 20']
