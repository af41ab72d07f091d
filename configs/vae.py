"""Stage 1: the causal video VAE, on RGB and XYZ videos of the procedural world.

  python -m one4d_jax.train --config configs/vae.py:tiny
  python -m one4d_jax.train --config configs/vae.py:small

The paper keeps Wan's own VAE, so there is no paper preset. These have Wan's blocks, with patches of 8 x 8 pixels in
place of its spatial resamplers: they start as the best linear autoencoder of such patches, trained on whole clips.
"""

from configs import tiny

PRESETS = ('tiny', 'small')


def get_config(preset: str):
  c = tiny.common(preset)
  c.workdir = f'runs/{preset}/vae'
  c.train.stage = 'vae'
  c.train.batch, c.train.crop, c.train.steps = (8, (33, 128), 20000) if preset == 'small' else (2, (17, 64), 2600)
  c.train.learning_rate = 1e-4
  c.train.ema = 0.99
  return c
