"""CLIP: ``models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`` and transformers' ``image_encoder/``.

Wan runs the visual half up to the last block but one. The native file has the text half too, both have the rest of
the visual half: ``ignored`` names what is left alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from one4d_jax.errors import CheckpointError
from one4d_jax.wan.clip import CLIPEncoder
from one4d_jax.wan.config import CLIPConfig
from weight_conversion.rules import FIRST, Rule, Tensor, fused, leading, patch
from weight_conversion.tables.rows import DENSE, LEAF, NORM, Row, dense, leaf, rules_of, under
from weight_conversion.tables.sizes import agree, flat_shapes, heads_of, sizes, told

SIGNATURES = {'native': 'visual.cls_embedding', 'diffusers': 'embeddings.class_embedding'}
HEAD_WIDTH = 80  # of ViT-H/14
APART = ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj')

# ours, native, transformers
BLOCK = (
  Row('attn_norm', 'norm1',       'layer_norm1',        NORM),
  Row('qkv',       'attn.to_qkv', APART,                DENSE, dense(fused(3), fused(3))),
  Row('o',         'attn.proj',   'self_attn.out_proj', DENSE),
  Row('mlp_norm',  'norm2',       'layer_norm2',        NORM),
  Row('mlp_in',    'mlp.0',       'mlp.fc1',            DENSE),
  Row('mlp_out',   'mlp.2',       'mlp.fc2',            DENSE),
)  # fmt: skip


def rows(cfg: CLIPConfig) -> tuple[Row, ...]:
  kernel, cls = leaf(patch(3, cfg.patch, cfg.patch, channels_last=True)), leaf(leading(2))
  return (
    Row('patch/kernel', 'visual.patch_embedding.weight', 'embeddings.patch_embedding.weight',    kernel),
    Row('cls',          'visual.cls_embedding',          'embeddings.class_embedding',           cls, LEAF),
    Row('position',     'visual.pos_embedding',          'embeddings.position_embedding.weight', leaf(FIRST), LEAF),
    Row('pre_norm',     'visual.pre_norm',               'pre_layrnorm',                         NORM),  # spelled so
    *under(('blocks', 'visual.transformer.{l}', 'encoder.layers.{l}'), BLOCK),
  )  # fmt: skip


def rules(cfg: CLIPConfig, layout: str) -> tuple[Rule, ...]:
  return rules_of(rows(cfg), layout)


def ignored(cfg: CLIPConfig, layout: str) -> tuple[str, ...]:
  last = cfg.layers - 1
  if layout == 'native':
    return f'visual.transformer.{last}.*', 'visual.post_norm.*', 'visual.head', 'textual.*', 'log_scale'
  # position_ids are a constant that older versions stored
  return f'encoder.layers.{last}.*', 'post_layernorm.*', 'visual_projection.weight', 'embeddings.position_ids'


def config(tensors: Mapping[str, Tensor], layout: str, described: Mapping[str, Any]) -> CLIPConfig:
  """Sizes from shapes; heads and epsilon from transformers' ``config.json``, or as ViT-H/14 has them.

  Raises:
    CheckpointError: for a number of patches that is no square, or a ``config.json`` of another network.
  """
  described = {} if layout == 'native' else described
  of, layers = sizes(tensors, rules(CLIPConfig(), layout))
  width, _, size, _ = of('patch/kernel', 4)
  tokens = of('position', 3 if layout == 'native' else 2)[-2]
  side = math.isqrt(max(tokens - 1, 0))
  if side**2 != tokens - 1:
    raise CheckpointError(f'position embedding has {tokens} rows: a class token and a square of patches were expected')
  cfg = CLIPConfig(
    image_size=side * size,
    patch=size,
    width=width,
    layers=layers,
    heads=heads_of(described, 'num_attention_heads', width, HEAD_WIDTH),
    mlp_width=of('blocks/mlp_in/kernel', 2)[0],
    eps=told(described, 'layer_norm_eps', CLIPConfig.eps),
  )
  agree(
    described,
    {
      'hidden_size': width,
      'intermediate_size': cfg.mlp_width,
      'num_hidden_layers': cfg.layers,
      'image_size': cfg.image_size,
      'patch_size': size,
      'hidden_act': 'gelu',
    },
  )
  return cfg


def targets(cfg: CLIPConfig, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Our arrays; norms are float32, everything else ``dtype``."""
  return flat_shapes(jax.eval_shape(CLIPEncoder(cfg, param_dtype=jnp.dtype(dtype)).init, jax.random.key(0)))
