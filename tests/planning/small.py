"""A configuration whose programs compile in seconds."""

from one4d_jax import config as configs
from tests.e2e import DATA, MODEL

SMALL = (*DATA, *MODEL, 'model.dit.heads=4', 'train.batch=8', 'train.ema=0.9', 'train.accumulation=2')


def config(*values: str):
  return configs.load('configs/one4d.py:tiny', [*SMALL, *values])
