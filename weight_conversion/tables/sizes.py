"""Sizes of a network from the shapes of its published tensors and from ``config.json``."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from one4d_jax.errors import CheckpointError
from weight_conversion.rules import Rule, Tensor


def shape(tensors: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
  """The shape of a tensor that tells a size of the network.

  Raises:
    CheckpointError: if the tensor is not there, is empty or has another number of axes.
  """
  if name not in tensors:
    raise CheckpointError(f'tensor {name!r} is missing, and with it a size of the network')
  found = tuple(tensors[name].shape)
  if len(found) != ndim or 0 in found:
    raise CheckpointError(f'tensor {name!r} has shape {list(found)} and should have {ndim} axes, none of them empty')
  return found


def shapes(tensors: Mapping[str, Tensor], rules: Iterable[Rule]) -> Callable[[str, int], tuple[int, ...]]:
  """``(our path, axes) -> shape`` of the published tensor, of the first layer; raises as ``shape``."""
  names = {rule.target: (rule.names(0)[0], *rule.copies) for rule in rules}

  def of(target: str, ndim: int) -> tuple[int, ...]:
    name = next((name for name in names[target] if name in tensors), names[target][0])
    return shape(tensors, name, ndim)

  return of


def count(names: Iterable[str], prefix: str) -> int:
  """One more than the largest number that follows ``prefix`` in a name."""
  pattern = re.compile(re.escape(prefix) + r'(\d+)\.')
  return max((int(found[1]) + 1 for name in names if (found := pattern.match(name))), default=0)


def told(described: Mapping[str, Any], key: str, default: Any) -> Any:
  """An entry of ``config.json`` that the tensors cannot tell; absent and null are the default."""
  value = described.get(key)
  return default if value is None else value


def agree(described: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
  """Compares ``config.json`` with ``sizes`` that the tensors have, under its names; absent and null agree.

  Raises:
    CheckpointError: with every entry that says something else.
  """
  plain = lambda value: list(value) if isinstance(value, (list, tuple)) else value
  wrong = [
    f'{key} is {plain(described[key])} there and {plain(size)} in the weights'
    for key, size in sizes.items()
    if plain(told(described, key, size)) != plain(size)
  ]
  if wrong:
    raise CheckpointError(f'config.json describes another network than its weights: {"; ".join(wrong)}')


def flat_shapes(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """``'a/b/c'`` to shape and dtype, of a tree of boxed abstract arrays."""
  return traverse_util.flatten_dict(nn.unbox(tree), sep='/')
