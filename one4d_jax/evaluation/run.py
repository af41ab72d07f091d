"""What ``python -m one4d_jax.evaluate`` does."""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from one4d_jax import compiler, presets
from one4d_jax.data.scenes import GENERATOR_VERSION
from one4d_jax.errors import ConfigError, DataError
from one4d_jax.evaluation import benchmarks, methods, page, paper, predictions, preview, report, score, tables, video
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.evaluation.protocol import Protocol
from one4d_jax.evaluation.sequence import Listed
from one4d_jax.model import bundle as bundles


def main(args: argparse.Namespace) -> None:
  """All that the command line asks for."""
  if args.compare is not None:
    given = ('config', 'overrides', 'export_vbench', 'weights', 'predictions', 'root')
    if more := [name for name in given if getattr(args, name)]:
      raise ConfigError(f'--compare takes folders and --out alone, not {", ".join(more)}')
    print(*page.write(args.compare, pathlib.Path(args.out or 'runs/compare')), sep='\n')
    return
  if args.config is None:
    raise ConfigError('give --config FILE:PRESET, such as configs/eval.py:procedural, or --compare DIR DIR; see --help')
  cfg = load_config(args.config, args.overrides)
  out = pathlib.Path(args.export_vbench or args.out or 'runs/eval')
  root, foreign = (None if path is None else pathlib.Path(path) for path in (args.root, args.predictions))
  weights = args.weights or [None]
  videos = args.export_vbench is not None or cfg.table == 'table2'
  if len(weights) > 1 and (videos or not cfg.table or not paper.load(cfg.table).by_steps):
    raise ConfigError(f'--weights names {len(weights)} bundles; only a table by training steps, table6, takes several')
  if videos or cfg.table:
    if foreign is not None:
      raise ConfigError('a table and --export-vbench take --weights; score predictions by one benchmark after another')
    path = _table(cfg, out, videos=videos, weights=weights, root=root)
    print(f'{path.read_text()}\n{path}')
    return
  if foreign is not None and not foreign.is_dir():
    raise DataError(f'{foreign} does not exist; --predictions takes a folder with a folder for each sequence')
  loaded = bundles.on_device(bundles.load(weights[0])) if foreign is None else None
  rows = evaluate(cfg, out, bundle=loaded, foreign=foreign, root=root)
  print((out / 'report.md').read_text())
  skipped = sum(bool(row['skipped']) for some in rows.values() for row in some)
  print(
    f'{out / "report.md"}\n{out / "report.json"}' + (f'\n{skipped} rows are not whole; see above' if skipped else '')
  )


def load_config(spec: str, overrides: Sequence[str] = ()) -> EvalConfig:
  """The checked ``EvalConfig`` of ``'file.py:preset'`` with ``'key=value'`` overrides (values in YAML).

  Raises:
    ConfigError: no such file, preset or key, or values that do not fit.
  """
  cfg = presets.read(spec, overrides, EvalConfig)
  cfg.check()
  return cfg


def claim(out: pathlib.Path, run: dict) -> None:
  """Makes ``out`` the place of this run, or continues it there.

  Raises:
    ConfigError: ``out`` holds the rows of another run.
  """
  path = out / 'run.json'
  if path.is_file():
    try:
      before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
      raise ConfigError(f'{path} is damaged ({error}); choose another --out') from error
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
  compiler.check()
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
        row, whole = _row(sequence, predict, protocol, cfg, keep=functools.partial(preview.keep, out, method))
        if whole:
          report.write_json(path, row)
      rows[method].append(row)
  weight = protocol.depth_weight
  by = f'weights {bundle.name} ({bundle.hash[:12]})' if foreign is None else f'predictions in {foreign.name}'
  notes = [protocol.about, f'{len(listed)} sequences; {describe(protocol)}; {by}.', *_task(cfg, foreign)]
  about = {} if bundle is None else {'weights_name': bundle.name, 'train_steps': paper.train_steps(bundle.record)}
  pooled = report.summary(rows, depth_weight=weight)
  report.write_json(out / 'report.json', run | about | {'pooled': pooled, 'rows': rows})
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
  depth = (
    f'{limits}, predictions resized to the ground truth by cubic interpolation, aligned once a sequence '
    f'(the columns: {protocol.align[0]}){cut}, pooled by {weight}'
  )
  cameras = f'cameras after {protocol.trajectory_align}, pooled by sequence'
  return '; '.join([depth] * bool(protocol.depth) + [cameras] * bool(protocol.trajectory))


def _task(cfg: EvalConfig, foreign) -> list[str]:
  if foreign is not None:
    return []
  share = f', {cfg.fraction:g} of the frames observed' if cfg.task == 'sparse' else ''
  return [f'Task: {cfg.task}{share}; {"true captions where there are any" if cfg.prompt else "no prompts"}.']


def _row(
  sequence: Listed, predict: Callable, protocol: Protocol, cfg: EvalConfig, *, keep: Callable
) -> tuple[dict, bool]:
  """The row, and whether it is for good: what lacks files is tried again by the next run. ``keep`` saves pictures."""
  start = time.perf_counter()
  try:
    truth = sequence.open()
    found = predict(truth)
  except DataError as error:
    return score.absent(sequence.name, sequence.group, protocol, str(error)), False
  made = time.perf_counter()
  row = score.score(truth, found, protocol, lpips=cfg.lpips)
  keep(truth, found, row)
  return row | {'seconds': {'predict': made - start, 'score': time.perf_counter() - made}}, not truth.lacks


def _table(
  cfg: EvalConfig, out: pathlib.Path, *, videos: bool, weights: list[str | None], root: pathlib.Path | None
) -> pathlib.Path:
  """The file of one of the paper's tables; that of ``videos`` is made by exporting them to ``out``."""
  if not videos:
    return tables.run(cfg, out, weights=weights, root=root, evaluate=evaluate)
  bundle = bundles.on_device(bundles.load(weights[0]))
  run = {'config': dataclasses.asdict(cfg), 'weights': bundle.hash, 'generator': GENERATOR_VERSION}
  claim(out, json.loads(json.dumps(run)))
  return tables.run_vbench(cfg, out, bundle=bundle, root=root)
