"""A converted part without a release to convert: trees of arrays through the real writer."""

import pathlib

import jax
import numpy as np
from flax import traverse_util

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
