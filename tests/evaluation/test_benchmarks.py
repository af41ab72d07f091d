"""The benchmark end to end, with stand-ins for the model: an oracle, and one that shows nothing."""

import dataclasses
import json
import types

import numpy as np
import pytest

from one4d_jax import cli, evaluate
from one4d_jax.data.clip import signed
from one4d_jax.errors import ConfigError
from one4d_jax.evaluation import benchmarks, depth, methods, report
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.evaluation.run import load_config
from one4d_jax.model import bundle
from one4d_jax.model import generate as model

SIZE = {'frames': 5, 'height': 32, 'width': 32}


@dataclasses.dataclass(frozen=True)
class Oracle:
  """Knows every held-out clip by its first frame. Untrained, it shows invalid pixels only."""

  trained: bool = True
  on_device: bool = False
  name: str = 'oracle'
  hash: str = '0123456789abcdef'
  config = types.SimpleNamespace(**SIZE)
  record = types.MappingProxyType({})

  def untrained(self):
    return dataclasses.replace(self, trained=False)


def run(options: list[str]) -> int:
  return cli.run(evaluate.main, evaluate.parser(), options)


@pytest.fixture
def oracle(monkeypatch):
  calls = []
  clips = [benchmarks.held_out_clip(*name, **SIZE) for name in benchmarks.names(EvalConfig().levels, 2)]
  codes = {signed(clip.rgb)[0].tobytes(): methods.true_code(clip) for clip in clips}

  def generate(bundle, video, observed, prompt, *, seed=0, **options):
    calls.append((bundle.trained, observed, prompt, options))
    assert bundle.on_device, 'each call would copy the weights'
    code = codes[video[0].tobytes()]
    return model.Generated(rgb=video * 0.99, xyz=code if bundle.trained else np.full_like(code, -1))

  monkeypatch.setattr(model, 'generate', generate)
  monkeypatch.setattr(bundle, 'load', lambda path: Oracle())
  monkeypatch.setattr(bundle, 'on_device', lambda found: dataclasses.replace(found, on_device=True))
  return calls


def test_oracle_is_perfect_and_nothing_is_reported_as_failed(oracle, tmp_path, capsys):
  options = ['--config', 'configs/eval.py:procedural', '--out', str(tmp_path), '--config.clips=2']
  options += ['--config.train_clips=3', '--config.steps=7', '--config.solver=unipc']
  assert run(options) == 0
  assert oracle[0][3] == {'steps': 7, 'solver': 'unipc', 'progress': None} and oracle[0][1].all() and oracle[0][2]
  pooled = json.loads((tmp_path / 'report.json').read_text())['pooled']
  model, mean, untrained = (pooled[m]['all'] for m in ('model', 'mean', 'untrained'))
  assert report.value(model, 'depth', 'abs_rel') < 0.01 and report.value(model, 'depth', 'delta1') > 0.99
  assert model['geometry']['focal_error'] < 0.01 and model['video']['psnr'] > 40
  assert report.value(mean, 'depth', 'abs_rel') > 5 * report.value(model, 'depth', 'abs_rel') and not mean['video']
  assert untrained['evaluated']['depth'] == 0 and untrained['geometry']['valid_iou'] == 0
  assert 'nothing to fit' in untrained['skipped']['depth']['easy-0000'] and untrained['depth'] == {}
  shown = capsys.readouterr().out
  assert '| model' in shown and 'easy-0000' in shown and not list(tmp_path.rglob('*.part*'))
  assert {path.name for path in (tmp_path / 'plots').iterdir()} == {'abs_rel.svg', 'ate.svg', 'psnr.svg'}

  made = len(oracle)  # a second run reads what is there; another configuration is not mixed in
  assert run(options) == 0 and len(oracle) == made
  assert run([*options, '--config.steps=8']) == 2
  assert 'another config' in capsys.readouterr().err


def test_without_arguments_it_says_what_is_needed(capsys):
  assert run([]) == 2
  assert '--config' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--config', 'configs/no.py'], 'no config file'),
    (['--config', 'configs/eval.py:kitti'], 'choose from procedural'),
    (['--config', 'configs/eval.py', '--config.clip=3'], "unknown config key 'clip'"),
    (['--config', 'configs/eval.py', '--config.clips=many'], 'must be of type int'),
    (['--config', 'configs/eval.py', '--config.task=text'], 'task='),
    (['--config', 'configs/eval.py', '--config.methods=[nerf]'], "names 'nerf'"),
    (['--config', 'configs/eval.py', '--config.seed=-1'], 'seed=-1 must be in 0 .. 4294967295'),
    (['--config', 'configs/eval.py', '--config.height=-16', '--config.width=-16'], 'height=-16 and width=-16'),
    (['--config', 'configs/eval.py', '--config.levels=[simple]'], "levels names 'simple'; choose from easy, medium, h"),
    (['--config', 'configs/eval.py', '--config.train_levels=[hard]'], "names 'hard'; choose from easy, medium\n"),
  ],
)
def test_mistakes_are_one_line(options, message, capsys):
  assert run(options) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


def test_presets_differ_from_the_default_as_named():
  assert load_config('configs/eval.py') == EvalConfig()
  assert load_config('configs/eval.py:sparse', ['fraction=0.1']) == EvalConfig(task='sparse', fraction=0.1)


def test_levels_take_turns():
  names = benchmarks.names(EvalConfig().levels, 5)
  assert names == [('easy', 0), ('medium', 0), ('hard', 0), ('easy', 1), ('medium', 1)]


def test_mean_pointmap_of_one_clip_is_that_clip():
  clip = benchmarks.train_clip('easy', 0, **SIZE)
  np.testing.assert_allclose(methods.mean_pointmap([clip, clip]), methods.true_code(clip), atol=1e-6)


def test_still_cameras_and_failures_stay_out_of_the_means_they_would_spoil():
  errors = dict.fromkeys(depth.ERRORS, 0.1)

  def row(name, ate, pixels, abs_rel, still=False):
    path = {'ate': ate, 'rpe_t': ate, 'rpe_r': ate, 'scale': 7.0, 'degenerate': still}
    made = {'name': name, 'trajectory': path, 'depth': {'scale': errors | {'abs_rel': abs_rel, 'pixels': pixels}}}
    return made | {'skipped': {}, 'video': {'psnr': 20.0}}

  failed = {'name': 'c', 'skipped': {'depth': 'no pixel', 'trajectory': 'no pose'}, 'video': {'psnr': 5.0}}
  pooled = report.pool([row('a', 1.0, 10, 0.1), row('b', 99.0, 20, 0.4, still=True), failed])
  assert (pooled['sequences'], pooled['still'], pooled['evaluated']['depth']) == (3, ['b'], 2)
  assert pooled['skipped']['depth'] == {'c': 'no pixel'} and pooled['skipped']['video'] == {}
  np.testing.assert_allclose([pooled['trajectory'][name] for name in ('ate', 'rpe_t', 'rpe_r')], (1, 1, 50))
  np.testing.assert_allclose((pooled['depth']['scale']['abs_rel'], pooled['video']['psnr']), (0.3, 15))
  assert 'scale' not in pooled['trajectory'] and pooled['geometry'] == {}


def test_benchmark_config_names_all_problems():
  with pytest.raises(ConfigError, match=r'benchmark=.*align names'):
    EvalConfig(benchmark='kitti', align=('affine',)).check()
