"""The Wan2.1 video DiT (Fun-InP: 36 input channels, text and CLIP image cross-attention).

``base = {'embed', 'blocks' [l …], 'head'}``. A block knows nothing of modalities, adapters or the stack around
it; ``model/dlc.py`` runs two branches over the same tree.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.checks import checked
from one4d_jax.nn import embed, partition, remat, rope
from one4d_jax.nn.attention import attend
from one4d_jax.nn.layers import Dense, LayerNorm, RMSNorm, layer_norm, stack_layers
from one4d_jax.wan.config import DiTConfig


class Context(NamedTuple):
  """What every block attends to or is modulated by; equal for both branches."""

  modulation: Float[Array, 'b 6 d']  # from the timestep, float32
  text: Float[Array, 'b t d']
  image: Float[Array, 'b i d']
  cos: Float[Array, 's half']
  sin: Float[Array, 's half']


@dataclasses.dataclass(frozen=True)
class Precision:
  """``dtype`` of the arithmetic, ``param_dtype`` of the stored base. Norms, gates and time stay float32."""

  dtype: Any = jnp.bfloat16
  param_dtype: Any = jnp.bfloat16


BFLOAT16 = Precision()
FLOAT32 = Precision(jnp.float32, jnp.float32)


def gated(x: Float[Array, 'b s d'], y: Float[Array, 'b s d'], gate: Float[Array, 'b 1 d']) -> Float[Array, 'b s d']:
  """``x + y * gate`` in float32, back in the dtype of ``x`` as in diffusers; Wan2.1 goes on in float32."""
  return (x.astype(jnp.float32) + y.astype(jnp.float32) * gate).astype(x.dtype)


class Keys(NamedTuple):
  """What the tokens of one block attend to beside each other, by head: keys and values of text and image."""

  text_k: Float[Array, '*b t n h']
  text_v: Float[Array, '*b t n h']
  image_k: Float[Array, '*b i n h']
  image_v: Float[Array, '*b i n h']


class WanBlock(nn.Module):
  """Self-attention, cross-attention to text and image tokens, MLP; gates and shifts come from the timestep."""

  cfg: DiTConfig
  precision: Precision = BFLOAT16

  def setup(self):
    cfg, precision = self.cfg, self.precision

    def dense(features, axes):
      return Dense(features, axes, dtype=precision.dtype, param_dtype=precision.param_dtype)

    square, norm = lambda *axes: dense(cfg.width, axes), lambda: RMSNorm(cfg.eps)
    self.modulation = self.param(
      'modulation',
      nn.with_logical_partitioning(nn.initializers.normal(cfg.width**-0.5), (None, 'embed')),
      (6, cfg.width),
      jnp.float32,
    )
    self.self_q, self.self_k, self.self_v = (square('embed', 'heads') for _ in range(3))
    self.self_norm_q, self.self_norm_k, self.self_o = norm(), norm(), square('heads', 'embed')
    self.cross_norm, self.cross_q, self.cross_norm_q = LayerNorm(cfg.eps), square('embed', 'heads'), norm()
    self.cross_k, self.cross_v, self.cross_norm_k = square('embed', 'heads'), square('embed', 'heads'), norm()
    self.cross_k_img, self.cross_v_img = square('embed', 'heads'), square('embed', 'heads')
    self.cross_norm_k_img, self.cross_o = norm(), square('heads', 'embed')
    self.ffn_in, self.ffn_out = dense(cfg.ffn_width, ('embed', 'ffn')), dense(cfg.width, ('ffn', 'embed'))

  def _heads(self, y: Float[Array, '*b s d']) -> Float[Array, '*b s n h']:
    return y.reshape(*y.shape[:-1], self.cfg.heads, -1)

  def keys(self, text: Float[Array, 'b t d'], image: Float[Array, 'b i d']) -> Keys:
    """They depend on neither tokens nor timestep: a sampler computes them once."""
    k, v = self.cross_norm_k(self.cross_k(text)), self.cross_v(text)
    k_img, v_img = self.cross_norm_k_img(self.cross_k_img(image)), self.cross_v_img(image)
    return Keys(*map(self._heads, (k, v, k_img, v_img)))

  @checked
  def __call__(self, x: Float[Array, 'b s d'], context: Context, keys: Keys | None = None) -> Float[Array, 'b s d']:
    """With ``keys`` the text and the image of ``context`` are not looked at."""
    eps, heads = self.cfg.eps, self._heads
    modulation = jnp.split(self.modulation + context.modulation, 6, axis=1)
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation  # [b 1 d] each

    y = layer_norm(x, eps) * (1 + scale1) + shift1
    # q and k are normalised over the whole width, before the split into heads
    q, k = self.self_norm_q(self.self_q(y)), self.self_norm_k(self.self_k(y))
    q, k = (rope.rotate(heads(z), context.cos, context.sin) for z in (q, k))
    y = attend(q, k, heads(self.self_v(y))).reshape(x.shape)
    x = gated(x, self.self_o(y), gate1)

    q = heads(self.cross_norm_q(self.cross_q(self.cross_norm(x))))
    keys = self.keys(context.text, context.image) if keys is None else keys
    y = attend(q, keys.text_k, keys.text_v) + attend(q, keys.image_k, keys.image_v)
    x += self.cross_o(y.reshape(x.shape))

    y = layer_norm(x, eps) * (1 + scale2) + shift2
    y = self.ffn_out(nn.gelu(self.ffn_in(y), approximate=True))
    return gated(x, y, gate2)


class WanEmbed(nn.Module):
  """Latent patches, timestep, text and image features to the width of the blocks."""

  cfg: DiTConfig
  precision: Precision = BFLOAT16

  def setup(self):
    cfg = self.cfg
    dense = lambda features, axes, **kw: Dense(
      features, axes, dtype=kw.get('dtype', self.precision.dtype), param_dtype=self.precision.param_dtype
    )
    self.patch = dense(cfg.width, (None, 'embed'))
    self.text_in, self.text_out = dense(cfg.width, (None, 'embed')), dense(cfg.width, ('embed', 'heads'))
    self.time_in = dense(cfg.width, (None, 'embed'), dtype=jnp.float32)
    self.time_out = dense(cfg.width, ('embed', 'heads'), dtype=jnp.float32)
    self.time_modulation = dense(6 * cfg.width, ('embed', 'heads'), dtype=jnp.float32)
    self.image_norm_in, self.image_norm_out = LayerNorm(1e-5), LayerNorm(1e-5)
    self.image_in, self.image_out = dense(cfg.image_width, (None, 'embed')), dense(cfg.width, (None, 'embed'))

  def tokens(self, x: Float[Array, '*b f h w c']) -> Float[Array, '*b s d']:
    return self.patch(embed.patchify(x, self.cfg.patch))

  def time(self, timestep: Float[Array, 'b']) -> tuple[Float[Array, 'b d'], Float[Array, 'b 6 d']]:
    """``(e, modulation)``: ``e`` modulates the head, its projection the blocks. ``timestep`` is 0..1000. Float32."""
    e = self.time_out(nn.silu(self.time_in(embed.sinusoid(timestep, self.cfg.freq_width))))
    return e, self.time_modulation(nn.silu(e)).reshape(e.shape[0], 6, -1)

  def context(
    self, text: Float[Array, 'b t c'], image: Float[Array, 'b i ci']
  ) -> tuple[Float[Array, 'b t d'], Float[Array, 'b i d']]:
    """Text rows past a prompt's length are zeros *here*; the MLP makes them a constant that is attended to."""
    text = self.text_out(nn.gelu(self.text_in(text), approximate=True))
    image = nn.gelu(self.image_in(self.image_norm_in(image)), approximate=False)
    return text, self.image_norm_out(self.image_out(image)).astype(text.dtype)

  def __call__(self, x, timestep, text, image):
    return self.tokens(x), *self.time(timestep), *self.context(text, image)


class WanHead(nn.Module):
  """Modulated norm and projection of tokens to latent patches, float32."""

  cfg: DiTConfig
  precision: Precision = BFLOAT16

  @nn.compact
  def __call__(self, x: Float[Array, '*m b s d'], e: Float[Array, 'b d']) -> Float[Array, '*m b s p']:
    cfg = self.cfg
    table = self.param(
      'modulation',
      nn.with_logical_partitioning(nn.initializers.normal(cfg.width**-0.5), (None, 'embed')),
      (2, cfg.width),
      jnp.float32,
    )
    shift, scale = jnp.split(table + e[:, None], 2, axis=1)
    pt, ph, pw = cfg.patch
    out = Dense(
      pt * ph * pw * cfg.out_channels,
      ('embed', None),
      dtype=jnp.float32,
      param_dtype=self.precision.param_dtype,
      name='out',
    )
    return out(layer_norm(x, cfg.eps) * (1 + scale) + shift)


def init_base(key: jax.Array, cfg: DiTConfig, precision: Precision = BFLOAT16) -> dict:
  """Random base tree, blocks stacked over layers, every leaf boxed with its logical axes."""
  key_embed, key_blocks, key_head = jax.random.split(key, 3)
  f32 = lambda *shape: jnp.zeros(shape, jnp.float32)
  token = jnp.zeros((1, 1, cfg.width), precision.dtype)
  half = cfg.width // cfg.heads // 2
  context = Context(f32(1, 6, cfg.width), token, token, f32(1, half), f32(1, half))
  x = jnp.zeros((1, *cfg.patch, cfg.in_channels), precision.dtype)
  text, image = f32(1, 1, cfg.text_width), f32(1, 1, cfg.image_width)
  block = WanBlock(cfg, precision)
  return {
    'embed': WanEmbed(cfg, precision).init(key_embed, x, f32(1), text, image)['params'],
    'blocks': stack_layers(lambda k: block.init(k, token, context)['params'], key_blocks, cfg.layers),
    'head': WanHead(cfg, precision).init(key_head, token, f32(1, cfg.width))['params'],
  }


def embed_context(
  cfg: DiTConfig,
  base: dict,
  text: Float[Array, 'b t c'],
  image: Float[Array, 'b i ci'],
  precision: Precision = BFLOAT16,
) -> tuple[Float[Array, 'b t d'], Float[Array, 'b i d']]:
  """Text and image tokens at the width of the blocks."""
  return WanEmbed(cfg, precision).apply({'params': base['embed']}, text, image, method='context')


@checked
def embed_inputs(
  cfg: DiTConfig,
  base: dict,
  grid: tuple[int, int, int],
  timestep: Float[Array, 'b'],
  text: Float[Array, 'b t c'],
  image: Float[Array, 'b i ci'],
  precision: Precision = BFLOAT16,
) -> tuple[Float[Array, 'b d'], Context]:
  """``(e, context)`` shared by both branches. ``grid`` counts tokens along frames, rows, columns."""
  e, modulation = WanEmbed(cfg, precision).apply({'params': base['embed']}, timestep, method='time')
  text, image = embed_context(cfg, base, text, image, precision)
  cos, sin = map(jnp.asarray, rope.tables(grid, cfg.width // cfg.heads))
  return e, Context(modulation, text, image, cos, sin)


def token_grid(cfg: DiTConfig, shape: tuple[int, ...]) -> tuple[int, int, int]:
  """Tokens along (frames, rows, columns) of a latent ``[… f h w c]``."""
  return tuple(n // p for n, p in zip(shape[-4:-1], cfg.patch, strict=True))


@checked
def read_out(
  cfg: DiTConfig,
  out: Float[Array, '*m b s p'],
  grid: tuple[int, int, int],
  z: Float[Array, '*m b f h w c'],
  sigma: Float[Array, 'b'],
) -> Float[Array, '*m b f h w c']:
  """The velocity at ``z``, from the patches that the head gives; float32.

  With ``sigma_data`` above 0 the head is preconditioned, nearly as in EDM (Karras et al., arXiv 2206.00364): it gives
  the clean latent where noise is large, and what is left of the noise where it is small. A narrow network then need not
  carry the noise of many channels through. EDM's output factor is ``sigma_data / sqrt(total)``, here the head itself
  gives numbers of the size ``sigma_data``.
  """
  out = embed.unpatchify(out, grid, cfg.patch)
  if not cfg.sigma_data:
    return out
  sigma, variance = sigma[:, None, None, None, None], cfg.sigma_data**2
  total = variance * jnp.square(1 - sigma) + jnp.square(sigma)  # of z, if the data had that deviation
  return (sigma - variance * (1 - sigma)) / total * z.astype(jnp.float32) - out * jax.lax.rsqrt(total)


@checked
def velocity(
  cfg: DiTConfig,
  base: dict,
  x: Float[Array, 'b f h w c'],
  timestep: Float[Array, 'b'],
  text: Float[Array, 'b t ct'],
  image: Float[Array, 'b i ci'],
  *,
  precision: Precision = BFLOAT16,
  policy: str = 'block',
) -> Float[Array, 'b f h w out']:
  """The base model alone. ``x`` is noisy latent, mask and condition latent: 16 + 4 + 16 channels; float32 out.

  ``policy`` is one of ``nn/remat.py``.
  """
  grid = token_grid(cfg, x.shape)
  e, context = embed_inputs(cfg, base, grid, timestep, text, image, precision)
  tokens = WanEmbed(cfg, precision).apply({'params': base['embed']}, x, method='tokens')
  block = WanBlock(cfg, precision)

  def layer(x, params):
    x = remat.layer_input(partition.constrain(x, 'batch', 'tokens', 'embed'))
    return block.apply({'params': params}, x, context), None

  tokens = remat.stack(layer, tokens, base['blocks'], policy=policy)
  out = WanHead(cfg, precision).apply({'params': base['head']}, tokens, e)
  out = partition.constrain(out, 'batch', None, None)
  return read_out(cfg, out, grid, x[..., : cfg.out_channels], timestep / 1000)
