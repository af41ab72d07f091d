"""Floating-point operations of VAE, text and image encoder; ``training/flops.py`` has those of the DiT.

A product of ``[n, a]`` and ``[a, b]`` is 2 n a b, a convolution a product per place and tap; elementwise work is not
counted.
"""

from one4d_jax.wan.config import CLIPConfig, UMT5Config, VAEConfig
from one4d_jax.wan.vae import Step, WanVAE, decoder_steps, encoder_steps

_Size = tuple[int, int, int]  # frames, height, width


def encode(cfg: VAEConfig, size: _Size) -> int:
  """Of a video ``size`` to its latent."""
  width, moments = cfg.width, 2 * cfg.latent_channels
  size = size[0], size[1] // cfg.patch, size[2] // cfg.patch
  count = _conv(size, 27, 3 * cfg.patch**2, width)
  for step in encoder_steps(cfg):
    added, size = _step(step, size)
    count, width = count + added, step.width_out
  return count + _middle(size, width) + _conv(size, 27, width, moments) + _conv(size, 1, moments, moments)


def decode(cfg: VAEConfig, size: _Size) -> int:
  """Of a latent to the video ``size``."""
  time, space = WanVAE(cfg).stride
  size = (size[0] - 1) // time + 1, size[1] // space, size[2] // space
  width = cfg.width * cfg.mult[-1]
  count = _conv(size, 1, cfg.latent_channels, cfg.latent_channels) + _conv(size, 27, cfg.latent_channels, width)
  count += _middle(size, width)
  for step in decoder_steps(cfg):
    added, size = _step(step, size)
    count, width = count + added, step.width_out
  return count + _conv(size, 27, width, 3 * cfg.patch**2)


def text(cfg: UMT5Config, tokens: int) -> int:
  """Of one prompt, padded to so many tokens."""
  linear = 4 * cfg.width**2 + 3 * cfg.width * cfg.ffn_width
  return cfg.layers * tokens * (2 * linear + 4 * tokens * cfg.width)


def image(cfg: CLIPConfig) -> int:
  """Of one image."""
  linear = 4 * cfg.width**2 + 2 * cfg.width * cfg.mlp_width
  patches = 2 * (cfg.tokens - 1) * 3 * cfg.patch**2 * cfg.width
  return patches + (cfg.layers - 1) * cfg.tokens * (2 * linear + 4 * cfg.tokens * cfg.width)


def _conv(size: _Size, taps: int, din: int, dout: int) -> int:
  frames, height, width = size
  return 2 * frames * height * width * taps * din * dout


def _residual(size: _Size, din: int, dout: int) -> int:
  shortcut = _conv(size, 1, din, dout) if din != dout else 0
  return _conv(size, 27, din, dout) + _conv(size, 27, dout, dout) + shortcut


def _middle(size: _Size, width: int) -> int:
  """Two residual blocks, and between them attention among the places of each frame."""
  frames, places = size[0], size[1] * size[2]
  return 2 * _residual(size, width, width) + _conv(size, 1, width, 4 * width) + 4 * frames * places**2 * width


def _step(step: Step, size: _Size) -> tuple[int, _Size]:
  """Of one step of the encoder or decoder, and the size that it gives."""
  frames, height, width = size
  if step.kind == 'res':
    return _residual(size, step.width_in, step.width_out), size
  if step.kind == 'down':
    after = (frames, height // 2, width // 2) if step.spatial else size
    count = _conv(after, 9, step.width_in, step.width_out) if step.spatial else 0
    if step.temporal:
      after = (frames - 1) // 2 + 1, *after[1:]
      count += _conv((after[0] - 1, *after[1:]), 3, step.width_out, step.width_out)
    return count, after
  count = _conv((frames - 1, height, width), 3, step.width_in, 2 * step.width_in) if step.temporal else 0
  after = 2 * frames - 1 if step.temporal else frames, height, width
  if step.spatial:
    after = after[0], 2 * height, 2 * width
    count += _conv(after, 9, step.width_in, step.width_out)
  return count, after
