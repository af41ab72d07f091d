"""Benchmarks: ``python -m one4d_jax.evaluate --config configs/eval.py:sintel --root DIR``.

Scores the embedded weights (or ``--weights``), or what another method has written (``--predictions``): one protocol,
one code path. The procedural benchmark needs no ``--root``; beside the model it has two methods that must be worse, the
mean pointmap of the training clips, and the same model before its adapters were trained. Every sequence is saved when
it is done, so an interrupted evaluation continues where it stopped.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from one4d_jax import cli, config
from one4d_jax.data.scenes import GENERATOR_VERSION
from one4d_jax.errors import ConfigError, DataError
from one4d_jax.evaluation import benchmarks, methods, predictions, report, score, video
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.evaluation.protocol import Protocol
from one4d_jax.evaluation.sequence import Listed
from one4d_jax.model import bundle as bundles


def parser() -> argparse.ArgumentParser:
  """The command line."""
  p = argparse.ArgumentParser('python -m one4d_jax.evaluate', description=__doc__.split('\n\n')[0])
  cli.add_config(p, required=True)
  made = p.add_mutually_exclusive_group()
  made.add_argument('--weights', '--checkpoint', metavar='DIR', help='a bundle; default: the embedded tiny model')
  made.add_argument('--predictions', metavar='DIR', help="another method's: a folder for each sequence")
  p.add_argument('--root', metavar='DIR', help='where the benchmark was unpacked; the procedural one needs none')
  p.add_argument('--out', metavar='DIR', default='runs/eval', help='rows, tables, plots (default: %(default)s)')
  return p


def load_config(spec: str, overrides: Sequence[str] = ()) -> EvalConfig:
  """The checked ``EvalConfig`` of ``'file.py:preset'`` with ``'key=value'`` overrides (values in YAML).

  Raises:
    ConfigError: no such file, preset or key, or values that do not fit.
  """
  cfg = config.read(spec, overrides, EvalConfig)
  cfg.check()
  return cfg


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


def evaluate(
  cfg: EvalConfig,
  out: pathlib.Path,
  *,
  bundle=None,
  foreign: pathlib.Path | None = None,
  root: pathlib.Path | None = None,
) -> dict[str, list[dict]]:
  """Rows per method, made or read from ``out``; also writes ``report.json``, ``report.md`` and ``plots/`` there.

  Args:
    bundle: the model, unless another method is scored. Procedural clips have its size, or that of the embedded one.
    foreign: the folder of another method's predictions, which are scored in place of the methods of ``cfg``.
    root: the folder of a downloaded benchmark.

  Raises:
    ConfigError: ``out`` holds the rows of another run, or choices that do not fit.
    DataError: a folder without the benchmark, or without any prediction.
  """
  sizes = bundles.describe(bundles.locate())[0] if bundle is None else bundle.config
  protocol, size = cfg.protocol(), {name: getattr(sizes, name) for name in ('frames', 'height', 'width')}
  listed = benchmarks.listed(cfg, protocol, root=root, size=size)
  if cfg.lpips:
    video.load_lpips()
  run = {'config': dataclasses.asdict(cfg), 'protocol': dataclasses.asdict(protocol), 'generator': GENERATOR_VERSION}
  run |= {'weights': bundle.hash} if foreign is None else {'predictions': predictions.identity(foreign)}
  claim(out, json.loads(json.dumps(run)))
  makers = {foreign.resolve().name: lambda: methods.foreign(foreign, protocol)} if foreign is not None else {
    name: lambda name=name: methods.predictor(name, cfg, bundle, size, out) for name in cfg.methods
  }  # fmt: skip
  rows = {}
  for method, make in makers.items():
    predict, rows[method] = None, []
    for sequence in tqdm(listed, method, unit='sequence'):
      path = out / 'rows' / method / f'{sequence.name}.json'
      if path.is_file():
        row = json.loads(path.read_text())
      else:
        predict = predict or make()
        row, whole = _row(sequence, predict, protocol, cfg)
        if whole:
          report.write_json(path, row)
      rows[method].append(row)
  weight = protocol.depth_weight
  by = f'weights {bundle.name} ({bundle.hash[:12]})' if foreign is None else f'predictions in {foreign.name}'
  notes = [protocol.about, f'{len(listed)} sequences; {describe(protocol)}; {by}.', *_task(cfg, foreign)]
  report.write_json(out / 'report.json', run | {'pooled': report.summary(rows, depth_weight=weight), 'rows': rows})
  text = report.markdown(f'Benchmark: {cfg.benchmark}', rows, notes, depth_weight=weight)
  report.write(out / 'report.md', text)
  for name, picture in report.plots(rows).items():
    report.write(out / 'plots' / name, picture)
  return rows


def describe(protocol: Protocol) -> str:
  """How it scores, in a few words."""
  limits = f'depth under {protocol.far:g}' if protocol.far else 'all known depth'
  cut = f', cut at {protocol.cut:g}' if protocol.cut else ''
  weight = 'valid pixels' if protocol.depth_weight == 'pixels' else 'sequence'
  return (
    f'{limits}, predictions resized to the ground truth by cubic interpolation, aligned once a sequence '
    f'(the columns: {protocol.align[0]}){cut}, depth pooled by {weight}, cameras after {protocol.trajectory_align} '
    'pooled by sequence'
  )


def _task(cfg: EvalConfig, foreign) -> list[str]:
  if foreign is not None:
    return []
  share = f', {cfg.fraction:g} of the frames observed' if cfg.task == 'sparse' else ''
  return [f'Task: {cfg.task}{share}; {"true captions where there are any" if cfg.prompt else "no prompts"}.']


def _row(sequence: Listed, predict: Callable, protocol: Protocol, cfg: EvalConfig) -> tuple[dict, bool]:
  """The row, and whether it is for good: what lacks files is tried again by the next run."""
  start = time.perf_counter()
  try:
    truth = sequence.open()
    found = predict(truth)
  except DataError as error:
    return score.absent(sequence.name, sequence.group, protocol, str(error)), False
  made = time.perf_counter()
  row = score.score(truth, found, protocol, lpips=cfg.lpips)
  return row | {'seconds': {'predict': made - start, 'score': time.perf_counter() - made}}, not truth.lacks


def main(args: argparse.Namespace) -> None:
  cfg = load_config(args.config, args.overrides)
  out = pathlib.Path(args.out)
  root, foreign = (None if path is None else pathlib.Path(path) for path in (args.root, args.predictions))
  if foreign is not None and not foreign.is_dir():
    raise DataError(f'{foreign} does not exist; --predictions takes a folder with a folder for each sequence')
  loaded = bundles.load(args.weights) if foreign is None else None
  rows = evaluate(cfg, out, bundle=loaded, foreign=foreign, root=root)
  print((out / 'report.md').read_text())
  skipped = sum(bool(row['skipped']) for some in rows.values() for row in some)
  print(
    f'{out / "report.md"}\n{out / "report.json"}' + (f'\n{skipped} rows are not whole; see above' if skipped else '')
  )


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
