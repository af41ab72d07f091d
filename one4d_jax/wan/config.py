"""Sizes of the four pretrained networks. Defaults are Wan2.1-Fun-V1.1-14B-InP; every other size is a value here."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """The video diffusion transformer."""

  width: int = 5120
  ffn_width: int = 13824
  heads: int = 40
  layers: int = 40
  in_channels: int = 36  # 16 noisy latent, 4 mask, 16 condition latent, in this order
  out_channels: int = 16
  patch: tuple[int, int, int] = (1, 2, 2)
  freq_width: int = 256
  text_width: int = 4096
  text_len: int = 512
  image_width: int = 1280
  eps: float = 1e-6
  sigma_data: float = 0.0  # above 0: what the head gives is preconditioned, see dit.read_out


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """The causal 3D VAE. ``latent_mean`` and ``latent_std`` normalise each latent channel."""

  width: int = 96
  mult: tuple[int, ...] = (1, 2, 4, 4)
  res_blocks: int = 2
  temporal: tuple[bool, ...] = (False, True, True)  # which of the spatial downsamplings also halve time
  latent_channels: int = 16
  latent_mean: tuple[float, ...] = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
  )  # fmt: skip
  latent_std: tuple[float, ...] = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
  )  # fmt: skip
  patch: int = 1  # above 1: squares of pixels of this side enter as channels, and no resampler changes space


@dataclasses.dataclass(frozen=True)
class UMT5Config:
  """The text encoder (UMT5-XXL, encoder only)."""

  vocab: int = 256384
  width: int = 4096
  ffn_width: int = 10240
  heads: int = 64
  layers: int = 24
  buckets: int = 32
  max_distance: int = 128
  eps: float = 1e-6
  tokenizer: str = 'umt5'  # or 'bytes'
  clean: bool = True  # prompts, as Wan does; VideoX-Fun does not. Never with 'bytes'


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """The image encoder (ViT-H/14). The last block is never run: Wan reads the output of the one before."""

  image_size: int = 224
  patch: int = 14
  width: int = 1280
  layers: int = 32
  heads: int = 16
  mlp_width: int = 5120
  eps: float = 1e-5

  @property
  def tokens(self) -> int:
    return (self.image_size // self.patch) ** 2 + 1
