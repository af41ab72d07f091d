"""Adam's moments kept in fewer bytes: ``float32`` (8 a parameter), ``bfloat16`` (4) or ``int8`` (2.06 and a little).

Between steps they are stored; a step computes in float32 and uses what it computed before it is rounded. Leaves that
are vectors, hold fewer than 4096 values or have a short last axis stay float32.

``int8``: blocks of 128 values along the last axis, each with its largest magnitude ``s`` in float32. A code ``c`` of n
levels stands for

  mu        = s  sign(c) (c / n)^2       int8, n = 127
  sqrt(nu)  = s  (c / n)^2               uint8, n = 255

and lies between its neighbours in proportion to the distances, decided by one offset a step that runs through an evenly
spread sequence: right on average over a few steps, equal in every run, no random numbers. Rounding to the nearest (or
up) would not do: a step changes nu by a hundredth, less than half a level, so it would never change at all (only grow).
A code of nu is at least 1 unless its whole block is zero, so that no update is divided by nothing.

Public 8-bit optimizers (Dettmers et al. 2021, arXiv 2110.02861: bitsandbytes; torchao) also have blocks (of 256) and a
code that is finer for small values, and spare small leaves. What differs: their code is a table of 256 values to be
searched, a square needs no table; they round to the nearest and keep nu itself; and their blocks run over the flattened
array, here codes have the shape of the parameter and are sharded as it is.

``bfloat16``: rounded to the nearest, mu and nu. One step with b2 = 0.99 changes nu by up to 1 % where it decays, more
than the half step of 0.2 to 0.4 %; b2 = 0.999 would need another rounding.
"""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Int8, UInt8

from one4d_jax.checks import checked

KINDS = ('float32', 'bfloat16', 'int8')
BLOCK = 128
_SMALLEST, _SHORTEST = 4096, 32  # values of a leaf, of its last axis
_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: its multiples mod 1 are spread evenly


@struct.dataclass
class Blocks:
  """One leaf in 8 bits. ``code`` has its shape; ``n`` counts the blocks of the last axis."""

  code: Int8[Array, '*a d'] | UInt8[Array, '*a d']
  scale: Float[Array, '*a n']  # float32


def compressed(inner: optax.GradientTransformation, kind: str) -> optax.GradientTransformation:
  """``inner`` with the Adam moments in its state kept as ``kind``, one of ``KINDS``; ``float32``: ``inner`` itself.

  Parameters of any dtype have float32 moments while a step computes. ``init`` makes the float32 moments of all leaves
  first unless it is jitted.
  """
  if kind == 'float32':
    return inner

  def moments(change, state):
    """``state`` with ``change`` applied to what ``optax.scale_by_adam`` keeps."""
    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)
    return jax.tree.map(lambda part: change(part) if is_adam(part) else part, state, is_leaf=is_adam)

  def store(adam: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
    if kind == 'bfloat16':
      narrow = lambda x: x.astype(jnp.bfloat16 if _large(x) else jnp.float32)
      return adam._replace(mu=jax.tree.map(narrow, adam.mu), nu=jax.tree.map(narrow, adam.nu))
    code = lambda x, dtype: encode(x, adam.count, dtype) if _large(x) else x.astype(jnp.float32)
    return adam._replace(
      mu=jax.tree.map(lambda x: code(x, jnp.int8), adam.mu),
      nu=jax.tree.map(lambda x: code(jnp.sqrt(x) if _large(x) else x, jnp.uint8), adam.nu),
    )

  def load(adam: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
    is_blocks = lambda x: isinstance(x, Blocks)
    wide = lambda x: decode(x) if is_blocks(x) else x.astype(jnp.float32)
    square = lambda x: jnp.square(decode(x)) if is_blocks(x) else x.astype(jnp.float32)
    return adam._replace(
      mu=jax.tree.map(wide, adam.mu, is_leaf=is_blocks), nu=jax.tree.map(square, adam.nu, is_leaf=is_blocks)
    )

  def init(params):
    return moments(store, inner.init(params))

  def update(grads, state, params=None):
    updates, state = inner.update(grads, moments(load, state), params)
    return updates, moments(store, state)

  return optax.GradientTransformation(init, update)


@checked
def encode(x: Float[Array, '*a d'], step: Int[Array, ''], dtype) -> Blocks:
  """``x`` in blocks; ``step`` picks the offset of rounding. ``uint8`` wants ``x >= 0`` and keeps every code above 0."""
  levels, signed = jnp.iinfo(dtype).max, jnp.issubdtype(dtype, jnp.signedinteger)
  blocks = _split(x.astype(jnp.float32))
  scale = jnp.abs(blocks).max(axis=-1)
  size = jnp.abs(blocks) / jnp.where(scale > 0, scale, 1.0)[..., None] * levels**2
  below = jnp.minimum(jnp.floor(jnp.sqrt(size)), levels - 1)
  offset = ((step.astype(jnp.uint32) * jnp.uint32(_GOLDEN)) >> 8).astype(jnp.float32) / 2**24
  code = below + jnp.floor((size - jnp.square(below)) / (2 * below + 1) + offset)
  code = jnp.clip(code, 0 if signed else (scale > 0)[..., None].astype(jnp.float32), levels)
  code = code * jnp.sign(blocks) if signed else code
  return Blocks(_join(code, x.shape[-1]).astype(dtype), scale)


@checked
def decode(blocks: Blocks) -> Float[Array, '*a d']:
  """The values, float32."""
  code = _split(blocks.code.astype(jnp.float32) / jnp.iinfo(blocks.code.dtype).max)
  return _join(code * jnp.abs(code) * blocks.scale[..., None], blocks.code.shape[-1])


def _large(x: jax.Array) -> bool:
  return x.ndim > 1 and x.size >= _SMALLEST and x.shape[-1] >= _SHORTEST


def _split(x: jax.Array) -> jax.Array:
  """``[… d] -> [… n BLOCK]``, zeros at the end; a last axis shorter than a block is one block."""
  width = min(BLOCK, x.shape[-1])
  padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % width)])
  return padded.reshape(*x.shape[:-1], -1, width)


def _join(blocks: jax.Array, size: int) -> jax.Array:
  return blocks.reshape(*blocks.shape[:-2], -1)[..., :size]
