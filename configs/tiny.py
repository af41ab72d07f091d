"""What the tiny presets share: sizes that two CPU cores can train, in the real architecture."""

from one4d_jax.config import defaults


def common():
  c = defaults()
  c.model.dtype = 'float32'
  c.model.remat = 'none'

  c.data.source = 'procedural'
  c.data.cache = 'runs/tiny/data'
  c.data.frames, c.data.height, c.data.width, c.data.fps = 17, 64, 64, 8.0
  c.data.clips, c.data.sparse_masks = 3000, 1

  vae, channels = c.model.vae, 96
  vae.patch, vae.width, vae.mult, vae.temporal, vae.res_blocks = 8, 100, (1, 1, 1), (True, True), 0
  vae.latent_channels = channels
  vae.latent_mean, vae.latent_std = (0.0,) * channels, (1.0,) * channels  # measured when the stage ends

  dit = c.model.dit
  dit.in_channels, dit.out_channels, dit.patch = channels + 4 + channels, channels, (1, 1, 1)
  dit.width, dit.ffn_width, dit.heads, dit.layers = 192, 512, 4, 6
  dit.freq_width, dit.text_width, dit.text_len, dit.image_width = 128, 96, 160, 96

  text = c.model.text
  text.vocab, text.width, text.ffn_width, text.heads, text.layers, text.tokenizer = 259, 96, 256, 4, 2, 'bytes'
  image = c.model.image
  image.image_size, image.patch, image.width, image.layers, image.heads, image.mlp_width = 64, 16, 96, 3, 4, 256

  adapters = c.model.adapters
  adapters.rank, adapters.alpha, adapters.link_layers = 16, 16.0, (0, 1, 2, 3, 4)

  c.train.accumulation, c.train.log_every, c.train.validate_every = 1, 20, 1000
  c.sample.steps, c.sample.guidance, c.sample.shift = 20, 1.0, 2.0
  c.train.shift = 2.0
  return c
