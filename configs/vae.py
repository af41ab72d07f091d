"""Stage 1: the causal video VAE, on RGB and XYZ videos of the procedural world.

  python -m one4d_jax.train --config configs/vae.py:tiny

The tiny preset is Wan's architecture at a twelfth of its width. The paper keeps Wan's own VAE, so there is no paper
preset.
"""

from configs import tiny

PRESETS = ('tiny',)


def get_config(preset: str):
  c = tiny.common()
  c.workdir = 'runs/tiny/vae'
  c.train.stage = 'vae'
  c.train.steps = 1400
  c.train.batch = 8
  c.train.learning_rate = 3e-3
  c.train.schedule = 'cosine'
  c.train.ema = 0.998
  return c
