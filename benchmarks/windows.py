"""How far does a long clip drift that is made in windows? 200 frames with exact pointmaps, spoilt window by window.

  python benchmarks/windows.py

Each window gets the pointmap that a perfect model would make of it alone (its own world, its own scale), then errors of
its own: noise, and another focal length. Prints the table, writes ``benchmarks/results/windows.json`` and replaces the
table in ``docs/geometry.md``.
"""

import argparse
import json
import os
import pathlib
import sys
import textwrap

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np

from benchmarks import page
from one4d_jax import cli

FRAMES, HEIGHT, WIDTH = 200, 64, 96
LENGTHS = (50, 100, 150, 200)
SEEDS = (1, 2)  # scenes of level hard, split test: the camera travels and turns, things move
WINDOWS = (FRAMES, 81, 17)  # the first: all at once, which no window can beat
ERRORS = {  # of each window, independently: (noise over the median depth, cells of the noise, of the focal length)
  'none': (0, 1, 0),
  'independent 1%': (0.01, 1, 0),
  'smooth 1%': (0.01, 8, 0),
  'smooth 1%, focal 2%': (0.01, 8, 0.02),
}


def main(args: argparse.Namespace) -> None:
  rows = []
  for name, (level, *_) in ERRORS.items():
    for window in WINDOWS if level else WINDOWS[-1:]:
      rows.append(mean([measure(seed, name, window) for seed in SEEDS]) | {'errors': name, 'window': window})
      print(json.dumps(rows[-1]), flush=True)
  results = {'frames': FRAMES, 'size': [HEIGHT, WIDTH], 'seeds': SEEDS, 'rows': rows}
  page.record(args, results, tables)


def measure(seed: int, errors: str, window: int) -> dict:
  """Errors of one clip: of the path at each length, chained and fitted jointly, and of the seams."""
  from one4d_jax.data import render, scenes
  from one4d_jax.model.windows import default_overlap, spans
  from one4d_jax.postopt.windows import decode_windows

  scene = scenes.sample(seed, level='hard', split='test')
  clip = render.render(scene, frames=FRAMES, height=HEIGHT, width=WIDTH, supersample=1)
  cut = spans(FRAMES, window, default_overlap(window))
  made = [spoilt(clip, span, ERRORS[errors], np.random.default_rng([seed, window, i])) for i, span in enumerate(cut)]
  found, seams = decode_windows([code for code, _ in made], cut)
  paths = {'chained': seams.chained, 'joint': found.cameras.world_from_cam}
  row = {name: path_errors(path, clip, made[0][1] / 2) for name, path in paths.items()}
  row['focal'] = float(abs(found.cameras.K[0, 0, 0] / clip.K[0, 0, 0] - 1))
  units = [unit for _, unit in made]
  scales = np.array([seam.scale for seam in seams.seams]) / np.divide(units[1:], units[:-1])
  for name in ('point_median', 'point_p90', 'rotation', 'translation'):
    row[name] = float(np.mean([getattr(seam, name) for seam in seams.seams])) if seams.seams else 0.0
  row['scale'] = float(abs(np.log(scales)).mean()) if seams.seams else 0.0
  return row | {'scale_total': float(abs(np.log(scales).sum())), 'windows': len(cut)}


def spoilt(clip, span: range, errors: tuple[float, int, float], rng: np.random.Generator) -> tuple[np.ndarray, float]:
  """The code of one window and the S of its scale."""
  from one4d_jax.model import pointmap

  level, cell, zoom = errors
  at = slice(span.start, span.stop)
  K = clip.K[at].copy()
  K[:, [0, 1], [0, 1]] *= 1 + zoom * rng.normal()
  points = pointmap.from_depth(clip.depth[at], K, clip.world_from_cam[at])
  points = points + level * np.median(clip.depth[clip.valid]) * smooth_noise(points.shape, cell, rng)
  normalised, unit = pointmap.normalise(points.astype(np.float32), clip.valid[at])
  return pointmap.encode_input(normalised, clip.valid[at]), unit


def smooth_noise(shape: tuple[int, ...], cell: int, rng: np.random.Generator) -> np.ndarray:
  """Unit noise ``[F H W 3]``, linear between the nodes of a grid of ``cell`` pixels and half as many frames."""
  if cell == 1:
    return rng.normal(size=shape)
  steps = cell // 2, cell, cell
  noise = rng.normal(size=(*(n // c + 2 for n, c in zip(shape[:3], steps, strict=True)), 3))
  for axis, step in enumerate(steps):
    place = np.arange(shape[axis]) / step
    low = place.astype(int)
    part = (place - low).reshape([-1 if i == axis else 1 for i in range(4)])
    noise = np.take(noise, low, axis) * (1 - part) + np.take(noise, low + 1, axis) * part
  return noise / noise.std()


def path_errors(pose: np.ndarray, clip, unit: float) -> dict:
  """Over the median depth, of the first 50, 100, ... frames: ATE after one similarity, and the last frame's distance.

  The latter is in the first camera's world and true scale, nothing aligned: all that has gone wrong along the way.
  """
  from one4d_jax.evaluation.trajectory import trajectory_metrics

  truth = np.linalg.inv(clip.world_from_cam[0].astype(np.float64)) @ clip.world_from_cam
  pose = pose.astype(np.float64)
  pose[:, :3, 3] *= unit
  depth = float(np.median(clip.depth[clip.valid]))
  away = np.linalg.norm(pose[:, :3, 3] - truth[:, :3, 3], axis=1) / depth
  return {
    'ate': [trajectory_metrics(pose[:n], truth[:n]).ate / depth for n in LENGTHS],
    'away': [float(np.sqrt(np.square(away[n - 10 : n]).mean())) for n in LENGTHS],
  }


def mean(rows: list[dict]) -> dict:
  """Of equal rows, value by value."""
  first = rows[0]
  if isinstance(first, dict):
    return {name: mean([row[name] for row in rows]) for name in first}
  return np.mean(rows, axis=0).tolist()


def tables(results: dict) -> dict[str, str]:
  heads = ['errors', 'windows', 'seams: points', 'scale', 'cameras', *(f'ATE at {n}' for n in LENGTHS), 'chained']
  heads += ['drift', 'chained']
  lines = ['| ' + ' | '.join(heads) + ' |', '|' + '---|' * len(heads)]
  percent = lambda x: f'{x:.2%}' if x > 5e-5 else '0'
  for row in results['rows']:
    seams = ['', '', '']
    if row['windows'] > 1:
      cameras = f'{row["rotation"]:.2f}°, {percent(row["translation"])}'
      seams = [percent(row['point_median']), percent(row['scale']), cameras]
    kinds = f'{row["windows"]:.0f} of {row["window"]}'
    paths = [*map(percent, row['joint']['ate']), percent(row['chained']['ate'][-1])]
    away = [percent(row[name]['away'][-1]) for name in ('joint', 'chained')]
    lines.append('| ' + ' | '.join([row['errors'], kinds, *seams, *paths, *away]) + ' |')
  note = (
    f'Mean of {len(SEEDS)} procedural clips of {FRAMES} x {HEIGHT} x {WIDTH} with moving objects. Errors are drawn for '
    'each window: noise over the median depth, independent for every pixel or smooth over 8 pixels and 4 frames, and '
    'the relative standard deviation of the focal length (right depths on wrong rays, just what the common focal '
    'length undoes). Seams: median distance of the same point in both windows, '
    'over its distance; error of the scale; angle and distance between the two cameras of a shared frame. ATE after '
    'one similarity, of the first 50 to 200 frames; drift: distance of the last ten cameras from the truth, nothing '
    'aligned; chained: the same without the common fit. Lengths are over the median depth.'
  )
  return {'windows': '\n'.join([*lines, '', *textwrap.wrap(note, 120), ''])}


if __name__ == '__main__':
  sys.exit(cli.run(main, page.parser('windows', __doc__, page='docs/geometry.md')))
