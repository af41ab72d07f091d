"""Int8 weights: symmetric, one scale per output channel, for the linears of the frozen blocks.

  scale_j = max_i |W_ij| / 127,    Q_ij = round(W_ij / scale_j),    W_ij ~ Q_ij scale_j

The error of a weight is at most ``scale_j / 2``. An ``Int8Weight`` stands in a base tree where the kernel stood;
``Dense`` makes it an array of its own dtype, once for all branches that share the base.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct, traverse_util
from jaxtyping import Array, Float, Int8

_ELIGIBLE = re.compile(r'blocks/\w+/kernel')


@struct.dataclass
class Int8Weight:
  """A quantised kernel; a leading layer axis is allowed, and both leaves have it."""

  int8: Int8[Array, '*l din dout']
  scale: Float[Array, '*l dout']  # float32

  def dequantize(self, dtype) -> Float[Array, '*l din dout']:
    """The kernel, multiplied in float32 and rounded once."""
    return (self.int8.astype(jnp.float32) * self.scale[..., None, :]).astype(dtype)


def quantize(kernel: Float[Array, '*l din dout']) -> Int8Weight:
  """Rounds to the nearest; a column of zeros stays zeros. NumPy in, NumPy out."""
  numpy = np if isinstance(kernel, np.ndarray) else jnp
  kernel = kernel.astype(numpy.float32)
  scale = numpy.maximum(kernel.max(axis=-2), -kernel.min(axis=-2)) / numpy.float32(127)
  steps = kernel / numpy.where(scale > 0, scale, numpy.ones_like(scale))[..., None, :]
  return Int8Weight(numpy.round(steps).astype(numpy.int8), scale)


def array(kernel: Float[Array, '*l din dout'] | Int8Weight, dtype) -> Float[Array, '*l din dout']:
  """The kernel as an array of ``dtype``, whether it is stored as int8 or not."""
  return kernel.dequantize(dtype) if isinstance(kernel, Int8Weight) else kernel.astype(dtype)


def eligible(name: str) -> bool:
  """Whether the leaf of a base tree, as in 'blocks/ffn_in/kernel', is stored as int8: the linears of the blocks."""
  return _ELIGIBLE.fullmatch(name) is not None


def blocks(base: dict) -> dict:
  """A base tree (arrays, or boxed with logical axes) with every eligible kernel quantised."""
  flat = traverse_util.flatten_dict(base, sep='/')
  return traverse_util.unflatten_dict({k: _leaf(v) if eligible(k) else v for k, v in flat.items()}, sep='/')


def _leaf(kernel: jax.Array | nn.LogicallyPartitioned) -> Int8Weight:
  if not isinstance(kernel, nn.LogicallyPartitioned):
    return quantize(kernel)
  weight, (*stack, _, width_out) = quantize(kernel.value), kernel.names
  return Int8Weight(kernel.replace_boxed(weight.int8), nn.LogicallyPartitioned(weight.scale, (*stack, width_out)))


def boxed_like(boxed: dict, tree: dict) -> dict:
  """Shapes and logical axes ``boxed`` of a base as ``tree`` stores it: with ``Int8Weight`` where that has one."""
  is_leaf = lambda v: isinstance(v, nn.LogicallyPartitioned | Int8Weight)
  match = lambda box, leaf: jax.eval_shape(_leaf, box) if isinstance(leaf, Int8Weight) else box
  return jax.tree.map(match, boxed, tree, is_leaf=is_leaf)
