"""How networks use a mesh: the ``Layout`` of ``nn/partition.py``, and where batches lie."""

import dataclasses
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from one4d_jax.errors import ConfigError
from one4d_jax.parallel import rules, sequence


@dataclasses.dataclass(frozen=True)
class MeshLayout:
  """Activations by ``rules.USED``; attention by ``parallel/sequence.py``."""

  mesh: Mesh
  attention: str = 'ulysses'  # over the tokens of a sample: 'ulysses' or 'ring'

  @property
  def platform(self) -> str:
    return self.mesh.devices.flat[0].platform

  @property
  def modality_axis(self) -> str | None:
    return 'modality' if self.mesh.shape.get('modality', 1) > 1 else None

  def constrain(self, x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    spec = rules.spec(names, x.shape, self.mesh, rules.USED)
    if 'tokens' in names and self.mesh.shape.get('sequence', 1) > 1:  # any number of them: the compiler pads
      axis = names.index('tokens')
      spec = PartitionSpec(*spec[:axis], 'sequence', *spec[axis + 1 :])
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return sequence.attend(q, k, v, mesh=self.mesh, method=self.attention)


def for_sampling(mesh: Mesh, heads: int) -> MeshLayout:
  """The layout under which nobody chooses how attention goes: Ulysses where it divides the ``heads``, else a ring."""
  share = heads // mesh.shape['tensor']
  return MeshLayout(mesh, 'ring' if share % mesh.shape['sequence'] else 'ulysses')


def batch_parts(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return math.prod(mesh.shape.get(axis, 1) for axis in rules.BATCH)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Arrays ``[batch …]``: each device holds the rows that it computes."""
  return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in rules.BATCH if axis in mesh.shape)))


def check_batch(mesh: Mesh, batch: int, *, heads: int, attention: str) -> None:
  """Raises ConfigError unless the mesh divides the samples of a microbatch and, under Ulysses, the heads."""
  parts = batch_parts(mesh)
  if batch % parts:
    raise ConfigError(
      f'train.batch={batch} samples cannot be split among {parts} parts of the mesh (data x fsdp); make it a multiple '
      f'of {parts} (and train.accumulation smaller, for as many samples a step), or use the modality, sequence or '
      'tensor axis'
    )
  share = heads // mesh.shape['tensor']
  if attention == 'ulysses' and share % mesh.shape['sequence']:
    raise ConfigError(
      f'parallel.mesh: sequence={mesh.shape["sequence"]} does not divide the {share} attention heads of a device; '
      'choose another size, or --config.parallel.attention=ring'
    )


def rows(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
  """``(which, of how many)`` equal parts of each global batch a process reads: processes that share samples read alike.

  Raises:
    ConfigError: a process whose devices do not hold one run of rows.
  """
  process = jax.process_index() if process is None else process
  count = batch_parts(mesh)
  places = batch_sharding(mesh).devices_indices_map((count,))
  starts = lambda p: sorted({i.start or 0 for device, (i,) in places.items() if _process(device) == p})
  own = starts(process)
  if own != list(range(own[0], own[0] + len(own))) or count % len(own) or own[0] % len(own):
    raise ConfigError(
      f'mesh {dict(mesh.shape)}: process {process} would hold parts {own} of the batch; let data and fsdp span the '
      'processes in whole'
    )
  return own[0] // len(own), count // len(own)


def _process(device: jax.Device) -> int:
  return device.process_index
