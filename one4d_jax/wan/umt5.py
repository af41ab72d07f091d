"""UMT5, the text encoder of Wan2.1: token ids in, one feature row a token out.

A layer is ``x += Attention(RMS(x)); x += W_out(W_in(x) * gelu(W_gate(x)))``, after the last one ``RMS(x)``. No biases.
Unlike T5 every layer has its own table of relative positions, and like T5 the logits are not divided by
``sqrt(head width)``: training folded that factor into the weights.

  embedding [vocab d]    position [l buckets h]    attention and MLP kernels [l din dout]
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from one4d_jax.checks import checked
from one4d_jax.nn.layers import Dense, RMSNorm, stack_layers
from one4d_jax.wan.config import UMT5Config


def relative_buckets(length: int, *, buckets: int, max_distance: int) -> np.ndarray:
  """``int32 [query key]``: the row of the position table that each pair of tokens reads.

  Half of the rows are for keys at or before the query, half for keys after it. Of each half, the first half is one
  row a distance and the rest grow geometrically up to ``max_distance``. The logarithm of the usual formula is
  compared in integers here, so no rounding decides on a bucket.
  """
  half = buckets // 2
  exact = half // 2
  rest = half - exact
  far = [
    exact + sum(d**rest * exact**j >= max_distance**j * exact**rest for j in range(1, rest)) for d in range(length)
  ]
  of_distance = np.array([d if d < exact else far[d] for d in range(length)], np.int32)
  offset = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
  return of_distance[np.abs(offset)] + half * (offset > 0).astype(np.int32)


def attend(
  q: Float[Array, 'b t h d'],
  k: Float[Array, 'b t h d'],
  v: Float[Array, 'b t h d'],
  bias: Float[Array, '#b h t t'],
  mask: Bool[Array, 'b t'],
) -> Float[Array, 'b t h d']:
  """Unscaled attention with an additive bias; the softmax is float32."""
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32) + bias
  logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
  return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


class Block(nn.Module):
  """One layer; ``buckets`` [t t] is the same for all of them."""

  cfg: UMT5Config
  dtype: Any
  param_dtype: Any

  @nn.compact
  @checked
  def __call__(
    self, x: Float[Array, 'b t d'], mask: Bool[Array, 'b t'], buckets: Int[Array, 't t']
  ) -> Float[Array, 'b t d']:
    cfg = self.cfg

    def dense(name, features, axes, y):
      return Dense(
        features, axes, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name=name
      )(y)  # fmt: skip

    heads = lambda y: y.reshape(*y.shape[:-1], cfg.heads, -1)
    table = self.param(
      'position',
      nn.with_logical_partitioning(nn.initializers.normal(cfg.width**-0.5), (None, 'heads')),
      (cfg.buckets, cfg.heads),
      self.param_dtype,
    )
    bias = jnp.moveaxis(table.astype(jnp.float32)[buckets], -1, 0)[None]  # [1 h t t]

    y = RMSNorm(eps=cfg.eps, name='attn_norm')(x)
    q, k, v = (heads(dense(name, cfg.width, ('embed', 'heads'), y)) for name in ('q', 'k', 'v'))
    y = attend(q, k, v, bias, mask).reshape(x.shape)
    x += dense('o', cfg.width, ('heads', 'embed'), y)

    y = RMSNorm(eps=cfg.eps, name='ffn_norm')(x)
    gate = nn.gelu(dense('ffn_gate', cfg.ffn_width, ('embed', 'ffn'), y), approximate=True)
    y = dense('ffn_in', cfg.ffn_width, ('embed', 'ffn'), y) * gate
    return x + dense('ffn_out', cfg.width, ('ffn', 'embed'), y)


@dataclasses.dataclass(frozen=True)
class UMT5Encoder:
  """The encoder as plain functions over ``{'embedding', 'blocks' [l ...], 'norm'}``.

  Args:
    cfg: sizes.
    dtype: of the activations. Norm statistics, position biases and softmax are float32 in any case.
    param_dtype: of fresh parameters (norm scales are float32).
  """

  cfg: UMT5Config = dataclasses.field(default_factory=UMT5Config)
  dtype: Any = jnp.bfloat16
  param_dtype: Any = jnp.bfloat16

  @property
  def block(self) -> Block:
    return Block(self.cfg, self.dtype, self.param_dtype)

  def init(self, key: jax.Array) -> dict:
    """Fresh parameters, boxed with their logical axes. ``q`` starts smaller, in place of the missing scaling."""
    cfg = self.cfg
    key_embedding, key_blocks = jax.random.split(key)
    x, mask = jnp.zeros((1, 1, cfg.width), self.dtype), jnp.ones((1, 1), bool)
    one = lambda k: self.block.init(k, x, mask, jnp.zeros((1, 1), jnp.int32))['params']
    blocks = stack_layers(one, key_blocks, cfg.layers)
    blocks['q'] = jax.tree.map(lambda w: w * (cfg.width // cfg.heads) ** -0.5, blocks['q'])
    table = jax.random.normal(key_embedding, (cfg.vocab, cfg.width), self.param_dtype)
    return {
      'embedding': nn.LogicallyPartitioned(table, ('vocab', 'embed')),
      'blocks': blocks,
      'norm': RMSNorm(eps=cfg.eps).init(key, x)['params'],
    }

  @checked
  def encode(
    self, params: dict, ids: Int[Array | np.ndarray, 'b t'], mask: Bool[Array | np.ndarray, 'b t']
  ) -> Float[Array, 'b t d']:
    """Features of each token, in ``dtype``; rows where ``mask`` is False are zero, as the DiT pads its text.

    Args:
      params: unboxed parameters.
      ids: token ids of the tokenizer, padded.
      mask: True for a token, False for padding. Padding is not attended to.
    """
    cfg, block, mask = self.cfg, self.block, jnp.asarray(mask)
    buckets = jnp.asarray(relative_buckets(ids.shape[1], buckets=cfg.buckets, max_distance=cfg.max_distance))
    x = params['embedding'][ids].astype(self.dtype)
    layer = lambda x, p: (block.apply({'params': p}, x, mask, buckets), None)
    x, _ = jax.lax.scan(layer, x, params['blocks'])
    x = RMSNorm(eps=cfg.eps).apply({'params': params['norm']}, x)
    return jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))
