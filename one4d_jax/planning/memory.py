"""Memory of a device by what it is for, computed in seconds without a compiler.

What lies there before a program runs is exact: shapes and shardings of the real program. What the program adds is a
model with few terms, each with its reason; its factors were fitted to programs compiled for GPUs and TPUs, and
docs/planning.md holds the model against those and others.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp

from one4d_jax.errors import ConfigError
from one4d_jax.parallel import rules
from one4d_jax.planning import programs
from one4d_jax.training import fairness, flops
from one4d_jax.wan.vae import chunk_for

ERROR = 0.15  # of the peak: how far the model may be off


class _Factors(NamedTuple):
  """How many arrays of a size are alive at once at the fullest moment."""

  width: float  # [rows, width], in the backward pass of a layer
  ffn: float  # [rows, ffn_width], there
  adapters: float  # float32 copies of a device's share: gradients, their sum, adapters with LoRA's scale folded in
  kept: tuple[float, float]  # [rows, width] and [rows, ffn_width] of a layer that is kept whole (remat none)
  forward: float  # [rows, width] in a forward pass
  decode: tuple[float, float]  # [H, W, VAE width] float32, decoding: for each frame of a chunk, and beside them
  encode: tuple[float, float]  # the same, encoding


_FACTORS = {
  'gpu': _Factors(
    width=24.5, ffn=4.1, adapters=3.0, kept=(42.0, 6.0), forward=9.5, decode=(3.8, 32.0), encode=(6.0, 0.0)
  ),
  'tpu': _Factors(
    width=15.0, ffn=4.1, adapters=3.0, kept=(42.0, 6.0), forward=9.0, decode=(3.8, 32.0), encode=(6.0, 0.0)
  ),
}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device by what they are for, and of its host."""

  parts: dict[str, int]  # base, adapters, optimizer, encoders, batch, gradients, activations, temporaries
  host: int  # pinned memory of the host, per device

  @property
  def peak(self) -> int:
    return sum(self.parts.values())

  @property
  def resident(self) -> int:
    """Held from beginning to end, known exactly."""
    return sum(self.parts[name] for name in ('base', 'adapters', 'optimizer', 'encoders', 'batch'))

  @property
  def least(self) -> float:
    """The peak if the model is as far too high as it may be."""
    return max(self.resident, (1 - ERROR) * self.peak)


def memory(task: str, config, mesh: str, devices: int, *, platform: str) -> Memory:
  """Of the fullest moment of a task.

  Args:
    mesh: as ``parallel.mesh`` of the configuration.
    platform: 'gpu' or 'tpu'.

  Raises:
    ConfigError: a mesh, batch or stage that does not go.
  """
  if task == 'train':
    where = programs.abstract_mesh(mesh, devices)
    held = _resident(task, config, mesh, devices, programs.samples(config, where))
    return _train(held, config, where, _FACTORS[platform])
  if task == 'sample':
    one = lambda name: sampling(name, config, mesh, devices, platform=platform)
  else:
    if programs.abstract_mesh(mesh, devices).shape['fsdp'] != devices:
      raise ConfigError(f'mesh {mesh!r}: encoding gives each device clips of its own; leave --mesh out, or give fsdp')
    one = lambda name: encoding(name, config, devices, platform=platform)
  return max(map(one, programs.NAMES[task]), key=lambda found: found.peak)


def _resident(task: str, config, mesh: str, devices: int, inputs) -> dict[str, int]:
  """Bytes that lie on a device by part. Weights do not depend on clips and remat, and are looked at once for all."""
  model = dataclasses.replace(config.model, remat='block')
  same = dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, frames=5, height=16, width=16))
  return _weights(task, same, mesh, devices) | {'batch': programs.held(inputs)}


@functools.lru_cache(maxsize=256)
def _weights(task: str, config, mesh: str, devices: int) -> dict[str, int]:
  program, *_ = programs.programs(task, config, programs.abstract_mesh(mesh, devices)).values()
  return dict.fromkeys(('base', 'adapters', 'optimizer', 'encoders'), 0) | programs.resident(program)


def rows(config, mesh, samples: float) -> float:
  """Tokens of all samples and branches that a device works on."""
  sequences = programs.model(config).sequences
  tokens = flops.tokens(programs.model(config), fairness.sample(config)) / sequences
  return samples * sequences / mesh.shape['modality'] * math.ceil(tokens / mesh.shape['sequence'])


def width(config) -> int:
  """Bytes of a number in the DiT's arithmetic."""
  return jnp.dtype(config.model.dtype).itemsize


def spread(mesh) -> int:
  """Over how many devices a weight is spread that all of them need."""
  return math.prod(mesh.shape[axis] for axis in ('fsdp', 'sequence', 'modality', 'cfg'))


def _layer(config, mesh) -> int:
  """Bytes of the weights that are gathered while a layer computes: its own and the next one's."""
  dit = config.model.dit
  kernels = 8 * dit.width**2 + 2 * dit.width * dit.ffn_width
  return 2 * width(config) * kernels // mesh.shape['tensor'] if spread(mesh) > 1 else 0


def _train(held: dict[str, int], config, mesh, factors: _Factors) -> Memory:
  dit, policy, settings = config.model.dit, config.model.remat, config.train
  parts = math.prod(mesh.shape[axis] for axis in ('data', 'fsdp'))
  tokens, tensor = rows(config, mesh, settings.batch / parts), mesh.shape['tensor']
  size = width(config)
  unit = size * tokens * dit.width
  adapters = held['adapters'] / (2 if settings.ema else 1)
  stored = dit.layers * unit
  statistics = 4 * dit.layers * tokens * dit.heads / tensor
  kept = {
    'none': factors.kept[0] * stored + factors.kept[1] * dit.layers * size * tokens * dit.ffn_width / tensor,
    'block': stored,
    'attention_saved': stored + stored / tensor + statistics,
    'offload': 0,
  }[policy]
  working = factors.width * unit + factors.ffn * size * tokens * dit.ffn_width / tensor
  links = 4 * 2 * len(config.model.adapters.link_layers) * dit.width**2  # their gradient, whole until it is reduced
  gathered = _layer(config, mesh)
  found = held | {
    'gradients': factors.adapters * adapters + (links if gathered else 0),
    'activations': kept,
    'temporaries': (0 if policy == 'none' else working) + gathered,
  }
  return Memory(_whole(found), int(stored) if policy == 'offload' else 0)


def sampling(name: str, config, mesh: str, devices: int, *, platform: str) -> Memory:
  """Of one part of sampling (``programs.NAMES['sample']``), with all weights on the devices."""
  where, factors, dit = programs.abstract_mesh(mesh, devices), _FACTORS[platform], config.model.dit
  given, state = programs.between(config, where)
  inputs = {'begin': programs.request(config, where), 'advance': (given, state), 'decode': state.x}[name]
  held = _resident('sample', config, mesh, devices, inputs)
  if name == 'begin':
    added = _vae(config, factors.encode, where) + programs.held((given, state))
  elif name == 'advance':
    both = 1 if config.sample.guidance == 1 else 2 / where.shape['cfg']  # with and without the prompt
    denoise = factors.forward * width(config) * rows(config, where, both) * dit.width + _layer(config, where)
    added = held['adapters'] + denoise  # with LoRA's scale folded in
  else:
    added = _vae(config, factors.decode, where) + 2 * _video(config)
  return Memory(_whole(held | {'gradients': 0, 'activations': 0, 'temporaries': added}), 0)


def encoding(name: str, config, devices: int, *, platform: str) -> Memory:
  """Of one network of encoding (``programs.NAMES['encode']``), a share of the clips on every device."""
  program = programs.programs('encode', config, programs.abstract_mesh('fsdp', devices))[name]
  held = dict.fromkeys(('base', 'adapters', 'optimizer'), 0) | programs.resident(program)
  factors = {'vae': _FACTORS[platform].encode, 'decode': _FACTORS[platform].decode}.get(name, (0, 0))
  return Memory(_whole(held | {'gradients': 0, 'activations': 0, 'temporaries': _vae(config, factors)}), 0)


def _vae(config, factors: tuple[float, float], mesh=None) -> float:
  """Bytes that the VAE takes for a chunk of one video, its rows spread over the devices of ``mesh``."""
  data, (frame, base) = config.data, factors
  frames = min(4 * (chunk_for(data.frames, data.height, data.width, 'gpu') or data.frames), data.frames)
  axes = () if mesh is None else rules.spec(('rows',), (data.height // 8,), mesh, rules.USED)[0] or ()
  parts = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))
  return 4 * (frame * frames + base) * data.height * data.width * config.model.vae.width / parts


def _video(config) -> int:
  return 4 * 3 * config.data.frames * config.data.height * config.data.width


def _whole(parts: dict[str, float]) -> dict[str, int]:
  return {name: int(value) for name, value in parts.items()}
