"""Attention over tokens that are spread over devices: one call, two ways to let every query see every key.

  ulysses   DeepSpeed-Ulysses (arXiv 2309.14509): an all-to-all trades tokens for heads, each device attends over all
            tokens with its share of the heads, a second all-to-all trades back
  ring      Ring Attention (arXiv 2310.01889): queries stay, keys and values travel round the devices block by block
            under an online softmax; no device ever holds more than one block of them

Ulysses moves less and runs the fused kernel of one device, but the heads must divide by the axis; a ring takes any.
Arrays are global, sharded by the compiler outside; inside of this call every device sees its own shard only, which a
fused kernel needs.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from one4d_jax.checks import checked
from one4d_jax.errors import ConfigError
from one4d_jax.nn import remat
from one4d_jax.nn.attention import local
from one4d_jax.parallel import rules

METHODS = ('ulysses', 'ring')
_CHUNK = 1024  # queries at a time against one block of keys
_MASKED = -1e30  # finite: a block of nothing but padding must not make NaN of its queries


@checked
def attend(
  q: Float[Array, 'b s n h'],
  k: Float[Array, 'b t n h'],
  v: Float[Array, 'b t n h'],
  *,
  mesh: Mesh,
  method: str = 'ulysses',
) -> Float[Array, 'b s n h']:
  """``softmax(q kᵀ / sqrt(h)) v`` per head, every device on its shard; the numbers of ``nn.attention.local``.

  Batch and heads are split by ``rules.USED``; an axis that the mesh lacks or that does not divide them splits nothing.
  Token counts need not divide: padding is added, and gets no weight. Keys of another length than the queries (text,
  image) are whole on every device and cost no exchange. Under ``vmap`` over an axis that is itself sharded, name that
  axis by ``spmd_axis_name``.

  Raises:
    ConfigError: an unknown method, or heads that Ulysses cannot divide.
  """
  if method not in METHODS:
    raise ConfigError(f'unknown method {method!r} of sequence parallelism; known: {", ".join(METHODS)}')
  if mesh.size == 1:
    return local(q, k, v)
  (axis,) = rules.USED['tokens']
  length, size = q.shape[1], mesh.shape.get(axis, 1)
  rows, _, columns, _ = whole = rules.spec(('batch', None, 'heads', None), q.shape, mesh, rules.USED)
  spread = P(rows, axis if size > 1 else None, columns, None)
  exchanged = size > 1 and k.shape[1] == length

  if not exchanged:
    inner = local
  elif method == 'ring':
    inner = lambda q, k, v: _ring(q, k, v, axis, length)
  else:
    own = q.shape[2] // mesh.shape.get(columns, 1)
    if own % size:
      raise ConfigError(
        f'ulysses must divide the heads of a device by {axis}={size}, got {own}; method ring takes any number'
      )
    inner = lambda q, k, v: _ulysses(q, k, v, axis, length)

  pad = lambda x: jnp.pad(x, ((0, 0), (0, -length % size), (0, 0), (0, 0)))
  if exchanged:
    k, v = pad(k), pad(v)
  keys = spread if exchanged else whole
  # Without check_vma, which fails under vmap with spmd_axis_name (jax 0.10) and knows no fused kernels.
  out = jax.shard_map(inner, mesh=mesh, in_specs=(spread, keys, keys), out_specs=spread, check_vma=False)(pad(q), k, v)
  return out[:, :length]


def _ulysses(
  q: Float[Array, 'b c n h'], k: Float[Array, 'b c n h'], v: Float[Array, 'b c n h'], axis: str, length: int
) -> Float[Array, 'b c n h']:
  """Of ``c`` tokens with ``n`` heads: all ``length`` tokens with a share of the heads, and back."""
  qkv = jax.lax.all_to_all(jnp.stack((q, k, v)), axis, split_axis=3, concat_axis=2, tiled=True)
  padding = qkv.shape[2] - length
  out = jnp.pad(local(*qkv[:, :, :length]), ((0, 0), (0, padding), (0, 0), (0, 0)))
  return jax.lax.all_to_all(out, axis, split_axis=1, concat_axis=2, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _ring(
  q: Float[Array, 'b c n h'], k: Float[Array, 'b c n h'], v: Float[Array, 'b c n h'], axis: str, length: int
) -> Float[Array, 'b c n h']:
  """Of ``c`` tokens with all heads, ``length`` tokens in all: statistics in float32, one hop fewer than devices.

  The backward pass goes round once more and keeps of the forward pass what flash attention keeps: the output and its
  log-sum-exp. Like the fused kernels, it has no forward-mode derivative.
  """
  return _ring_forward(q, k, v, axis, length)[0]


def _ring_forward(q, k, v, axis, length):
  size = jax.lax.axis_size(axis)
  chunks = _chunked(q)
  rows = chunks.shape[:2] + chunks.shape[3:1:-1]  # [j b n q]

  def attend_to(kv, step, sums):
    def chunk(inputs):
      q, out, top, total = inputs
      scores = _scores(q, kv[0], step, axis, length)
      highest = jnp.maximum(top, scores.max(-1))
      weights, kept = jnp.exp(scores - highest[..., None]), jnp.exp(top - highest)
      out = out * _beside(kept) + _product('bnqk,bknh->bqnh', weights.astype(q.dtype), kv[1])
      return out, highest, total * kept + weights.sum(-1)

    return jax.lax.map(chunk, (chunks, *sums))

  def hop(carry, step):
    kv, sums = carry
    return (_pass_on(kv, axis), attend_to(kv, step, sums)), None

  sums = jnp.zeros(chunks.shape, jnp.float32), jnp.full(rows, _MASKED), jnp.zeros(rows)
  (kv, sums), _ = jax.lax.scan(hop, (jnp.stack((k, v)), sums), jnp.arange(size - 1))
  out, top, total = attend_to(kv, size - 1, sums)
  out = remat.attention(_joined(out / _beside(total), q.shape[1]).astype(q.dtype))
  return out, (q, k, v, out, remat.attention(top + jnp.log(total)))


def _ring_backward(axis, length, saved, d_out):
  q, k, v, out, lse = saved
  size = jax.lax.axis_size(axis)
  inner = jnp.einsum('bqnh,bqnh->bqn', d_out.astype(jnp.float32), out.astype(jnp.float32))
  queries = _chunked(q), _chunked(d_out), _chunked(inner).swapaxes(2, 3), lse

  def attend_to(kv, step, d_q, d_kv):
    def chunk(d_kv, inputs):
      q, d_out, inner, lse, d_q = inputs
      weights = jnp.exp(_scores(q, kv[0], step, axis, length) - lse[..., None])
      d_scores = weights * (_product('bqnh,bknh->bnqk', d_out, kv[1]) - inner[..., None]) * q.shape[-1] ** -0.5
      weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
      pairs = ((d_scores, q), (weights, d_out))
      d_kv += jnp.stack([_product('bnqk,bqnh->bknh', w, x) for w, x in pairs])
      return d_kv, d_q + _product('bnqk,bknh->bqnh', d_scores, kv[0])

    return jax.lax.scan(chunk, d_kv, (*queries, d_q))

  def hop(carry, step):
    kv, d_kv, d_q = carry
    d_kv, d_q = attend_to(kv, step, d_q, d_kv)
    return (_pass_on(kv, axis), _pass_on(d_kv, axis), d_q), None  # sums travel with the block they belong to

  kv = jnp.stack((k, v))
  start = kv, jnp.zeros(kv.shape, jnp.float32), jnp.zeros(queries[0].shape, jnp.float32)
  (kv, d_kv, d_q), _ = jax.lax.scan(hop, start, jnp.arange(size - 1))
  d_kv, d_q = attend_to(kv, size - 1, d_q, d_kv)
  d_k, d_v = _pass_on(d_kv, axis)  # home
  return _joined(d_q, q.shape[1]).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


_ring.defvjp(_ring_forward, _ring_backward)


def _pass_on(x: Array, axis: str) -> Array:
  size = jax.lax.axis_size(axis)
  return jax.lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])


def _scores(
  q: Float[Array, 'b q n h'], k: Float[Array, 'b k n h'], step: int | Int[Array, ''], axis: str, length: int
) -> Float[Array, 'b n q k']:
  """Against the block that arrived after ``step`` hops, its padding masked."""
  scores = _product('bqnh,bknh->bnqk', q, k) * q.shape[-1] ** -0.5
  size, block = jax.lax.axis_size(axis), k.shape[1]
  if size * block == length:
    return scores
  owner = (jax.lax.axis_index(axis) - step) % size
  return jnp.where(jnp.arange(block) < length - owner * block, scores, _MASKED)


def _product(equation: str, x: Array, y: Array) -> Array:
  return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _beside(x: Float[Array, '*j b n q']) -> Float[Array, '*j b q n 1']:
  return x.swapaxes(-1, -2)[..., None]


def _chunked(x: Float[Array, 'b c ...']) -> Float[Array, 'j b q ...']:
  """Tokens in equal parts of at most ``_CHUNK``, zeros at the end."""
  parts = -(-x.shape[1] // _CHUNK)
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % parts), *((0, 0),) * (x.ndim - 2)))
  return x.reshape(x.shape[0], parts, -1, *x.shape[2:]).swapaxes(0, 1)


def _joined(x: Float[Array, 'j b q n h'], tokens: int) -> Float[Array, 'b c n h']:
  return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :tokens]
