"""How good the embedded model is: its card, the figures of README and the limits that a test holds it to.

  python benchmarks/embedded.py
  python benchmarks/embedded.py --weights runs/tiny/one4d/export --clips 4

Held-out clips of each level, known whole, by a quarter of their frames or by the first; sampled, decoded and scored as
``one4d_jax.evaluate`` does. Every clip is kept in ``--work`` when it is done, so that an interrupted run goes on.
Writes the tables of docs/tiny.md and a picture of clips made from one image.
"""

import argparse
import functools
import itertools
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page  # noqa: E402
from one4d_jax import cli  # noqa: E402

LEVELS = ('easy', 'medium', 'hard')
TASKS = ('video', 'sparse', 'image')
FIGURES = {  # heading, factor, format
  'psnr': ('PSNR RGB, dB', 1, '.2f'),
  'abs_rel': ('Abs Rel', 1, '.4f'),
  'delta1': ('δ < 1.25, %', 100, '.1f'),
  'first': ('Abs Rel of frame 0', 1, '.4f'),
  'focal_error': ('focal error, %', 100, '.1f'),
  'ate_share': ('ATE, % of path', 100, '.1f'),
  'rpe_r': ('RPE-R, °', 1, '.2f'),
  'edges': ('edges, %', 100, '.1f'),
  'flow': ('flow, of true', 1, '.2f'),
}
SHOWN = FIGURES | {'xyz': ('Abs Rel of XYZ', 1, '.4f')}  # in some table
MEDIAN = ('focal_error', 'ate_share', 'flow')  # a few clips without parallax would decide the mean
# What the model is to reach at the level medium: figure, how it is pooled, limit, whether it is the largest allowed.
TARGETS = {
  'vae': (('psnr', 'mean', 30, False), ('xyz', 'mean', 0.03, True)),
  'video': (
    ('abs_rel', 'mean', 0.08, True),
    ('delta1', 'mean', 0.95, False),
    ('focal_error', 'median', 0.10, True),
    ('ate_share', 'median', 0.10, True),
    ('psnr', 'mean', 28, False),
  ),
  'sparse': (('abs_rel', 'mean', 0.10, True),),
  'image': (('first', 'mean', 0.10, True), ('flow', 'median', 2, True), ('flow', 'median', 0.5, False)),
}


def parser() -> argparse.ArgumentParser:
  p = page.parser('embedded', __doc__, page='docs/tiny.md')
  p.add_argument('--weights', metavar='DIR', help='a bundle; default: the embedded model')
  p.add_argument('--clips', type=int, default=16, help='of each level (default: %(default)s)')
  p.add_argument('--steps', type=int, default=50, help='of the solver (default: %(default)s)')
  p.add_argument('--work', metavar='DIR', default='runs/embedded', help='rows and frames (default: %(default)s)')
  return p


def flow(video: np.ndarray) -> float:
  """Mean length in pixels of the optical flow between successive frames of ``[F H W 3]``."""
  from skimage.color import rgb2gray
  from skimage.registration import optical_flow_ilk

  grey = rgb2gray(video)
  return float(np.mean([np.hypot(*optical_flow_ilk(a, b, radius=5)) for a, b in itertools.pairwise(grey)]))


def held_out(bundle, level: str, seed: int):
  """The truth of a clip that no model was trained on, of the size of a bundle's."""
  from one4d_jax.evaluation import benchmarks

  size = {name: getattr(bundle.config, name) for name in ('frames', 'height', 'width')}
  return benchmarks.truth(benchmarks.held_out_clip(level, seed, **size), f'{level}-{seed:04d}')


def how(name: str) -> str:
  """A figure of many clips is pooled."""
  return 'median' if name in MEDIAN else 'mean'


def figures(truth, found, protocol) -> dict[str, float | None]:
  """Of one clip."""
  from one4d_jax.data.clip import signed
  from one4d_jax.evaluation import report, score

  row = score.score(truth, found, protocol)
  parts = {name: part for part, name, *_ in report.COLUMNS}
  made = {name: report.value(row, parts[name], name) for name in FIGURES if name in parts}
  curve = row['frames'].get('abs_rel')
  made['first'] = curve[0] if curve else None
  moves = flow(signed(truth.rgb))
  made['flow'] = flow(np.asarray(found.rgb)) / moves if moves > 0.05 else None  # some clips stand still
  return made


def measured(bundle, clips: int, steps: int, work: pathlib.Path) -> list[dict]:
  """A row for each clip and task, and for each clip's round trip through the VAE."""
  from tqdm import tqdm

  from one4d_jax.data.clip import signed
  from one4d_jax.evaluation import methods
  from one4d_jax.evaluation.benchmarks import EvalConfig

  predict = {'vae': methods.round_trip(bundle, EvalConfig())}
  predict |= {task: methods.model(bundle, EvalConfig(task=task, steps=steps)) for task in TASKS}

  def row(task: str, level: str, seed: int, path: pathlib.Path) -> dict:
    truth = held_out(bundle, level, seed)
    found = predict[task](truth)
    np.savez_compressed(path.with_suffix('.npz'), made=(found.rgb * 127).astype(np.int8), true=signed(truth.rgb))
    of_codes = {'xyz': xyz_error(bundle, methods.true_code(truth))} if task == 'vae' else {}
    return {'task': task, 'level': level, 'seed': seed, **figures(truth, found, EvalConfig().protocol()), **of_codes}

  rows = []
  for task, level, seed in tqdm([(t, v, i) for t in predict for v in LEVELS for i in range(clips)], unit='clip'):
    path = work / task / f'{level}-{seed:04d}.json'
    rows.append(page.kept(path, functools.partial(row, task, level, seed, path)))
  return rows


def xyz_error(bundle, code: np.ndarray) -> float:
  """Abs Rel of z of the VAE's round trip of an exact XYZ video, where both show a point; nothing is aligned."""
  import jax

  vae, params = bundle.vae, bundle.params['vae']
  back = np.asarray(jax.jit(lambda video: vae.decode(params, vae.encode(params, video)))(code[None]))[0]
  made, z = depths(back, code)
  return float(np.mean(np.abs(made - z) / z))


def depths(made: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """z of two XYZ videos where both show a point, and the second one before the first camera."""
  from one4d_jax.model import pointmap

  shown = pointmap.valid_from_code(made) & pointmap.valid_from_code(true)
  made, true = (pointmap.denormalise(pointmap.undo_soft_limit(x))[shown, 2] for x in (made, true))
  return made[true > 0], true[true > 0]


def pooled(rows: list[dict]) -> dict:
  """``{task: {level: {figure: {'mean', 'median', 'clips'}}}}`` over the clips that have the figure."""
  made = {}
  for row in rows:
    for name in (*FIGURES, 'xyz'):
      if row.get(name) is not None:
        made.setdefault(row['task'], {}).setdefault(row['level'], {}).setdefault(name, []).append(row[name])
  numbers = lambda x: {'mean': float(np.mean(x)), 'median': float(np.median(x)), 'clips': len(x)}
  return {t: {v: {n: numbers(x) for n, x in f.items()} for v, f in levels.items()} for t, levels in made.items()}


def judged(of: dict) -> list[dict]:
  """Every target beside what was measured."""
  found = []
  for task, targets in TARGETS.items():
    for name, how, limit, at_most in targets:
      value = of[task]['medium'].get(name, {}).get(how)
      met = value is not None and (value <= limit if at_most else value >= limit)
      row = {'task': task, 'figure': name, 'pooled': how, 'limit': limit, 'at_most': at_most}
      found.append(row | {'value': value, 'met': met})
  return found


def _cell(name: str, value: float | None) -> str:
  _, factor, style = SHOWN[name]
  return '-' if value is None else format(factor * value, style)


def quality(results: dict, *levels: str) -> str:
  """Pooled figures of every task at these levels, which are named where there are several."""
  from one4d_jax.evaluation import report

  rows = [
    (task, *(level,) * (len(levels) > 1), *(_cell(name, of[level].get(name, {}).get(how(name))) for name in FIGURES))
    for task, of in results['pooled'].items()
    for level in levels
  ]
  headings = [heading + (' (median)' if name in MEDIAN else '') for name, (heading, *_) in FIGURES.items()]
  return report.table(rows, ('given', *('level',) * (len(levels) > 1), *headings))


def tables(results: dict) -> dict[str, str]:
  """The card's tables."""
  from one4d_jax.evaluation import report

  targets = [
    (
      row['task'],
      f'{SHOWN[row["figure"]][0]}, {row["pooled"]}',
      f'{"≤" if row["at_most"] else "≥"} {_cell(row["figure"], row["limit"])}',
      _cell(row['figure'], row['value']),
      'yes' if row['met'] else 'no',
    )
    for row in results['targets']
  ]
  return {
    'quality': quality(results, *results['pooled']['video']),
    'targets': report.table(targets, ('given', 'level medium', 'target', 'measured', 'met')),
  }


def sheet(work: pathlib.Path, clips: int) -> np.ndarray:
  """Clips of the level medium made from one image: in turn the true one and what the model makes."""
  from one4d_jax.viewer.pictures import video_sheet

  rows = []
  for seed in range(clips):
    kept = np.load(work / 'image' / f'medium-{seed:04d}.npz')
    rows += [kept['true'], kept['made'].astype(np.float32) / 127]
  return video_sheet(rows)


def readme(results: dict) -> dict[str, str]:
  return {'embedded': quality(results, 'medium')}


def main(args: argparse.Namespace) -> None:
  from one4d_jax.model import bundle as bundles
  from one4d_jax.viewer.pictures import save_png

  bundle = bundles.load(args.weights)
  work = pathlib.Path(args.work) / f'{bundle.hash}-{args.steps}'
  rows = measured(bundle, args.clips, args.steps, work)
  save_png(sheet(work, args.clips), pathlib.Path(args.out).with_suffix('.png'))
  results = {'weights': bundle.hash, 'clips': args.clips, 'steps': args.steps, 'pooled': pooled(rows)}
  results |= {'targets': judged(results['pooled']), 'rows': rows}
  page.record(args, results, tables, readme=None if args.weights else readme)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
