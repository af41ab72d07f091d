"""The loop of a run."""

import json
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from one4d_jax import config as configs
from one4d_jax import train as trainer
from one4d_jax.errors import UserError
from one4d_jax.model.bundle import Bundle
from one4d_jax.training import metrics
from one4d_jax.training import setup as setups
from one4d_jax.training.stages import VAEStage
from one4d_jax.training.step import init_state, mean
from tests.e2e import DATA, MODEL


def nothing(*_):
  """A step that learns nothing, and so compiles nothing."""
  state = init_state({'w': jnp.ones(2)}, optax.identity(), seed=0, ema=0.9)
  found = {name: mean(jnp.zeros(1)) for name in ('loss', 'skipped', 'skipped_in_a_row')}
  return setups.Setup(lambda state, *_: (state.replace(step=state.step + 1), found), state, lambda: state)


@pytest.fixture
def train(tmp_path, monkeypatch):
  """Trains nothing for some steps; takes settings, and what is asked whether to stop."""
  monkeypatch.setattr(setups, 'setup', nothing)

  def run(stops=lambda step: False, **settings) -> bool:
    settings = {'batch': 8, 'crop': [5, 16], 'steps': 5} | settings
    values = [*DATA, *MODEL, f'data.cache={tmp_path / "data"}', *(f'train.{k}={v}' for k, v in settings.items())]
    return trainer.train(configs.load('configs/vae.py:tiny', values), tmp_path, types.SimpleNamespace(stops=stops))

  return run


def test_steps_before_a_validation_are_told_before_its_time_is_dropped(train, tmp_path, monkeypatch):
  monkeypatch.setattr(VAEStage, 'validate', lambda *_: ({'psnr': 1.0}, np.zeros((8, 8, 3), np.uint8)))
  monkeypatch.setattr(VAEStage, 'finished', lambda stage, params: Bundle({}, stage.bundle.config, {}))
  assert train(log_every=2, validate_every=3)
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows if 'seconds_per_step' in row] == [2, 3, 4, 5]
  assert [row['step'] for row in rows if 'validation/psnr' in row] == [3, 5]


def test_a_run_that_ends_with_an_error_closes_its_metrics(train, monkeypatch):
  """An open file of TensorBoard would end the process with a traceback of its own."""
  closed = []
  monkeypatch.setattr(metrics.Writer, 'close', lambda writer: closed.append(writer))

  def fail(step):
    raise UserError('no more')

  with pytest.raises(UserError, match='no more'):
    train(stops=fail)
  assert len(closed) == 1
