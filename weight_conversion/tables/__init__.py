"""One table a network: our tree beside the native and the diffusers (or transformers) names.

Each table has the same functions: ``rules`` and ``ignored`` of a layout, ``config``, which reads the sizes off a file,
and ``targets``, the arrays of our tree.
"""

from collections.abc import Collection
from types import ModuleType

from one4d_jax.errors import CheckpointError
from weight_conversion.tables import clip, dit, umt5, vae

TABLES: dict[str, ModuleType] = {'base': dit, 'vae': vae, 'text': umt5, 'image': clip}  # by part of a bundle


def detect(names: Collection[str]) -> tuple[str, str]:
  """``(part, layout)`` of a file with these tensors.

  Raises:
    CheckpointError: if they are none of Wan's networks.
  """
  for part, table in TABLES.items():
    for layout, signature in table.SIGNATURES.items():
      if signature in names:
        return part, layout
  known = ', '.join(signature for table in TABLES.values() for signature in table.SIGNATURES.values())
  raise CheckpointError(f'no network of Wan2.1: its tensors are {sorted(names)[:4]} ..., none of {known}')
