"""Tables of the paper as sets of runs: which row is evaluated how, on which files, with which weights."""

import dataclasses
import json
import types

import numpy as np
import pytest

from one4d_jax import cli
from one4d_jax import evaluate as evaluation
from one4d_jax.evaluation import paper, tables, vbench
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.model import bundle as bundles
from one4d_jax.model import generate as model
from one4d_jax.model.bundle import Bundle


def bundle(folder, steps):
  folder.mkdir()
  record = {'one4d': {'config': {'train': {'stage': 'one4d'}}, 'steps': steps}}
  bundles.write_description(folder, bundles.WAN, record)
  return str(folder)


def row(name, abs_rel):
  errors = dict.fromkeys(('delta1', 'delta2', 'delta3', 'rmse', 'log_rmse'), 0.5) | {'abs_rel': abs_rel, 'pixels': 1}
  return {'name': name, 'group': '', 'skipped': {}, 'frames': {}, 'depth': {'scale_shift': errors}}


@pytest.fixture
def evaluate(monkeypatch):
  """In place of evaluating, notes what was asked for; Abs Rel is the guidance over ten, of every second sequence."""
  asked = []

  def run(cfg, out, *, bundle, root):
    asked.append((out.parent.name, cfg.benchmark, cfg.task, cfg.fraction, cfg.guidance, bundle, root and root.name))
    skipped = {'name': 'b', 'group': '', 'skipped': {'depth': 'no file'}, 'frames': {}}
    return {'model': [row('a', cfg.guidance / 10), skipped]}

  monkeypatch.setattr(bundles, 'load', lambda path: path and path.rpartition('/')[2])
  monkeypatch.setattr(bundles, 'on_device', lambda bundle: bundle)
  run.asked = asked
  return run


def cells(text, name):
  line = next(line for line in text.splitlines() if line.startswith(f'| {name} '))
  return [cell.strip() for cell in line.strip('|').split('|')]


def test_guidance_and_training_steps(tmp_path, evaluate):
  (tmp_path / 'data' / 'sintel').mkdir(parents=True)
  weights = [bundle(tmp_path / name, steps) for name, steps in (('last', 5500), ('early', 1000), ('odd', 77))]
  cfg = EvalConfig(table='table6', methods=('model',))
  path = tables.run(cfg, tmp_path / 'out', weights=weights, root=tmp_path / 'data', evaluate=evaluate)
  sintel = [(name, guidance, bundle) for name, b, _, _, guidance, bundle, _ in evaluate.asked if b == 'sintel']
  assert sintel == [
    ('CFG_4', 4.0, 'last'),
    ('CFG_5', 5.0, 'last'),
    ('1000_steps', 6.0, 'early'),
    ('default_CFG_6_5500_steps', 6.0, 'last'),
    ('77_steps', 6.0, 'odd'),
  ]
  text = path.read_text()
  four = cells(text, 'CFG 4')
  assert four[1:3] == ['0.257', '0.400'] and four[5:7] == ['0.092', 'not measured']
  assert four[9] == 'sintel: 1 of 2 sequences, weights last; bonn: no [1]'
  assert cells(text, '3000 steps')[2] == 'not measured' and 'no weights trained for 3000 steps' in text
  assert cells(text, '77 steps')[1:3] == ['-', '0.600']
  assert 'no data: give --root DIR, a folder with bonn/ in it' in text
  assert 'adapters trained for 1000 steps' in text and 'the paper: 14B' in text
  found = json.loads((tmp_path / 'out' / 'table.json').read_text())
  assert found['measured']['CFG 4']['sintel']['abs_rel'] == 0.4 and len(found['weights']) == 3


def test_sparsity_without_any_data(tmp_path, evaluate):
  path = tables.run(
    EvalConfig(table='table5'), tmp_path, weights=[bundle(tmp_path / 'w', 1)], root=None, evaluate=evaluate
  )
  assert [(name, b, task, fraction) for name, b, task, fraction, *_ in evaluate.asked] == [
    *((f'{f:.2f}', 'procedural', 'sparse', f) for f in (0.5, 0.25, 0.1, 0.05, 0.04, 0.03)),
    ('full', 'procedural', 'video', EvalConfig().fraction),
  ]
  of_paper, world = path.read_text().split('## The same settings')
  assert of_paper.count('not measured') == 4 * 7 and 'weights w' in world


def test_every_column_has_a_benchmark_and_a_figure():
  for name in paper.names():
    for column in paper.load(name).columns:
      assert column.benchmark in tables.PLACES
      if column.benchmark != 'vbench':
        EvalConfig(benchmark=column.benchmark, methods=('model',)).check()
        assert column.figure in [figure for _, figure, *_ in tables.report.COLUMNS]


def test_videos_of_procedural_images(tmp_path, monkeypatch):
  size = {'frames': 5, 'height': 32, 'width': 48}
  asked = []

  def generate(bundle, video, observed, prompt, *, seed, **options):
    asked.append((observed.tolist(), prompt, seed, options, video[1:].min(), video[0].std()))
    return types.SimpleNamespace(rgb=np.repeat(video[:1], 5, axis=0))

  monkeypatch.setattr(model, 'generate', generate)
  tiny = Bundle({}, dataclasses.replace(bundles.WAN, fps=8.0, **size), {}, name='tiny')
  cfg = EvalConfig(clips=2, guidance=3.0, seed=7)
  path = tables.run_vbench(cfg, tmp_path / 'out', bundle=tiny, root=None)
  assert len(asked) == 2 and asked[0][0] == [True] + [False] * 4 and asked[0][1]
  assert asked[0][2:5] == (7, {'guidance': 3.0}, -1.0) and asked[0][5] > 0
  assert len(list((tmp_path / 'out' / 'videos').glob('*-0.mp4'))) == 2
  text = path.read_text()
  assert cells(text, 'One4D')[1:3] == ['55.7', 'not measured'] and 'pip install vbench' in text

  monkeypatch.setattr(vbench, 'installed', lambda: True)
  scores = {'dynamic_degree': 0.5, 'i2v_consistency': 0.97, 'aesthetic_quality': 0.4, 'videos': 2}
  monkeypatch.setattr(vbench, 'run', lambda *a, **k: dict(scores))
  text = tables.run_vbench(cfg, tmp_path / 'out', bundle=tiny, root=None).read_text()
  of_paper, world = text.split('## The same settings')
  assert len(asked) == 2 and cells(of_paper, 'One4D')[2] == 'not measured'
  assert cells(world, 'One4D') == ['One4D', '50.0', '97.0', '40.0', '2 videos of 2 images, weights tiny']


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['table9'], 'choose from procedural'),
    (['table5', '--weights', 'a', 'b'], 'only a table by training steps, table6, takes several'),
    (['table3', '--predictions', 'a'], 'take --weights'),
    (['table6', '--config.table=7'], 'table='),
    (['table6', '--weights', 'nowhere'], "no weights at 'nowhere'"),
  ],
)
def test_mistakes_are_one_line(options, message, tmp_path, capsys):
  preset, *more = options
  arguments = ['--config', f'configs/eval.py:{preset}', '--out', str(tmp_path), *more]
  assert cli.run(evaluation.main, evaluation.parser(), arguments) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
