"""The visual half of open-clip ViT-H/14: an image in, 257 feature rows out (the class token, then 16 x 16 patches).

Wan reads the output of the last block but one, before the final norm. The last block, that norm and the projection
therefore never run, and the parameter tree does not hold them: ``blocks`` has ``cfg.layers - 1`` entries.

  patch/kernel [588 d]    cls [d]    position [257 d]    pre_norm    blocks [l-1 ...]
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from one4d_jax.checks import checked
from one4d_jax.nn.layers import Dense, LayerNorm, stack_layers
from one4d_jax.wan.config import CLIPConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def bicubic(source: int, target: int, *, a: float = -0.75) -> np.ndarray:
  """``float32 [target source]``: cubic resampling of one axis.

  Four taps a sample at half-pixel centres, taps beyond the edge read the edge, no low-pass filter when shrinking:
  the convention of the encoder's preprocessing. ``jax.image.resize`` uses ``a = -0.5`` and does filter.
  """
  near = lambda t: ((a + 2) * t - (a + 3)) * t**2 + 1  # |t| <= 1
  far = lambda t: a * (((t - 5) * t + 8) * t - 4)  # 1 < |t| < 2
  centre = (np.arange(target) + 0.5) * source / target - 0.5
  first = np.floor(centre).astype(int)
  weights = np.zeros((target, source))
  for tap in range(-1, 3):
    distance = np.abs(centre - (first + tap))
    column = np.clip(first + tap, 0, source - 1)
    np.add.at(weights, (np.arange(target), column), np.where(distance <= 1, near(distance), far(distance)))
  return weights.astype(np.float32)


@checked
def pixels(image: Float[Array | np.ndarray, 'b H W 3'], size: int) -> Float[Array, 'b size size 3']:
  """What the encoder sees: ``image`` in [-1, 1] squashed to a square, moved to [0, 1], normalised by channel."""
  rows, columns = bicubic(image.shape[1], size), bicubic(image.shape[2], size)
  image = jnp.asarray(image, jnp.float32)
  image = jnp.einsum('sH,bHWc->bsWc', rows, image, precision='highest')
  image = jnp.einsum('tW,bsWc->bstc', columns, image, precision='highest')
  return (image * 0.5 + 0.5 - jnp.asarray(MEAN)) / jnp.asarray(STD)


def attend(qkv: Float[Array, 'b i 3*d'], heads: int) -> Float[Array, 'b i d']:
  """Scaled attention of a fused projection (q, then k, then v, each by head); the softmax is float32."""
  q, k, v = rearrange(qkv, 'b i (n h e) -> n b i h e', n=3, h=heads)
  logits = jnp.einsum('bqhe,bkhe->bhqk', q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  y = jnp.einsum('bhqk,bkhe->bqhe', jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)
  return rearrange(y, 'b i h e -> b i (h e)')


class Block(nn.Module):
  """A pre-norm transformer block with exact (erf) GELU."""

  cfg: CLIPConfig
  dtype: Any
  param_dtype: Any

  @nn.compact
  @checked
  def __call__(self, x: Float[Array, 'b i d']) -> Float[Array, 'b i d']:
    cfg = self.cfg

    def dense(name, features, axes, y):
      return Dense(features, axes, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(y)

    y = LayerNorm(eps=cfg.eps, name='attn_norm')(x)
    y = attend(dense('qkv', 3 * cfg.width, ('embed', 'heads'), y), cfg.heads)
    x += dense('o', cfg.width, ('heads', 'embed'), y)

    y = LayerNorm(eps=cfg.eps, name='mlp_norm')(x)
    y = nn.gelu(dense('mlp_in', cfg.mlp_width, ('embed', 'ffn'), y), approximate=False)
    return x + dense('mlp_out', cfg.width, ('ffn', 'embed'), y)


@dataclasses.dataclass(frozen=True)
class CLIPEncoder:
  """The encoder as plain functions over ``{'patch', 'cls', 'position', 'pre_norm', 'blocks' [l-1 ...]}``.

  Args:
    cfg: sizes; ``layers`` counts the blocks of the pretrained network, of which one less is kept and run.
    dtype: of the activations. Norm statistics and softmax are float32 in any case.
    param_dtype: of fresh parameters (norm scales and biases are float32).
  """

  cfg: CLIPConfig = dataclasses.field(default_factory=CLIPConfig)
  dtype: Any = jnp.bfloat16
  param_dtype: Any = jnp.bfloat16

  @property
  def block(self) -> Block:
    return Block(self.cfg, self.dtype, self.param_dtype)

  @property
  def patch(self) -> Dense:
    axes = (None, 'embed')
    return Dense(self.cfg.width, axes, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)

  def init(self, key: jax.Array) -> dict:
    """Fresh parameters, boxed with their logical axes."""
    cfg = self.cfg
    key_patch, key_cls, key_position, key_blocks = jax.random.split(key, 4)
    x = jnp.zeros((1, 1, cfg.width), self.dtype)
    one = lambda k: self.block.init(k, x)['params']
    normal = lambda k, shape, names: nn.LogicallyPartitioned(
      jax.random.normal(k, shape, self.param_dtype) * cfg.width**-0.5, names
    )
    return {
      'patch': self.patch.init(key_patch, jnp.zeros((1, 3 * cfg.patch**2), self.dtype))['params'],
      'cls': normal(key_cls, (cfg.width,), ('embed',)),
      'position': normal(key_position, (cfg.tokens, cfg.width), (None, 'embed')),
      'pre_norm': LayerNorm(eps=cfg.eps).init(key, x)['params'],
      'blocks': stack_layers(one, key_blocks, cfg.layers - 1),
    }

  @checked
  def encode(self, params: dict, image: Float[Array | np.ndarray, 'b H W 3']) -> Float[Array, 'b i d']:
    """Features of an image in [-1, 1] of any size, in ``dtype``; row 0 is the class token.

    Args:
      params: unboxed parameters.
      image: the first frame; resizing and normalising happen here.
    """
    cfg, block = self.cfg, self.block
    x = pixels(image, cfg.image_size)
    x = rearrange(x, 'b (h p) (w q) c -> b (h w) (p q c)', p=cfg.patch, q=cfg.patch)
    x = self.patch.apply({'params': params['patch']}, x)
    cls = jnp.broadcast_to(params['cls'].astype(self.dtype), (x.shape[0], 1, cfg.width))
    x = jnp.concatenate([cls, x], axis=1) + params['position'].astype(self.dtype)
    x = LayerNorm(eps=cfg.eps).apply({'params': params['pre_norm']}, x).astype(self.dtype)
    x, _ = jax.lax.scan(lambda x, p: (block.apply({'params': p}, x), None), x, params['blocks'])
    return x
