"""Operations, bytes and seconds of a task, computed: four roofs, and where under them published runs have landed.

  compute   all operations that are executed, those that remat repeats too, over the devices' peak
  memory    each device reads the weights of a layer and reads and writes its activations, once a pass
  network   bytes that each device sends along each axis of the mesh, over its link; between machines over theirs
  host      what ``offload`` sends to the host's memory and gets back

A step cannot be faster than the highest roof. ``MFU`` spans what has been published of models of this kind; nothing of
ours has been measured on an accelerator.
"""

import dataclasses
import math

from one4d_jax.planning import operations, programs
from one4d_jax.planning.hardware import Machine
from one4d_jax.planning.memory import rows, spread, width
from one4d_jax.training import fairness, flops

# Share of peak arithmetic that a run's own operations reach. Low: MaxDiffusion, full tuning of Wan2.1-14B on v5p (its
# README: 135.9 of 459 TFLOP/s). High: its denoising of Wan2.2-14B on v7x, 40 steps in 105.3 s on eight devices (its
# launch script), by our count of operations.
MFU = 0.296, 0.54
_HOST = 25e9  # bytes per second that a device sends to its host's memory and gets back: a PCIe 4 slot
_TOUCHED = 30, 6  # arrays [rows, width] and [rows, ffn_width] that a layer reads and writes in a pass


@dataclasses.dataclass(frozen=True)
class Speed:
  """Of one step of training, one scene, or one clip encoded on every device."""

  unit: str  # 'step', 'scene', 'clips'
  count: int  # of samples, scenes or clips in it
  operations: dict[str, int]  # by part, of the model itself
  executed: int  # with what remat repeats
  traffic: dict[str, int]  # bytes that a device sends, by axis of the mesh
  roofs: dict[str, float]  # seconds
  fastest: float  # seconds
  slowest: float

  @property
  def expected(self) -> float:
    """Seconds to compare choices by: arithmetic midway in ``MFU``, and the network not hidden behind it."""
    return max(self.roofs['compute'] / math.sqrt(MFU[0] * MFU[1]), self.roofs['host']) + self.roofs['network']


def speed(task: str, config, mesh: str, machine: Machine) -> Speed:
  """What a task takes on a machine.

  Raises:
    ConfigError: a mesh or batch that does not go.
  """
  where = programs.abstract_mesh(mesh, machine.devices)
  if task == 'train':
    return _train(config, where, machine)
  return _sample(config, where, machine) if task == 'sample' else _encode(config, machine)


def _train(config, mesh, machine: Machine) -> Speed:
  settings, policy = config.train, config.model.remat
  samples = settings.batch * settings.accumulation
  count = _one4d(config)
  again = {name: n for name, n in count.forward.items() if policy != 'attention_saved' or name != 'attention'}
  own = {name: samples * n for name, n in count.step.items()}
  executed = sum(own.values()) + (samples * sum(again.values()) if policy != 'none' else 0)
  passes = 2 if policy == 'none' else 3
  local = settings.batch / math.prod(mesh.shape[axis] for axis in ('data', 'fsdp'))
  sent = _traffic(config, mesh, local, passes=passes)
  sent['fsdp'] += _share(4 * _adapters(config), spread(mesh))  # gradients, each added up where it is kept
  sent = {axis: settings.accumulation * n for axis, n in sent.items()}
  touched = settings.accumulation * passes * _touched(config, mesh, local)
  stored = config.model.dit.layers * width(config) * rows(config, mesh, local) * config.model.dit.width
  offloaded = 2 * settings.accumulation * stored if policy == 'offload' else 0
  return _speed('step', samples, own, executed, sent, touched, mesh, machine, offloaded)


def _sample(config, mesh, machine: Machine) -> Speed:
  settings, model = config.sample, config.model
  sides = 1 if settings.guidance == 1 else 2  # with and without the prompt
  size = config.data.frames, config.data.height, config.data.width
  own = {name: settings.steps * sides * n for name, n in _one4d(config).forward.items()}
  own['vae'] = 2 * operations.decode(model.vae, size) + operations.encode(model.vae, size)
  own['encoders'] = 2 * operations.text(model.text, model.dit.text_len) + operations.image(model.image)
  local = sides / mesh.shape['cfg']
  sent = {axis: settings.steps * n for axis, n in _traffic(config, mesh, local, passes=1).items()}
  touched = settings.steps * _touched(config, mesh, local)
  return _speed('scene', 1, own, sum(own.values()), sent, touched, mesh, machine)


def _encode(config, machine: Machine) -> Speed:
  """Both videos of a clip, the condition of an image and one of some frames."""
  model = config.model
  size = config.data.frames, config.data.height, config.data.width
  videos = 2 + 1 + config.data.sparse_masks
  own = {
    'vae': videos * operations.encode(model.vae, size),
    'encoders': operations.text(model.text, model.dit.text_len) + operations.image(model.image),
  }
  own = {name: machine.devices * n for name, n in own.items()}
  touched = 3 * videos * 4 * math.prod(size) * model.vae.width * model.vae.res_blocks
  executed = sum(own.values()) + own['vae']  # in float32, at half the rate
  return _speed('clips', machine.devices, own, executed, {}, touched, None, machine)


def _speed(unit, count, own, executed, sent, touched, mesh, machine: Machine, offloaded: float = 0) -> Speed:
  kind = machine.kind
  peak = machine.devices * flops.peak(kind.name)
  roofs = {
    'compute': executed / peak,
    'memory': touched / kind.bandwidth,
    'network': sum(_seconds(n, axis, mesh, machine) for axis, n in sent.items()),
    'host': offloaded / _HOST,
  }
  roof, total = max(roofs.values()), sum(own.values())
  slowest, fastest = (total / (share * peak) for share in MFU)
  sent = {axis: int(n) for axis, n in sent.items() if n}
  return Speed(unit, count, own, int(executed), sent, roofs, max(roof, fastest), max(roof, slowest))


def _one4d(config) -> flops.Count:
  return flops.one4d(config.model.dit, config.model.adapters, fairness.sample(config))


def _adapters(config) -> int:
  """Trained parameters of the adapters that are matrices, as numbers: LoRA and links."""
  dit, adapters = config.model.dit, config.model.adapters
  square = 10 * 2 * dit.width + 2 * (dit.width + dit.ffn_width)
  return 2 * (dit.layers * adapters.rank * square + len(adapters.link_layers) * dit.width**2)


def _share(size: float, count: int) -> float:
  """Bytes that each of ``count`` devices sends so that all have an array of ``size``."""
  return size * (count - 1) / count


def _weights(config) -> int:
  """Bytes of the base's kernels as they are gathered."""
  dit = config.model.dit
  kernels = dit.layers * (8 * dit.width**2 + 2 * dit.width * dit.ffn_width + 2 * dit.width**2)
  return kernels * (1 if config.model.int8 else width(config))


def _traffic(config, mesh, samples: float, *, passes: int) -> dict[str, float]:
  """Bytes that a device sends for ``samples`` of its own, by axis, in so many passes through the layers."""
  dit, shape = config.model.dit, mesh.shape
  unit = width(config) * rows(config, mesh, samples) * dit.width
  tensor, sequence = shape['tensor'], shape['sequence']
  gathered = _weights(config) / tensor + 4 * _adapters(config) / shape['modality']
  hops = 2 * (sequence - 1) if config.parallel.attention == 'ring' else 4 * (sequence - 1) / sequence
  return {
    'fsdp': passes * _share(gathered, spread(mesh)),
    'sequence': passes * dit.layers * hops * unit / tensor,
    'modality': passes * len(config.model.adapters.link_layers) * unit if shape['modality'] > 1 else 0,
    'tensor': passes * dit.layers * 3 * 2 * _share(unit, tensor),
  }


def _touched(config, mesh, samples: float) -> float:
  """Bytes of its memory that a device reads and writes in a pass."""
  dit, tensor = config.model.dit, mesh.shape['tensor']
  some, ffn = _TOUCHED
  activations = width(config) * rows(config, mesh, samples) * (some * dit.width + ffn * dit.ffn_width / tensor)
  return _weights(config) / tensor + dit.layers * activations


def _seconds(sent: float, axis: str, mesh, machine: Machine) -> float:
  """Inner axes of the mesh are neighbours; what goes beyond one machine takes its network, which its devices share."""
  kind, inside = machine.kind, 1
  names = list(mesh.shape)
  for name in reversed(names[names.index(axis) :]):
    inside *= mesh.shape[name]
  return sent / (kind.link if inside <= kind.per_host else kind.network * kind.per_host)


def recipe(config, found: Speed, machine: Machine, *, price: float | None = None) -> dict:
  """A whole run of training: steps, hours and device hours from the fastest to the slowest, and their price."""
  hours = [config.train.steps * seconds / 3600 for seconds in (found.fastest, found.slowest)]
  whole = {'steps': config.train.steps, 'hours': hours, 'device_hours': [machine.devices * h for h in hours]}
  return whole | ({} if price is None else {'price': [price * h for h in whole['device_hours']]})
