"""Stage 2: the base video model (in-painting with text), and narrow text and image encoders trained beside it.

  python -m one4d_jax.train --config configs/base.py:tiny

It stands for Wan2.1-Fun-InP, whose weights take its place in the paper preset of ``one4d.py``.
"""

from configs import tiny

PRESETS = ('tiny',)


def get_config(preset: str):
  c = tiny.common()
  c.workdir = 'runs/tiny/base'
  c.model.weights = 'runs/tiny/vae/export'
  c.train.stage = 'base'
  c.train.steps = 1800
  c.train.batch = 8
  c.train.learning_rate = 1e-3
  c.train.schedule = 'cosine'
  c.train.ema = 0.998
  c.train.text_only = 0.2
  c.train.tasks = (0.35, 0.30, 0.35)
  return c
