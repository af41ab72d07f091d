"""Does a run fit a machine that is not there, what will it cost, and what to change if it does not fit.

python -m one4d_jax.plan --config configs/one4d.py --topology h100:8
python -m one4d_jax.plan --config configs/one4d.py --topology v5p:2x2x2 --task sample
python -m one4d_jax.plan --config configs/one4d.py --topology h100:8 --search --config.data.height=720

The real program is compiled for the described machine; no device, no weights and no data are needed. Machines:
a100-40, a100, h100, h200, b200 by number (h100:8), and v4, v5e, v5p, v6e, v7x by shape (v5p:2x2x2, v6e:4x8).
"""

import argparse
import dataclasses
import pathlib
import sys

from one4d_jax import cli
from one4d_jax.errors import UserError

TASKS = ('train', 'sample', 'encode')


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    prog='python -m one4d_jax.plan', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  cli.add_config(p, default='configs/one4d.py')
  p.add_argument('--topology', metavar='KIND:SHAPE', default='h100:8', help='the machine (default: %(default)s)')
  p.add_argument('--task', choices=TASKS, default='train', help='default: %(default)s')
  p.add_argument('--mesh', metavar='AXES', help='default: train as configured; sample splits prompt, branches, tokens')
  p.add_argument('--search', action='store_true', help='also list what else the machine could do, best first')
  p.add_argument('--no-compile', action='store_true', help='answer in seconds, by the model of memory alone')
  p.add_argument('--price-per-device-hour', metavar='P', type=float, help='in any currency: what it costs')
  p.add_argument('--out', metavar='DIR', default='plan', help='for plan.json and plan.html (default: %(default)s)')
  return p


def main(args: argparse.Namespace) -> None:
  from one4d_jax import config as configs
  from one4d_jax.planning import hardware, report

  if args.price_per_device_hour is not None and not args.price_per_device_hour > 0:
    raise UserError(f'--price-per-device-hour {args.price_per_device_hour} must be above 0')
  config, machine = configs.load(args.config, args.overrides), hardware.parse(args.topology)
  found = plan(
    config,
    machine,
    task=args.task,
    mesh=args.mesh,
    search=args.search,
    compiling=not args.no_compile,
    price=args.price_per_device_hour,
  )
  found['command'] = cli.command(parser(), args)
  print(report.terminal(found))
  print(*report.write(found, pathlib.Path(args.out)), sep='\n')


def plan(
  config,
  machine,
  *,
  task: str = 'train',
  mesh: str | None = None,
  search: bool = False,
  compiling: bool = True,
  price: float | None = None,
) -> dict:
  """Everything the report tells, as JSON has it. Sizes are bytes, times seconds.

  Raises:
    ConfigError: a mesh or batch that does not go on this machine.
  """
  from one4d_jax.planning import advice, guard, hardware, programs
  from one4d_jax.planning.compiled import compiled
  from one4d_jax.planning.memory import memory
  from one4d_jax.planning.speed import recipe, speed

  mesh, notes = mesh or advice.default_mesh(task, config, machine.devices), []
  if task == 'train':
    config = advice.changed(config, {'parallel.mesh': mesh})
    batch = advice.divided(config, mesh, machine.devices)
    if config.train.batch % batch['train.batch']:
      config = advice.changed(config, batch)
      notes.append(f'as many samples a step as configured, split otherwise: {advice.flags(batch)}')
  modelled = memory(task, config, mesh, machine.devices, platform=machine.kind.platform)
  timed = speed(task, config, mesh, machine)
  names = programs.NAMES[task]
  built = {name: compiled(machine, task, config, mesh, name=name) for name in names} if compiling else {}
  for name, result in built.items():
    if 'not_compiled' in result:
      notes.append(f'{name}: {result["not_compiled"]}')
  worst = _worst(list(built.values()))
  sizes = _sizes(modelled, worst, machine.kind.memory)
  option = None if sizes['fits'] else advice.smallest_change(task, config, mesh, machine)
  options = advice.search(task, config, machine, progress=_bar) if search else []
  data = config.data
  found = {
    'task': task,
    'about': f'{data.frames} frames of {data.height}x{data.width}, {_model(config)}',
    'machine': machine.described,
    'topology': machine.text,
    'mesh': mesh,
    'notes': notes,
    'memory': sizes,
    'model': dataclasses.asdict(modelled),
    'compiled': worst,
    'programs': built,
    'host': _host(modelled, config, machine),
    'speed': dataclasses.asdict(timed),
    'advice': '' if sizes['fits'] else guard.suggestion(task, option),
    'search': [_row(task, one) for one in options],
    'versions': hardware.versions(),
    'config': dataclasses.asdict(config),
  }
  if task == 'train':
    found['recipe'] = recipe(config, timed, machine, price=price)
  elif price is not None:
    found['price'] = [price * machine.devices * s / 3600 for s in (timed.fastest, timed.slowest)]
  return found


def _worst(results: list[dict]) -> dict:
  """The program that decides what a device needs; ``{}`` where one that might is unknown: only the model has it."""
  if refused := [result for result in results if 'needs' in result]:
    return max(refused, key=lambda result: result['needs'])
  if any('not_compiled' in result for result in results):
    return {}
  return max(results, key=lambda result: result['peak'], default={})


def _sizes(modelled, built: dict, limit: int) -> dict:
  """The peak, the compiler's where there is one, by part."""
  parts, source = dict(modelled.parts), 'model'
  peak = modelled.peak
  if 'peak' in built or 'needs' in built:
    source, peak = ('compiled', built['peak']) if 'peak' in built else ('refused', built['needs'])
    limit = built.get('available', limit)
    left = max(0, peak - modelled.resident)
    moving = {name: parts[name] for name in ('gradients', 'activations', 'temporaries')}
    scale = left / max(1, sum(moving.values()))
    parts |= {name: int(scale * size) for name, size in moving.items()}
  return {'source': source, 'parts': parts, 'peak': peak, 'limit': limit, 'fits': peak <= limit}


def _host(modelled, config, machine) -> dict[str, int]:
  """Bytes of a host's memory: what ``offload`` pins, and the largest weight, which is read in one piece."""
  model, devices = config.model, min(machine.devices, machine.kind.per_host)
  largest = model.dit.layers * model.dit.width * model.dit.ffn_width * (1 if model.int8 else 2)
  return {'pinned by offload': devices * modelled.host, 'while weights are read, at least': largest // machine.hosts}


def _model(config) -> str:
  dit, kind = config.model.dit, config.model.adapters.kind
  base = 'int8' if config.model.int8 else config.model.dtype
  return f'{dit.layers} layers of width {dit.width}, {kind} over a base in {base}, remat {config.model.remat}'


def _row(task: str, option) -> dict:
  choice = option.choice
  flags = ' '.join(words for words in (f'--mesh {choice.mesh}' * (task != 'train'), choice.words()) if words)
  flags = flags or 'as configured'
  return {'flags': flags, 'mesh': choice.mesh, 'peak': option.memory.peak, 'seconds': option.speed.expected}


def _bar(choices: list):
  from tqdm import tqdm

  return tqdm(choices, 'search', unit='choice')


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
