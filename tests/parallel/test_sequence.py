"""Attention over tokens on several devices: the numbers of one device, and no more exchange than announced."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from one4d_jax.errors import ConfigError
from one4d_jax.nn import remat
from one4d_jax.nn.attention import local
from one4d_jax.parallel import sequence

METHODS = ('ulysses', 'ring')
# Machine code in a hurry: compiling is most of what these tests do.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def mesh_of(**axes):
  count = int(np.prod(list(axes.values())))
  return Mesh(np.array(jax.devices()[:count]).reshape(*axes.values()), tuple(axes))


@functools.cache
def arrays(s, t=None, b=2, n=8, dtype=jnp.float32):
  """``(q, k, v, weights)`` ``[m b s n h]``; the weighted sum of the result is what is differentiated."""
  keys = jax.random.split(jax.random.key(s), 4)
  lengths = s, t or s, t or s, s
  return tuple(jax.random.normal(key, (2, b, length, n, 4), dtype) for key, length in zip(keys, lengths, strict=True))


def both(attend, spmd=None, axes=(0, 0, 0)):
  """The jitted result and gradients of ``attend`` over both branches."""

  def weighted(qkv, weights):
    out = jax.vmap(attend, in_axes=axes, spmd_axis_name=spmd)(*qkv)
    return (out.astype(jnp.float32) * weights).sum(), out

  def run(q, k, v, weights):
    (_, out), grads = jax.value_and_grad(weighted, has_aux=True)((q, k, v), weights.astype(jnp.float32))
    return out, *grads

  return jit(run)


@functools.cache
def one_device(s, **kw):
  return both(local)(*arrays(s, **kw))


def close(found, expected, tolerance=1e-5):
  for name, a, b in zip(('out', 'd_q', 'd_k', 'd_v'), found, expected, strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()), err_msg=name)


def exchanges(compiled):
  """Kind -> how often in the compiled program; a loop's body counts once."""
  text = compiled.as_text()
  kinds = re.findall(r' (all-to-all|collective-permute|all-gather|all-reduce|reduce-scatter)(?:-start)?\(', text)
  return {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('s', [37, pytest.param(64, marks=pytest.mark.full)])
@pytest.mark.parametrize(
  'axes',
  [
    {'sequence': 8},
    {'sequence': 4, 'fsdp': 2},
    {'sequence': 2, 'modality': 2, 'tensor': 2},
    {'sequence': 2, 'fsdp': 2, 'tensor': 2},
  ],
  ids=lambda axes: '-'.join(f'{name}{size}' for name, size in axes.items()),
)
def test_result_and_gradients_are_those_of_one_device(method, s, axes):
  attend = functools.partial(sequence.attend, mesh=mesh_of(**axes), method=method)
  found = both(attend, 'modality' if 'modality' in axes else None)(*arrays(s))
  close(found, one_device(s))


@pytest.mark.parametrize('method', METHODS)
def test_sixteen_bits(method):
  q, k, v, weights = arrays(37, dtype=jnp.bfloat16)
  run = both(functools.partial(sequence.attend, mesh=mesh_of(sequence=4), method=method))
  with jax.numpy_dtype_promotion('standard'):  # the gradient of JAX's own attention promotes
    out, *grads = run(q, k, v, weights)
  assert {x.dtype for x in (out, *grads)} == {jnp.dtype(jnp.bfloat16)}
  close((out, *grads), both(local)(*(x.astype(jnp.float32) for x in (q, k, v, weights))), 2e-2)


@pytest.mark.parametrize('method', METHODS)
def test_padding_gets_no_weight(method):
  """Nine tokens on eight devices: three hold nothing but padding, whose scores of 0 would win against all others."""
  q = jnp.abs(arrays(9)[0][0]) * 6
  attend = functools.partial(sequence.attend, mesh=mesh_of(sequence=8), method=method)
  out = jit(attend)(q, -q, arrays(9)[2][0])
  assert jnp.isfinite(out).all()
  np.testing.assert_allclose(out, jit(local)(q, -q, arrays(9)[2][0]), atol=1e-5)


def test_a_long_block_goes_through_in_chunks(monkeypatch):
  monkeypatch.setattr(sequence, '_CHUNK', 4)  # blocks of 10 tokens: parts of 4, 4 and 2 with padding
  close(both(functools.partial(sequence.attend, mesh=mesh_of(sequence=4), method='ring'))(*arrays(37)), one_device(37))


def test_keys_of_another_length_are_not_exchanged():
  mesh = mesh_of(sequence=2, modality=2, fsdp=2)
  run = both(functools.partial(sequence.attend, mesh=mesh), 'modality')
  place = lambda *axes: NamedSharding(mesh, P('modality', 'fsdp', *axes))
  q, k, v, weights = arrays(36, t=7)
  q, weights = (jax.device_put(x, place('sequence')) for x in (q, weights))
  k, v = (jax.device_put(x, place()) for x in (k, v))
  run = run.lower(q, k, v, weights).compile()
  close(run(q, k, v, weights), one_device(36, t=7))
  assert set(exchanges(run)) == {'all-reduce'}  # of the gradients of k and v


@pytest.mark.parametrize('method', METHODS)
def test_what_is_repeated_over_devices_has_gradients_counted_once(method):
  """One row on a mesh that wants to split rows, and keys that both branches share."""
  mesh = mesh_of(sequence=2, modality=2, fsdp=2)
  q, k, v, weights = arrays(16, b=1)
  axes = (0, None, 0)
  found = both(functools.partial(sequence.attend, mesh=mesh, method=method), 'modality', axes)(q, k[0], v, weights)
  close(found, both(local, axes=axes)(q, k[0], v, weights))


@pytest.mark.parametrize(
  ('axes', 'shape'),
  [
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, (1, 37, 4, 4)),
    ({'cfg': 2, 'sequence': 4}, (2, 37, 2, 4)),
    ({'fsdp': 8}, (4, 37, 8, 4)),  # 4 rows do not divide by 8
    ({'sequence': 1, 'tensor': 1}, (4, 37, 8, 4)),
  ],
)
def test_the_kernel_sees_what_its_device_holds(axes, shape, monkeypatch):
  seen = []
  monkeypatch.setattr(sequence, 'local', lambda q, k, v: seen.append((q.shape, k.shape, v.shape)) or q)
  q = jnp.zeros((4, 37, 8, 4))
  assert jax.eval_shape(functools.partial(sequence.attend, mesh=mesh_of(**axes)), q, q, q).shape == q.shape
  assert seen == [(shape,) * 3]


@pytest.mark.parametrize(
  ('method', 'forward', 'backward'),
  [
    ('ulysses', {'all-to-all': 2}, {'all-to-all': 4}),
    ('ring', {'collective-permute': 1}, {'collective-permute': 4}),  # backward: keys, their gradients, and these home
  ],
)
def test_a_stack_exchanges_what_its_attention_does(method, forward, backward):
  """Layers whose tokens stay on their devices, though their number does not divide."""
  mesh, s = mesh_of(sequence=8), 37
  spread = lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, 'sequence')))

  def layer(x, kernel):
    q, k, v = jnp.split((x @ kernel).reshape(1, s, 8, 12), 3, axis=-1)
    return spread(x + sequence.attend(q, k, v, mesh=mesh, method=method).reshape(x.shape)), None

  def loss(kernels, x):
    return jax.lax.scan(layer, spread(x), kernels)[0].sum()

  x, kernels = jnp.ones((1, s, 32)), jnp.ones((3, 32, 96))
  compiled = jit(loss).lower(kernels, x).compile()
  assert exchanges(compiled) == forward | {'all-reduce': 1}  # the sum
  if method == 'ring':
    assert '"known_trip_count":{"n":"7"}' in compiled.as_text()
  compiled = jit(jax.grad(loss)).lower(kernels, x).compile()
  assert exchanges(compiled) == backward | {'all-reduce': 1}  # gradients of kernels


def test_a_saved_ring_does_not_go_round_again():
  x = arrays(64)[0][0]

  def gradients(attend, policy):
    body = remat.layer(lambda x, _: (x + attend(x, jnp.cos(x), jnp.sin(x)), None), policy)
    return jit(jax.grad(lambda x: jnp.sin(jax.lax.scan(body, x, length=3)[0]).sum())).lower(x).compile()

  ring = functools.partial(sequence.attend, mesh=mesh_of(sequence=4), method='ring')
  again, saved = gradients(ring, 'block'), gradients(ring, 'attention_saved')
  assert exchanges(again) == {'collective-permute': 5}
  assert exchanges(saved) == {'collective-permute': 4}
  expected = gradients(local, 'none')(x)
  for found in (again(x), saved(x)):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_ring_keeps_its_own_block_for_the_backward_pass():
  attend = functools.partial(sequence.attend, mesh=mesh_of(sequence=8), method='ring')
  x = jax.ShapeDtypeStruct((1, 4096, 8, 64), jnp.bfloat16)
  kept = jax.tree.leaves(jax.eval_shape(lambda *qkv: jax.vjp(attend, *qkv)[1], x, x, x))
  assert sum(a.size for a in kept if a.ndim) <= 4.1 * x.size  # q, k, v, the output and one number per row


def test_heads_that_ulysses_cannot_divide():
  q = jnp.zeros((1, 16, 4, 4))
  attend = functools.partial(sequence.attend, q, q, q, mesh=mesh_of(sequence=4, tensor=2))
  with pytest.raises(ConfigError, match=r'divide the heads of a device by sequence=4, got 2; method ring takes any'):
    attend()
  assert jax.eval_shape(functools.partial(attend, method='ring')).shape == q.shape


def test_unknown_methods():
  q = jnp.zeros((1, 16, 4, 4))
  with pytest.raises(ConfigError, match=r"unknown method 'rings'.*ulysses, ring"):
    sequence.attend(q, q, q, mesh=mesh_of(sequence=4), method='rings')
