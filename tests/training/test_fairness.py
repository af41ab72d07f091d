"""Equal parameters and equal operations: computed, and as near as whole ranks and steps allow."""

import dataclasses

import pytest

from one4d_jax import config as configs
from one4d_jax.model import baselines
from one4d_jax.model.one4d import AdapterConfig
from one4d_jax.training import fairness, flops
from one4d_jax.wan.config import DiTConfig

CFG = DiTConfig(width=48, ffn_width=64, heads=4, layers=3, text_width=24, image_width=20, freq_width=16)
REFERENCE = AdapterConfig(rank=8, alpha=4.0, link_layers=(0, 2))
named = pytest.mark.parametrize('kind', baselines.MODELS)
total = lambda adapters: sum(fairness.trained(CFG, adapters).values())


@named
def test_no_other_rank_is_nearer(kind):
  equal = fairness.equal_parameters(CFG, dataclasses.replace(REFERENCE, kind=kind), REFERENCE)
  if kind == 'full':
    assert equal == dataclasses.replace(REFERENCE, kind='full')
    return
  away = lambda rank: abs(total(dataclasses.replace(equal, rank=rank)) - total(REFERENCE))
  assert away(equal.rank) == min(map(away, (equal.rank - 1, equal.rank, equal.rank + 1)))
  assert equal.alpha / equal.rank == REFERENCE.alpha / REFERENCE.rank
  assert kind != 'dlc' or equal == REFERENCE


def test_as_many_operations_in_other_numbers_of_steps():
  reference = configs.load('configs/one4d.py:tiny')
  with_kind = lambda kind: dataclasses.replace(
    reference,
    model=dataclasses.replace(
      reference.model, adapters=dataclasses.replace(reference.model.adapters, kind=kind, link_layers=(1,))
    ),
  )
  cost = lambda run: sum(flops.one4d(run.model.dit, run.model.adapters, fairness.sample(run)).step.values())
  for kind in baselines.MODELS:
    run = with_kind(kind)
    steps = fairness.equal_operations(run, reference)
    assert abs(steps * cost(run) - reference.train.steps * cost(reference)) <= cost(run) / 2
  assert fairness.equal_operations(with_kind('channel_concat'), reference) > reference.train.steps
  assert fairness.equal_operations(reference, reference) == reference.train.steps


def test_the_sample_is_what_training_counts():
  run = configs.load('configs/one4d.py')
  assert fairness.sample(run) == flops.Sizes(1, (21, 22, 39), 512, 257)
