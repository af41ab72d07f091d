"""The mesh: all devices of all processes as a box with named axes (see ``rules.py`` for what each axis holds).

``make('fsdp_modality')`` or ``make('fsdp=-1,sequence=4')``; one axis may be -1, whatever is left. Axes that talk
least are the outermost, so they are the ones that span hosts and slices.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from one4d_jax.errors import ConfigError

AXES = ('data', 'cfg', 'modality', 'fsdp', 'sequence', 'tensor')  # from those that talk least to those that talk most

PRESETS = {
  'fsdp': 'fsdp=-1',  # the paper's: a sample a device
  'fsdp_modality': 'fsdp=-1,modality=2',  # each branch on half of the devices: half the activations on each
  'fsdp_sequence': 'fsdp=-1,sequence=2',  # long clips, small memories
  'tensor': 'fsdp=-1,tensor=2',
}


def parse(text: str) -> dict[str, int]:
  """Axis sizes of a preset, or of ``'axis=size,…'``; those not named are 1.

  Raises:
    ConfigError: no such preset or axis, a size that is neither -1 nor 1 or more, two axes of -1.
  """
  sizes = dict.fromkeys(AXES, 1)
  for part in PRESETS.get(text, text).split(','):
    name, _, size = part.strip().partition('=')
    if name not in sizes or not size.removeprefix('-').isdecimal() or not (int(size) == -1 or int(size) > 0):
      raise ConfigError(
        f'mesh {text!r}: {part.strip()!r} is no part of one; give a preset ({", ".join(PRESETS)}) or sizes of '
        f"{', '.join(AXES)}, as in 'fsdp=-1,sequence=2'"
      )
    sizes[name] = int(size)
  if sum(size == -1 for size in sizes.values()) > 1:
    raise ConfigError(f'mesh {text!r}: only one axis can be -1, whatever is left')
  if sizes['modality'] not in (1, 2) or sizes['cfg'] not in (1, 2):
    raise ConfigError(f'mesh {text!r}: modality and cfg have two sides each, so their sizes are 1 or 2')
  return sizes


def sizes(text: str, devices: int) -> dict[str, int]:
  """Axis sizes of a preset or of a text, over so many devices.

  Raises:
    ConfigError: as ``parse``, or sizes that do not multiply to the number of devices.
  """
  found = parse(text)
  known = math.prod(size for size in found.values() if size != -1)
  if -1 in found.values():
    found = {name: devices // known if size == -1 else size for name, size in found.items()}
  if math.prod(found.values()) != devices:
    shown = ' x '.join(f'{name} {size}' for name, size in found.items() if size > 1) or '1'
    raise ConfigError(
      f'mesh {text!r} does not fit {devices} devices (sizes: {shown}); choose sizes whose product is {devices}, or -1 '
      'for one of them'
    )
  return found


def make(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of a preset or of axis sizes, over all devices unless ``devices`` are given.

  Raises:
    ConfigError: as ``sizes``.
  """
  devices = jax.devices() if devices is None else devices
  shape = tuple(sizes(text, len(devices)).values())
  return Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
  """Devices in mesh order: neighbours along inner axes are near each other."""
  ordered = np.array(sorted(devices, key=lambda d: (_slice(d), d.process_index, d.id)), object).reshape(shape)
  if devices[0].platform != 'tpu':
    return ordered
  try:  # along the wires of the torus
    slices = len({_slice(d) for d in devices})
    if slices == 1:
      return mesh_utils.create_device_mesh(shape, devices)
    outer, left = [], slices
    for size in shape:
      outer.append(math.gcd(size, left))
      left //= outer[-1]
    inner = tuple(size // count for size, count in zip(shape, outer, strict=True))
    return mesh_utils.create_hybrid_device_mesh(inner, tuple(outer), devices)
  except (ValueError, NotImplementedError):  # shapes that the torus does not have
    return ordered


def _slice(device: jax.Device) -> int:
  return getattr(device, 'slice_index', None) or 0


def describe(mesh: Mesh) -> str:
  """For people: ``8 x NVIDIA H100 80GB HBM3 (fsdp 4, modality 2), 2 processes``."""
  axes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items() if size > 1)
  processes = len({device.process_index for device in mesh.devices.flat})
  kind = mesh.devices.flat[0].device_kind
  return f'{mesh.size} x {kind}' + (f' ({axes})' if axes else '') + (f', {processes} processes' * (processes > 1))
