"""Stage 1: the causal video VAE, on RGB and XYZ videos of the procedural world.

  python -m one4d_jax.train --config configs/vae.py:tiny

The paper keeps Wan's own VAE, so there is no paper preset. ``tiny`` has Wan's blocks, with patches of 8 x 8 pixels in
place of its spatial resamplers: it starts as the best linear autoencoder of such patches and is trained on whole clips.
"""

from configs import tiny

PRESETS = ('tiny',)


def get_config(preset: str):
  c = tiny.common()
  c.workdir = 'runs/tiny/vae'
  c.train.stage = 'vae'
  c.train.batch, c.train.crop = 2, (17, 64)
  c.train.steps = 2600
  c.train.learning_rate, c.train.schedule = 1e-4, 'cosine'
  c.train.ema = 0.99
  return c
