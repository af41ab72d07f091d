"""Stage 2: the base video model (in-painting with text), and narrow text and image encoders trained beside it.

  python -m one4d_jax.train --config configs/base.py:tiny
  python -m one4d_jax.train --config configs/base.py:small

It stands for Wan2.1-Fun-InP, whose weights take its place in the paper preset of ``one4d.py``.
"""

from configs import tiny

PRESETS = ('tiny', 'small')


def get_config(preset: str):
  c = tiny.common(preset)
  c.workdir = f'runs/{preset}/base'
  c.model.weights = f'runs/{preset}/vae/export'
  c.train.stage = 'base'
  c.train.batch, c.train.steps = (64, 30000) if preset == 'small' else (4, 3600)
  c.train.learning_rate = 5e-4 if preset == 'small' else 2e-3
  c.train.ema = 0.998
  c.train.text_only = 0.2
  c.train.tasks = (0.35, 0.30, 0.35)
  return c
