"""The paper's tables, measured: which weights and which files a row needs, its runs, and what came of them.

``out/ROW/BENCHMARK`` is the evaluation of a row on a benchmark, a folder like any other that ``--compare`` reads.
Downloaded benchmarks are expected in one folder, each under the name in ``PLACES``.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from one4d_jax.data import media
from one4d_jax.data.clip import signed
from one4d_jax.evaluation import benchmarks, paper, report, vbench
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.evaluation.paper import WORLD, Outcome, PaperRow, PaperTable
from one4d_jax.model import bundle as bundles
from one4d_jax.model.bundle import Bundle
from one4d_jax.model.umc import observed_frames
from one4d_jax.viewer.pictures import to_uint8

PLACES = {'sintel': 'sintel', 'bonn': 'bonn', 'tum_30': 'tum', 'vbench': 'vbench2_beta_i2v'}
_PAPER = 'the paper: 14B, 81 frames of 352x624, adapters trained for 5500 steps'


class Weights(NamedTuple):
  """A bundle, as far as its description tells; ``path`` None is the embedded one."""

  path: str | None
  name: str
  sizes: bundles.Sizes
  steps: int | None

  def __str__(self) -> str:
    trained = 'not trained here' if self.steps is None else f'adapters trained for {self.steps} steps'
    dit = self.sizes.dit
    return (
      f'{self.name}: DiT of {dit.layers} layers, width {dit.width}, {self.sizes.frames} frames of '
      f'{self.sizes.height}x{self.sizes.width}, {trained}'
    )


def describe(path: str | None) -> Weights:
  """What a bundle says of itself. Raises CheckpointError where there is none."""
  folder = bundles.locate(path)
  sizes, record = bundles.describe(folder)
  return Weights(path, folder.name, sizes, paper.train_steps(record))


def run(
  cfg: EvalConfig,
  out: pathlib.Path,
  *,
  weights: Sequence[str | None],
  root: pathlib.Path | None,
  evaluate: Callable[..., dict[str, list[report.Row]]],
) -> pathlib.Path:
  """Evaluates every row of One4D in ``cfg.table`` as far as there is what it needs; writes ``table.md`` and ``.json``.

  Args:
    weights: the first is evaluated; others have their own rows in a table by training steps.
    root: the folder of downloaded benchmarks.
    evaluate: as in ``evaluation/run.py``.
  """
  known = [describe(path) for path in weights]
  table = with_weights(paper.load(cfg.table), known)
  load = functools.lru_cache(maxsize=1)(lambda path: bundles.on_device(bundles.load(path)))

  def outcome(row: PaperRow, benchmark: str) -> Outcome:
    chosen = choose(row, known)
    place = None if benchmark == WORLD else _place(root, benchmark)
    if missing := next((reason for reason in (chosen, place) if isinstance(reason, str)), None):
      return missing
    here = dataclasses.replace(cfg, table='', benchmark=benchmark, **row.run)
    here.check()
    rows = evaluate(here, out / _folder(row.name) / benchmark, bundle=load(chosen.path), root=place)
    return _outcome(table, report.pool(next(iter(rows.values())), depth_weight=here.protocol().depth_weight), chosen)

  return _write(table, paper.measure(table, outcome), out, [str(some) for some in known])


def with_weights(table: PaperTable, known: Sequence[Weights]) -> PaperTable:
  """A table by training steps gets a row for weights that the paper has none for."""
  if not table.by_steps:
    return table
  rows = [row for row in table.rows if row.train_steps is not None]
  more = {some.steps for some in known[1:]} - {row.train_steps for row in rows} - {None}
  own = [PaperRow(f'{n} steps', (None,) * len(table.columns), rows[0].run, n) for n in sorted(more)]
  return dataclasses.replace(table, rows=(*table.rows, *own))


def choose(row: PaperRow, known: Sequence[Weights]) -> Weights | str:
  """The weights of a row, or why there are none."""
  if row.train_steps is None:
    return known[0]
  fitting = [some for some in known if some.steps == row.train_steps]
  return fitting[0] if fitting else f'no weights trained for {row.train_steps} steps: add theirs to --weights'


def _place(root: pathlib.Path | None, benchmark: str) -> pathlib.Path | str:
  """Where a benchmark's files are, or that they are not."""
  name = PLACES[benchmark]
  if root is not None and (root / name).is_dir():
    return root / name
  return f'no data: give --root DIR, a folder with {name}/ in it'


def _folder(row: str) -> str:
  return re.sub(r'[^\w.]+', '_', row).strip('_')


def _outcome(table: PaperTable, pooled: report.Row, weights: Weights) -> dict[str, Any]:
  parts = {name: part for part, name, *_ in report.COLUMNS}
  figures = [column.figure for column in table.columns]
  asked = dict.fromkeys(parts[figure] for figure in figures)
  count = lambda part: f'{pooled["evaluated"][part]} of {pooled["evaluated"][part] + len(pooled["skipped"][part])}'
  basis = f'{", ".join(map(count, asked))} sequences, weights {weights.name}'
  return {figure: report.value(pooled, parts[figure], figure) for figure in figures} | {'basis': basis}


def run_vbench(cfg: EvalConfig, out: pathlib.Path, *, bundle: Bundle, root: pathlib.Path | None) -> pathlib.Path:
  """Table 2: writes the folder that VBench reads and, where it is installed, what it says; ``table.md``, ``.json``.

  The images are those of VBench's suite, five samples each, or without ``root`` the first frames of procedural clips.
  """
  sizes = bundle.config
  size = {'height': sizes.height, 'width': sizes.width}
  if root is None:
    names = benchmarks.names(cfg.levels, cfg.clips)
    clips = (benchmarks.held_out_clip(*name, frames=1, **size) for name in names)
    cases = vbench.own_cases(((clip.caption, clip.rgb[0]) for clip in clips), out)
  else:
    cases = vbench.suite_cases(root / PLACES['vbench'], out, **size)
  chosen = {name: value for name in ('solver', 'steps', 'guidance') if (value := getattr(cfg, name))}

  def make(image: pathlib.Path, prompt: str, index: int) -> np.ndarray:
    from one4d_jax.model.generate import generate

    video = np.zeros((sizes.frames, sizes.height, sizes.width, 3), np.uint8)
    video[:1] = media.read(image, frames=1, fps=sizes.fps, **size).video
    observed = observed_frames('image', sizes.frames, fraction=cfg.fraction)
    prompt = prompt if cfg.prompt else ''
    return to_uint8(generate(bundle, signed(video), observed, prompt, seed=cfg.seed + index, **chosen).rgb)

  progress = lambda videos: tqdm(videos, 'videos', unit='video')
  samples = 1 if root is None else vbench.SAMPLES
  vbench.export(cases, make, out, fps=sizes.fps, samples=samples, progress=progress)
  found: Outcome = vbench.how_to(out, **size)
  if vbench.installed():
    found = vbench.run(cases, out, **size)
    found['basis'] = f'{found["videos"]} videos of {len(cases)} images, weights {bundle.name}'
  weights = Weights(None, bundle.name, sizes, paper.train_steps(bundle.record))
  outcomes = {'vbench': found} if root is not None else {'vbench': _place(None, 'vbench'), WORLD: found}
  return _write(paper.load('table2'), {'One4D': outcomes}, out, [str(weights)])


def _write(table: PaperTable, measured: dict[str, dict[str, Outcome]], out: pathlib.Path, weights: list[str]):
  notes = ['\n'.join(f'- {text}' for text in [*(f'here: {text}' for text in weights), _PAPER])]
  report.write_json(out / 'table.json', paper.as_json(table, measured) | {'weights': weights})
  report.write(out / 'table.md', paper.markdown(table, measured, notes=notes))
  return out / 'table.md'
