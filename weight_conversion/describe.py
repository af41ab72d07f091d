"""The ``config.json`` of a written network, the inverse of what ``tables`` read: one function a part and layout."""

from collections.abc import Callable
from typing import Any

from one4d_jax.wan.config import CLIPConfig, DiTConfig, UMT5Config, VAEConfig


def native_dit(cfg: DiTConfig) -> dict[str, Any]:
  return {
    '_class_name': 'WanModel',
    'model_type': 'i2v',
    'dim': cfg.width,
    'ffn_dim': cfg.ffn_width,
    'freq_dim': cfg.freq_width,
    'in_dim': cfg.in_channels,
    'out_dim': cfg.out_channels,
    'num_heads': cfg.heads,
    'num_layers': cfg.layers,
    'patch_size': cfg.patch,
    'text_dim': cfg.text_width,
    'text_len': cfg.text_len,
    'eps': cfg.eps,
  }


def diffusers_dit(cfg: DiTConfig) -> dict[str, Any]:
  return {
    '_class_name': 'WanTransformer3DModel',
    'patch_size': cfg.patch,
    'num_attention_heads': cfg.heads,
    'attention_head_dim': cfg.width // cfg.heads,
    'in_channels': cfg.in_channels,
    'out_channels': cfg.out_channels,
    'text_dim': cfg.text_width,
    'freq_dim': cfg.freq_width,
    'ffn_dim': cfg.ffn_width,
    'num_layers': cfg.layers,
    'cross_attn_norm': True,
    'qk_norm': 'rms_norm_across_heads',
    'eps': cfg.eps,
    'image_dim': cfg.image_width,
    'added_kv_proj_dim': cfg.width,
    'rope_max_seq_len': 1024,
    'pos_embed_seq_len': None,
  }


def diffusers_vae(cfg: VAEConfig) -> dict[str, Any]:
  return {
    '_class_name': 'AutoencoderKLWan',
    'base_dim': cfg.width,
    'z_dim': cfg.latent_channels,
    'dim_mult': cfg.mult,
    'num_res_blocks': cfg.res_blocks,
    'attn_scales': [],
    'temperal_downsample': cfg.temporal,  # spelled so
    'latents_mean': cfg.latent_mean,
    'latents_std': cfg.latent_std,
  }


def transformers_umt5(cfg: UMT5Config) -> dict[str, Any]:
  return {
    'architectures': ['UMT5EncoderModel'],
    'model_type': 'umt5',
    'vocab_size': cfg.vocab,
    'd_model': cfg.width,
    'd_kv': cfg.width // cfg.heads,
    'd_ff': cfg.ffn_width,
    'num_heads': cfg.heads,
    'num_layers': cfg.layers,
    'relative_attention_num_buckets': cfg.buckets,
    'relative_attention_max_distance': cfg.max_distance,
    'layer_norm_epsilon': cfg.eps,
    'feed_forward_proj': 'gated-gelu',
    'is_encoder_decoder': True,
    'pad_token_id': 0,
    'eos_token_id': 1,
    'decoder_start_token_id': 0,
  }


def transformers_clip(cfg: CLIPConfig) -> dict[str, Any]:
  return {
    'architectures': ['CLIPVisionModel'],
    'model_type': 'clip_vision_model',
    'hidden_size': cfg.width,
    'intermediate_size': cfg.mlp_width,
    'num_hidden_layers': cfg.layers,
    'num_attention_heads': cfg.heads,
    'image_size': cfg.image_size,
    'patch_size': cfg.patch,
    'layer_norm_eps': cfg.eps,
    'hidden_act': 'gelu',
  }


CONFIGS: dict[tuple[str, str], Callable[[Any], dict[str, Any]]] = {
  ('base', 'native'): native_dit,
  ('base', 'diffusers'): diffusers_dit,
  ('vae', 'diffusers'): diffusers_vae,
  ('text', 'diffusers'): transformers_umt5,
  ('image', 'diffusers'): transformers_clip,
}
"""By part of a bundle and layout; the other three native files have no description."""
