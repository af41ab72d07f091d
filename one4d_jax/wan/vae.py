"""Wan's causal video VAE: ``1 + 4n`` frames to ``1 + n`` latent frames, 8 times smaller in height and width."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from one4d_jax.checks import checked
from one4d_jax.errors import ShapeError
from one4d_jax.wan import vae_blocks as blocks
from one4d_jax.wan.config import VAEConfig

DType = Any
_SMALL, _LARGE = 2**17, 2**19  # pixels of a clip, of a frame


class Step(NamedTuple):
  """One block between the two ends of the encoder or the decoder."""

  kind: str  # 'res', 'down' or 'up'
  width_in: int
  width_out: int
  spatial: bool = False
  temporal: bool = False


def patchify(video, patch: int):
  """``[b t H W 3]`` to ``[b t h w 3 patch^2]``, the squares of pixels that the encoder takes; NumPy or JAX."""
  return rearrange(video, 'b t (h q) (w r) c -> b t h w (c r q)', q=patch, r=patch)


def encoder_steps(cfg: VAEConfig) -> tuple[Step, ...]:
  """Native ``encoder.downsamples``, in order."""
  steps, width = [], cfg.width
  for level, mult in enumerate(cfg.mult):
    for _ in range(cfg.res_blocks):
      steps.append(Step('res', width, cfg.width * mult))
      width = cfg.width * mult
    if level < len(cfg.mult) - 1:
      steps.append(Step('down', width, width, cfg.patch == 1, cfg.temporal[level]))
  return tuple(steps)


def decoder_steps(cfg: VAEConfig) -> tuple[Step, ...]:
  """Native ``decoder.upsamples``, in order."""
  steps, width = [], cfg.width * cfg.mult[-1]
  for level in reversed(range(len(cfg.mult))):
    for _ in range(cfg.res_blocks + 1):
      steps.append(Step('res', width, cfg.width * cfg.mult[level]))
      width = cfg.width * cfg.mult[level]
    if level:
      spatial = cfg.patch == 1
      steps.append(Step('up', width, width // 2 if spatial else width, spatial, cfg.temporal[level - 1]))
      width = steps[-1].width_out
  return tuple(steps)


def run_step(step: Step, x: Array, *, name: str, dtype: DType) -> Array:
  match step.kind:
    case 'res':
      return blocks.ResBlock(step.width_out, dtype, name=name)(x)
    case 'down':
      return blocks.Downsample(step.spatial, step.temporal, dtype, name=name)(x)
    case 'up':
      return blocks.Upsample(step.spatial, step.temporal, dtype, name=name)(x)


def run_middle(x: Array, dtype: DType) -> Array:
  x = blocks.ResBlock(x.shape[-1], dtype, name='mid_1')(x)
  x = blocks.FrameAttention(dtype, name='mid_attention')(x)
  return blocks.ResBlock(x.shape[-1], dtype, name='mid_2')(x)


class Encoder(nn.Module):
  cfg: VAEConfig
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, video: Float[Array, 'b F H W 3']) -> Float[Array, 'b f h w d']:
    """Mean and log-variance, one after the other in the channels."""
    width = 2 * self.cfg.latent_channels
    x = patchify(video.astype(self.dtype), self.cfg.patch)
    x = blocks.CausalConv(self.cfg.width, dtype=self.dtype, name='conv_in')(x)
    for i, step in enumerate(encoder_steps(self.cfg)):
      x = run_step(step, x, name=f'down_{i}', dtype=self.dtype)
    x = run_middle(x, self.dtype)
    x = nn.silu(blocks.ChannelNorm(self.dtype, name='norm_out')(x))
    x = blocks.CausalConv(width, dtype=self.dtype, name='conv_out')(x)
    return blocks.Pointwise(width, dtype=self.dtype, name='to_moments')(x).astype(jnp.float32)


class Decoder(nn.Module):
  cfg: VAEConfig
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, 'b f h w c']) -> Float[Array, 'b F H W 3']:
    """Pixels of a raw (not normalised) latent."""
    x = blocks.Pointwise(self.cfg.latent_channels, dtype=self.dtype, name='from_latent')(z.astype(self.dtype))
    x = blocks.CausalConv(self.cfg.width * self.cfg.mult[-1], dtype=self.dtype, name='conv_in')(x)
    x = run_middle(x, self.dtype)
    for i, step in enumerate(decoder_steps(self.cfg)):
      x = run_step(step, x, name=f'up_{i}', dtype=self.dtype)
    x = nn.silu(blocks.ChannelNorm(self.dtype, name='norm_out')(x))
    x = blocks.CausalConv(3 * self.cfg.patch**2, dtype=self.dtype, name='conv_out')(x).astype(jnp.float32)
    return rearrange(x, 'b t h w (c r q) -> b t (h q) (w r) c', q=self.cfg.patch, r=self.cfg.patch)


def stream(net: nn.Module, params, x: Float[Array, 'b t h w c'], size: int) -> Array:
  """``net`` over the first frame, then over ``size`` frames at a time; equal to one call over all of ``x``."""

  def piece(cache, x):
    y, cache = net.apply({'params': params, **cache}, x, mutable=['cache'])
    return cache, y

  cache, first = piece({}, x[:, :1])
  whole = (x.shape[1] - 1) // size * size
  outputs = [first]
  if whole:
    pieces = x[:, 1 : 1 + whole].reshape(x.shape[0], -1, size, *x.shape[2:])
    cache, y = jax.lax.scan(piece, cache, jnp.moveaxis(pieces, 1, 0))
    outputs.append(jnp.moveaxis(y, 0, 1).reshape(x.shape[0], -1, *y.shape[3:]))
  if 1 + whole < x.shape[1]:
    outputs.append(piece(cache, x[:, 1 + whole :])[1])
  return jnp.concatenate(outputs, axis=1)


@dataclasses.dataclass(frozen=True)
class WanVAE:
  """The VAE as functions of its parameters; every method can be jitted, mapped and differentiated.

  Video is ``[b F H W 3]`` in [-1, 1] with ``F = 4n + 1`` and sides that are multiples of 8 (in the default
  configuration). ``chunk`` bounds memory: so many latent frames are worked on at a time, with the same result.
  """

  cfg: VAEConfig = dataclasses.field(default_factory=VAEConfig)
  dtype: DType = jnp.float32

  @property
  def stride(self) -> tuple[int, int]:
    """Pixels per latent place, in (time, space)."""
    space = self.cfg.patch if self.cfg.patch > 1 else 2 ** (len(self.cfg.mult) - 1)
    return 2 ** sum(self.cfg.temporal), space

  @property
  def encoder(self) -> Encoder:
    return Encoder(self.cfg, self.dtype)

  @property
  def decoder(self) -> Decoder:
    return Decoder(self.cfg, self.dtype)

  def init(self, key: Array) -> dict:
    """Random float32 parameters ``{'encoder': ..., 'decoder': ...}``, boxed with their logical axes."""
    key_encoder, key_decoder = jax.random.split(key)
    time, space = self.stride
    video = jnp.zeros((1, 1 + time, space, space, 3))
    latent = jnp.zeros((1, 2, 1, 1, self.cfg.latent_channels))
    return {
      'encoder': self.encoder.init(key_encoder, video, mutable=['params'])['params'],
      'decoder': self.decoder.init(key_decoder, latent, mutable=['params'])['params'],
    }

  @checked
  def moments(
    self, params: dict, video: Float[Array, 'b F H W 3'], *, chunk: int | None = None
  ) -> tuple[Float[Array, 'b f h w c'], Float[Array, 'b f h w c']]:
    """Raw mean and log-variance of the latent.

    Raises:
      ShapeError: if the video does not divide into latent places.
    """
    check_video(video.shape, *self.stride)
    if chunk is None:
      y = self.encoder.apply({'params': params['encoder']}, video)
    else:
      y = stream(self.encoder, params['encoder'], video, check_chunk(chunk) * self.stride[0])
    mean, logvar = jnp.split(y, 2, axis=-1)
    return mean, logvar

  @checked
  def encode(
    self, params: dict, video: Float[Array, 'b F H W 3'], *, chunk: int | None = None
  ) -> Float[Array, 'b f h w c']:
    """The normalised mean of the latent: what the diffusion model works on."""
    mean, _ = self.moments(params, video, chunk=chunk)
    shift, scale = jnp.asarray(self.cfg.latent_mean), jnp.asarray(self.cfg.latent_std)
    return (mean - shift) / scale

  @checked
  def decode(
    self, params: dict, z: Float[Array, 'b f h w c'], *, chunk: int | None = None, tile: int | None = None
  ) -> Float[Array, 'b F H W 3']:
    """Video of a normalised latent, not clamped to [-1, 1].

    Args:
      tile: frames with a side of more than so many latent places are decoded in tiles of that side, which overlap by a
        quarter and fade into each other. Memory is that of a tile; a tile sees nothing beyond its edge.

    Raises:
      ShapeError: if the latent has another number of channels, or a tile of less than 4 places.
    """
    if tile is not None and tile < 4:
      raise ShapeError(f'tile is {tile}: give 4 or more latent places, or None for whole frames')
    if tile is not None and max(z.shape[2:4]) > tile:
      return _tiled(functools.partial(self.decode, params, chunk=chunk), z, tile, self.stride[1])
    if z.shape[-1] != self.cfg.latent_channels:
      raise ShapeError(f'latent has {z.shape[-1]} channels, this VAE needs {self.cfg.latent_channels}')
    z = z * jnp.asarray(self.cfg.latent_std) + jnp.asarray(self.cfg.latent_mean)
    if chunk is None:
      return self.decoder.apply({'params': params['decoder']}, z)
    return stream(self.decoder, params['decoder'], z, check_chunk(chunk))


def latent_grid(frames: int, height: int, width: int) -> tuple[int, int, int]:
  """Latent places of a video along frames, rows, columns, by Wan's strides, which every VAE here has."""
  return (frames - 1) // 4 + 1, height // 8, width // 8


def video_size(f: int, h: int, w: int) -> tuple[int, int, int]:
  """Frames, height and width of a latent: the inverse of ``latent_grid``."""
  return 4 * f - 3, 8 * h, 8 * w


def chunk_for(frames: int, height: int, width: int, platform: str) -> int | None:
  """Latent frames to work on at a time: all of a small clip, which compiles faster; one on a CPU, or if it is large."""
  if frames * height * width < _SMALL:
    return None
  return 1 if platform == 'cpu' else max(1, min(4, _LARGE // (height * width)))


def _tiled(decode: Callable, z: Float[Array, 'b f h w c'], tile: int, stride: int) -> Float[Array, 'b F H W 3']:
  """``decode`` of every tile, one after the other, weighted by the distance from its edges."""
  places = [_starts(size, tile) for size in z.shape[2:4]]
  sides = [min(size, tile) for size in z.shape[2:4]]
  ramp = lambda n: np.minimum(np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) / (n / 4), 1)
  fade = [ramp(stride * side) for side in sides]
  weight = jnp.asarray(fade[0][:, None, None] * fade[1][:, None], jnp.float32)
  starts = jnp.asarray([(y, x) for y in places[0] for x in places[1]])

  def add(sums, start):
    piece = decode(jax.lax.dynamic_slice(z, (0, 0, *start, 0), (*z.shape[:2], *sides, z.shape[-1])))
    corner = 0, 0, *(stride * start), 0

    def onto(whole, part):
      old = jax.lax.dynamic_slice(whole, corner, part.shape)
      return jax.lax.dynamic_update_slice(whole, old + part, corner)

    return (onto(sums[0], piece * weight), onto(sums[1], weight[None, None])), None

  height, width = (stride * size for size in z.shape[2:4])
  video = jax.eval_shape(decode, jax.ShapeDtypeStruct((*z.shape[:2], 4, 4, z.shape[-1]), z.dtype))
  empty = jnp.zeros((*video.shape[:2], height, width, 3)), jnp.zeros((1, 1, height, width, 1))
  total, weights = jax.lax.scan(add, empty, starts)[0]
  return total / weights


def _starts(size: int, tile: int) -> list[int]:
  """Where tiles begin that cover ``size`` places: as few as overlap by a quarter or more, evenly spread."""
  if size <= tile:
    return [0]
  count = 1 + -(-(size - tile) // (tile - tile // 4))
  return [i * (size - tile) // (count - 1) for i in range(count)]


def check_video(shape: tuple[int, ...], time: int, space: int) -> None:
  """Raises ShapeError with the nearest sizes that fit, unless F = time * n + 1 and H, W are multiples of space."""
  problems = []
  rules = (('frames', time, 1), ('height', space, 0), ('width', space, 0))
  for (name, step, rest), size in zip(rules, shape[1:4], strict=True):
    if size < 1 or (size - rest) % step:
      low = (size - rest) // step * step + rest
      usable = [str(n) for n in (low, low + step) if n > 0]
      rule = f'{step}n + 1' if rest else f'a multiple of {step}'
      problems.append(f'{name} {size} is not {rule}: use {" or ".join(usable)}')
  if problems:
    raise ShapeError('video does not fit the VAE: ' + '; '.join(problems))


def check_chunk(chunk: int) -> int:
  if chunk < 1:
    raise ShapeError(f'chunk is {chunk}: give 1 or more latent frames at a time, or None for all at once')
  return chunk
