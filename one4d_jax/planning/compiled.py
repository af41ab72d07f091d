"""A program compiled for a machine that is not there, in a process of its own: what a compiler holds goes with it.

python -m one4d_jax.planning.compiled < request.json
"""

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping

from one4d_jax.planning import hardware

LIMIT = 1800  # seconds for one program
_COLLECTIVES = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')


def compiled(machine: hardware.Machine, task: str, config, mesh: str, *, name: str) -> dict:
  """What the compiler says of one program.

  Returns:
    bytes a device: ``arguments``, ``temporaries``, ``host`` and ``peak``; or what it ``needs`` of what is
    ``available`` where it refuses; ``flops`` a device as XLA counts them (a loop's body once; TPUs only),
    ``collectives`` of the compiled program by kind, ``seconds``, ``compiler_bytes``. Or ``not_compiled``: why.
  """
  if missing := hardware.missing_plugin(machine.kind):
    return {'not_compiled': f'no compiler for {machine.kind.name}: {missing}'}
  request = {'topology': machine.text, 'task': task, 'name': name, 'mesh': mesh, 'config': dataclasses.asdict(config)}
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3', 'PYTHONWARNINGS': 'ignore'}
  command = [sys.executable, '-m', 'one4d_jax.planning.compiled']
  text = json.dumps(request)
  try:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=LIMIT, env=environment)
  except subprocess.TimeoutExpired:
    return {'not_compiled': f'compiles for longer than {LIMIT // 60} minutes'}
  if done.returncode < 0:
    return {'not_compiled': f'the compiler was ended by signal {-done.returncode}'}
  if done.returncode:
    return {'not_compiled': (done.stderr.strip().splitlines() or ['no message'])[-1][:500]}
  return json.loads(done.stdout.strip().splitlines()[-1])


def _compile(request: Mapping) -> dict:
  """``compiled``, in the process that may crash."""
  import jax

  from one4d_jax.config import Config
  from one4d_jax.parallel import mesh as meshes
  from one4d_jax.planning import programs
  from one4d_jax.structs import from_dict

  jax.config.update('jax_enable_compilation_cache', False)
  devices = hardware.describe(hardware.parse(request['topology']))
  mesh = meshes.make(request['mesh'], devices)
  program = programs.programs(request['task'], from_dict(request['config'], Config), mesh)[request['name']]
  start = time.perf_counter()
  lowered = program.lower()
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    found = refusal(str(error))
  else:
    analysis = executable.memory_analysis()
    sizes = {'arguments': 'argument_size', 'temporaries': 'temp_size', 'host': 'host_temp_size', 'peak': 'peak_memory'}
    found = {name: getattr(analysis, f'{size}_in_bytes') for name, size in sizes.items()}
    if flops := (executable.cost_analysis() or {}).get('flops', 0):
      found['flops'] = flops
    found['collectives'] = collectives(executable.as_text())
  usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return found | {'seconds': time.perf_counter() - start, 'compiler_bytes': usage}


def refusal(message: str) -> dict:
  """Bytes that a compiler ``needs`` and has ``available``, of its refusal; else ``not_compiled`` with what it said."""
  patterns = (
    r'Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm',
    r'requires? ([\d.]+)([KMGT])\w* .{0,80}?(?:exceed\w*|available|of) ([\d.]+)([KMGT])',
  )
  scale = dict(zip('KMGT', (2**10, 2**20, 2**30, 2**40), strict=True))
  for pattern in patterns:
    if found := re.search(pattern, message):
      size = lambda number, unit: int(float(number) * scale[unit])
      return {'needs': size(*found.group(1, 2)), 'available': size(*found.group(3, 4))}
  return {'not_compiled': ' '.join(message.split())[:500]}


def collectives(text: str) -> dict[str, int]:
  """How many of each kind a compiled program has; those in a loop once."""
  count = lambda kind: len(re.findall(rf'= \S.*? {kind}(?:-start)?\(', text))
  return {kind: count(kind) for kind in _COLLECTIVES if count(kind)}


if __name__ == '__main__':
  print(json.dumps(_compile(json.load(sys.stdin))))
