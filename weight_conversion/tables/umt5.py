"""UMT5: ``models_t5_umt5-xxl-enc-bf16.pth`` and transformers' ``text_encoder/``."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from one4d_jax.wan.config import UMT5Config
from one4d_jax.wan.umt5 import UMT5Encoder
from weight_conversion.rules import Rule, Tensor
from weight_conversion.tables.rows import KERNEL, LEAF, RMS, Row, rules_of, under
from weight_conversion.tables.sizes import agree, flat_shapes, sizes, told

SIGNATURES = {
  'native': 'blocks.0.pos_embedding.embedding.weight',
  'diffusers': 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
}

# ours, native, transformers
BLOCK = (
  Row('attn_norm', 'norm1',                          'layer.0.layer_norm',                                   RMS),
  Row('q',         'attn.q',                         'layer.0.SelfAttention.q',                              KERNEL),
  Row('k',         'attn.k',                         'layer.0.SelfAttention.k',                              KERNEL),
  Row('v',         'attn.v',                         'layer.0.SelfAttention.v',                              KERNEL),
  Row('o',         'attn.o',                         'layer.0.SelfAttention.o',                              KERNEL),
  Row('position',  'pos_embedding.embedding.weight', 'layer.0.SelfAttention.relative_attention_bias.weight', LEAF),
  Row('ffn_norm',  'norm2',                          'layer.1.layer_norm',                                   RMS),
  Row('ffn_gate',  'ffn.gate.0',                     'layer.1.DenseReluDense.wi_0',                          KERNEL),
  Row('ffn_in',    'ffn.fc1',                        'layer.1.DenseReluDense.wi_1',                          KERNEL),
  Row('ffn_out',   'ffn.fc2',                        'layer.1.DenseReluDense.wo',                            KERNEL),
)  # fmt: skip
TIED = ('encoder.embed_tokens.weight',)  # the same tensor as 'shared'; a file has one of them or both
ROWS = (
  Row('embedding', 'token_embedding.weight', 'shared.weight', LEAF, diffusers_copies=TIED),
  *under(('blocks', 'blocks.{l}', 'encoder.block.{l}'), BLOCK),
  Row('norm', 'norm', 'encoder.final_layer_norm', RMS),
)


def rules(cfg: UMT5Config, layout: str) -> tuple[Rule, ...]:
  return rules_of(ROWS, layout)


def ignored(cfg: UMT5Config, layout: str) -> tuple[str, ...]:
  return ()


def config(tensors: Mapping[str, Tensor], layout: str, described: Mapping[str, Any]) -> UMT5Config:
  """Sizes from shapes; the largest distance and epsilon from transformers' ``config.json``, or as UMT5-XXL has them.

  Raises:
    CheckpointError: for a ``config.json`` of another network.
  """
  described = {} if layout == 'native' else described
  of, layers = sizes(tensors, rules(UMT5Config(), layout))
  vocab, width = of('embedding', 2)
  buckets, heads = of('blocks/position', 2)
  cfg = UMT5Config(
    vocab=vocab,
    width=width,
    ffn_width=of('blocks/ffn_in/kernel', 2)[0],
    heads=heads,
    layers=layers,
    buckets=buckets,
    max_distance=told(described, 'relative_attention_max_distance', UMT5Config.max_distance),
    eps=told(described, 'layer_norm_epsilon', UMT5Config.eps),
  )
  agree(
    described,
    {
      'vocab_size': vocab,
      'd_model': width,
      'd_kv': width // heads,
      'd_ff': cfg.ffn_width,
      'num_heads': heads,
      'num_layers': cfg.layers,
      'relative_attention_num_buckets': buckets,
      'feed_forward_proj': 'gated-gelu',
    },
  )
  return cfg


def targets(cfg: UMT5Config, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Our arrays; norms are float32, everything else ``dtype``."""
  return flat_shapes(jax.eval_shape(UMT5Encoder(cfg, param_dtype=jnp.dtype(dtype)).init, jax.random.key(0)))
