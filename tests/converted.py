"""Converted folders without a release to convert: random trees through the real writer."""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig
from weight_conversion import rules, writer


class Arrays:
  """Arrays by name, as the writer reads a release."""

  def __init__(self, arrays: dict[str, np.ndarray]):
    self.arrays = arrays
    self.tensors = {name: rules.Tensor(value.shape, str(value.dtype)) for name, value in arrays.items()}

  def read(self, name: str, rows: slice | None = None) -> np.ndarray:
    return self.arrays[name] if rows is None else self.arrays[name][rows]

  def fingerprint(self) -> list:
    return sorted(self.tensors)


def write(folder: pathlib.Path, part: str, config: dict, tree: dict, *, dtype: str, int8: bool = False) -> dict:
  """Stores ``tree`` (unboxed) as ``part``; its ``blocks`` are stacked over layers. Returns the manifest."""
  flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, tree), sep='/')
  tensors, leaves = {}, []
  for name, value in flat.items():
    stacked = name.startswith('blocks/')
    names = tuple(f'{i}.{name}' for i in range(len(value))) if stacked else (name,)
    tensors |= dict(zip(names, value if stacked else [value], strict=True))
    leaves.append(rules.Leaf(name, value.shape, tuple((n,) for n in names), stacked, rules.KEEP))
  dtypes = {name: str(value.dtype) for name, value in flat.items()}
  about = {'part': part, 'config': config, 'dtype': dtype, 'source': {}}
  return writer.write(Arrays(tensors), tuple(leaves), dtypes, folder, about=about, int8=int8)


def random_base(cfg: DiTConfig, dtype: str = 'bfloat16') -> dict:
  """A base of random NumPy values, the same at every call."""
  precision, rng = dit.Precision(param_dtype=jnp.dtype(dtype)), np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda key: dit.init_base(key, cfg, precision), jax.random.key(0)))
  return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype), shapes)


def write_base(folder: pathlib.Path, cfg: DiTConfig, *, dtype: str = 'bfloat16', int8: bool = False) -> dict:
  """``random_base`` as a converted folder; returns the manifest."""
  return write(folder, 'base', dataclasses.asdict(cfg), random_base(cfg, dtype), dtype=dtype, int8=int8)
