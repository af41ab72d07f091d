"""Attention on TPU: JAX's splash kernel, over arrays that lie on one device (inside ``shard_map`` on a mesh).

The kernel works on tiles of the sequence, so both lengths are padded to whole tiles; padded keys belong to a segment of
their own and get no weight. What the backward pass needs of it, the output and its log-sum-exp, is named ``attention``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.checks import checked

_LANES = 128  # head_dim and tiles come in multiples of it
_TILE = 1024  # of queries and of keys, at most


def supports(head_dim: int) -> bool:
  """Whether the kernel takes heads of this width."""
  return head_dim % _LANES == 0


@checked
def splash(
  q: Float[Array, 'b s n h'], k: Float[Array, 'b t n h'], v: Float[Array, 'b t n h'], *, interpret: bool = False
) -> Float[Array, 'b s n h']:
  """``softmax(q kᵀ / sqrt(h)) v`` per head. ``interpret`` runs the kernel's program on any backend, slowly."""
  from jax.experimental.pallas.ops.tpu import splash_attention as kernels  # slow to import

  s, t, heads = q.shape[1], k.shape[1], q.shape[2]
  tile_q, tile_kv = _tile(s), _tile(t)
  q = _padded((q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype), tile_q)
  k, v = _padded(k, tile_kv), _padded(v, tile_kv)
  tiles = kernels.BlockSizes(
    block_q=tile_q,
    block_kv=tile_kv,
    block_q_dkv=tile_q,
    block_kv_dkv=tile_kv,
    block_q_dq=tile_q,
    block_kv_dq=tile_kv,
  )
  segments = None
  if k.shape[2] != t:
    real = jnp.arange(k.shape[2]) < t
    segments = kernels.SegmentIds(jnp.ones(q.shape[2], jnp.int32), real.astype(jnp.int32))
  kernel = kernels.make_splash_mha_single_device(
    kernels.MultiHeadMask([kernels.FullMask((q.shape[2], k.shape[2]))] * heads),
    block_sizes=tiles,
    residual_checkpoint_name='attention' if s == t else None,  # cross-attention costs less than what it would keep
    interpret=interpret,
  )
  with jax.numpy_dtype_promotion('standard'):  # the kernel promotes internally
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(q, k, v)
  return out[:, :, :s].swapaxes(1, 2)


def _tile(length: int) -> int:
  return min(_TILE, -(-length // _LANES) * _LANES)


def _padded(x: Float[Array, 'b s n h'], tile: int) -> Float[Array, 'b n p h']:
  """Heads first, as the kernel takes them, and zeros up to whole tiles."""
  return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % tile), (0, 0)))
