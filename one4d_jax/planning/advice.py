"""What to change so that a run fits, and what else a machine could do: configurations tried on the memory model."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from one4d_jax.errors import ConfigError
from one4d_jax.nn import remat
from one4d_jax.parallel import mesh as meshes
from one4d_jax.planning import hardware, programs
from one4d_jax.planning.hardware import Machine
from one4d_jax.planning.memory import Memory, memory
from one4d_jax.planning.speed import Speed, speed

_SIZES = ((720, 1280), (480, 832), (352, 624), (256, 448), (176, 320))
_FRAMES = (81, 65, 49, 33, 17)
_FRUGAL = ('none', 'attention_saved', 'block', 'offload')  # remat, from most memory to least
_MOMENTS = ('float32', 'bfloat16', 'int8')


class Choice(NamedTuple):
  """A configuration on a mesh, and what was changed to come to it."""

  config: object
  mesh: str
  changes: dict[str, object]  # configuration keys and their values

  def words(self) -> str:
    """The changes as flags."""
    return flags(self.changes)


class Option(NamedTuple):
  """A choice, measured by the models."""

  choice: Choice
  memory: Memory
  speed: Speed


def flags(changes: dict[str, object]) -> str:
  """As a command takes them: ``--config.model.remat=offload …``."""
  return ' '.join(f'--config.{name}={value}' for name, value in changes.items())


def default_mesh(task: str, config, devices: int) -> str:
  """Where a task says nothing else: training as configured; a scene by prompt, branch and tokens; clips by device."""
  if task == 'train':
    return config.parallel.mesh
  if task == 'encode' or devices == 1:
    return 'fsdp'
  return 'cfg=2,modality=2,sequence=-1' if devices % 4 == 0 else 'cfg=2,sequence=-1' if devices % 2 == 0 else 'fsdp'


def changed(config, changes: dict[str, object]):
  """``config`` with values by key, as in ``{'model.remat': 'block'}``."""
  for name, value in changes.items():
    section, key = name.split('.')
    config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{key: value})})
  return config


def _differing(config, changes: dict[str, object]) -> dict[str, object]:
  """Those of some changes that change something."""
  value = lambda name: getattr(getattr(config, name.split('.')[0]), name.split('.')[1])
  return {name: new for name, new in changes.items() if value(name) != new}


def divided(config, mesh: str, devices: int) -> dict[str, object]:
  """How to split as many samples a step as before into microbatches of one for every part of the mesh.

  Raises:
    ConfigError: a mesh that does not fit, or more parts than samples.
  """
  sizes = meshes.sizes(mesh, devices)
  parts, samples = sizes['data'] * sizes['fsdp'], config.train.batch * config.train.accumulation
  if samples % parts:
    raise ConfigError(
      f'mesh {mesh!r} splits a batch into {parts} parts, and a step has {samples} samples (train.batch x '
      f'train.accumulation); make them a multiple of {parts}, or give the mesh sequence, modality or tensor'
    )
  return {'train.batch': parts, 'train.accumulation': samples // parts}


# -- What a machine could do ----------------------------------------------------------------------------------------


def search(task: str, config, machine: Machine, *, progress: Callable[[list], Iterable] = iter) -> list[Option]:
  """Choices that fit and that no other beats in time, memory and precision at once; best first.

  Of the configuration's own clip size, and where nothing of that size fits, of the largest that does.
  """
  for changes in _smaller(config):
    small = changed(config, changes)
    choices = [c._replace(changes=changes | c.changes) for c in _choices(task, small, machine)]
    options = [option for choice in progress(choices) if (option := _option(task, choice, machine)) is not None]
    fitting = [option for option in options if option.memory.peak <= machine.kind.memory]
    if fitting:
      best = [one for one in fitting if not any(_beats(other, one) for other in fitting)]
      return sorted(best, key=lambda option: option.speed.expected)
  return []


def _choices(task: str, config, machine: Machine) -> list[Choice]:
  policies = [p for p in remat.POLICIES if p != 'none'] if task == 'train' else [config.model.remat]
  int8s = (config.model.int8,) if config.model.int8 or task == 'encode' else (False, True)
  found = []
  for mesh in _meshes(task, config, machine.devices):
    for policy, int8 in itertools.product(policies, int8s):
      changes = {'model.remat': policy, 'model.int8': int8}
      try:
        if task == 'train':
          changes = {'parallel.mesh': mesh} | changes | divided(config, mesh, machine.devices)
      except ConfigError:
        continue
      found.append(Choice(changed(config, changes), mesh, _differing(config, changes)))
  return found


def _meshes(task: str, config, devices: int) -> list[str]:
  """Every way to split so many devices, the tensor axis within a machine."""
  powers = [2**n for n in range(devices.bit_length()) if devices % 2**n == 0]
  model, found = config.model, []
  two = programs.model(config).sequences == 2
  for sequence, tensor, modality, cfg in itertools.product(powers, (1, 2, 4), (1, 2), (1, 2)):
    used = sequence * tensor * modality * cfg
    left = devices // used
    heads = model.dit.heads
    possible = devices % used == 0 and heads % tensor == 0 and model.dit.ffn_width % tensor == 0
    possible &= config.parallel.attention == 'ring' or heads // tensor % sequence == 0
    possible &= (two or modality == 1) and (task == 'sample' or cfg == 1) and (task != 'sample' or left == 1)
    if possible and (task != 'encode' or used == 1):
      sizes = {'fsdp': left, 'sequence': sequence, 'tensor': tensor, 'modality': modality, 'cfg': cfg}
      found.append(','.join(f'{name}={size}' for name, size in sizes.items() if size > 1) or 'fsdp=1')
  return found


def _option(task: str, choice: Choice, machine: Machine) -> Option | None:
  try:
    held = memory(task, choice.config, choice.mesh, machine.devices, platform=machine.kind.platform)
    return Option(choice, held, speed(task, choice.config, choice.mesh, machine))
  except ConfigError:
    return None


def _beats(one: Option, other: Option) -> bool:
  """Whether ``one`` is nowhere worse and somewhere better."""
  key = lambda o: (round(o.speed.expected, 3), round(o.memory.peak / hardware.GIB, 1), o.choice.config.model.int8)
  return key(one) != key(other) and all(a <= b for a, b in zip(key(one), key(other), strict=True))


# -- The smallest change --------------------------------------------------------------------------------------------


def smallest_change(task: str, config, mesh: str, machine: Machine, limit: float | None = None) -> Option | None:
  """The choice nearest to a configuration whose modelled peak is at most ``limit`` (default: the device's memory).

  Nearest: first what costs time alone (microbatches, remat, mesh), then what costs precision (moments, base), then
  shorter and smaller clips.
  """
  limit = machine.kind.memory if limit is None else limit
  for choice in _nearby(task, config, mesh, machine.devices):
    option = _option(task, choice, machine)
    if option is not None and option.memory.peak <= limit:
      return option
  return None


def _nearby(task: str, config, mesh: str, devices: int) -> Iterator[Choice]:
  """Combinations of changes, cheapest first."""
  train = task == 'train'
  own = _after(_FRUGAL, config.model.remat) if train else []
  levers = [
    [(3, {'mesh': other}) for other in _presets(task, config, mesh, devices)],
    [(2 + i, {'model.remat': policy}) for i, policy in enumerate(own)],
    [(4 + i, {'train.optimizer_state': kind}) for i, kind in enumerate(_after(_MOMENTS, config.train.optimizer_state))]
    if train
    else [],
    [] if config.model.int8 or task == 'encode' else [(6, {'model.int8': True})],
    [(12 + 3 * i, changes) for i, changes in enumerate(_smaller(config)) if changes],
  ]
  combinations = itertools.product(*([(0, {}), *lever] for lever in levers))
  for parts in sorted(combinations, key=lambda parts: sum(cost for cost, _ in parts)):
    changes = functools.reduce(lambda a, b: a | b, (change for _, change in parts), {})
    where = changes.pop('mesh', mesh)
    try:
      batch = divided(config, where, devices) if train else {}
    except ConfigError:
      continue
    changes |= _differing(config, batch)
    if train and where != mesh:
      changes = {'parallel.mesh': where} | changes
    if changes or where != mesh:
      yield Choice(changed(config, changes), where, changes)


def _presets(task: str, config, mesh: str, devices: int) -> list[str]:
  some = ('fsdp', 'fsdp=-1,modality=2', 'fsdp=-1,sequence=2', 'fsdp=-1,sequence=4', 'fsdp=-1,sequence=8')
  if task != 'train':
    some = (default_mesh(task, config, devices),)
  own, found = meshes.sizes(mesh, devices), []
  for text in some:
    try:
      if meshes.sizes(text, devices) != own:
        found.append(text)
    except ConfigError:
      continue
  return found


def _after(values: tuple[str, ...], value: str) -> tuple[str, ...]:
  return values[values.index(value) + 1 :]


def _smaller(config) -> list[dict[str, object]]:
  """The clip itself, then shorter and smaller ones, from more pixels to fewer."""
  data = config.data
  own = math.prod((data.frames, data.height, data.width))
  found = [
    {'data.frames': frames, 'data.height': height, 'data.width': width}
    for frames in {data.frames, *_FRAMES}
    for height, width in {(data.height, data.width), *_SIZES}
    if frames <= data.frames and height * width <= data.height * data.width and frames * height * width < own
  ]
  found.sort(key=lambda size: -math.prod(size.values()))
  return [{}, *(_differing(config, size) for size in found)]
