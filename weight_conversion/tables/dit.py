"""The DiT: Wan's ``diffusion_pytorch_model.safetensors`` and diffusers' ``transformer/``, of Fun-InP and official I2V.

Mind the layer norms. The only one of a block with parameters belongs to cross-attention; native calls it ``norm3``,
diffusers ``norm2``, and the ``norm2`` of native has no parameters.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from one4d_jax.errors import CheckpointError
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig
from weight_conversion.rules import FIRST, Rule, Tensor, patch
from weight_conversion.tables.rows import DENSE, NORM, RMS, Row, dense, leaf, rules_of, under
from weight_conversion.tables.sizes import agree, flat_shapes, heads_of, sizes, told

SIGNATURES = {'native': 'blocks.0.self_attn.norm_q.weight', 'diffusers': 'blocks.0.attn1.norm_q.weight'}
HEAD_WIDTH = 128  # of every released Wan

# ours, native, diffusers
OUTER = (
  Row('embed/text_in',         'text_embedding.0',  'condition_embedder.text_embedder.linear_1',       DENSE),
  Row('embed/text_out',        'text_embedding.2',  'condition_embedder.text_embedder.linear_2',       DENSE),
  Row('embed/time_in',         'time_embedding.0',  'condition_embedder.time_embedder.linear_1',       DENSE),
  Row('embed/time_out',        'time_embedding.2',  'condition_embedder.time_embedder.linear_2',       DENSE),
  Row('embed/time_modulation', 'time_projection.1', 'condition_embedder.time_proj',                    DENSE),
  Row('embed/image_norm_in',   'img_emb.proj.0',    'condition_embedder.image_embedder.norm1',         NORM),
  Row('embed/image_in',        'img_emb.proj.1',    'condition_embedder.image_embedder.ff.net.0.proj', DENSE),
  Row('embed/image_out',       'img_emb.proj.3',    'condition_embedder.image_embedder.ff.net.2',      DENSE),
  Row('embed/image_norm_out',  'img_emb.proj.4',    'condition_embedder.image_embedder.norm2',         NORM),
  Row('head/out',              'head.head',         'proj_out',                                        DENSE),
  Row('head/modulation',       'head.modulation',   'scale_shift_table',                               leaf(FIRST)),
)  # fmt: skip

BLOCK = (
  Row('modulation',       'modulation',            'scale_shift_table',  leaf(FIRST)),
  Row('self_q',           'self_attn.q',           'attn1.to_q',         DENSE),
  Row('self_k',           'self_attn.k',           'attn1.to_k',         DENSE),
  Row('self_v',           'self_attn.v',           'attn1.to_v',         DENSE),
  Row('self_o',           'self_attn.o',           'attn1.to_out.0',     DENSE),
  Row('self_norm_q',      'self_attn.norm_q',      'attn1.norm_q',       RMS),
  Row('self_norm_k',      'self_attn.norm_k',      'attn1.norm_k',       RMS),
  Row('cross_norm',       'norm3',                 'norm2',              NORM),
  Row('cross_q',          'cross_attn.q',          'attn2.to_q',         DENSE),
  Row('cross_k',          'cross_attn.k',          'attn2.to_k',         DENSE),
  Row('cross_v',          'cross_attn.v',          'attn2.to_v',         DENSE),
  Row('cross_o',          'cross_attn.o',          'attn2.to_out.0',     DENSE),
  Row('cross_k_img',      'cross_attn.k_img',      'attn2.add_k_proj',   DENSE),
  Row('cross_v_img',      'cross_attn.v_img',      'attn2.add_v_proj',   DENSE),
  Row('cross_norm_q',     'cross_attn.norm_q',     'attn2.norm_q',       RMS),
  Row('cross_norm_k',     'cross_attn.norm_k',     'attn2.norm_k',       RMS),
  Row('cross_norm_k_img', 'cross_attn.norm_k_img', 'attn2.norm_added_k', RMS),
  Row('ffn_in',           'ffn.0',                 'ffn.net.0.proj',     DENSE),
  Row('ffn_out',          'ffn.2',                 'ffn.net.2',          DENSE),
)  # fmt: skip


def rows(cfg: DiTConfig) -> tuple[Row, ...]:
  kernel = patch(cfg.in_channels, *cfg.patch)  # stride and window are equal, so the convolution is a matrix
  first = Row('embed/patch', 'patch_embedding', 'patch_embedding', dense(kernel))
  return (first, *OUTER, *under(('blocks', 'blocks.{l}', 'blocks.{l}'), BLOCK))


def rules(cfg: DiTConfig, layout: str) -> tuple[Rule, ...]:
  return rules_of(rows(cfg), layout)


def ignored(cfg: DiTConfig, layout: str) -> tuple[str, ...]:
  return ()


def config(tensors: Mapping[str, Tensor], layout: str, described: Mapping[str, Any]) -> DiTConfig:
  """Sizes from shapes; heads, text length and epsilon from ``config.json``, or as every Wan2.1 has them.

  Raises:
    CheckpointError: for a variant of Wan that One4D cannot build on, or a ``config.json`` of another network.
  """
  of, layers = sizes(tensors, rules(DiTConfig(), layout))
  width, in_channels, *window = of('embed/patch/kernel', 5)
  out_channels = of('head/out/kernel', 2)[0] // math.prod(window)
  refuse(tensors, in_channels, out_channels)
  heads = heads_of(described, 'num_heads' if layout == 'native' else 'num_attention_heads', width, HEAD_WIDTH)
  cfg = DiTConfig(
    width=width,
    ffn_width=of('blocks/ffn_in/kernel', 2)[0],
    heads=heads,
    layers=layers,
    in_channels=in_channels,
    out_channels=out_channels,
    patch=tuple(window),
    freq_width=of('embed/time_in/kernel', 2)[1],
    text_width=of('embed/text_in/kernel', 2)[1],
    text_len=told(described, 'text_len', DiTConfig.text_len),
    image_width=of('embed/image_in/kernel', 2)[1],
    eps=told(described, 'eps', DiTConfig.eps),
  )
  both = {
    'num_layers': cfg.layers,
    'ffn_dim': cfg.ffn_width,
    'patch_size': cfg.patch,
    'freq_dim': cfg.freq_width,
    'text_dim': cfg.text_width,
  }
  own = {
    'native': {'dim': width, 'in_dim': in_channels, 'out_dim': out_channels, 'model_type': 'i2v'},
    'diffusers': {
      'attention_head_dim': width // heads,
      'in_channels': in_channels,
      'out_channels': out_channels,
      'image_dim': cfg.image_width,
      'added_kv_proj_dim': width,
    },
  }
  agree(described, both | own[layout])
  return cfg


def refuse(names: Collection[str], in_channels: int, out_channels: int) -> None:
  """Raises CheckpointError, with what it is, for a Wan whose inputs are not those that One4D feeds."""
  due = 2 * out_channels + 4  # noisy latent, mask, condition latent
  having = lambda *parts: any(part in name for name in names for part in parts)
  if having('vace_'):
    what = 'a VACE checkpoint'
  elif having('ref_conv.', 'control_adapter.'):
    what = 'a Control checkpoint (it has a reference convolution or a camera adapter)'
  elif having('.emb_pos', 'image_embedder.pos_embed'):
    what = 'a first-last-frame (FLF2V) checkpoint, which sees two images'
  elif not having('.k_img.', '.add_k_proj.'):
    what = f'a text-to-video or Wan2.2 checkpoint ({in_channels} input channels, no image attention)'
  elif in_channels != due:
    what = f'a checkpoint with {in_channels} input channels instead of {due}, as Control and camera variants have'
  else:
    return
  raise CheckpointError(f'this is {what}: One4D needs an image-to-video one, Wan2.1-Fun-InP or Wan2.1-I2V')


def targets(cfg: DiTConfig, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Our arrays; norms and modulation tables are float32, everything else ``dtype``."""
  precision = dit.Precision(param_dtype=jnp.dtype(dtype))
  return flat_shapes(jax.eval_shape(lambda key: dit.init_base(key, cfg, precision), jax.random.key(0)))
