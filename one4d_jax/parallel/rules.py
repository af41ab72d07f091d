"""Where parameters lie on a mesh: logical axis -> mesh axis. The only file that knows both.

A mesh has any of the axes ``data fsdp tensor modality cfg sequence``. Weights are spread over three of them: their
model width over ``fsdp``, heads and hidden width over ``tensor``, what a branch owns over ``modality``. Along the
others they are repeated. The layer axis is scanned over and stays whole.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from one4d_jax.errors import ConfigError

RULES: Mapping[str, str | None] = {
  'embed': 'fsdp',
  'heads': 'tensor',
  'ffn': 'tensor',
  'vocab': 'tensor',
  'modality': 'modality',
  'layers': None,
  'link': None,
  'conv_in': None,  # the VAE is small
  'conv_out': None,
}


def spec(
  names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Mapping[str, str | None] = RULES
) -> PartitionSpec:
  """How one array is split. An axis stays whole if the mesh lacks its place, if that is taken, or does not divide it.

  Raises:
    ConfigError: a name without a rule.
  """
  axes = []
  for name, size in zip(names, shape, strict=True):
    if name is not None and name not in rules:
      raise ConfigError(f'no rule for the logical axis {name!r} of a parameter; rules exist for {", ".join(rules)}')
    axis = None if name is None else rules[name]
    free = axis in mesh.shape and axis not in axes and size % mesh.shape[axis] == 0
    axes.append(axis if free else None)
  return PartitionSpec(*axes)


def shardings(boxed: dict, mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> dict:
  """The ``NamedSharding`` of every leaf of a tree boxed with logical axes, arrays or shapes alone.

  Raises:
    ConfigError: a name without a rule.
  """

  def one(box: nn.LogicallyPartitioned) -> NamedSharding:
    return NamedSharding(mesh, spec(box.names, box.value.shape, mesh, rules))

  return jax.tree.map(one, boxed, is_leaf=lambda v: isinstance(v, nn.LogicallyPartitioned))
