"""Layers shared by every transformer here. Width axes carry logical names; ``parallel`` maps them to a mesh."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.nn import partition, quantize

DType = Any


class Dense(nn.Module):
  """``x W + b``, plus ``(x A) B`` when the ``lora`` collection holds an ``a`` and a ``b`` at this path.

  The layer never creates adapters: ``lora.init`` derives them from the shapes of the base tree, so the
  same module runs frozen, adapted or fully fine-tuned, and one adapter tree can be mapped over modalities.
  A frozen kernel may be an ``Int8Weight``.
  """

  features: int
  axes: tuple[str | None, str | None]  # logical names of (input, output) width
  use_bias: bool = True
  dtype: DType = jnp.bfloat16
  param_dtype: DType = jnp.bfloat16

  @nn.compact
  def __call__(self, x: Float[Array, '*b din']) -> Float[Array, '*b dout']:
    x = x.astype(self.dtype)
    kernel_init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), self.axes)
    kernel = self.param('kernel', kernel_init, (x.shape[-1], self.features), self.param_dtype)
    y = x @ quantize.array(_gathered(kernel, self.axes), self.dtype)
    if self.use_bias:
      bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
      y += self.param('bias', bias_init, (self.features,), self.param_dtype).astype(self.dtype)
    if self.has_variable('lora', 'a'):
      a = _gathered(self.get_variable('lora', 'a'), (self.axes[0], None))
      b = _gathered(self.get_variable('lora', 'b'), (None, self.axes[1]))
      if partition.platform() == 'cpu':  # its gradients sum over one axis; over more, XLA copies transposed arrays
        x = x.reshape(-1, x.shape[-1])
      y += ((x @ a.astype(self.dtype)) @ b.astype(self.dtype)).reshape(y.shape)
    return y


def _gathered(kernel: jax.Array | quantize.Int8Weight, axes: tuple[str | None, str | None]):
  """The kernel as products take it. Stored in shares, it is gathered here: as it is stored, once for all branches."""
  if isinstance(kernel, quantize.Int8Weight):
    return quantize.Int8Weight(partition.constrain(kernel.int8, *axes), partition.constrain(kernel.scale, axes[1]))
  return partition.constrain(kernel, *axes)


class RMSNorm(nn.Module):
  """Root-mean-square norm over the last axis, in float32 whatever the input dtype."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    init = nn.with_logical_partitioning(nn.initializers.ones, ('embed',))
    scale = self.param('scale', init, (x.shape[-1],), jnp.float32)
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    return (y * scale).astype(x.dtype)


def layer_norm(x: Float[Array, '*b d'], eps: float = 1e-6) -> Float[Array, '*b d']:
  """Layer norm without scale or shift, computed and returned in float32."""
  x = x.astype(jnp.float32)
  x -= x.mean(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps)


class LayerNorm(nn.Module):
  """``layer_norm`` with a learned scale and bias; float32 out."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    box = lambda init: nn.with_logical_partitioning(init, ('embed',))
    scale = self.param('scale', box(nn.initializers.ones), (x.shape[-1],), jnp.float32)
    bias = self.param('bias', box(nn.initializers.zeros), (x.shape[-1],), jnp.float32)
    return layer_norm(x, self.eps) * scale + bias


def stack_layers(init_one, key: jax.Array, layers: int) -> dict:
  """Parameters of ``layers`` equal layers on a new leading axis named 'layers'. ``init_one(key)`` makes one."""
  stacked = jax.vmap(init_one)(jax.random.split(key, layers))
  return jax.tree.map(
    lambda box: box.add_axis(0, {nn.PARTITION_NAME: 'layers'}),
    stacked,
    is_leaf=lambda v: isinstance(v, nn.LogicallyPartitioned),
  )
