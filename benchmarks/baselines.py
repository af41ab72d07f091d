"""What each model of ``configs/baselines.py`` trains, computes, needs and takes, and how good it is.

  python benchmarks/baselines.py
  python benchmarks/baselines.py --evaluations runs/eval    # reports made by one4d_jax.evaluate, in folders by preset

Parameters are counted on the shapes of what is trained, operations by ``training/flops.py``. Memory is the compiler's
for a training step on one device; its time is the median of steps that take turns, so that all models meet the same
machine. Accuracy is read from ``PRESET/report.json``, or absent. Writes the tables of docs/ablations.md.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page  # noqa: E402
from one4d_jax import cli  # noqa: E402

ACCURACY = ('psnr', 'abs_rel', 'delta1', 'ate', 'focal_error', 'point_rel', 'edges')


def parser() -> argparse.ArgumentParser:
  p = page.parser('baselines', __doc__, page='docs/ablations.md')
  p.add_argument('--evaluations', metavar='DIR', help='folders named as presets, with the report.json of an evaluation')
  p.add_argument('--rounds', type=int, default=20, help='steps of each model that are timed (default: %(default)s)')
  return p


def configurations() -> dict:
  """The checked configuration of every preset."""
  from configs import baselines
  from one4d_jax import config as configs

  return {name: configs.load(f'{ROOT}/configs/baselines.py:{name}') for name in baselines.PRESETS}


def counted(dit, adapters, sample) -> dict:
  """What a model is: kind, rank, trained parameters; operations for one sample."""
  from one4d_jax.training import fairness, flops

  count, parameters = flops.one4d(dit, adapters, sample), fairness.trained(dit, adapters)
  return {
    'kind': adapters.kind,
    'link_layers': list(adapters.link_layers) if 'links' in parameters else [],
    'rank': adapters.rank if 'lora' in parameters else None,
    'trained': sum(parameters.values()),
    'forward': sum(count.forward.values()),
    'step': sum(count.step.values()),
  }


def at_the_papers_sizes() -> dict:
  """By kind, with as many trained parameters as the paper's One4D."""
  from one4d_jax import config as configs
  from one4d_jax.model.baselines import MODELS
  from one4d_jax.model.one4d import AdapterConfig
  from one4d_jax.training import fairness

  config = configs.load(f'{ROOT}/configs/one4d.py')
  dit, reference = config.model.dit, config.model.adapters
  equal = {kind: fairness.equal_parameters(dit, AdapterConfig(kind=kind), reference) for kind in MODELS}
  return {kind: counted(dit, adapters, fairness.sample(config)) for kind, adapters in equal.items()}


def measured(configs: dict, rounds: int) -> dict:
  """Of a training step by preset: MiB as the compiler tells, ms as the median of ``rounds``."""
  import jax
  import jax.numpy as jnp

  from one4d_jax.parallel import mesh as meshes
  from one4d_jax.planning import programs

  mesh = meshes.make('fsdp', jax.devices()[:1])
  zeros = lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
  steps, states, others, found = {}, {}, {}, {}
  for name, config in configs.items():
    program = programs.train(config, mesh)
    steps[name] = program.lower().compile()
    memory = steps[name].memory_analysis()
    sizes = {'arguments': memory.argument_size_in_bytes, 'temporaries': memory.temp_size_in_bytes}
    found[name] = {key: size / 2**20 for key, size in sizes.items()}
    states[name], *others[name] = (jax.tree.map(zeros, tree) for tree in program.arguments.values())
    states[name], _ = steps[name](states[name], *others[name])  # the first is not counted
    print(f'{name}: compiled', file=sys.stderr)
  times = {name: [] for name in configs}
  for _ in range(rounds):
    for name, step in steps.items():
      start = time.perf_counter()
      states[name], _ = jax.block_until_ready(step(states[name], *others[name]))
      times[name].append(1e3 * (time.perf_counter() - start))
  return {name: row | {'milliseconds': statistics.median(times[name])} for name, row in found.items()}


def accuracy(folder: str | None, names: list[str]) -> dict:
  """What the reports say of the model, over all sequences, by preset and figure."""
  from one4d_jax.evaluation import report

  found = {}
  for name in names if folder else ():
    path = pathlib.Path(folder) / name / 'report.json'
    if path.is_file():
      pooled = json.loads(path.read_text())['pooled']['model']['all']
      shown = ((part, key) for part, key, *_ in report.COLUMNS if key in ACCURACY)
      found[name] = {key: report.value(pooled, part, key) for part, key in shown}
  return found


def tables(results: dict) -> dict[str, str]:
  """The three tables of the page."""
  from one4d_jax.evaluation import report

  models, paper, runs = results['models'], results['paper'], results['runs']
  rank = lambda row: str(row['rank'] or '-')
  layers = lambda row: ', '.join(map(str, row['link_layers'])) or '-'
  ratio = lambda row, of, key: f'{row[key] / of[key]:.2f}'
  cost = [
    (
      name,
      rank(row),
      layers(row),
      f'{row["trained"]:,}',
      f'{row["forward"] / 1e9:.2f}',
      f'{row["step"] / 1e9:.2f}',
      ratio(row, models['dlc'], 'step'),
      f'{row["arguments"]:.0f} + {row["temporaries"]:.0f}',
      f'{row["milliseconds"]:.0f}',
      ratio(row, models['dlc'], 'milliseconds'),
    )
    for name, row in models.items()
  ]
  heading = (
    'model',
    'rank',
    'links after',
    'trained',
    'forward, GFLOP',
    'step, GFLOP',
    'of dlc',
    'memory, MiB',
    'step, ms',
  )
  large = [
    (
      name,
      rank(row),
      f'{row["trained"] / 1e6:,.0f}',
      f'{row["forward"] / 1e15:.2f}',
      f'{row["step"] / 1e15:.2f}',
      ratio(row, paper['dlc'], 'step'),
    )
    for name, row in paper.items()
  ]
  known = {key for row in runs.values() for key in row['accuracy'] if key in ACCURACY}
  shown = {key: (heading, factor, style) for _, key, heading, factor, style in report.COLUMNS if key in known}
  cell = lambda value, factor, style: '-' if value is None else format(factor * value, style)
  good = [
    (
      name,
      str(row['steps']),
      f'{row["operations"] / 1e12:.1f}',
      *(cell(row['accuracy'].get(key), factor, style) for key, (_, factor, style) in shown.items()),
    )
    for name, row in runs.items()
  ]
  return {
    'cost': report.table(cost, (*heading, 'of dlc')),
    'paper': report.table(large, ('model', 'rank', 'trained, M', 'forward, PFLOP', 'step, PFLOP', 'of dlc')),
    'accuracy': report.table(good, ('preset', 'steps', 'TFLOP in all', *(heading for heading, *_ in shown.values()))),
  }


def main(args: argparse.Namespace) -> None:
  from one4d_jax.training import fairness

  presets = configurations()
  models = {name: config for name, config in presets.items() if not name.endswith('_flops')}
  times, found = measured(models, args.rounds), accuracy(args.evaluations, list(presets))
  of = {name: counted(c.model.dit, c.model.adapters, fairness.sample(c)) for name, c in models.items()}
  samples = lambda c: c.train.steps * c.train.batch * c.train.accumulation
  results = {
    'models': {name: row | times[name] for name, row in of.items()},
    'paper': at_the_papers_sizes(),
    'runs': {
      name: {
        'steps': config.train.steps,
        'operations': samples(config) * of[name.removesuffix('_flops')]['step'],
        'accuracy': found.get(name, {}),
      }
      for name, config in presets.items()
    },
  }
  page.record(args, results, tables)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
