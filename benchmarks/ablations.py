"""What One4D's parts are worth, on a world whose truth is known: models, observed frames, guidance, solvers.

  python benchmarks/ablations.py models
  python benchmarks/ablations.py models --groups kinds --seeds 1
  python benchmarks/ablations.py sampling

``models`` trains each of ``MODELS`` on the embedded base, as often as there are seeds. ``sampling`` scores the embedded
model at several shares of observed frames, strengths of guidance, solvers and numbers of steps. All is scored on the
same held-out clips of the level medium. What is done is kept in ``--work``, so that an interrupted run goes on. Writes
tables of docs/ablations.md and a picture of each.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import embedded, page  # noqa: E402
from one4d_jax import cli  # noqa: E402

DRAWN = ('psnr', 'abs_rel', 'ate_share', 'edges')
SHOWN = ('psnr', 'abs_rel', 'delta1', 'focal_error', 'ate_share', 'edges')


@dataclasses.dataclass(frozen=True)
class Model:
  """A preset of ``configs/baselines.py``, perhaps of another rank or trained for another time."""

  preset: str = 'dlc'
  rank: int | None = None
  longer: float = 1  # times the steps
  equal_operations: bool = False  # as many steps as take the operations of ``dlc``, in place of as many

  def steps(self, steps: int) -> int:
    """Of its training, where ``dlc`` is trained for ``steps``."""
    from one4d_jax import config

    preset = lambda name: config.load(f'{ROOT}/configs/baselines.py:{name}').train.steps
    share = preset(f'{self.preset}_flops') / preset('dlc') if self.equal_operations else 1
    return round(steps * share * self.longer)


MODELS = {  # by table and row; what stands in two tables is trained once
  'kinds': {
    **{name: Model(name) for name in ('dlc', 'channel_concat', 'spatial_concat', 'shared_lora', 'no_links')},
    **{
      f'{name}, equal operations': Model(name, equal_operations=True) for name in ('channel_concat', 'spatial_concat')
    },
  },
  'links': {name: Model(name) for name in ('no_links', 'links_one', 'links_first', 'links_last', 'dlc', 'links_all')},
  'rank': {'4': Model(rank=4), '8': Model(rank=8), '16': Model(), '32': Model(rank=32)},
  'steps': {'x 1/3': Model(longer=1 / 3), 'x 1': Model(), 'x 3': Model(longer=3)},
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """How a clip is sampled; ``name`` is its row, ``group`` its table."""

  group: str
  name: str
  task: str = 'video'
  fraction: float = 1.0
  guidance: float = 1.0
  solver: str = 'euler'
  steps: int = 50


SAMPLING = (
  Setting('observed', 'all frames'),
  *(Setting('observed', f'{share:g}', 'sparse', share) for share in (0.5, 0.25, 0.1)),
  Setting('observed', 'first', 'image'),
  Setting('observed', 'text alone', 'text'),
  *(Setting('guidance', f'{value:g}', 'image', guidance=value) for value in (1.0, 2.0, 4.0, 6.0)),
  *(
    Setting('solver', f'{solver}, {steps}', 'video', solver=solver, steps=steps)
    for solver in ('euler', 'unipc', 'dpm++')
    for steps in (10, 20, 50)
  ),
)


def parser() -> argparse.ArgumentParser:
  p = page.parser('ablations', __doc__, page='docs/ablations.md')
  p.add_argument('what', choices=('models', 'sampling'))
  p.add_argument('--groups', metavar='A,B,...', default=','.join(MODELS), help='of models (default: %(default)s)')
  p.add_argument('--seeds', type=int, default=3, help='of training, or of sampling (default: %(default)s)')
  p.add_argument('--steps', type=int, default=300, help='of training (default: %(default)s)')
  p.add_argument('--batch', type=int, default=4, help='of training (default: %(default)s)')
  p.add_argument('--train-clips', type=int, default=1000, help='(default: %(default)s)')
  p.add_argument('--clips', type=int, default=8, help='held out, of the level medium (default: %(default)s)')
  p.add_argument('--work', metavar='DIR', default='runs/ablations', help='(default: %(default)s)')
  return p


def scored(bundle, setting: Setting, *, seed: int, clips: int, folder: pathlib.Path) -> list[dict]:
  """A row of ``embedded.FIGURES`` for each clip; kept in ``folder``."""
  from one4d_jax.evaluation import methods
  from one4d_jax.evaluation.benchmarks import EvalConfig

  sampled = {name: getattr(setting, name) for name in ('task', 'fraction', 'guidance', 'solver', 'steps')}
  cfg = EvalConfig(seed=seed, **sampled)
  predict = methods.model(bundle, cfg)

  def row(i: int) -> dict:
    truth = embedded.held_out(bundle, 'medium', i)
    return embedded.figures(truth, predict(truth), cfg.protocol())

  name = f'{setting.group}-{setting.name}-{seed}'.replace(', ', '-').replace(' ', '_')
  return [page.kept(folder / f'{name}-{i:04d}.json', functools.partial(row, i)) for i in range(clips)]


def trained(model: Model, seed: int, args: argparse.Namespace, base: pathlib.Path) -> pathlib.Path:
  """The bundle of one run of training, made by the command that a user runs."""
  steps, rank = model.steps(args.steps), f'-rank{model.rank}' if model.rank else ''
  run = pathlib.Path(args.work) / f'{model.preset}{rank}-{steps}x{args.batch}-seed{seed}'
  if not (run / 'export').is_dir():
    changes = {'steps': steps, 'batch': args.batch, 'seed': seed, 'validate_every': 0, 'ema': 0.99, 'keep': 1}
    values = {f'train.{key}': value for key, value in changes.items()}
    values |= {'model.weights': base, 'data.cache': pathlib.Path(args.work) / 'data', 'data.clips': args.train_clips}
    if model.rank:  # of one size of updates, as the presets have it
      values |= {'model.adapters.rank': model.rank, 'model.adapters.alpha': float(model.rank)}
    command = [sys.executable, '-m', 'one4d_jax.train', '--config', f'configs/baselines.py:{model.preset}']
    changes = (f'--config.{key}={value}' for key, value in values.items())
    subprocess.run([*command, '--workdir', str(run), *changes], cwd=ROOT, check=True)
  return run / 'export'


def models(args: argparse.Namespace) -> dict:
  """``{group: {row: [one row of mean figures a seed]}}``; a row for the whole video, and one for its first frame."""
  from one4d_jax.errors import ConfigError
  from one4d_jax.model import bundle as bundles

  groups = args.groups.split(',')
  if unknown := set(groups) - set(MODELS):
    raise ConfigError(f'--groups: no {", ".join(sorted(unknown))}; there are {", ".join(MODELS)}')
  base = pathlib.Path(args.work).resolve() / 'base'
  if not base.is_dir():
    bundles.save(bundles.load().without('adapters'), base)
  found = {}
  for group in groups:
    found[group] = {f'{name}, {task}': [] for task in ('video', 'image') for name in MODELS[group]}
    for name, model in MODELS[group].items():
      for seed in range(args.seeds):
        bundle = bundles.load(trained(model, seed, args, base))
        folder = pathlib.Path(args.work) / bundle.hash
        for task in ('video', 'image'):
          rows = scored(bundle, Setting('models', task, task, steps=20), seed=seed, clips=args.clips, folder=folder)
          found[group][f'{name}, {task}'].append(means(rows))
  return found


def sampling(args: argparse.Namespace) -> dict:
  """``{group: {setting: [one row of mean figures a seed]}}``."""
  from tqdm import tqdm

  from one4d_jax.model import bundle as bundles

  bundle, found = bundles.load(), {}
  for setting in tqdm(SAMPLING, unit='setting'):
    for seed in range(args.seeds):
      rows = scored(bundle, setting, seed=seed, clips=args.clips, folder=pathlib.Path(args.work) / bundle.hash)
      found.setdefault(setting.group, {}).setdefault(setting.name, []).append(means(rows))
  return found


def means(rows: list[dict]) -> dict[str, float | None]:
  """Over clips; of figures that a few clips without parallax would decide, the median."""
  pooled = embedded.pooled([{'task': '', 'level': '', **row} for row in rows])['']['']
  return {name: pooled.get(name, {}).get(embedded.how(name)) for name in embedded.FIGURES}


def values(seeds: list[dict], name: str) -> list[float]:
  """A figure as it is shown, of the seeds that have it."""
  return [embedded.FIGURES[name][1] * row[name] for row in seeds if row[name] is not None]


def table(rows: dict[str, list[dict]], heading: str) -> str:
  """Mean and standard deviation over seeds."""
  from one4d_jax.evaluation import report

  def cell(seeds: list[dict], name: str) -> str:
    known, style = values(seeds, name), embedded.FIGURES[name][2]
    return f'{np.mean(known):{style}} ± {np.std(known, ddof=1) if len(known) > 1 else 0:{style}}' if known else '-'

  columns = (heading, *(embedded.FIGURES[name][0] for name in SHOWN))
  return report.table([(name, *(cell(seeds, key) for key in SHOWN)) for name, seeds in rows.items()], columns)


def draw(made: dict[str, dict[str, list[dict]]], path: pathlib.Path) -> None:
  """A row of panels for each table: every seed a dot, their mean a bar."""
  from matplotlib.figure import Figure

  heights = [len(rows) for rows in made.values()]
  figure = Figure(figsize=(11, 0.9 * len(made) + 0.28 * sum(heights)), layout='constrained')
  grid = figure.subplots(len(made), len(DRAWN), squeeze=False, sharey='row', height_ratios=heights)
  for (group, rows), panels in zip(made.items(), grid, strict=True):
    for name, axis in zip(DRAWN, panels, strict=True):
      for y, seeds in enumerate(rows.values()):
        known = values(seeds, name)
        axis.barh(y, np.mean(known) if known else 0, color='#9ecae1')
        axis.plot(known, [y] * len(known), 'o', color='#08306b', markersize=3)
      axis.set_yticks(range(len(rows)), rows)
      axis.set_title(f'{group}: {embedded.FIGURES[name][0]}', fontsize=9)
      axis.tick_params(labelsize=8)
    panels[0].invert_yaxis()
  figure.savefig(path, dpi=110)


def tables(results: dict) -> dict[str, str]:
  return {f'{what}-{group}': table(rows, group) for what, of in results.items() for group, rows in of['rows'].items()}


def main(args: argparse.Namespace) -> None:
  out = pathlib.Path(args.out)
  results = json.loads(out.read_text()) if out.is_file() else {}
  made = models(args) if args.what == 'models' else sampling(args)
  settings = {k: v for k, v in vars(args).items() if k in ('seeds', 'steps', 'batch', 'train_clips', 'clips')}
  rows = results.get(args.what, {}).get('rows', {}) | made
  results[args.what] = {'settings': settings, 'rows': rows}
  draw(rows, out.with_name(f'{out.stem}-{args.what}.png'))
  page.record(args, results, tables)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
