"""Stage 1: the causal video VAE, on RGB and XYZ videos of the procedural world.

  python -m one4d_jax.train --config configs/vae.py:tiny
  python -m one4d_jax.train --config configs/vae.py:tiny_long

The tiny presets are Wan's architecture at a sixth of its width: first on short pieces, where a step is cheap, then on
whole clips, where the memory of the causal convolutions fills. The paper keeps Wan's own VAE, so there is no paper
preset.
"""

from configs import tiny

PRESETS = ('tiny', 'tiny_long')


def get_config(preset: str):
  c = tiny.common()
  c.workdir = 'runs/tiny/vae'
  c.train.stage = 'vae'
  c.train.batch, c.train.crop = 8, (5, 32)
  c.train.steps = 800
  c.train.learning_rate = 4e-3
  c.train.ema = 0.98
  if preset == 'tiny_long':
    c.workdir = 'runs/tiny/vae_long'
    c.model.weights = 'runs/tiny/vae/export'
    c.train.batch, c.train.crop = 4, (17, 32)
    c.train.steps, c.train.learning_rate, c.train.schedule = 1400, 3e-3, 'cosine'
    c.train.ema = 0.995
  return c
