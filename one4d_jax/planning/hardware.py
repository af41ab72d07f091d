"""Machines by name, ``h100:8`` or ``v5p:2x2x2``: what their devices hold and can do, and how a compiler sees them.

Sources: memory of the GPUs as XLA's own target descriptions have it, everything else from the makers' data sheets (peak
arithmetic: ``training/flops.py``). Bandwidths are per device and direction. ``network`` joins machines, per device,
where each GPU has an adapter of its own (DGX); TPUs of a slice are all joined by ``link``.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os

from one4d_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Kind:
  """One device, as JAX counts them."""

  name: str  # its ``device_kind``
  memory: int  # bytes
  bandwidth: float  # of its memory, bytes per second
  link: float  # to its neighbours, bytes per second
  network: float  # to other machines, bytes per second
  per_host: int
  compiler: str  # of GPUs: what XLA must know beside memory and bandwidth; of TPUs: options of the description

  @property
  def platform(self) -> str:
    return 'gpu' if self.name.startswith('NVIDIA') else 'tpu'


_AMPERE = (
  'shared_memory_per_core: 167936 core_count: 108 fpus_per_core: 64 l2_cache_size: 41943040 clock_rate_ghz: 1.41 '
  'shared_memory_per_block_optin: 166912 cuda_compute_capability { major: 8 minor: 0 }'
)
_HOPPER = (
  'shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98 '
  'shared_memory_per_block_optin: 232448 '
  'cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }'
)
_BLACKWELL = (
  'shared_memory_per_core: 233472 core_count: 148 fpus_per_core: 128 l2_cache_size: 132644864 clock_rate_ghz: 1.965 '
  'shared_memory_per_block_optin: 232448 '
  'cuda_compute_capability { major: 10 minor: 0 feature_extension: ACCELERATED_FEATURES }'
)

# fmt: off
#                name                      memory bytes   bandwidth   link    network per_host
KINDS = {
  'a100-40': Kind('NVIDIA A100-SXM4-40GB',  42298834944,  1.555e12,  300e9,   25e9,  8, _AMPERE),
  'a100':    Kind('NVIDIA A100-SXM4-80GB',  85100068864,  2.039e12,  300e9,   25e9,  8, _AMPERE),
  'h100':    Kind('NVIDIA H100 80GB HBM3',  85520809984,  3.35e12,   450e9,   50e9,  8, _HOPPER),
  'h200':    Kind('NVIDIA H200',            151397597184, 4.8e12,    450e9,   50e9,  8, _HOPPER),
  'b200':    Kind('NVIDIA B200',            191514411008, 7.67e12,   900e9,   50e9,  8, _BLACKWELL),
  'v4':      Kind('TPU v4',                 32 * GIB,     1.2e12,    300e9,   300e9, 4, 'megacore'),
  'v5e':     Kind('TPU v5 lite',            16 * GIB,     .8e12,     200e9,   200e9, 4, ''),
  'v5p':     Kind('TPU v5',                 95 * GIB,     2.765e12,  600e9,   600e9, 4, ''),
  'v6e':     Kind('TPU v6 lite',            32 * GIB,     1.6e12,    400e9,   400e9, 4, ''),
  'v7x':     Kind('TPU7x',                  96 * GIB,     3.69e12,   300e9,   300e9, 8, ''),  # half a chip
}
# fmt: on
_PER_CHIP = {'v7x': 2}  # devices
_JAX_NAMES = {'v7x': 'tpu7x'}
PLUGINS = {'gpu': ('jax_cuda13_plugin', 'plan-gpu'), 'tpu': ('libtpu', 'plan-tpu')}  # module, extra of this project
_TARGET = """gpu_device_info {{
    threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 threads_per_core_limit: 2048
    block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
    device_memory_size: {memory} registers_per_core_limit: 65536 registers_per_block_limit: 65536 {compiler}
  }}
  platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
  runtime_version {{ major: 13 minor: 0 patch: 0 }} device_description_str: "{name}" """


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices of one kind, all of which one run has."""

  text: str  # 'h100:8', 'v5p:2x2x2'
  kind: Kind
  devices: int

  @property
  def hosts(self) -> int:
    return -(-self.devices // self.kind.per_host)

  @property
  def described(self) -> str:
    """For people: ``8 x NVIDIA H100 80GB HBM3 (79.6 GiB each), 1 host``."""
    plural = 's' * (self.hosts > 1)
    return f'{self.devices} x {self.kind.name} ({bytes_(self.kind.memory)} each), {self.hosts} host{plural}'


def parse(text: str) -> Machine:
  """The machine of ``'KIND:SHAPE'``: a number of GPUs, or chips of a TPU slice along each of its axes.

  Raises:
    UserError: no such kind, or a shape that there is not.
  """
  name, _, shape = text.partition(':')
  if name not in KINDS:
    raise UserError(f'--topology {text!r}: expected KIND:SHAPE with KIND of {", ".join(KINDS)}, as in h100:8')
  kind, sides = KINDS[name], shape.split('x')
  counts = [int(side) for side in sides if side.isdecimal() and int(side) > 0]
  flat = name in ('v5e', 'v6e')
  wanted = 1 if kind.platform == 'gpu' else 2 if flat else 3
  if len(counts) != len(sides) or len(counts) != wanted:
    example = {1: f'{name}:8', 2: f'{name}:4x4', 3: f'{name}:2x2x2'}[wanted]
    raise UserError(f'--topology {text!r}: {shape!r} is no shape of it; expected one as in {example}')
  devices = math.prod(counts) * _PER_CHIP.get(name, 1)
  if kind.platform == 'gpu' and devices > kind.per_host and devices % kind.per_host:
    few = devices // kind.per_host * kind.per_host
    raise UserError(
      f'--topology {text!r}: machines of {kind.per_host} must be whole ones; give {name}:{few} or '
      f'{name}:{few + kind.per_host}'
    )
  return Machine(text, kind, devices)


def bytes_(value: float) -> str:
  """As people read it: ``34.6 GiB``, small ones in MiB."""
  return f'{value / GIB:.1f} GiB' if value >= GIB / 10 else f'{value / 2**20:.1f} MiB'


def missing_plugin(kind: Kind) -> str | None:
  """How to install what compiles for ``kind``; None where it is there."""
  module, extra = PLUGINS[kind.platform]
  return None if importlib.util.find_spec(module) else f"pip install -e '.[{extra}]'"


def of_device(device) -> Kind | None:
  """What is known of a device of this process; None of a CPU or one that is not in the table."""
  return next((kind for kind in KINDS.values() if kind.name == device.device_kind), None)


def describe(machine: Machine) -> list:
  """The machine's devices by description: they compile and cannot run. Needs the plugin, and no device.

  Raises:
    UserError: the plugin is missing, or the compiler knows no such slice.
  """
  if missing := missing_plugin(machine.kind):
    raise UserError(f'compiling for {machine.text} needs a plugin that is not installed: {missing}')
  os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5p-8'}
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # it would lock the chips, which this needs none of
  import jax
  from jax.experimental.topologies import get_topology_desc

  kind = machine.kind
  try:
    if kind.platform == 'tpu':
      name, _, shape = machine.text.partition(':')
      options = {'chip_config_name': kind.compiler} if kind.compiler else {}
      return list(get_topology_desc(f'{_JAX_NAMES.get(name, name)}:{shape}', 'tpu', **options).devices)
    fields = {name: getattr(kind, name) for name in ('name', 'memory', 'compiler')}
    target = _TARGET.format(bandwidth=int(kind.bandwidth), **fields)
    shape = f'1x{machine.hosts}x{machine.devices // machine.hosts}'
    return list(get_topology_desc('', platform='cuda', target_config=target, topology=shape).devices)
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f'--topology {machine.text!r}: the compiler knows no such slice: {error}') from error


def versions() -> dict[str, str]:
  """Of what plans and compiles."""
  names = ('jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin', 'nvidia-cudnn-cu13')
  found = {name: [d.version for d in importlib.metadata.distributions(name=name)] for name in names}
  return {name: some[0] for name, some in found.items() if some}
