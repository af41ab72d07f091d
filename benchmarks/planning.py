"""Plans for many machines, and the model of memory held against compiled programs.

  pip install -e '.[plan-gpu,plan-tpu]'       # the compilers; they need no device
  python benchmarks/planning.py               # every table of docs/planning.md, one program after the other
  python benchmarks/planning.py --resume      # keeps what the results already hold

Programs are compiled one at a time, each in a process of its own; nothing runs. Writes
``benchmarks/results/planning.json`` and the tables in ``docs/planning.md``.
"""

import argparse
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file
os.environ['JAX_PLATFORMS'] = 'cpu'

from benchmarks import page
from one4d_jax import cli

CONFIG = str(page.ROOT / 'configs/one4d.py')
SIZES = ('352x624', '480x832', '720x1280')
MACHINES = (
  'a100-40:8',
  'a100:8',
  'h100:8',
  'h200:1',
  'h200:8',
  'b200:8',
  'v4:4x4x4',
  'v5e:8x8',
  'v5p:2x2x2',
  'v6e:4x8',
)
MACHINES += ('v7x:2x2x1',)
MESHES = {
  'v5e:8x8': 'fsdp=-1,sequence=8',
  'v6e:4x8': 'fsdp=-1,sequence=4',
  'v4:4x4x4': 'fsdp=-1,sequence=4',
}  # to train

_B1 = ('model.dit.width=1536', 'model.dit.ffn_width=8960', 'model.dit.heads=12', 'model.dit.layers=30')
_B1 += ('model.adapters.link_layers=[5,11,17,23,29]',)  # the sizes of Wan2.1-1.3B
_SMALL = ('data.frames=33', 'data.height=256', 'data.width=448')
_LARGE = ('data.height=480', 'data.width=832')
_EIGHT, _ONE, _FOUR = (
  ('train.batch=8',),
  ('train.batch=1', 'train.accumulation=32'),
  ('train.batch=4', 'train.accumulation=8'),
)
_POLICIES = [('model.remat=block',), ('model.remat=attention_saved',), ('model.remat=offload',), ('model.int8=True',)]
PROGRAMS = [  # machine, task, program, mesh, what differs from configs/one4d.py
  *(('h100:8', 'train', 'step', 'fsdp', (*size, *policy)) for size in ((), _LARGE) for policy in _POLICIES),
  *(('h200:1', 'train', 'step', 'fsdp', (*_ONE, *size, *policy)) for size in ((), _LARGE) for policy in _POLICIES),
  ('h100:8', 'train', 'step', 'fsdp=-1,sequence=2', _FOUR),
  ('h100:8', 'train', 'step', 'fsdp=-1,modality=2', _FOUR),
  ('h100:8', 'train', 'step', 'fsdp=-1,tensor=2', _FOUR),
  ('b200:8', 'train', 'step', 'fsdp', ()),
  ('h100:1', 'train', 'step', 'fsdp', (*_ONE, *_B1)),
  ('h100:1', 'train', 'step', 'fsdp', (*_ONE, 'model.remat=none', 'data.frames=17', *_B1)),
  ('a100-40:1', 'train', 'step', 'fsdp', ('train.batch=2', 'train.accumulation=16', *_SMALL, *_B1)),
  ('v5p:2x2x2', 'train', 'step', 'fsdp', ()),
  ('v5p:2x2x2', 'train', 'step', 'fsdp', _LARGE),
  *(
    (machine, 'sample', part, mesh, options)
    for machine, mesh, options in (
      ('h200:1', 'fsdp', ()),
      ('h200:1', 'fsdp', _LARGE),
      ('h100:8', 'cfg=2,modality=2,sequence=2', ()),
      ('h100:1', 'fsdp', _B1),
    )
    for part in ('begin', 'advance', 'decode')
  ),
  ('h100:8', 'encode', 'vae', 'fsdp', ()),
  ('h100:8', 'encode', 'decode', 'fsdp', ()),
]


def parser() -> argparse.ArgumentParser:
  p = page.parser('planning', __doc__, page='docs/planning.md')
  p.add_argument('--resume', action='store_true', help='keep the programs that the results already hold')
  p.add_argument('--no-compile', action='store_true', help='with --resume: only compute and write the tables again')
  return p


def main(args: argparse.Namespace) -> None:
  from tqdm import tqdm

  from one4d_jax.planning import hardware

  out = pathlib.Path(args.out)
  before = json.loads(out.read_text()) if args.resume and out.exists() else {'programs': [], 'versions': {}}
  known = {key(row): row for row in before['programs'] if 'peak' in row['compiled'] or 'needs' in row['compiled']}
  versions = before['versions'] if args.no_compile else hardware.versions()
  results = {'command': 'python benchmarks/planning.py', 'versions': versions, 'programs': [], 'plans': []}
  with tqdm(PROGRAMS, unit='program') as bar:
    for row in map(named, PROGRAMS):
      bar.set_postfix_str(' '.join(key(row)))
      if key(row) in known or not args.no_compile:
        compiled = known[key(row)]['compiled'] if key(row) in known else alone(row)
        results['programs'].append(row | {'compiled': compiled, 'model': modelled(row)})
        out.write_text(json.dumps(results, indent=1) + '\n')
      bar.update()
  results['plans'] = [plan(*cell, results['programs']) for cell in tqdm(list(cells()), 'plans', unit='plan')]
  page.record(args, results, tables, readme=readme)


def tables(results: dict) -> dict[str, str]:
  return {'plans': plans(results['plans']), 'model': agreement(results['programs'])}


def readme(results: dict) -> dict[str, str]:
  return {'fits': fits(results['plans'])}


# -- The model against compilers ------------------------------------------------------------------------------------


def named(program: tuple) -> dict:
  return dict(
    zip(('topology', 'task', 'program', 'mesh', 'options'), (*program[:4], ' '.join(program[4])), strict=True)
  )


def key(row: dict) -> tuple[str, ...]:
  return tuple(row[name] for name in ('topology', 'task', 'program', 'mesh', 'options'))


def configured(row: dict):
  """Machine and configuration of a row."""
  from one4d_jax import config as configs
  from one4d_jax.planning import hardware

  return hardware.parse(row['topology']), configs.load(CONFIG, row['options'].split())


def alone(row: dict) -> dict:
  from one4d_jax.planning.compiled import compiled

  machine, config = configured(row)
  return compiled(machine, row['task'], config, row['mesh'], name=row['program'])


def modelled(row: dict) -> int:
  """Bytes of a device at the peak, by the model."""
  from one4d_jax.planning import memory

  machine, config = configured(row)
  where, of = (machine.devices,), {'platform': machine.kind.platform}
  if row['task'] == 'encode':
    return memory.encoding(row['program'], config, *where, **of).peak
  if row['task'] == 'sample':
    return memory.sampling(row['program'], config, row['mesh'], *where, **of).peak
  return memory.memory(row['task'], config, row['mesh'], *where, **of).peak


def agreement(rows: list[dict]) -> str:
  """Compiled against modelled peaks, Markdown."""
  lines = [
    '| machine | program | mesh | `--config.` | arguments | host | **compiled** | model | model / compiled | in |'
  ]
  lines.append('|---|---|---|---|--:|--:|--:|--:|--:|--:|')
  for row in rows:
    found, model = row['compiled'], row['model'] / 2**30
    start = [row['topology'], f'{row["task"]} {row["program"]}', row['mesh'], sizes(row['options'])]
    if 'peak' in found:
      peak = found['peak'] / 2**30
      cells = [f'{found["arguments"] / 2**30:.1f}', f'{found["host"] / 2**30:.1f}', f'**{peak:.1f}**']
      cells += [f'{model:.1f}', f'{model / peak:.2f}', f'{found["seconds"]:.0f} s']
    elif 'needs' in found:
      needs = found['needs'] / 2**30
      cells = ['', '', f'**{needs:.1f}: refused**', f'{model:.1f}', f'{model / needs:.2f}', f'{found["seconds"]:.0f} s']
    else:
      cells = ['', '', f'not compiled: {found["not_compiled"]}', f'{model:.1f}', '', '']
    lines.append('| ' + ' | '.join(start + cells) + ' |')
  return '\n'.join(lines)


def sizes(options: str) -> str:
  """The options of a row, for people."""
  text = options.replace(' '.join(_B1), 'the sizes of Wan2.1-1.3B')
  return text.replace('model.', '').replace('data.', '').replace('train.', '').replace('=True', '')


# -- Plans ----------------------------------------------------------------------------------------------------------


def cells():
  for task in ('train', 'sample'):
    for topology in MACHINES:
      for size in SIZES:
        yield task, topology, size


def plan(task: str, topology: str, size: str, programs: list[dict]) -> dict:
  """One cell: whether it fits as it stands, else the smallest change; time from fastest to slowest."""
  from one4d_jax import config as configs
  from one4d_jax import plan as planner
  from one4d_jax.planning import hardware

  height, _, width = size.partition('x')
  machine = hardware.parse(topology)
  batch = _ONE if topology == 'h200:1' and task == 'train' else ()
  config = configs.load(CONFIG, [f'data.height={height}', f'data.width={width}', *batch])
  mesh = MESHES.get(topology) if task == 'train' else None
  found = planner.plan(config, machine, task=task, mesh=mesh, compiling=False)
  row = {'task': task, 'topology': topology, 'size': size, 'mesh': found['mesh']}
  same = [p for p in programs if program_of(p) == (task, topology, size, axes(found['mesh'], topology))]
  peak = max((p['compiled'].get('peak', p['compiled'].get('needs')) for p in same), default=None)
  row |= {'peak': peak or found['memory']['peak'], 'compiled': peak is not None, 'limit': machine.kind.memory}
  row['advice'] = '' if row['peak'] <= row['limit'] else found['advice']
  return row | {'seconds': [found['speed']['fastest'], found['speed']['slowest']], 'recipe': found.get('recipe')}


def axes(mesh: str, topology: str) -> tuple:
  """Sizes of a mesh, however it is written."""
  from one4d_jax.parallel import mesh as meshes
  from one4d_jax.planning import hardware

  return tuple(meshes.sizes(mesh, hardware.parse(topology).devices).values())


def program_of(row: dict) -> tuple:
  """Task, machine, size and mesh of a compiled program of the plain configuration; other ones differ from all cells."""
  words = [w for w in row['options'].split() if w not in (*_ONE, *_LARGE, 'model.remat=block')]
  size = SIZES[1] if _LARGE[0] in row['options'] else SIZES[0]
  return () if words else (row['task'], row['topology'], size, axes(row['mesh'], row['topology']))


def plans(rows: list[dict]) -> str:
  from one4d_jax.planning.memory import ERROR
  from one4d_jax.planning.report import seconds

  lines = []
  for task, what in (('train', 'a step of 32 samples; the recipe of 5500'), ('sample', 'a scene, 50 steps, guidance')):
    lines += [f'**{task}**', '', f'| machine | mesh | clips | GiB a device | of | fits | {what} |']
    lines.append('|---|---|---|--:|--:|---|---|')
    for row in rows:
      if row['task'] != task:
        continue
      peak, limit = row['peak'] / 2**30, row['limit'] / 2**30
      number = f'**{peak:.1f}**' if row['compiled'] else f'{peak:.1f}'
      fits = 'yes' if row['compiled'] or peak <= (1 - ERROR) * limit else 'perhaps: too near to tell'
      if row['advice']:
        fits = f'no: {row["advice"]}'.replace('--config.', '')
      time = ' to '.join(map(seconds, row['seconds']))
      if row['recipe']:
        time += '; ' + ' to '.join(seconds(3600 * h) for h in row['recipe']['hours'])
      cells = [row['topology'], row['mesh'], row['size'], number, f'{limit:.1f}', fits, time]
      lines.append('| ' + ' | '.join(cells) + ' |')
    lines.append('')
  return '\n'.join(lines)


def fits(rows: list[dict]) -> str:
  """The paper's size on the machines whose training step was compiled, Markdown."""
  from one4d_jax.planning.report import seconds

  headings = (
    'machine | training, GiB a device | of | 5500 steps of 32 samples | sampling, GiB | a scene, 50 steps, guidance'
  )
  lines = [f'| {headings} |']
  lines.append('|---|--:|--:|---|--:|---|')
  same = {(row['task'], row['topology']): row for row in rows if row['size'] == SIZES[0]}
  for (task, topology), train in same.items():
    if task == 'train' and train['compiled']:
      sample = same['sample', topology]
      gib = [f'{row["peak"] / 2**30:.1f}' for row in (train, sample)]
      hours = ' to '.join(seconds(3600 * h) for h in train['recipe']['hours'])
      scene = ' to '.join(map(seconds, sample['seconds']))
      lines.append(f'| {topology} | {gib[0]} | {train["limit"] / 2**30:.1f} | {hours} | {gib[1]} | {scene} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
