"""Benchmarks: ``python -m one4d_jax.evaluate --config configs/eval.py:procedural``.

Runs the embedded weights (or ``--weights``) on held-out clips and compares them with two things that must be worse:
the mean pointmap of the training clips, and the same model before its adapters were trained. Every clip is saved when
it is done, so an interrupted evaluation continues where it stopped.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from one4d_jax import cli, config
from one4d_jax.data.clip import signed
from one4d_jax.data.scenes import GENERATOR_VERSION
from one4d_jax.errors import ConfigError
from one4d_jax.evaluation import benchmarks, report, score
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.model.umc import observed_frames

Predict = Callable  # clip -> (XYZ code [F H W 3], rgb [F H W 3] or None)


def parser() -> argparse.ArgumentParser:
  """The command line."""
  p = argparse.ArgumentParser('python -m one4d_jax.evaluate', description=__doc__.split('\n\n')[0])
  cli.add_config(p, required=True)
  p.add_argument('--weights', metavar='DIR', help='a bundle; default: the embedded tiny model')
  p.add_argument('--out', metavar='DIR', default='runs/eval', help='rows and tables (default: %(default)s)')
  return p


def load_config(spec: str, overrides: Sequence[str] = ()) -> EvalConfig:
  """The checked ``EvalConfig`` of ``'file.py:preset'`` with ``'key=value'`` overrides (values in YAML).

  Raises:
    ConfigError: no such file, preset or key, or values that do not fit.
  """
  cfg = config.read(spec, overrides, EvalConfig)
  cfg.check()
  return cfg


def predictor(bundle, cfg: EvalConfig) -> Predict:
  """The model as a function of a clip."""
  from one4d_jax.model.generate import generate

  chosen = {'solver': cfg.solver, 'steps': cfg.steps, 'guidance': cfg.guidance}
  chosen = {name: value for name, value in chosen.items() if value}

  def predict(clip):
    observed = observed_frames(cfg.task, clip.frames, fraction=cfg.fraction)
    prompt = clip.caption if cfg.prompt else ''
    made = generate(bundle, signed(clip.rgb), observed, prompt, seed=cfg.seed, **chosen)
    return made.xyz, made.rgb

  return predict


def mean_predictor(cfg: EvalConfig, size: dict[str, int], out: pathlib.Path) -> Predict:
  """The mean pointmap of training clips as a function of a clip; kept in ``out``."""
  path = out / 'mean_pointmap.npy'
  if not path.is_file():
    clips = (benchmarks.train_clip(*name, **size) for name in benchmarks.names(cfg.train_levels, cfg.train_clips))
    progress = lambda clips: tqdm(clips, 'mean pointmap', cfg.train_clips, unit='clip')
    mean = score.mean_pointmap(clips, progress=progress)
    content = io.BytesIO()
    np.save(content, mean)
    report.write(path, content.getvalue())
  mean = np.load(path)
  return lambda clip: (mean, None)


def vae_predictor(bundle) -> Predict:
  """The VAE's round trip of a clip and its exact pointmap: no model over these latents can do better."""
  import jax

  vae, params = bundle.vae, bundle.params['vae']
  round_trip = jax.jit(lambda video: vae.decode(params, vae.encode(params, video)))

  def predict(clip):
    xyz, rgb = np.asarray(round_trip(np.stack([score.true_pointmap(clip), signed(clip.rgb)])))
    return xyz, rgb

  return predict


def claim(out: pathlib.Path, run: dict) -> None:
  """Makes ``out`` the place of this run, or continues it there.

  Raises:
    ConfigError: ``out`` holds the rows of another run.
  """
  path = out / 'run.json'
  if path.is_file():
    before = json.loads(path.read_text())
    differs = [name for name in run if run[name] != before.get(name)]
    if differs:
      raise ConfigError(f'{out} holds an evaluation with another {", ".join(differs)}; choose another --out')
  else:
    report.write_json(path, run)


def evaluate(cfg: EvalConfig, bundle, out: pathlib.Path) -> dict[str, list[dict]]:
  """Rows per method, made or read from ``out``; also writes ``report.json`` and ``report.md`` there.

  Raises:
    ConfigError: ``out`` holds the rows of another run.
  """
  run = {'config': dataclasses.asdict(cfg), 'weights': bundle.hash, 'generator': GENERATOR_VERSION}
  claim(out, json.loads(json.dumps(run)))
  size = {name: getattr(bundle.config, name) for name in ('frames', 'height', 'width')}
  rows = {}
  for method in cfg.methods:
    predict, rows[method] = None, []
    bar = tqdm(benchmarks.names(cfg.levels, cfg.clips), method, unit='clip')
    for level, seed in bar:
      path = out / 'rows' / method / f'{level}-{seed:04d}.json'
      if not path.is_file():
        predict = predict or _predictor(method, cfg, bundle, size, out)
        report.write_json(path, _row(benchmarks.held_out_clip(level, seed, **size), predict, cfg))
      rows[method].append(json.loads(path.read_text()))
  notes = [
    f'{cfg.clips} held-out clips of {size["frames"]} frames, {size["height"]}x{size["width"]}; task {cfg.task}, '
    f'depth aligned by {cfg.align}, weights {bundle.name} ({bundle.hash[:12]}).'
  ]
  report.write_json(out / 'report.json', run | {'pooled': report.summary(rows), 'rows': rows})
  report.write(out / 'report.md', report.markdown(f'Benchmark: {cfg.benchmark}', rows, notes))
  return rows


def _predictor(method: str, cfg: EvalConfig, bundle, size: dict[str, int], out: pathlib.Path) -> Predict:
  if method == 'mean':
    return mean_predictor(cfg, size, out)
  if method == 'vae':
    return vae_predictor(bundle)
  if method == 'truth':
    return lambda clip: (score.true_pointmap(clip), None)
  return predictor(bundle if method == 'model' else bundle.untrained(), cfg)


def _row(clip, predict: Predict, cfg: EvalConfig) -> dict:
  start = time.perf_counter()
  code, rgb = predict(clip)
  made = time.perf_counter()
  row = score.score(clip, code, rgb, align=cfg.align, options=cfg.postopt)
  return row | {'seconds': {'predict': made - start, 'score': time.perf_counter() - made}}


def main(args: argparse.Namespace) -> None:
  from one4d_jax.model import bundle

  cfg = load_config(args.config, args.overrides)
  out = pathlib.Path(args.out)
  rows = evaluate(cfg, bundle.load(args.weights), out)
  print((out / 'report.md').read_text())
  failed = sum(bool(row['failed']) for some in rows.values() for row in some)
  print(f'{out / "report.md"}\n{out / "report.json"}' + (f'\n{failed} clips failed; see rows' if failed else ''))


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
