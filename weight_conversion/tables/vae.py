"""Names of the VAE: native ``Wan2.1_VAE.pth`` to our tree."""

import numpy as np

from one4d_jax.wan.config import VAEConfig
from one4d_jax.wan.vae import Step, decoder_steps, encoder_steps
from weight_conversion.rules import Rule, conv


def flat(w: np.ndarray) -> np.ndarray:
  """Torch keeps a scale as ``[c, 1, ...]``, we keep ``[c]``."""
  return w.reshape(-1)


def pointwise(w: np.ndarray) -> np.ndarray:
  """Torch keeps ``[out, in, 1, ...]``, we keep ``[in, out]``."""
  return w.reshape(w.shape[:2]).T


def layer(source: str, target: str, transform=conv) -> list[Rule]:
  return [Rule(f'{source}.weight', f'{target}/kernel', transform), Rule(f'{source}.bias', f'{target}/bias')]


def res_block(source: str, target: str, *, shortcut: bool = False) -> list[Rule]:
  return [
    Rule(f'{source}.residual.0.gamma', f'{target}/norm_1/gamma', flat),
    *layer(f'{source}.residual.2', f'{target}/conv_1'),
    Rule(f'{source}.residual.3.gamma', f'{target}/norm_2/gamma', flat),
    *layer(f'{source}.residual.6', f'{target}/conv_2'),
    *(layer(f'{source}.shortcut', f'{target}/shortcut', pointwise) if shortcut else []),
  ]


def step_rules(step: Step, source: str, target: str) -> list[Rule]:
  if step.kind == 'res':
    return res_block(source, target, shortcut=step.width_in != step.width_out)
  time = layer(f'{source}.time_conv', f'{target}/time') if step.temporal else []
  return layer(f'{source}.resample.1', f'{target}/space') + time


def ends(half: str) -> list[Rule]:
  """What both halves have: the convolutions at their ends and the middle."""
  return [
    *layer(f'{half}.conv1', f'{half}/conv_in'),
    *res_block(f'{half}.middle.0', f'{half}/mid_1'),
    Rule(f'{half}.middle.1.norm.gamma', f'{half}/mid_attention/norm/gamma', flat),
    *layer(f'{half}.middle.1.to_qkv', f'{half}/mid_attention/qkv', pointwise),
    *layer(f'{half}.middle.1.proj', f'{half}/mid_attention/out', pointwise),
    *res_block(f'{half}.middle.2', f'{half}/mid_2'),
    Rule(f'{half}.head.0.gamma', f'{half}/norm_out/gamma', flat),
    *layer(f'{half}.head.2', f'{half}/conv_out'),
  ]


def rules(cfg: VAEConfig = VAEConfig()) -> tuple[Rule, ...]:
  """The table for one size; the numbers of the blocks depend on it."""
  table = ends('encoder') + ends('decoder')
  table += layer('conv1', 'encoder/to_moments', pointwise) + layer('conv2', 'decoder/from_latent', pointwise)
  for i, step in enumerate(encoder_steps(cfg)):
    table += step_rules(step, f'encoder.downsamples.{i}', f'encoder/down_{i}')
  for i, step in enumerate(decoder_steps(cfg)):
    table += step_rules(step, f'decoder.upsamples.{i}', f'decoder/up_{i}')
  return tuple(table)
