"""Wan DiT (Fun-InP, official I2V), native names to our tree. Mind the layer norms: ``norm3`` is ``cross_norm``."""

import numpy as np

from weight_conversion.rules import Rule, keep, linear


def _patch(w: np.ndarray) -> np.ndarray:
  """Convolution ``[d, c, 1, 2, 2]`` with stride = kernel, as a matrix ``[c·2·2, d]``."""
  return w.reshape(w.shape[0], -1).T


def _first(w: np.ndarray) -> np.ndarray:
  return w[0]


def _dense(source: str, target: str, transform=linear) -> tuple[Rule, Rule]:
  return Rule(f'{source}.weight', f'{target}/kernel', transform), Rule(f'{source}.bias', f'{target}/bias')


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
  return Rule(f'{source}.weight', f'{target}/scale'), Rule(f'{source}.bias', f'{target}/bias')


_BLOCK = {
  'self_attn.q': 'self_q',
  'self_attn.k': 'self_k',
  'self_attn.v': 'self_v',
  'self_attn.o': 'self_o',
  'cross_attn.q': 'cross_q',
  'cross_attn.k': 'cross_k',
  'cross_attn.v': 'cross_v',
  'cross_attn.k_img': 'cross_k_img',
  'cross_attn.v_img': 'cross_v_img',
  'cross_attn.o': 'cross_o',
  'ffn.0': 'ffn_in',
  'ffn.2': 'ffn_out',
}
_BLOCK_RMS = {
  'self_attn.norm_q': 'self_norm_q',
  'self_attn.norm_k': 'self_norm_k',
  'cross_attn.norm_q': 'cross_norm_q',
  'cross_attn.norm_k': 'cross_norm_k',
  'cross_attn.norm_k_img': 'cross_norm_k_img',
}

RULES: tuple[Rule, ...] = (
  *_dense('patch_embedding', 'embed/patch', _patch),
  *_dense('text_embedding.0', 'embed/text_in'),
  *_dense('text_embedding.2', 'embed/text_out'),
  *_dense('time_embedding.0', 'embed/time_in'),
  *_dense('time_embedding.2', 'embed/time_out'),
  *_dense('time_projection.1', 'embed/time_modulation'),
  *_norm('img_emb.proj.0', 'embed/image_norm_in'),
  *_dense('img_emb.proj.1', 'embed/image_in'),
  *_dense('img_emb.proj.3', 'embed/image_out'),
  *_norm('img_emb.proj.4', 'embed/image_norm_out'),
  *(rule for s, t in _BLOCK.items() for rule in _dense(f'blocks.{{l}}.{s}', f'blocks/{t}')),
  *(Rule(f'blocks.{{l}}.{s}.weight', f'blocks/{t}/scale', keep) for s, t in _BLOCK_RMS.items()),
  *_norm('blocks.{l}.norm3', 'blocks/cross_norm'),
  Rule('blocks.{l}.modulation', 'blocks/modulation', _first),
  *_dense('head.head', 'head/out'),
  Rule('head.modulation', 'head/modulation', _first),
)
