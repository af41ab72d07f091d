"""Names of diffusers and transformers to Wan's own, written down a second time.

The converter has its own tables (``weight_conversion/tables``). The releases of these tests are named by this file,
so that a mistake in either shows as a difference. Each table is a list of replacements, made in order.
"""

import re

DIT = (
  (r'^scale_shift_table$', 'head.modulation'),
  (r'scale_shift_table$', 'modulation'),
  (r'^proj_out', 'head.head'),
  (r'condition_embedder\.text_embedder\.linear_1', 'text_embedding.0'),
  (r'condition_embedder\.text_embedder\.linear_2', 'text_embedding.2'),
  (r'condition_embedder\.time_embedder\.linear_1', 'time_embedding.0'),
  (r'condition_embedder\.time_embedder\.linear_2', 'time_embedding.2'),
  (r'condition_embedder\.time_proj', 'time_projection.1'),
  (r'condition_embedder\.image_embedder\.norm1', 'img_emb.proj.0'),
  (r'condition_embedder\.image_embedder\.ff\.net\.0\.proj', 'img_emb.proj.1'),
  (r'condition_embedder\.image_embedder\.ff\.net\.2', 'img_emb.proj.3'),
  (r'condition_embedder\.image_embedder\.norm2', 'img_emb.proj.4'),
  (r'\.norm2\.', '.norm3.'),
  (r'\.attn1\.', '.self_attn.'),
  (r'\.attn2\.', '.cross_attn.'),
  (r'\.to_out\.0\.', '.o.'),
  (r'\.to_([qkv])\.', r'.\1.'),
  (r'\.add_([kv])_proj\.', r'.\1_img.'),
  (r'\.norm_added_k\.', '.norm_k_img.'),
  (r'\.ffn\.net\.0\.proj\.', '.ffn.0.'),
  (r'\.ffn\.net\.2\.', '.ffn.2.'),
)

VAE = (
  (r'\.norm1\.', '.residual.0.'),
  (r'\.conv1\.', '.residual.2.'),
  (r'\.norm2\.', '.residual.3.'),
  (r'\.conv2\.', '.residual.6.'),
  (r'\.conv_shortcut\.', '.shortcut.'),
  (r'\.mid_block\.resnets\.0\.', '.middle.0.'),
  (r'\.mid_block\.attentions\.0\.', '.middle.1.'),
  (r'\.mid_block\.resnets\.1\.', '.middle.2.'),
  (r'\.conv_in\.', '.conv1.'),
  (r'\.norm_out\.', '.head.0.'),
  (r'\.conv_out\.', '.head.2.'),
  (r'^quant_conv\.', 'conv1.'),
  (r'^post_quant_conv\.', 'conv2.'),
  (r'\.down_blocks\.', '.downsamples.'),
  (r'\.up_blocks\.(\d)\.resnets\.(\d)\.', lambda m: f'.upsamples.{4 * int(m[1]) + int(m[2])}.'),
  (r'\.up_blocks\.(\d)\.upsamplers\.0\.', lambda m: f'.upsamples.{4 * int(m[1]) + 3}.'),
)

UMT5 = (
  (r'^shared\.', 'token_embedding.'),
  (r'^encoder\.final_layer_norm\.', 'norm.'),
  (r'^encoder\.block\.', 'blocks.'),
  (r'\.layer\.0\.layer_norm\.', '.norm1.'),
  (r'\.layer\.1\.layer_norm\.', '.norm2.'),
  (r'\.layer\.0\.SelfAttention\.relative_attention_bias\.', '.pos_embedding.embedding.'),
  (r'\.layer\.0\.SelfAttention\.', '.attn.'),
  (r'\.layer\.1\.DenseReluDense\.wi_0\.', '.ffn.gate.0.'),
  (r'\.layer\.1\.DenseReluDense\.wi_1\.', '.ffn.fc1.'),
  (r'\.layer\.1\.DenseReluDense\.wo\.', '.ffn.fc2.'),
)

CLIP = (
  (r'^embeddings\.class_embedding$', 'cls_embedding'),
  (r'^embeddings\.position_embedding\.weight$', 'pos_embedding'),
  (r'^embeddings\.patch_embedding\.', 'patch_embedding.'),
  (r'^pre_layrnorm\.', 'pre_norm.'),
  (r'^post_layernorm\.', 'post_norm.'),
  (r'^encoder\.layers\.', 'transformer.'),
  (r'\.layer_norm(\d)\.', r'.norm\1.'),
  (r'\.self_attn\.out_proj\.', '.attn.proj.'),
  (r'\.self_attn\.([qkv])_proj\.', r'.attn.to_qkv.\1.'),  # three tensors here, one in Wan's file
  (r'\.mlp\.fc1\.', '.mlp.0.'),
  (r'\.mlp\.fc2\.', '.mlp.2.'),
)


def native(name: str, table) -> str:
  """Wan's name of the tensor that diffusers or transformers calls ``name``."""
  for pattern, replacement in table:
    name = re.sub(pattern, replacement, name)
  return name
