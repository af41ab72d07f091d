"""LoRA as a tree of arrays beside the base tree (One4D, Eqs. 5-8).

A base tree has leaves ``<path>/kernel: [l, din, dout]``. Its adapter tree has, at the same path,
``a: [l, m, din, r]`` and ``b: [l, m, r, dout]``; ``m`` counts modalities. ``b`` starts at zero, so a fresh
adapter leaves the base model unchanged. ``scale`` is ``alpha / r``, applied to ``b``.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from one4d_jax.errors import ConfigError
from one4d_jax.nn import quantize

Tree = dict


def _kernels(base: Tree, targets: str) -> dict[tuple[str, ...], nn.LogicallyPartitioned]:
  flat = traverse_util.flatten_dict(base)
  found = {p[:-1]: k for p, k in flat.items() if p[-1] == 'kernel' and re.search(targets, '/'.join(p))}
  if not found:
    names = sorted({'/'.join(p[:-1]) for p in flat if p[-1] == 'kernel'})
    raise ConfigError(f'no kernel matches targets={targets!r}; the base tree has {names}')
  return found


def init(key: jax.Array, base: Tree, *, rank: int, modalities: int = 2, targets: str = '.*') -> Tree:
  """Adapters for every kernel of ``base`` (boxed arrays or ``jax.ShapeDtypeStruct``) that matches ``targets``.

  Raises:
    ConfigError: if nothing matches.
  """
  flat = {}
  for path, kernel in _kernels(base, targets).items():
    layers, din, dout = kernel.value.shape
    stack, width_in, width_out = kernel.names
    key, key_a = jax.random.split(key)
    bound = din**-0.5  # PyTorch's kaiming_uniform(a=sqrt(5)), which Wan's LoRA recipes use
    a = jax.random.uniform(key_a, (layers, modalities, din, rank), minval=-bound, maxval=bound)
    b = jnp.zeros((layers, modalities, rank, dout))
    flat[*path, 'a'] = nn.LogicallyPartitioned(a, (stack, 'modality', width_in, None))
    flat[*path, 'b'] = nn.LogicallyPartitioned(b, (stack, 'modality', None, width_out))
  return traverse_util.unflatten_dict(flat)


def scaled(adapters: Tree, scale: float) -> Tree:
  """The same adapters with ``scale`` folded into every ``b``."""
  flat = traverse_util.flatten_dict(adapters)
  return traverse_util.unflatten_dict({p: v * scale if p[-1] == 'b' else v for p, v in flat.items()})


def merge(base: Tree, adapters: Tree, modality: int, *, scale: float) -> Tree:
  """The base tree with one modality's adapters folded in: ``W + scale A B``. For export and for checking.

  A merged kernel keeps its dtype; one that was int8 becomes float32, because a sum does not fit its steps.
  """
  base, adapters = traverse_util.flatten_dict(base), traverse_util.flatten_dict(adapters)
  merged = dict(base)
  for path in {p[:-1] for p in adapters}:
    a, b = adapters[*path, 'a'][:, modality], adapters[*path, 'b'][:, modality]  # [l din r], [l r dout]
    kernel = base[*path, 'kernel']
    dtype = jnp.float32 if isinstance(kernel, quantize.Int8Weight) else kernel.dtype
    merged[*path, 'kernel'] = (quantize.array(kernel, jnp.float32) + scale * (a @ b)).astype(dtype)
  return traverse_util.unflatten_dict(merged)
