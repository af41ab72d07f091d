"""Softmax attention behind one signature."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.checks import checked
from one4d_jax.nn import partition, remat, splash

_CHUNK = 1024  # queries at a time where no fused kernel exists
_LOGITS = 2**25  # bytes of logits at once that are faster than more


@checked
def attend(
  q: Float[Array, 'b s n h'], k: Float[Array, 'b t n h'], v: Float[Array, 'b t n h']
) -> Float[Array, 'b s n h']:
  """``softmax(q kᵀ / sqrt(h)) v`` per head, without mask; on a mesh as the layout in use says."""
  layout = partition.current()
  return local(q, k, v) if layout is None else layout.attend(q, k, v)


def local(
  q: Float[Array, 'b s n h'], k: Float[Array, 'b t n h'], v: Float[Array, 'b t n h']
) -> Float[Array, 'b s n h']:
  """``attend`` on one device.

  On NVIDIA in 16 bits this is cuDNN's flash attention, on TPU the splash kernel. Elsewhere queries go through in
  chunks: of short sequences because logits that fit a cache are faster, of long ones, each recomputed in the backward
  pass, so that memory grows with ``s``, not ``s t``.
  """
  platform = partition.platform()
  if platform in ('gpu', 'cuda') and q.dtype in (jnp.bfloat16, jnp.float16):
    return _cudnn(q, k, v)
  if platform == 'tpu' and splash.supports(q.shape[-1]):
    return splash.splash(q, k, v)
  b, s, n, h = q.shape
  if s <= 2 * _CHUNK:
    count = -(-4 * b * n * s * k.shape[1] // _LOGITS)
    rows = -(-s // count)
    out = jnp.concatenate([_plain(q[:, i : i + rows], k, v) for i in range(0, s, rows)], axis=1)
  else:
    padded = jnp.pad(q, ((0, 0), (0, -s % _CHUNK), (0, 0), (0, 0)))
    chunks = padded.reshape(b, -1, _CHUNK, n, h).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(lambda chunk: _plain(chunk, k, v)), chunks)
    out = out.swapaxes(0, 1).reshape(b, -1, n, h)[:, :s]
  return remat.attention(out) if k.shape[1] == s else out  # text and image are attended to again for little


def _cudnn(q: Array, k: Array, v: Array) -> Array:
  """JAX has no gradient of odd lengths (of 257 image tokens, say): they are padded, and padded keys masked."""
  even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
  s, t, lengths = q.shape[1], k.shape[1], {}
  if t % 2:
    count = lambda n: jnp.where(q[:, 0, 0, 0] == 0, n, n)  # mapped as q is: vmap of the kernel needs both lengths so
    lengths = {'query_seq_lengths': count(s), 'key_value_seq_lengths': count(t)}
  with jax.numpy_dtype_promotion('standard'):  # JAX's own attention promotes internally
    out = jax.nn.dot_product_attention(even(q), even(k), even(v), implementation='cudnn', **lengths)
  return out[:, :s]


def _plain(q: Array, k: Array, v: Array) -> Array:
  """Heads come first, as products on a CPU want them, and the sum divides what is small: the output."""
  scale = q.shape[-1] ** -0.5
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  logits = jnp.einsum('bnsh,bnth->bnst', q, k, preferred_element_type=jnp.float32) * scale
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
  out = jnp.einsum('bnst,bnth->bnsh', weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  return (out / weights.sum(axis=-1, keepdims=True)).astype(q.dtype).swapaxes(1, 2)
