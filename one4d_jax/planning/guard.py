"""Before weights are loaded: can this run fit at all? Refused is only what even a generous model leaves no room for."""

import os

import jax

from one4d_jax import config as configs
from one4d_jax.errors import ConfigError, UserError
from one4d_jax.model import bundle as bundles
from one4d_jax.model import weights
from one4d_jax.model.files import find_parts
from one4d_jax.planning import advice, hardware
from one4d_jax.planning.hardware import Machine, bytes_
from one4d_jax.planning.memory import Memory, memory


class PlanError(UserError):
  """A run that would die for want of memory."""

  status = 3


def check_scene(path: str | os.PathLike | None, mesh: str | None) -> None:
  """``check`` of sampling with a bundle, on one device or on a mesh over those of this process.

  Raises:
    PlanError: as ``check``.
    CheckpointError: the folder holds no bundle.
  """
  folder = bundles.locate(path)
  places, devices = find_parts(folder), jax.local_devices() if mesh else jax.local_devices()[:1]
  if devices[0].platform == 'cpu':
    return _on_cpu(sum(file.stat().st_size for place in places.values() for file in (place, *place.rglob('*'))))
  int8 = 'base' in places and places['base'].is_dir() and weights.check(places['base'])['int8']
  config = configs.with_sizes(configs.Config(), bundles.describe(folder)[0])
  check('sample', advice.changed(config, {'model.int8': int8}), mesh or 'fsdp', devices)


def check(task: str, config, mesh: str, devices: list) -> None:
  """Raises PlanError where the run needs more memory than these devices have, with what to change.

  Looks at the devices of this process, of whichever process the others are. Those of a CPU share the host's memory, and
  only what surely lies there is counted.
  """
  own = [device for device in devices if device.process_index == jax.process_index()]
  try:
    if (kind := hardware.of_device(own[0])) is not None:
      _on_accelerator(task, config, mesh, Machine('', kind, len(devices)), limit(own[0], kind))
    elif own[0].platform == 'cpu':
      _on_cpu(len(own) * memory(task, config, mesh, len(devices), platform='gpu').resident)
  except ConfigError:
    return  # the run itself says it better


def _on_cpu(held: int) -> None:
  if held > (there := host_memory()):
    raise PlanError(
      f'weights and state alone take {bytes_(held)} and this host has {bytes_(there)}; choose smaller networks or '
      'an accelerator (python -m one4d_jax.plan shows what fits), or insist with --no-plan-check'
    )


def _on_accelerator(task: str, config, mesh: str, machine: Machine, there: float) -> None:
  found: Memory = memory(task, config, mesh, machine.devices, platform=machine.kind.platform)
  if found.least <= there:
    return
  option = advice.smallest_change(task, config, mesh, machine, there)
  raise PlanError(
    f'{task} needs about {bytes_(found.peak)} a device and {machine.kind.name} gives {bytes_(there)}; '
    f'{suggestion(task, option)}, or insist with --no-plan-check'
  )


def suggestion(task: str, option: advice.Option | None) -> str:
  """The smallest change, in words."""
  if option is None:
    return 'no smaller clip, other mesh, int8 or offload makes it fit: take more devices, or larger ones'
  choice, peak = option.choice, bytes_(option.memory.peak)
  if task == 'train':
    return f'try {choice.words()} ({peak})'
  size = {k: v for k, v in choice.changes.items() if k.startswith('data.')}
  words = [f'--mesh {choice.mesh}' * (choice.mesh != 'fsdp' or not choice.changes)]
  words += ['a base converted with --int8' * ('model.int8' in choice.changes)]
  words += [', '.join(f'{name.removeprefix("data.")} {value}' for name, value in size.items())]
  return f'try {" and ".join(word for word in words if word)} ({peak})'


def limit(device, kind: hardware.Kind) -> float:
  """Bytes that JAX may use of a device; by default that is three quarters of a GPU."""
  return (device.memory_stats() or {}).get('bytes_limit', kind.memory)


def host_memory() -> int:
  """Bytes of this machine, or of the control group that it runs in."""
  there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  try:
    with open('/sys/fs/cgroup/memory.max') as file:
      text = file.read().strip()
  except OSError:
    return there
  return min(there, int(text)) if text.isdecimal() else there
