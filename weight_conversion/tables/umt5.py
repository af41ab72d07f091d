"""UMT5: names of ``models_t5_umt5-xxl-enc-bf16.pth`` to the tree of ``one4d_jax.wan.umt5``."""

from weight_conversion.rules import Rule, linear

RULES: tuple[Rule, ...] = (
  Rule('token_embedding.weight', 'embedding'),
  Rule('norm.weight', 'norm/scale'),
  Rule('blocks.{l}.norm1.weight', 'blocks/attn_norm/scale'),
  Rule('blocks.{l}.attn.q.weight', 'blocks/q/kernel', linear),
  Rule('blocks.{l}.attn.k.weight', 'blocks/k/kernel', linear),
  Rule('blocks.{l}.attn.v.weight', 'blocks/v/kernel', linear),
  Rule('blocks.{l}.attn.o.weight', 'blocks/o/kernel', linear),
  Rule('blocks.{l}.pos_embedding.embedding.weight', 'blocks/position'),
  Rule('blocks.{l}.norm2.weight', 'blocks/ffn_norm/scale'),
  Rule('blocks.{l}.ffn.gate.0.weight', 'blocks/ffn_gate/kernel', linear),
  Rule('blocks.{l}.ffn.fc1.weight', 'blocks/ffn_in/kernel', linear),
  Rule('blocks.{l}.ffn.fc2.weight', 'blocks/ffn_out/kernel', linear),
)
