"""What a scene costs and loses when steps are skipped, taken less often or go without guidance.

  python benchmarks/caching.py
  python benchmarks/caching.py --clips 2

The embedded model on held-out clips of the level medium; the settings take turns on each clip. Time is that of
``generate``, from pixels to both videos, in which all but the steps is the same. Writes the tables of
docs/performance.md.
"""

import argparse
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import embedded, page  # noqa: E402
from one4d_jax import cli  # noqa: E402

VIDEO = {
  'every step of 50': {},
  **{f'cache {value:g}': {'cache': value} for value in (0.02, 0.05, 0.1, 0.2, 0.4)},
  '25 steps': {'steps': 25},
  '10 steps': {'steps': 10},
}
IMAGE = {
  'no guidance': {},
  'guidance 2': {'guidance': 2.0},
  'guidance 2 at noise above 0.98': {'guidance': 2.0, 'guidance_interval': (0.98, 1.0)},
  'guidance 2, cache 0.05': {'guidance': 2.0, 'cache': 0.05},
}
SETTINGS = {'video': VIDEO, 'image': IMAGE}  # by what is observed
FIGURES = ('psnr', 'abs_rel', 'delta1', 'ate_share', 'edges')


def parser() -> argparse.ArgumentParser:
  p = page.parser('caching', __doc__, page='docs/performance.md')
  p.add_argument('--weights', metavar='DIR', help='a bundle; default: the embedded model')
  p.add_argument('--clips', type=int, default=10, help='(default: %(default)s)')
  return p


def rows(bundle, task: str, clips: int) -> list[dict]:
  """A row for each clip and setting."""
  from tqdm import tqdm

  from one4d_jax.data.clip import signed
  from one4d_jax.evaluation import methods
  from one4d_jax.evaluation.benchmarks import EvalConfig
  from one4d_jax.model.generate import generate
  from one4d_jax.model.umc import observed_frames

  cfg, observed, made = EvalConfig(task=task), observed_frames(task, bundle.config.frames), []
  for i in tqdm(range(clips), task, unit='clip'):
    truth = embedded.held_out(bundle, 'medium', i)
    for name, settings in SETTINGS[task].items():
      run = lambda settings=settings, truth=truth: generate(
        bundle, signed(truth.rgb), observed, truth.caption, **({'steps': 50} | settings)
      )
      if i == 0:
        run()  # compiles
      start = time.perf_counter()
      found = run()
      seconds = time.perf_counter() - start
      prediction = methods.from_codes([found.xyz], [range(truth.frames)], rgb=found.rgb)
      figures = embedded.figures(truth, prediction, cfg.protocol())
      made.append({'task': name, 'level': 'medium', 'seconds': seconds, **figures})
  return made


def table(found: list[dict]) -> str:
  """A line for each setting; the first is what the others are faster than."""
  from one4d_jax.evaluation import report

  def shown(levels: dict, figure: str) -> str:
    _, factor, style = embedded.FIGURES[figure]
    return format(factor * levels['medium'][figure][embedded.how(figure)], style)

  seconds = lambda name: statistics.median(row['seconds'] for row in found if row['task'] == name)
  whole, lines = seconds(found[0]['task']), []
  for name, levels in embedded.pooled(found).items():
    times = f'{seconds(name):.2f}', f'{whole / seconds(name):.2f}'
    lines.append((name, *times, *(shown(levels, figure) for figure in FIGURES)))
  headings = (embedded.FIGURES[figure][0] for figure in FIGURES)
  return report.table(lines, ('', 's', 'times as fast', *headings))


def tables(results: dict) -> dict[str, str]:
  return {f'caching-{task}': table(made) for task, made in results['rows'].items()}


def main(args: argparse.Namespace) -> None:
  from one4d_jax.model import bundle as bundles

  bundle = bundles.load(args.weights)
  found = {task: rows(bundle, task, args.clips) for task in SETTINGS}
  results = {'weights': bundle.hash, 'clips': args.clips, 'versions': page.versions('jax', 'jaxlib'), 'rows': found}
  page.record(args, results, tables)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
