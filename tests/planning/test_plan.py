"""The command, its pages, and the refusal of runs that cannot fit."""

import importlib.util
import json
import shlex
import types

import jax
import pytest

from one4d_jax import cli, plan, sample, train
from one4d_jax.planning import advice, guard, hardware, report
from one4d_jax.planning.hardware import GIB


def run(tmp_path, *arguments):
  return cli.run(plan.main, plan.parser(), ['--out', str(tmp_path / 'plan'), '--no-compile', *arguments])


def written(tmp_path):
  return json.loads((tmp_path / 'plan/plan.json').read_text())


def test_a_plan_that_fits(tmp_path, capsys):
  assert run(tmp_path, '--topology', 'h100:8', '--price-per-device-hour', '2.5') == 0
  out = capsys.readouterr().out
  assert '8 x NVIDIA H100 80GB HBM3 (79.6 GiB each), 1 host, mesh fsdp' in out and 'fits: needs ' in out
  found = written(tmp_path)
  memory = found['memory']
  assert sum(memory['parts'].values()) == memory['peak'] and memory['fits'] and memory['source'] == 'model'
  assert found['recipe']['price'] == pytest.approx([2.5 * h for h in found['recipe']['device_hours']])
  words = ['python', '-m', 'one4d_jax.plan', '--no-compile', '--price-per-device-hour', '2.5']
  assert shlex.split(found['command']) == [*words, '--out', str(tmp_path / 'plan')]
  page = (tmp_path / 'plan/plan.html').read_text()
  assert page.count('<i title=') == 7 and 'http' not in page  # pieces of the bar; nothing is fetched


def test_too_little_memory_is_a_result(tmp_path, capsys):
  assert run(tmp_path, '--topology', 'h200:1') == 0
  assert 'has 141.0 GiB; try --config.train.batch=1 --config.train.accumulation=32 (' in capsys.readouterr().out
  assert not written(tmp_path)['memory']['fits']


def test_the_machine_is_that_of_the_paper_unless_one_is_named(tmp_path):
  assert run(tmp_path, '--config.train.seed=3', '--mesh', 'fsdp') == 0
  found = written(tmp_path)
  assert found['topology'] == 'h100:8' and found['command'].endswith('--config.train.seed=3')


def test_a_batch_is_split_as_the_mesh_needs_it(tmp_path, capsys):
  assert run(tmp_path, '--topology', 'v6e:4x8') == 0
  assert 'split otherwise: --config.train.batch=32 --config.train.accumulation=1' in capsys.readouterr().out


def test_other_tasks_and_the_search(tmp_path, capsys):
  assert run(tmp_path, '--topology', 'h100:8', '--task', 'sample', '--search', '--price-per-device-hour', '3') == 0
  out = capsys.readouterr().out
  assert 'What fits, best first' in out and '--mesh sequence=2,modality=2,cfg=2' in out and 'Price of a scene' in out
  assert run(tmp_path, '--topology', 'v5e:1x1') == 0
  assert 'take more devices, or larger ones' in capsys.readouterr().out
  assert run(tmp_path, '--topology', 'h100:8', '--task', 'encode') == 0
  assert set(written(tmp_path)['speed']['operations']) == {'vae', 'encoders'}


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--topology', 'tpu:8'], 'expected KIND:SHAPE'),
    (['--topology', 'h100:8', '--mesh', 'fsdp=3'], 'does not fit 8 devices'),
    (['--topology', 'h100:8', '--mesh', 'fsdp=-1,sequence=16'], 'does not fit 8 devices'),
    (['--topology', 'h100:64'], 'into 64 parts, and a step has 32 samples'),
    (['--topology', 'h100:8', '--price-per-device-hour', '-1'], 'must be above 0'),
    (['--topology', 'h100:8', '--config.train.stage=vae'], 'there are plans for one4d alone'),
    (['--topology', 'h100:8', '--task', 'encode', '--mesh', 'sequence=-1'], 'leave --mesh out, or give fsdp'),
  ],
)
def test_mistakes(tmp_path, capsys, arguments, message):
  assert run(tmp_path, *arguments) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'plan').exists()


def test_without_a_compiler_the_model_answers_and_the_report_says_so(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert cli.run(plan.main, plan.parser(), ['--out', str(tmp_path / 'plan'), '--topology', 'v5p:2x2x2']) == 0
  out = capsys.readouterr().out
  assert "step: no compiler for TPU v5: pip install -e '.[plan-tpu]'" in out and 'not compiled' in out


def test_a_compiled_peak_is_split_by_the_model(monkeypatch, tmp_path, capsys):
  from one4d_jax.planning import compiled

  found = {'arguments': 5 * GIB, 'temporaries': 80 * GIB, 'host': 0, 'peak': 85 * GIB, 'seconds': 1.0}
  monkeypatch.setattr(compiled, 'compiled', lambda *args, **kwargs: found | {'collectives': {'all-gather': 3}})
  assert cli.run(plan.main, plan.parser(), ['--out', str(tmp_path / 'plan'), '--topology', 'h100:8']) == 0
  out, memory = capsys.readouterr().out, written(tmp_path)['memory']
  assert memory['source'] == 'compiled' and not memory['fits'] and 'compiled: all-gather' in out
  assert sum(memory['parts'].values()) == pytest.approx(85 * GIB, abs=10)
  monkeypatch.setattr(compiled, 'compiled', lambda *args, **kwargs: {'needs': 83 * GIB, 'available': 80 * GIB})
  assert cli.run(plan.main, plan.parser(), ['--out', str(tmp_path / 'plan'), '--topology', 'h100:8']) == 0
  assert 'does not fit: needs 83.0 GiB a device, has 80.0 GiB; try --config' in capsys.readouterr().out


@pytest.mark.parametrize(('advance', 'source'), [('not_compiled', 'model'), ('needs', 'refused'), ('peak', 'compiled')])
def test_a_part_that_does_not_compile_leaves_the_model_to_answer(advance, source, monkeypatch, tmp_path):
  from one4d_jax.planning import compiled

  said = {
    'begin': {'peak': GIB},
    'advance': {'not_compiled': 'too long', 'needs': 200 * GIB, 'peak': 9 * GIB},
    'decode': {'peak': 2 * GIB},
  }
  answer = lambda *args, name, **kwargs: said[name] if name != 'advance' else {advance: said[name][advance]}
  monkeypatch.setattr(compiled, 'compiled', answer)
  options = ['--out', str(tmp_path / 'plan'), '--topology', 'h100:8', '--task', 'sample']
  assert cli.run(plan.main, plan.parser(), options) == 0
  memory = written(tmp_path)['memory']
  assert memory['source'] == source and memory['peak'] > 8 * GIB and memory['fits'] == (source != 'refused')


def test_a_narrow_margin_is_said(tmp_path, capsys):
  assert run(tmp_path, '--topology', 'a100-40:8') == 0
  assert 'may fit: needs 34.' in capsys.readouterr().out


def test_names_are_escaped(tmp_path, capsys):
  run(tmp_path, '--topology', 'h100:8')
  hostile = written(tmp_path) | {'about': '<script>alert(1)</script>', 'notes': ['<b>']}
  assert '<script>' not in report.page(hostile) and '<b>&' not in report.page(hostile)


@pytest.mark.parametrize('value, text', [(0.5, '0.5 s'), (90, '90 s'), (600, '10.0 min'), (86400 * 7.2, '7.2 days')])
def test_times_as_people_say_them(value, text):
  assert report.seconds(value) == text


# -- Refused before weights are loaded -----------------------------------------------------------------------------


class Device:
  """A GPU of which JAX may use three quarters, as it does by default."""

  device_kind, platform = 'NVIDIA A100-SXM4-40GB', 'gpu'

  def __init__(self, process_index=0):
    self.process_index = process_index

  def memory_stats(self):
    return {'bytes_limit': int(0.75 * hardware.KINDS['a100-40'].memory)}


def test_a_run_that_cannot_fit_is_refused_with_the_change_that_would_do():
  from one4d_jax import config as configs

  paper = configs.load('configs/one4d.py')
  with pytest.raises(guard.PlanError, match=r'needs about 3\d\.\d GiB a device.*gives 29\.5 GiB; try .*offload'):
    guard.check('train', paper, 'fsdp', [Device()] * 8)
  with pytest.raises(guard.PlanError, match='take more devices, or larger ones, or insist with --no-plan-check'):
    guard.check('sample', paper, 'fsdp', [Device()])
  guard.check('train', configs.load('configs/one4d.py', ['model.remat=offload']), 'fsdp', [Device()] * 8)
  guard.check('train', paper, 'fsdp=3', [Device()] * 8)  # no mesh: not for memory to say
  far = Device(process_index=1)
  far.memory_stats = lambda: pytest.fail('asked a device of another process')
  with pytest.raises(guard.PlanError, match='gives 29'):
    guard.check('train', paper, 'fsdp', [far] * 4 + [Device()] * 4)


def test_only_what_changes_is_suggested():
  from one4d_jax import config as configs

  def said(mesh, **changes):
    config = configs.load('configs/one4d.py', ['model.int8=True'])
    choice = advice.Choice(config, mesh, {name.replace('_', '.', 1): value for name, value in changes.items()})
    return guard.suggestion('sample', advice.Option(choice, types.SimpleNamespace(peak=30 * GIB), None))

  assert said('sequence=2') == 'try --mesh sequence=2 (30.0 GiB)', 'its base is int8 as it is'
  assert said('fsdp', model_int8=True, data_frames=33) == 'try a base converted with --int8 and frames 33 (30.0 GiB)'
  assert said('fsdp') == 'try --mesh fsdp (30.0 GiB)'


def test_train_ends_with_status_3(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(guard, 'host_memory', lambda: 1000)
  monkeypatch.setattr('one4d_jax.parallel.load.part', lambda *args, **kwargs: pytest.fail('weights were loaded'))
  from one4d_jax.model.files import EMBEDDED

  argv = ['--config', 'configs/one4d.py:tiny', f'--config.model.weights={EMBEDDED}', '--config.train.batch=8']
  argv += ['--workdir', str(tmp_path / 'run')]
  assert cli.run(train.main, train.parser(), argv) == 3
  assert 'this host has 0.0 MiB' in capsys.readouterr().err
  monkeypatch.setattr('one4d_jax.parallel.load.open_bundle', lambda path: pytest.fail('as far as this'))
  with pytest.raises(pytest.fail.Exception, match='as far as this'):
    cli.run(train.main, train.parser(), [*argv, '--no-plan-check'])


def test_sample_ends_with_status_3(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(guard, 'host_memory', lambda: 1000)
  monkeypatch.setattr('one4d_jax.model.bundle.load', lambda *args: pytest.fail('weights were loaded'))
  argv = ['--prompt', 'a red ball', '--out', str(tmp_path / 'out')]
  assert cli.run(sample.main, sample.parser(), argv) == 3
  assert 'weights and state alone take' in capsys.readouterr().err and not (tmp_path / 'out').exists()
  with pytest.raises(pytest.fail.Exception, match='weights were loaded'):
    cli.run(sample.main, sample.parser(), [*argv, '--no-plan-check'])


def test_host_memory_is_a_sensible_number():
  assert 2**28 < guard.host_memory() < 2**50 and jax.devices()[0].platform == 'cpu'
