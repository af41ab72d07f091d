"""CLIP: names of ``models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`` to the tree of ``one4d_jax.wan.clip``.

That file also holds the text half, and parts of the visual half that Wan never runs: ``ignored`` names them.
"""

import numpy as np

from weight_conversion.rules import Rule, conv, linear


def patch(w: np.ndarray) -> np.ndarray:
  """``[out, 3, p, p]`` to ``[p*p*3, out]``."""
  return conv(w).reshape(-1, w.shape[0])


def rules(prefix: str = 'visual.') -> tuple[Rule, ...]:
  block = prefix + 'transformer.{l}.'
  return (
    Rule(prefix + 'patch_embedding.weight', 'patch/kernel', patch),
    Rule(prefix + 'cls_embedding', 'cls', lambda w: w.reshape(-1)),
    Rule(prefix + 'pos_embedding', 'position', lambda w: w[0]),
    Rule(prefix + 'pre_norm.weight', 'pre_norm/scale'),
    Rule(prefix + 'pre_norm.bias', 'pre_norm/bias'),
    Rule(block + 'norm1.weight', 'blocks/attn_norm/scale'),
    Rule(block + 'norm1.bias', 'blocks/attn_norm/bias'),
    Rule(block + 'attn.to_qkv.weight', 'blocks/qkv/kernel', linear),
    Rule(block + 'attn.to_qkv.bias', 'blocks/qkv/bias'),
    Rule(block + 'attn.proj.weight', 'blocks/o/kernel', linear),
    Rule(block + 'attn.proj.bias', 'blocks/o/bias'),
    Rule(block + 'norm2.weight', 'blocks/mlp_norm/scale'),
    Rule(block + 'norm2.bias', 'blocks/mlp_norm/bias'),
    Rule(block + 'mlp.0.weight', 'blocks/mlp_in/kernel', linear),
    Rule(block + 'mlp.0.bias', 'blocks/mlp_in/bias'),
    Rule(block + 'mlp.2.weight', 'blocks/mlp_out/kernel', linear),
    Rule(block + 'mlp.2.bias', 'blocks/mlp_out/bias'),
  )


def ignored(layers: int = 32, prefix: str = 'visual.') -> tuple[str, ...]:
  """Patterns of the tensors Wan never uses: the last block, the final norm, the projection, the text half."""
  unused = (f'{prefix}transformer.{layers - 1}.*', f'{prefix}post_norm.*', f'{prefix}head')
  return (*unused, 'textual.*', 'log_scale') if prefix else unused


RULES: tuple[Rule, ...] = rules()
IGNORED: tuple[str, ...] = ignored()
