"""Sizes of a network from the shapes of its published tensors and from ``config.json``."""

import collections
import re
import statistics
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


def sizes(tensors: Mapping[str, Tensor], rules: Iterable[Rule]) -> tuple[Callable[[str, int], tuple[int, ...]], int]:
  """``(our path, axes) -> shape`` of the published tensor, which raises as ``shape``, and the number of layers.

  Both are as most layers and most rules have it: a few tensors that are missing, too many or of another shape do not
  change them, so that ``plan`` can name those tensors.
  """
  rules, alike = {rule.target: rule for rule in rules}, collections.defaultdict(list)
  for name in tensors:
    alike[re.sub(r'\.\d+\.', '.{l}.', name, count=1)].append(name)

  def of(target: str, ndim: int) -> tuple[int, ...]:
    rule = rules[target]
    names = alike[rule.sources[0]] if rule.stacked else [n for n in (*rule.sources, *rule.copies) if n in tensors]
    usual = statistics.mode(tuple(tensors[name].shape) for name in names) if names else None
    name = next((name for name in names if tuple(tensors[name].shape) == usual), rule.names(0)[0])
    return shape(tensors, name, ndim)

  return of, max(statistics.mode(len(alike[rule.sources[0]]) for rule in rules.values() if rule.stacked), 1)


def told(described: Mapping[str, Any], key: str, default: Any) -> Any:
  """An entry of ``config.json`` that the tensors cannot tell; absent and null are ``default``.

  Raises:
    CheckpointError: if it is not such a value as ``default``.
  """
  value = described.get(key)
  if value is None:
    return default
  if not isinstance(value, {float: (int, float), tuple: (list, tuple)}.get(type(default), type(default))):
    raise CheckpointError(f'config.json: {key} is {value!r}, expected a value like {default!r}')
  return value


def heads_of(described: Mapping[str, Any], key: str, width: int, head_width: int) -> int:
  """The number of attention heads, by ``config.json`` or by the usual ``head_width``.

  Raises:
    CheckpointError: if ``width`` cannot be split into so many.
  """
  heads = told(described, key, width // head_width)
  if heads < 1 or width % heads:
    raise CheckpointError(f'width {width} cannot be split into {heads} heads: take the config.json of the same release')
  return heads


def agree(described: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
  """Compares ``config.json`` with ``sizes`` that the tensors have, under its names; absent and null agree.

  Raises:
    CheckpointError: with every entry that says something else.
  """
  plain = lambda value: list(value) if isinstance(value, (list, tuple)) else value
  wrong = [
    f'{key} is {plain(described[key])} there and {plain(size)} in the weights'
    for key, size in sizes.items()
    if described.get(key) is not None and plain(described[key]) != plain(size)
  ]
  if wrong:
    raise CheckpointError(f'config.json describes another network than its weights: {"; ".join(wrong)}')


def flat_shapes(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """``'a/b/c'`` to shape and dtype, of a tree of boxed abstract arrays."""
  return traverse_util.flatten_dict(nn.unbox(tree), sep='/')
