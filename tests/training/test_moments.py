"""Moments in fewer bytes: the code itself, then AdamW that stores its state in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from one4d_jax.training import moments
from one4d_jax.training import optimizer as optimizers
from one4d_jax.training.checkpoint import Checkpoints
from one4d_jax.training.step import init_state

encode, decode = jax.jit(moments.encode, static_argnums=2), jax.jit(moments.decode)


def values(shape, seed=0, spread=1.0):
  """Normal values whose sizes differ by orders of magnitude."""
  rng = np.random.default_rng(seed)
  return (np.exp(spread * rng.standard_normal(shape)) * rng.standard_normal(shape)).astype(np.float32)


# -- The code -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('shape', [(3, 128), (2, 5, 300), (7, 32), (4, 129)])
@pytest.mark.parametrize('dtype', [jnp.int8, jnp.uint8])
def test_a_value_goes_to_one_of_its_two_neighbours(shape, dtype):
  x = values(shape)
  x = np.abs(x) if dtype == jnp.uint8 else x
  blocks = encode(x, jnp.int32(7), dtype)
  assert blocks.code.shape == shape and blocks.code.dtype == dtype
  assert blocks.scale.shape == (*shape[:-1], -(-shape[-1] // 128)) and blocks.scale.dtype == jnp.float32
  levels = jnp.iinfo(dtype).max
  scale = np.repeat(blocks.scale, 128, axis=-1)[..., : shape[-1]]
  at = levels * np.sqrt(np.abs(x) / scale)
  error = np.abs(np.asarray(decode(blocks)) - x)
  # at a level c the next is (2c + 1) / n^2 away
  assert (error <= (2 * np.ceil(at) + 1) / levels**2 * scale * 1.0001).all()
  assert error.max() < 0.02 * np.abs(x).max()


def test_the_mean_over_steps_is_the_value():
  x = values((2, 128))
  seen = np.mean([decode(encode(x, jnp.int32(step), jnp.int8)) for step in range(64)], axis=0)
  once = np.abs(np.asarray(decode(encode(x, jnp.int32(0), jnp.int8))) - x).max()
  assert np.abs(seen - x).max() < once / 8


def test_zeros_and_the_largest_stay_and_nothing_else_becomes_zero():
  x = np.zeros((3, 128), np.float32)
  x[1, 5], x[2] = 3.0, 1e-12
  x[2, 9] = 1.0
  signed, unsigned = encode(x, jnp.int32(1), jnp.int8), encode(x, jnp.int32(1), jnp.uint8)
  assert not np.any(signed.code[0]) and not np.any(unsigned.code[0])
  np.testing.assert_allclose(decode(signed)[1], x[1], rtol=1e-6)
  assert float(decode(unsigned)[1, 5]) == pytest.approx(3.0, rel=1e-6)
  assert np.all(unsigned.code[1:] >= 1), 'what an update is divided by'


# -- AdamW with it ------------------------------------------------------------------------------------------------


def adam(kind):
  return moments.compressed(optax.adamw(0.01, b1=0.9, b2=0.99, weight_decay=0.01), kind)


def updating(tx):
  """``tx.update``, jitted, the state donated."""

  def update(grads, state, params):
    with jax.numpy_dtype_promotion('standard'):  # optax promotes internally
      return tx.update(grads, state, params)

  return jax.jit(update, donate_argnums=1)


@functools.cache
def losses(kind, steps=200):
  """Those of a small attention block that learns from another."""
  shapes = {'qkv': (64, 192), 'out': (64, 64), 'up': (64, 128), 'down': (128, 64), 'bias': (128,)}

  def init(key):
    keys = jax.random.split(key, len(shapes))
    normal = lambda key, shape: jax.random.normal(key, shape) * shape[0] ** -0.5
    return {name: normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}

  def network(params, x):
    q, k, v = jnp.split(x @ params['qkv'], 3, axis=-1)
    x += jax.nn.softmax(q @ k.swapaxes(-1, -2) / 8) @ v @ params['out']
    return x + jax.nn.gelu(x @ params['up'] + params['bias']) @ params['down']

  recipe = dict(learning_rate=1e-2, warmup=10, steps=steps, kind='cosine', weight_decay=0.0, clip_norm=1.0)
  tx, teacher = optimizers.make(**recipe, state=kind), init(jax.random.key(0))

  def step(carry, key):
    params, state = carry
    x = jax.random.normal(key, (8, 4, 64))
    loss = lambda params: jnp.mean(jnp.square(network(params, x) - network(teacher, x)))
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = updating(tx)(grads, state, params)
    return (optax.apply_updates(params, updates), state), value

  params = init(jax.random.key(1))
  keys = jax.random.split(jax.random.key(2), steps)
  return np.asarray(jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), keys)[1])(params))


@pytest.mark.parametrize(('kind', 'bound'), [('bfloat16', 0.01), ('int8', 0.01)])
def test_it_learns_as_float32_does(kind, bound):
  exact, found = losses('float32'), losses(kind)
  assert exact[-1] < 0.2 * exact[0], 'the problem is learnt at all'
  for part in (slice(20, 60), slice(80, 120), slice(-20, None)):
    np.testing.assert_allclose(found[part].mean(), exact[part].mean(), rtol=bound)


def test_float32_is_optax_itself():
  plain = optax.adamw(0.01)
  assert moments.compressed(plain, 'float32') is plain


def test_bytes_of_the_state():
  params = {'w': jax.ShapeDtypeStruct((8, 512, 1024), jnp.float32), 'b': jax.ShapeDtypeStruct((8192,), jnp.float32)}
  for kind, expected in (('float32', 8.0), ('bfloat16', 4.0), ('int8', 2 + 8 / 128)):
    state = jax.eval_shape(adam(kind).init, params)
    arrays = jax.tree.leaves((state[0].mu['w'], state[0].nu['w']))
    assert sum(a.size * a.dtype.itemsize for a in arrays) / params['w'].size == expected
    assert state[0].mu['b'].dtype == state[0].nu['b'].dtype == jnp.float32, 'vectors stay float32'


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_a_state_keeps_its_types_and_memory_over_steps(kind):
  params = {'w': jnp.ones((64, 96), jnp.bfloat16), 'small': jnp.ones((4, 8), jnp.bfloat16)}
  tx = adam(kind)
  state = jax.jit(tx.init)(params)
  before = jax.tree.map(lambda a: (a.shape, a.dtype), state)
  _, after = updating(tx)(params, state, params)
  assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == before
  assert all(a.is_deleted() for a in jax.tree.leaves((state[0].mu, state[0].nu))), 'donated'


def test_updates_stay_bounded_when_gradients_fall_silent():
  """Gradients of very different sizes that come and go: where nu has decayed, mu has too."""
  tx, rng = adam('int8'), np.random.default_rng(0)
  params = {'w': jnp.zeros((32, 128))}
  state, update = tx.init(params), updating(tx)
  size = np.exp(2 * rng.standard_normal((32, 128)))
  steps = []
  for step in range(300):
    present = rng.random((32, 128)) < (1.0, 0.02, 0.0)[step // 100]
    grads = {'w': (size * present * rng.standard_normal((32, 128))).astype(np.float32)}
    updates, state = update(grads, state, params)
    steps.append(float(jnp.abs(updates['w']).max()) / 0.01)
  assert max(steps) < 20
  assert np.isfinite(steps).all() and steps[-1] < 0.1, 'and nothing drifts on in silence'


def test_what_decays_and_what_grows_is_followed():
  """Values whose gradient gets smaller or larger than that of their neighbours: no rounding holds them back."""
  tx, rng = adam('int8'), np.random.default_rng(0)
  params = {'w': jnp.zeros((32, 128))}
  state, exact = tx.init(params), adam('float32').init(params)
  update, update_exact = updating(tx), updating(adam('float32'))
  size = np.ones((32, 128))
  size[:, ::3], size[:, 1::3] = 1.0, 0.1
  for step in range(900):
    if step == 300:
      size[:, ::3], size[:, 1::3] = 0.1, 1.0
    grads = {'w': (size * rng.standard_normal((32, 128))).astype(np.float32)}
    _, state = update(grads, state, params)
    _, exact = update_exact(grads, exact, params)
  found, wanted = decode(state[0].nu['w']), jnp.sqrt(exact[0].nu['w'])
  for columns in (slice(0, None, 3), slice(1, None, 3)):
    np.testing.assert_allclose(np.median(found[:, columns] / wanted[:, columns]), 1, atol=0.03)


def test_a_checkpoint_brings_it_back_exactly(tmp_path):
  tx = adam('int8')
  state = init_state({'w': jnp.ones((64, 200))}, tx, seed=0, ema=0.0)
  _, stored = updating(tx)({'w': jnp.asarray(values((64, 200)))}, state.optimizer, state.params)
  state = state.replace(optimizer=stored)
  checkpoints = Checkpoints(tmp_path, every=1, keep=1, weights_hash='')
  checkpoints.save(state, {}, step=1)
  checkpoints.close()
  again = Checkpoints(tmp_path, every=1, keep=1, weights_hash='')
  found, _ = again.restore(init_state({'w': jnp.ones((64, 200))}, tx, seed=0, ema=0.0))
  again.close()
  jax.tree.map(np.testing.assert_array_equal, state, found)
