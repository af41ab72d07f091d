"""What the presets ``tiny`` and ``small`` share: the three stages on the procedural world, which needs no files.

``tiny`` is for two CPU cores and made the embedded model; ``small``, for one accelerator, has four times the pixels,
twice the frames and ten times the parameters, and was never run.
"""

from one4d_jax.config import defaults


def common(preset: str):
  c, small = defaults(), preset == 'small'
  c.model.dtype = 'bfloat16' if small else 'float32'
  c.model.remat = 'block' if small else 'none'

  c.data.source = 'procedural'
  c.data.cache = f'runs/{preset}/data'
  c.data.frames, c.data.height, c.data.width, c.data.fps = (33, 128, 128, 16.0) if small else (17, 64, 64, 8.0)
  c.data.clips, c.data.sparse_masks = 20000 if small else 3000, 1

  vae, channels = c.model.vae, 128 if small else 96
  vae.patch, vae.mult, vae.temporal = 8, (1, 1, 1), (True, True)
  vae.width, vae.res_blocks = (192, 1) if small else (100, 0)
  vae.latent_channels = channels
  vae.latent_mean, vae.latent_std = (0.0,) * channels, (1.0,) * channels  # measured when the stage ends

  dit = c.model.dit
  dit.in_channels, dit.out_channels, dit.patch = channels + 4 + channels, channels, (1, 1, 1)
  dit.width, dit.ffn_width, dit.heads, dit.layers = (512, 1536, 8, 12) if small else (192, 512, 4, 6)
  dit.sigma_data = 0.6  # few dimensions beside those of the noise: docs/tiny.md
  dit.freq_width, dit.text_width, dit.text_len, dit.image_width = 128, 96, 160, 96

  text = c.model.text
  text.vocab, text.width, text.ffn_width, text.heads, text.layers, text.tokenizer = 259, 96, 256, 4, 2, 'bytes'
  image = c.model.image
  image.image_size, image.patch, image.width, image.layers, image.heads, image.mlp_width = 64, 16, 96, 3, 4, 256

  adapters = c.model.adapters
  adapters.rank, adapters.alpha = (64, 64.0) if small else (16, 16.0)
  adapters.link_layers = (1, 3, 5, 7, 9) if small else (0, 1, 2, 3, 4)

  c.train.accumulation, c.train.log_every, c.train.validate_every = 1, 20, 1000
  c.train.schedule = 'cosine'
  c.sample.steps, c.sample.guidance = 20, 1.0
  return c
