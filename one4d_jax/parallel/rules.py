"""Logical axis -> mesh axes: the only file that knows both.

A mesh has any of the axes

  data       batch; weights are repeated
  fsdp       batch; weights are stored in shares, each gathered when a layer needs it
  cfg        batch while sampling: with and without the prompt
  modality   the two branches (rgb, xyz)
  sequence   tokens of a sample
  tensor     heads and hidden width

``STORED`` says where parameters (and what the optimizer keeps of them) lie between their uses: spread over whatever
would otherwise repeat them. ``USED`` says where arrays lie while a layer computes, parameters and activations alike.
The layer axis is scanned over and stays whole.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from one4d_jax.errors import ConfigError

Rules = Mapping[str, tuple[str, ...]]

BATCH = ('data', 'cfg', 'fsdp')
_SPREAD = ('fsdp', 'sequence', 'modality', 'cfg')  # what would otherwise hold the same weights

#             logical axis   stored                 used
_TABLE = {
  'modality': (('modality',),         ('modality',)),
  'embed':    (_SPREAD,               ()),
  'heads':    (('tensor', *_SPREAD),  ('tensor',)),
  'ffn':      (('tensor', *_SPREAD),  ('tensor',)),
  'vocab':    (('tensor', *_SPREAD),  ('tensor',)),
  'batch':    ((),                    BATCH),
  'tokens':   ((),                    ('sequence',)),
  'rows':     ((),                    ('sequence', 'cfg', 'tensor', 'fsdp')),
  'layers':   ((),                    ()),
  'link':     ((),                    ()),
  'conv_in':  ((),                    ()),  # the VAE is small
  'conv_out': ((),                    ()),
}  # fmt: skip
STORED: Rules = {name: stored for name, (stored, _) in _TABLE.items()}
USED: Rules = {name: used for name, (_, used) in _TABLE.items()}


def spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules = STORED) -> PartitionSpec:
  """How one array is split: each axis over those of its mesh axes that are free and together divide it.

  Of several axes of an array, the one that stands first in ``rules`` chooses first.

  Raises:
    ConfigError: a name without a rule.
  """
  if unknown := [name for name in names if name is not None and name not in rules]:
    raise ConfigError(f'no rule for the logical axis {unknown[0]!r} of an array; rules exist for {", ".join(rules)}')
  taken, axes, order = set(), [None] * len(names), list(rules)
  named = [(order.index(name), place) for place, name in enumerate(names) if name is not None]
  for _, place in sorted(named):
    size, found = shape[place], []
    for axis in rules[names[place]]:
      parts = math.prod(mesh.shape[other] for other in found)
      if mesh.shape.get(axis, 1) > 1 and axis not in taken and size % (parts * mesh.shape[axis]) == 0:
        found.append(axis)
    taken |= set(found)
    axes[place] = tuple(found) if len(found) > 1 else found[0] if found else None
  return PartitionSpec(*axes)


def stored(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules = STORED) -> NamedSharding:
  """Where a parameter lies. Vectors stay whole: many small gathers would cost more than they save."""
  found = spec(names, shape, mesh, rules)
  vector = sum(name != 'layers' for name in names) < 2
  return NamedSharding(mesh, PartitionSpec() if vector else found)


def is_box(value) -> bool:
  """Whether a leaf carries logical axes."""
  return isinstance(value, nn.LogicallyPartitioned)


def shardings(boxed: dict, mesh: Mesh, rules: Rules = STORED) -> dict:
  """The ``NamedSharding`` of every leaf of a tree boxed with logical axes, arrays or shapes alone.

  Raises:
    ConfigError: a name without a rule, or a mesh whose axes are not ``Auto``: placing activations is the compiler's.
  """
  if any(kind != AxisType.Auto for kind in mesh.axis_types):
    names = ', '.join(map(repr, mesh.axis_names))
    raise ConfigError(
      f'the axes of the mesh must be Auto, got {mesh.axis_types}; make it by jax.sharding.Mesh(devices, ({names},))'
    )
  return jax.tree.map(lambda box: stored(box.names, box.value.shape, mesh, rules), boxed, is_leaf=is_box)


def state_shardings(state, boxed: dict, mesh: Mesh):
  """Shardings of what is kept beside parameters, such as an optimizer's state: like the parameter it belongs to.

  Args:
    state: a tree (of shapes) that contains trees like ``boxed``, whose leaves may be trees of their own.
    boxed: the parameters, with logical axes.

  Returns:
    A tree like ``state`` with a ``NamedSharding`` for each leaf.
  """
  names = {_keys(path): box.names for path, box in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box)}

  def place(path, leaf):
    keys = _keys(path)
    for start in range(len(keys)):
      for stop in range(start + 1, len(keys) + 1):
        if (found := names.get(keys[start:stop])) is not None and len(found) == leaf.ndim:
          return stored(found, leaf.shape, mesh)
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(place, state)


def _keys(path) -> tuple[str, ...]:
  return tuple(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path)
