"""The arrays of a bundle, read only where they are indexed, and the tensors of a release made of them again."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from types import EllipsisType

import numpy as np

from one4d_jax.errors import CheckpointError
from one4d_jax.model import weights
from weight_conversion import reader
from weight_conversion.rules import Rule
from weight_conversion.stream import Lazy

Index = int | EllipsisType  # a layer of a stacked array, or all of it


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of our tree: ``array[layer]`` or ``array[...]`` reads it."""

  shape: tuple[int, ...]
  dtype: np.dtype
  fetch: Callable[[Index], np.ndarray]
  released: Mapping[Index, str] = dataclasses.field(default_factory=dict)  # dtype of what a layer was converted from

  def __getitem__(self, index: Index) -> np.ndarray:
    return self.fetch(index)

  def written(self, index: Index) -> str:
    """The dtype a release gets: the narrower of what it had and what is stored, since more would hold nothing."""
    released = np.dtype(self.released.get(index, self.dtype))
    return released.name if released.itemsize < self.dtype.itemsize else self.dtype.name


def open_part(place: pathlib.Path) -> dict[str, Array]:
  """The arrays of one part by path (``blocks/ffn_in/kernel``): of a safetensors file, or of a converted folder.

  Int8 kernels appear as float32.

  Raises:
    CheckpointError: a file that is not whole.
  """
  if place.is_file():
    file = reader.Safetensors(place)
    fetch = lambda index, name: file.read(name, None) if index is ... else file.read(name, slice(index, index + 1))[0]
    return {
      name: Array(tensor.shape, np.dtype(tensor.dtype), functools.partial(fetch, name=name))
      for name, tensor in file.tensors().items()
    }
  manifest = weights.check(place)
  released = _released(manifest)
  arrays = {}
  for stored, leaf in manifest['leaves'].items():
    name, _, kind = stored.rpartition('/')
    if kind == 'scale' and f'{name}/int8' in manifest['leaves']:
      continue
    shape, dtype = tuple(leaf['shape']), np.dtype(leaf['dtype'])
    store = weights.open_leaf(place, stored)
    if kind == 'int8':
      fetch = functools.partial(_dequantized, store, weights.open_leaf(place, f'{name}/scale'))
      arrays[name] = Array(shape, np.dtype('float32'), fetch, released[stored])
    else:
      arrays[stored] = Array(shape, dtype, functools.partial(_read, store), released[stored])
  return arrays


def tensors(arrays: Mapping[str, Array], rules: Iterable[Rule]) -> dict[str, Lazy]:
  """The tensors of a release, by the backward transforms of a table; bytes are the source's where it lost nothing.

  Raises:
    CheckpointError: the table is not one of this network.
  """
  rules, made = tuple(rules), collections.defaultdict(dict)
  if wrong := {rule.target for rule in rules} ^ set(arrays):
    raise CheckpointError(f'the weights and the table of their network differ in {sorted(wrong)[:12]}; convert again')
  for rule in rules:
    array = arrays[rule.target]
    shapes = rule.transform.source_shapes(array.shape[rule.stacked :])
    for index in range(array.shape[0]) if rule.stacked else (...,):
      dtype = array.written(index)
      names = rule.names(index) if rule.stacked else rule.sources
      for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        made[index][name] = Lazy(shape, dtype, functools.partial(_make, array, rule, index, i, dtype))
  return {name: lazy for index in made for name, lazy in made[index].items()}  # one layer after the other


def _make(array: Array, rule: Rule, index: Index, i: int, dtype: str) -> np.ndarray:
  return rule.transform.backward(array[index])[i].astype(dtype, copy=False)


def _read(store, index: Index) -> np.ndarray:
  return store[index].read().result()


def _dequantized(int8, scale, index: Index) -> np.ndarray:
  return _read(int8, index).astype(np.float32) * _read(scale, index)[..., None, :]


def _released(manifest: Mapping) -> dict[str, dict[Index, str]]:
  """For each stored array: the dtype its layers (and ``...``: any of it) had in the release, the widest of several."""
  folders = {name.replace('/', '.'): name for name in manifest['leaves']}
  found = {name: {} for name in manifest['leaves']}
  for path, entry in manifest['files'].items():
    folder, *chunk = path.split('/')
    if folder in folders and 'from' in entry:
      dtype = max(entry['from'].values(), key=lambda name: np.dtype(name).itemsize)
      index = int(chunk[1]) if len(chunk) > 1 else 0
      found[folders[folder]] |= {index: dtype, ...: dtype}
  return found
