"""Metrics of a run: rows, resuming, what a crash leaves, and the copies in TensorBoard and Weights & Biases."""

import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from one4d_jax.errors import ConfigError
from one4d_jax.training import metrics

PICTURE = np.zeros((4, 6, 3), np.uint8)


def write(folder, steps, **options):
  writer = metrics.Writer(folder, **options)
  for step in steps:
    writer.scalars(step, {'loss': float(step), 'again': float(options.get('resume_step') or 0)})
  writer.image(steps[-1], 'validation', PICTURE)
  writer.close()


def steps(folder):
  return [row['step'] for row in metrics.read(folder)]


def test_rows_are_json_lines_and_read_back(tmp_path):
  write(tmp_path, [1, 2])
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['loss'] for line in lines] == [1.0, 2.0] and 'time' in json.loads(lines[0])
  assert metrics.last(tmp_path) == {'step': 2, 'loss': 2.0, 'again': 0.0}
  assert list((tmp_path / 'tensorboard').iterdir())
  write(tmp_path, [3])
  assert steps(tmp_path) == [1, 2, 3], 'added to'


def test_a_run_that_resumes_from_an_older_checkpoint_repeats_no_row(tmp_path):
  write(tmp_path, [2, 4, 6, 8])
  write(tmp_path, [6, 8, 10], resume_step=5)
  assert steps(tmp_path) == [2, 4, 6, 8, 10]
  assert [row['again'] for row in metrics.read(tmp_path)] == [0, 0, 5, 5, 5]
  write(tmp_path, [1], resume_step=0)
  assert steps(tmp_path) == [1], 'a run from the beginning starts anew'
  assert {path.name for path in tmp_path.iterdir()} == {'metrics.jsonl', 'tensorboard'}


def test_tensorboard_is_told_where_the_run_goes_on(tmp_path, monkeypatch):
  told = []
  real = metrics.SummaryWriter
  monkeypatch.setattr(metrics, 'SummaryWriter', lambda *args, **named: told.append(named) or real(*args, **named))
  write(tmp_path, [6], resume_step=5)
  write(tmp_path, [7])
  assert told == [{'purge_step': 6}, {'purge_step': None}]


@pytest.mark.parametrize('torn', ['{"step": 3, "lo', '{"step": 3', '\x00\x00', '[]', '12'])
def test_a_row_cut_off_by_a_crash_is_left_out(tmp_path, torn):
  write(tmp_path, [1, 2])
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write(torn)
  assert steps(tmp_path) == [1, 2] and metrics.last(tmp_path)['step'] == 2
  write(tmp_path, [3], resume_step=2)
  assert steps(tmp_path) == [1, 2, 3]
  assert all(json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines())


def test_other_processes_are_silent(tmp_path):
  write(tmp_path / 'run', [1], enabled=False, wandb='project')
  assert not (tmp_path / 'run').exists()
  assert metrics.read(tmp_path) == [] and metrics.last(tmp_path) == {}


def test_what_is_not_finite_is_read_back(tmp_path):
  writer = metrics.Writer(tmp_path)
  writer.scalars(1, {'loss': float('nan')})
  writer.close()
  assert np.isnan(metrics.last(tmp_path)['loss'])


# -- Weights & Biases --------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
  """A stand-in that keeps, by run id, what a server would: rows by step, none before the newest."""
  kept, inits = {}, []

  class Run:
    def __init__(self, **options):
      inits.append(options)
      self.rows = kept.setdefault(options['id'], {})
      self.step = max(self.rows) + 1 if self.rows else 0

    def log(self, values, step):
      assert step >= self.step, 'refused'
      self.step = step
      self.rows.setdefault(step, {}).update(values)

    def finish(self):
      pass

  fake = types.SimpleNamespace(init=Run, Image=lambda picture: picture.shape)
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  return types.SimpleNamespace(kept=kept, inits=inits)


def test_a_resumed_run_goes_on_in_wandb(tmp_path, wandb):
  write(tmp_path, [2, 4, 6], wandb='ours')
  write(tmp_path, [6, 8], resume_step=5, wandb='ours')
  assert len({options['id'] for options in wandb.inits}) == 1 and wandb.inits[1]['resume'] == 'allow'
  assert wandb.inits[0]['project'] == 'ours' and wandb.inits[0]['name'] == tmp_path.name
  (rows,) = wandb.kept.values()
  assert list(rows) == [2, 4, 6, 8]
  assert rows[6] == {'loss': 6.0, 'again': 0.0, 'validation': (4, 6, 3)}, 'step 6 was there'


def test_wandb_gets_the_rows_that_it_lacks(tmp_path, wandb):
  """Of a run that was offline, or that began without it."""
  write(tmp_path, [2, 4, 6])
  write(tmp_path, [6], resume_step=5, wandb='ours/first')
  assert wandb.inits[0]['name'] == 'first' and wandb.inits[0]['project'] == 'ours'
  (rows,) = wandb.kept.values()
  assert list(rows) == [2, 4, 6]
  assert rows[2] == {'loss': 2.0, 'again': 0.0}


def test_without_wandb_the_way_out_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ConfigError, match='pip install wandb'):
    metrics.Writer(tmp_path, wandb='ours')


@pytest.mark.skipif(importlib.util.find_spec('wandb') is None, reason='wandb is not installed')
def test_wandb_itself_offline(tmp_path):
  code = (
    'import pathlib, sys; from one4d_jax.training.metrics import Writer\n'
    'writer = Writer(pathlib.Path(sys.argv[1]), resume_step=int(sys.argv[2]), wandb="ours/run")\n'
    'writer.scalars(int(sys.argv[2]) + 1, {"loss": 0.5}); writer.close()'
  )
  environment = os.environ | {'WANDB_MODE': 'offline', 'JAX_PLATFORMS': 'cpu', 'HOME': str(tmp_path)}
  for step in (0, 1):
    subprocess.run([sys.executable, '-c', code, str(tmp_path), str(step)], env=environment, check=True, timeout=120)
  run = (tmp_path / 'wandb-id.txt').read_text()
  assert len(list((tmp_path / 'wandb').glob(f'offline-run-*-{run}'))) == 2 and steps(tmp_path) == [1, 2]


# -- Memory ------------------------------------------------------------------------------------------------------------


def test_memory_of_the_process_where_devices_do_not_tell():
  found = metrics.memory()
  assert set(found) == {'memory/process_peak_gib'} and 0.05 < found['memory/process_peak_gib'] < 64


def test_memory_of_the_fullest_device(monkeypatch):
  device = lambda peak: types.SimpleNamespace(memory_stats=lambda: {'peak_bytes_in_use': peak})
  monkeypatch.setattr(jax, 'local_devices', lambda: [device(2**30), device(3 * 2**30)])
  assert metrics.memory() == {'memory/device_peak_gib': 3.0}
