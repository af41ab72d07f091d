"""Prove a conversion: every file against its sum, every tensor against its source, and a small forward."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from one4d_jax.errors import CheckpointError
from one4d_jax.model import weights
from one4d_jax.nn.layers import RMSNorm
from one4d_jax.nn.quantize import Int8Weight
from one4d_jax.wan import dit
from one4d_jax.wan.clip import CLIPEncoder
from one4d_jax.wan.umt5 import UMT5Encoder, relative_buckets
from one4d_jax.wan.vae import WanVAE
from weight_conversion import writer
from weight_conversion.reader import Source
from weight_conversion.rules import Leaf


def verify(
  source: Source,
  leaves: tuple[Leaf, ...],
  dtypes: Mapping[str, str],
  folder: pathlib.Path,
  config: Any,
  *,
  progress: Callable[[int], None] = lambda count: None,
) -> str:
  """Re-reads both sides and returns a one-line account; arguments as of ``writer.write``.

  What is stored, transformed back, must have the bytes of the source in the stored dtype: the source itself where
  that dtype can hold it, the source rounded once where it cannot. An int8 weight must lie within half a step.

  Raises:
    CheckpointError: naming the files that changed, the tensors that differ, or a forward that is not finite.
  """
  manifest = weights.check(folder)
  weights.verify_hashes(folder)
  arrays = {leaf.target: writer.stored(leaf, dtypes[leaf.target], int8=manifest['int8']) for leaf in leaves}
  stores = {array.name: weights.open_leaf(folder, array.name) for group in arrays.values() for array in group}
  wrong, exact, total = [], 0, 0
  for job in writer.jobs(leaves, arrays):
    values = [stores[array.name][job.place if array.shape else ()].read().result() for array in job.stores]
    originals = job.read(source)
    if len(values) == 2:
      expected, tolerance = job.leaf.transform.forward(*originals).astype(np.float32), values[1] * 0.50001
      same = [bool((np.abs(Int8Weight(*values).dequantize(np.float32)[0] - expected) <= tolerance).all())]
    else:
      value = values[0][0] if job.leaf.stacked else values[0]
      back = (value,) if job.rows is not None else job.leaf.transform.backward(value)
      same = [same_bits(b, o.astype(b.dtype)) for b, o in zip(back, originals, strict=True)]
      exact += sum(b.dtype in (o.dtype, np.float32) for b, o in zip(back, originals, strict=True))
    total += len(originals)
    wrong += [] if all(same) else job.sources
    progress(sum(value.nbytes for value in values))
  if wrong:
    raise CheckpointError(f'{folder}: {len(wrong)} tensors differ from their source: {wrong[:12]}; convert again')
  size = forward(folder, config, manifest)
  if not np.isfinite(size) or size == 0:
    raise CheckpointError(f'{folder}: a small forward gives values of size {size}; these weights are not usable')
  return (
    f'{folder}: verified; files match their sums, {total} tensors their sources ({exact} bit for bit), '
    f'a small forward is finite (rms {size:.3g})'
  )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  bits = np.dtype(f'u{a.dtype.itemsize}')
  return np.array_equal(a.view(bits), b.view(bits))


def forward(folder: pathlib.Path, config: Any, manifest: Mapping[str, Any]) -> float:
  """Root mean square of what the network makes of a small random input, in float32.

  The two large networks run with one layer in memory at a time.
  """
  random = lambda *shape: jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
  read = lambda prefix, layer=None: subtree(folder, manifest, prefix, layer)
  match manifest['part']:
    case 'base':
      frames = random(1, *config.patch, config.in_channels)
      text, image = random(1, 4, config.text_width), random(1, 4, config.image_width)

      @jax.jit
      def embed(params, frames, text, image):
        x = dit.WanEmbed(config, dit.FLOAT32).apply({'params': params}, frames, method='tokens')
        return x, *dit.embed_inputs(config, {'embed': params}, (1, 1, 1), jnp.array([500.0]), text, image, dit.FLOAT32)

      x, e, context = embed(read('embed/'), frames, text, image)
      block = jax.jit(lambda x, params: dit.WanBlock(config, dit.FLOAT32).apply({'params': params}, x, context))
      for layer in range(config.layers):
        x = jax.block_until_ready(block(x, read('blocks/', layer)))
      out = jax.jit(dit.WanHead(config, dit.FLOAT32).apply)({'params': read('head/')}, x, e)
    case 'text':
      encoder = UMT5Encoder(config, jnp.float32, jnp.float32)
      x = jnp.asarray(weights.open_leaf(folder, 'embedding')[1:5].read().result(), jnp.float32)[None]
      buckets = jnp.asarray(relative_buckets(4, buckets=config.buckets, max_distance=config.max_distance))
      block = jax.jit(lambda x, params: encoder.block.apply({'params': params}, x, jnp.ones((1, 4), bool), buckets))
      for layer in range(config.layers):
        x = jax.block_until_ready(block(x, read('blocks/', layer)))
      out = RMSNorm(config.eps).apply({'params': read('norm/')}, x)
    case 'image':
      out = jax.jit(CLIPEncoder(config, jnp.float32, jnp.float32).encode)(read(''), random(1, 32, 32, 3))
    case 'vae':
      vae = WanVAE(config)
      out = jax.jit(lambda params, x: vae.decode(params, vae.encode(params, x)))(read(''), random(1, 1, 16, 16, 3))
  return float(jnp.sqrt(jnp.mean(jnp.square(out))))


def subtree(folder: pathlib.Path, manifest: Mapping[str, Any], prefix: str, layer: int | None = None) -> dict:
  """The arrays below ``prefix`` as a tree; of stacked ones a single layer."""
  names = [name for name in manifest['leaves'] if name.startswith(prefix)]
  index = () if layer is None else layer
  arrays = {n.removeprefix(prefix): weights.open_leaf(folder, n)[index].read().result() for n in names}
  return weights.tree(jax.tree.map(jnp.asarray, arrays))
