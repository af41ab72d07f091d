"""Blocks of the causal video VAE.

Time is causal everywhere, so a video can be fed in pieces: each convolution over time remembers the last frames
of its own input. Blocks keep that memory in the flax collection ``cache``. Without it a call is the start of a
video; with ``mutable='cache'`` a call also leaves what the next piece needs. The first frame of a video is an
image: it is neither halved nor doubled in time, and goes around the time convolutions of both resamplers.

Arrays are ``[b t h w c]``. Spatial work folds ``b`` and ``t`` together.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Float

from one4d_jax.nn import partition

DType = Any
Video = Float[Array, 'b t h w c']
_FOLDED = 2**23  # numbers, beyond which one frame after the other is as fast


def follow(module: nn.Module, x: Video, past: Video) -> Video:
  """``x`` behind the frames that ``module`` remembers; at the start of a video these are ``past``."""
  if module.has_variable('cache', 'past'):
    past = module.get_variable('cache', 'past')
  x = jnp.concatenate([past, x], axis=1)
  if module.is_mutable_collection('cache'):
    module.put_variable('cache', 'past', x[:, x.shape[1] - past.shape[1] :])
  return x


def split_first(module: nn.Module, x: Video) -> tuple[Video, Video]:
  """The first frame of the video, empty unless ``x`` is its start, and the other frames."""
  first = 0 if module.has_variable('cache', 'past') else 1
  return x[:, :first], x[:, first:]


def conv2d(x: Float[Array, 'n h w c'], kernel: Float[Array, '3 3 c d'], *, stride=1, padding='SAME') -> Array:
  dims = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dims)


def conv3d(x: Video, kernel: Float[Array, '3 3 3 c d'], *, fold: bool | None = None) -> Float[Array, 'b u h w d']:
  """A 3x3x3 convolution, same size in space, two frames shorter in time.

  ``fold`` puts the three time taps into the channels of one 2D convolution: the same sums, several times faster
  on a CPU, at three times the input memory; frame by frame where that is much. By default only there.
  """
  if partition.platform() == 'cpu' if fold is None else fold:
    b, t = x.shape[0], x.shape[1] - 2
    # A one that is known only with the input: XLA would fold the kernels of all layers first, and keep them.
    last = jax.lax.stop_gradient(x[(-1,) * x.ndim])
    one = jnp.where(jnp.isnan(last), last, 1)
    kernel = rearrange(kernel * one, 't h w c d -> h w (t c) d')
    if 3 * x.size > _FOLDED:
      return jnp.stack(
        [conv2d(rearrange(x[:, i : i + 3], 'b t h w c -> b h w (t c)'), kernel) for i in range(t)], axis=1
      )
    x = jnp.concatenate([x[:, i : i + t] for i in range(3)], axis=-1)
    y = conv2d(rearrange(x, 'b t h w c -> (b t) h w c'), kernel)
    return rearrange(y, '(b t) h w d -> b t h w d', b=b)
  padding = ((0, 0), (1, 1), (1, 1))
  return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'))


class Conv(nn.Module):
  """Declares the kernel ``[*window c d]`` and the bias ``[d]`` of a convolution, applied by its subclasses."""

  features: int
  zero: bool = False  # start from a zero kernel
  dtype: DType = jnp.float32

  def weights(self, width: int, window: tuple[int, ...] = ()) -> tuple[Array, Array]:
    init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
    kernel_init = nn.with_logical_partitioning(init, (*(None,) * len(window), 'conv_in', 'conv_out'))
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',))
    kernel = self.param('kernel', kernel_init, (*window, width, self.features), jnp.float32)
    bias = self.param('bias', bias_init, (self.features,), jnp.float32)
    return kernel.astype(self.dtype), bias.astype(self.dtype)


class Pointwise(Conv):
  """A 1x1x1 convolution."""

  @nn.compact
  def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b d']:
    kernel, bias = self.weights(x.shape[-1])
    return x @ kernel + bias


class CausalConv(Conv):
  """A 3x3x3 convolution that sees the present and the two frames before it; zeros before the first frame."""

  @nn.compact
  def __call__(self, x: Video) -> Float[Array, 'b t h w d']:
    kernel, bias = self.weights(x.shape[-1], (3, 3, 3))
    x = follow(self, x, jnp.zeros_like(x, shape=(x.shape[0], 2, *x.shape[2:])))
    return conv3d(x, kernel) + bias


class FrameConv(Conv):
  """A 3x3 convolution of every frame: same size, or half the size with padding on the right and bottom only."""

  stride: int = 1

  @nn.compact
  def __call__(self, x: Video) -> Float[Array, 'b t i j d']:
    kernel, bias = self.weights(x.shape[-1], (3, 3))
    padding = 'SAME' if self.stride == 1 else ((0, 1), (0, 1))
    y = conv2d(rearrange(x, 'b t h w c -> (b t) h w c'), kernel, stride=self.stride, padding=padding)
    return rearrange(y, '(b t) h w d -> b t h w d', b=x.shape[0]) + bias


class TimeConv(Conv):
  """A 3x1x1 convolution without padding, as one product over the three concatenated taps."""

  stride: int = 1

  @nn.compact
  def __call__(self, x: Video) -> Float[Array, 'b u h w d']:
    kernel, bias = self.weights(x.shape[-1], (3, 1, 1))
    last = x.shape[1] - 2
    taps = jnp.concatenate([x[:, i : max(last, 0) + i : self.stride] for i in range(3)], axis=-1)
    return taps @ rearrange(kernel, 't 1 1 c d -> (t c) d') + bias


class ChannelNorm(nn.Module):
  """``x / |x| * sqrt(c) * gamma`` over the channels, in float32."""

  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b c']:
    init = nn.with_logical_partitioning(nn.initializers.ones, ('conv_out',))
    gamma = self.param('gamma', init, (x.shape[-1],), jnp.float32)
    y = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(y), axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    # The slope at x = 0 is endless, and frames of zeros (the unobserved ones) meet it before biases have grown.
    y = jnp.where(square > 1e-12, y, jax.lax.stop_gradient(y))
    return (y * (gamma * x.shape[-1] ** 0.5)).astype(self.dtype)


class ResBlock(nn.Module):
  features: int
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, x: Video) -> Float[Array, 'b t h w d']:
    y = nn.silu(ChannelNorm(self.dtype, name='norm_1')(x))
    y = CausalConv(self.features, dtype=self.dtype, name='conv_1')(y)
    y = nn.silu(ChannelNorm(self.dtype, name='norm_2')(y))
    # Closed at the start: a fresh network is nearly linear, and a narrow one trains several times faster.
    y = CausalConv(self.features, zero=True, dtype=self.dtype, name='conv_2')(y)
    if x.shape[-1] != self.features:
      x = Pointwise(self.features, dtype=self.dtype, name='shortcut')(x)
    return x + y


class FrameAttention(nn.Module):
  """Self-attention among the places of each frame: one head as wide as the channels."""

  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, x: Video) -> Video:
    c = x.shape[-1]
    qkv = Pointwise(3 * c, dtype=self.dtype, name='qkv')(ChannelNorm(self.dtype, name='norm')(x))
    q, k, v = jnp.split(rearrange(qkv, 'b t h w c -> b t (h w) c'), 3, axis=-1)
    logits = jnp.einsum('b t q c, b t k c -> b t q k', q, k).astype(jnp.float32) * c**-0.5
    y = jnp.einsum('b t q k, b t k c -> b t q c', jax.nn.softmax(logits).astype(self.dtype), v)
    y = Pointwise(c, zero=True, dtype=self.dtype, name='out')(y)
    return x + y.reshape(x.shape)


class Downsample(nn.Module):
  """``spatial`` halves the frame size, ``temporal`` the frames after the first: ``1 + 2n`` become ``1 + n``."""

  spatial: bool
  temporal: bool
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, x: Video) -> Float[Array, 'b u i j c']:
    if self.spatial:
      x = FrameConv(x.shape[-1], stride=2, dtype=self.dtype, name='space')(x)
    if not self.temporal:
      return x
    first, rest = split_first(self, x)
    rest = follow(self, rest, first)  # new frame k is made of the frames 2k-2, 2k-1 and 2k
    rest = TimeConv(x.shape[-1], stride=2, dtype=self.dtype, name='time')(rest)
    return jnp.concatenate([first, rest], axis=1)


class Upsample(nn.Module):
  """``spatial`` doubles the frame size and halves the channels, ``temporal`` makes ``1 + n`` frames ``1 + 2n``."""

  spatial: bool
  temporal: bool
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, x: Video) -> Float[Array, 'b u i j d']:
    c = x.shape[-1]
    if self.temporal:
      first, rest = split_first(self, x)
      rest = follow(self, rest, jnp.zeros_like(x, shape=(x.shape[0], 2, *x.shape[2:])))
      rest = TimeConv(2 * c, dtype=self.dtype, name='time')(rest)
      rest = rearrange(rest, 'b t h w (two c) -> b (t two) h w c', two=2)
      x = jnp.concatenate([first, rest], axis=1)
    if not self.spatial:
      return x
    x = repeat(x, 'b t h w c -> b t (h i) (w j) c', i=2, j=2)
    return FrameConv(c // 2, dtype=self.dtype, name='space')(x)
