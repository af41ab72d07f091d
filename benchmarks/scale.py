"""Does a training step of the 14B model fit a machine that is not there? It is compiled for that machine; nothing runs.

  pip install libtpu==0.0.52 'jax-cuda13-plugin[with-cuda]==0.10.1'    # of jax's own version; they need no device
  python benchmarks/scale.py                                           # every row of the table, one after the other
  python benchmarks/scale.py --topology h100:8 --size 352x624          # one of them, as JSON

The step is the one of ``python -m one4d_jax.train --config configs/one4d.py``: 81 frames, all layers, microbatches of a
sample for every part of the mesh, latents and features encoded before. Without ``--topology`` it writes
``benchmarks/results/scale.json`` and the table in ``docs/scale.md``.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file
os.environ['JAX_PLATFORMS'] = 'cpu'  # plugins compile, they are not asked for devices
os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5p-8'}
os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # it would lock the chips, which nobody has here

from benchmarks import page
from one4d_jax import cli
from one4d_jax.errors import UserError

GPUS = {  # device memory in bytes, its bandwidth in bytes per second, name
  'h100': (85520809984, 3350000000000, 'NVIDIA H100 80GB HBM3'),
  'h200': (151397597184, 4800000000000, 'NVIDIA H200'),
}
TARGET = """gpu_device_info {{
    threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
    threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
    block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: 52428800
    clock_rate_ghz: 1.98 device_memory_size: {memory} shared_memory_per_block_optin: 232448
    cuda_compute_capability {{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }}
    registers_per_core_limit: 65536 registers_per_block_limit: 65536
  }}
  platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
  runtime_version {{ major: 13 minor: 0 patch: 0 }} device_description_str: "{name}" """  # Hopper's driver says so
TPUS = {'v5e': 16, 'v5p': 95, 'v6e': 32}  # GiB of each chip, as its maker tells; a little less is free
PLUGINS = {'gpu': ('jax_cuda13_plugin', 'jax-cuda13-plugin[with-cuda]=={}'), 'tpu': ('libtpu', 'libtpu==0.0.52')}

SIZES = ('352x624', '480x832')
BASES = ('bfloat16', 'int8')
_POLICIES = [('fsdp', remat, 'bfloat16') for remat in ('block', 'attention_saved', 'offload')]
MACHINES = {  # (mesh, remat, base) of the rows, each at both sizes
  'h100:8': [*_POLICIES, ('fsdp', 'block', 'int8')],
  'h200:1': [*_POLICIES, ('fsdp', 'block', 'int8')],
  'v5p:2x2x2': [('fsdp', 'block', 'bfloat16')],
  'v6e:4x8': [('fsdp=-1,sequence=4', 'block', 'bfloat16')],
}
LIMIT = 1800  # seconds for one compilation


def parser() -> argparse.ArgumentParser:
  p = page.parser('scale', __doc__, page='docs/scale.md')
  p.add_argument('--topology', metavar='KIND:SHAPE', help='h100:8, h200:1, v5p:2x2x2, v6e:4x8 …: compile for it alone')
  p.add_argument('--size', metavar='HxW', default=SIZES[0], help='of the clips (default: %(default)s)')
  p.add_argument('--mesh', default='fsdp', help='preset or axis sizes (default: %(default)s)')
  p.add_argument('--remat', default='block', help='what the backward pass keeps (default: %(default)s)')
  p.add_argument('--base', choices=BASES, default=BASES[0], help='how the frozen base is stored (default: %(default)s)')
  p.add_argument('--resume', action='store_true', help='keep the rows that the results already hold')
  return p


def main(args: argparse.Namespace) -> None:
  if args.topology:
    print(json.dumps(compiled(args.topology, size=args.size, mesh=args.mesh, remat=args.remat, base=args.base)))
  else:
    every_row(args)


# -- One row --------------------------------------------------------------------------------------------------------


def compiled(topology: str, *, size: str, mesh: str, remat: str, base: str) -> dict:
  """GiB per device of the step: ``arguments``, ``temporaries``, ``host`` and ``peak``; or what it ``needs`` too much.

  Raises:
    UserError: a topology that is unknown, or a plugin that is not installed.
  """
  devices = described(topology)
  import jax

  jax.config.update('jax_enable_compilation_cache', False)
  step, arguments = abstract_step(devices, size=size, mesh=mesh, remat=remat, base=base)
  start, row = time.perf_counter(), {'devices': len(devices), 'memory': memory(topology)}
  lowered = step.lower(*arguments)
  try:
    analysis = lowered.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    row |= exceeded(str(error))
  else:
    row |= {
      name: getattr(analysis, f'{kind}_in_bytes') / 2**30
      for name, kind in (
        ('arguments', 'argument_size'),
        ('temporaries', 'temp_size'),
        ('host', 'host_temp_size'),
        ('peak', 'peak_memory'),
      )
    }
  row['seconds'] = time.perf_counter() - start
  row['compiler_GiB'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  return row


def described(topology: str) -> list:
  """Devices of a machine by its description, ``'h100:8'`` or ``'v5p:2x2x2'``."""
  import jax
  from jax.experimental.topologies import get_topology_desc

  kind, _, shape = topology.partition(':')
  if kind not in GPUS | TPUS:
    raise UserError(f'--topology {topology!r}: expected KIND:SHAPE with KIND of {", ".join(GPUS | TPUS)}, as in h100:8')
  module, package = PLUGINS['gpu' if kind in GPUS else 'tpu']
  if importlib.util.find_spec(module) is None:
    package = package.format(jax.__version__)
    raise UserError(f"compiling for {kind} needs a plugin that is not installed: pip install '{package}'")
  try:
    if kind in TPUS:
      return list(get_topology_desc(topology, 'tpu').devices)
    size, bandwidth, name = GPUS[kind]
    target = TARGET.format(memory=size, bandwidth=bandwidth, name=name)
    return list(get_topology_desc('', platform='cuda', target_config=target, topology=f'1x1x{shape}').devices)
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f'--topology {topology!r}: {error}') from error


def memory(topology: str) -> float:
  """GiB of a device."""
  kind = topology.split(':')[0]
  return GPUS[kind][0] / 2**30 if kind in GPUS else TPUS[kind]


def abstract_step(devices: list, *, size: str, mesh: str, remat: str, base: str) -> tuple:
  """The jitted step of a training run on ``devices``, and its arguments as shapes with their places."""
  import flax.linen as nn

  from one4d_jax import config as configs
  from one4d_jax.model.bundle import Bundle
  from one4d_jax.parallel import load, rules
  from one4d_jax.parallel import mesh as meshes
  from one4d_jax.parallel.layout import MeshLayout, batch_parts, batch_sharding
  from one4d_jax.training.setup import setup
  from one4d_jax.training.stages import One4DStage

  class WithoutData(One4DStage):
    def __init__(self, config, bundle):
      self.config, self.bundle = config, bundle

  devices = meshes.make(mesh, devices)
  height, _, width = size.partition('x')
  values = {'data.height': height, 'data.width': width, 'parallel.mesh': mesh, 'model.remat': remat}
  values |= {'model.int8': base == 'int8', 'train.batch': batch_parts(devices)}
  config = configs.load(str(page.ROOT / 'configs/one4d.py'), [f'{name}={value}' for name, value in values.items()])
  train, model = config.train, config.model
  stage, layout = WithoutData(config, Bundle({}, configs.sizes(config), {})), MeshLayout(devices)

  boxed = load.abstract_base(model.dit, model.dtype, int8=model.int8)
  frozen = {'base': load.placed(nn.unbox(boxed), rules.shardings(boxed, devices))}
  run = setup(config, stage, layout, frozen)
  samples = batch(config, train.batch * train.accumulation)
  samples = load.placed(samples, dict.fromkeys(samples, batch_sharding(devices)))
  return run.step, (run.state, frozen, samples)


def batch(config, samples: int) -> dict:
  """A batch of an encoded set, which is float16 (``training/latents.py``)."""
  import jax
  import numpy as np

  data, model = config.data, config.model
  grid = (data.frames - 1) // 4 + 1, data.height // 8, data.width // 8
  latent = (*grid, model.vae.latent_channels)
  half = lambda *shape: jax.ShapeDtypeStruct((samples, *shape), np.float16)
  return {
    'z': half(2, *latent),
    'weight': half(*grid),
    'latent': half(*latent),
    'observed': jax.ShapeDtypeStruct((samples, data.frames), np.bool_),
    'text': half(model.dit.text_len, model.dit.text_width),
    'image': half(model.image.tokens, model.dit.image_width),
  }


def exceeded(message: str) -> dict:
  """GiB that the compiler ``needs`` and has, of its refusal.

  Raises:
    UserError: it refused for another reason.
  """
  found = re.search(r'Used ([\d.]+)([MG]) of ([\d.]+)([MG]) hbm', message)
  if not found:
    raise UserError(' '.join(message.split())[:500])
  size = lambda number, unit: float(number) / (1024 if unit == 'M' else 1)
  return {'needs': size(*found.group(1, 2)), 'available': size(*found.group(3, 4))}


# -- All rows -------------------------------------------------------------------------------------------------------


def every_row(args: argparse.Namespace) -> None:
  from tqdm import tqdm

  out = pathlib.Path(args.out)
  known = json.loads(out.read_text())['rows'] if args.resume and out.exists() else []
  known = {key(row): row for row in known if 'not_measured' not in row}
  asked = [
    {'topology': topology, 'mesh': mesh, 'size': size, 'remat': remat, 'base': base}
    for topology, kinds in MACHINES.items()
    for size in SIZES
    for mesh, remat, base in kinds
  ]
  results = {'command': 'python benchmarks/scale.py', 'versions': versions(), 'rows': []}
  with tqdm(asked, unit='row') as bar:
    for row in bar:
      bar.set_postfix_str(' '.join(row.values()))
      results['rows'].append(known.get(key(row)) or row | alone(row))
      out.write_text(json.dumps(results, indent=1) + '\n')
  page.record(args, results, {'scale': table(results['rows'])})


def key(row: dict) -> tuple:
  return tuple(row[name] for name in ('topology', 'mesh', 'size', 'remat', 'base'))


def alone(row: dict) -> dict:
  """``compiled`` in a process of its own: what a compiler holds goes with it, and so does a crash."""
  command = [sys.executable, __file__, *(text for name, value in row.items() for text in (f'--{name}', value))]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
  except subprocess.TimeoutExpired:
    return {'not_measured': f'compiles longer than {LIMIT // 60} minutes'}
  if done.returncode == 2:
    return {'not_measured': done.stderr.strip().splitlines()[-1].removeprefix('error: ')}
  if done.returncode < 0:
    return {'not_measured': f'the compiler was ended by signal {-done.returncode}'}
  if done.returncode:
    raise RuntimeError(done.stderr)
  return json.loads(done.stdout.strip().splitlines()[-1])


def versions() -> dict[str, str]:
  """Of what compiles."""
  found = {}
  for name in ('jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin', 'nvidia-cudnn-cu13'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def table(rows: list[dict]) -> str:
  """GiB per device, Markdown."""
  lines = ['| machine | mesh | clips | base | remat | arguments | temporaries | host | **peak** | of | compiled in |']
  lines.append('|---|---|---|---|---|--:|--:|--:|--:|--:|--:|')
  for row in rows:
    start = [row['topology'], row['mesh'], row['size'], row['base'], f'`{row["remat"]}`']
    if 'not_measured' in row:
      cells = [f'not measured: {row["not_measured"]}', *5 * ['']]
    elif 'needs' in row:
      cells = ['', '', '', f'**{row["needs"]:.1f}: too much**', f'{row["available"]:.1f}', f'{row["seconds"]:.0f} s']
    else:
      numbers = [f'{row[name]:.1f}' for name in ('arguments', 'temporaries', 'host')]
      over = ': too much' * (row['peak'] > row['memory'])
      cells = [*numbers, f'**{row["peak"]:.1f}{over}**', f'{row["memory"]:.1f}', f'{row["seconds"]:.0f} s']
    lines.append('| ' + ' | '.join(start + cells) + ' |')
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
