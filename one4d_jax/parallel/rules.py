"""Where parameters lie on a mesh: logical axis -> mesh axis. The only file that knows both.

A mesh has any of the axes ``data fsdp tensor modality cfg sequence``. Weights are spread over three of them: their
model width over ``fsdp``, heads and hidden width over ``tensor``, what a branch owns over ``modality``. Along the
others they are repeated. The layer axis is scanned over and stays whole.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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
    ConfigError: a name without a rule, or a mesh whose axes are not ``Auto``: placing activations is the compiler's.
  """
  if any(kind != AxisType.Auto for kind in mesh.axis_types):
    names = ', '.join(map(repr, mesh.axis_names))
    raise ConfigError(
      f'the axes of the mesh must be Auto, got {mesh.axis_types}; make it by jax.sharding.Mesh(devices, ({names},))'
    )

  def one(box: nn.LogicallyPartitioned) -> NamedSharding:
    return NamedSharding(mesh, spec(box.names, box.value.shape, mesh, rules))

  return jax.tree.map(one, boxed, is_leaf=lambda v: isinstance(v, nn.LogicallyPartitioned))
