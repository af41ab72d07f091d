"""The VAE: ``Wan2.1_VAE.pth`` and diffusers' ``vae/``. Shapes are equal, names and the numbers of blocks are not.

Both have gains ``[c, 1, 1, 1]`` (``[c, 1, 1]`` in the attention, which is 2D) and kernels ``[out, in, *window]`` with
windows of one element where ours are matrices.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from one4d_jax.errors import CheckpointError
from one4d_jax.wan.config import VAEConfig
from one4d_jax.wan.vae import Step, WanVAE, decoder_steps, encoder_steps
from weight_conversion.rules import CONV, Rule, Tensor, pointwise, scale
from weight_conversion.tables.rows import Kind, Row, dense, rules_of, under
from weight_conversion.tables.sizes import agree, flat_shapes, shape, told

SIGNATURES = {
  'native': 'decoder.middle.0.residual.0.gamma',
  'diffusers': 'decoder.mid_block.resnets.0.norm1.gamma',
}


def gain(ndim: int) -> Kind:
  return (('/gamma', '.gamma', scale(ndim)),)


WINDOW = dense(CONV)
POINT2D, POINT3D = dense(pointwise(4)), dense(pointwise(5))

# ours, native, diffusers
RES = (
  Row('norm_1', 'residual.0', 'norm1', gain(4)),
  Row('conv_1', 'residual.2', 'conv1', WINDOW),
  Row('norm_2', 'residual.3', 'norm2', gain(4)),
  Row('conv_2', 'residual.6', 'conv2', WINDOW),
)
SHORTCUT = (Row('shortcut', 'shortcut', 'conv_shortcut', POINT3D),)  # where a block changes the width
ATTENTION = (
  Row('norm', 'norm',   'norm',   gain(3)),
  Row('qkv',  'to_qkv', 'to_qkv', POINT2D),
  Row('out',  'proj',   'proj',   POINT2D),
)  # fmt: skip
SPACE = (Row('space', 'resample.1', 'resample.1', WINDOW),)
TIME = (Row('time', 'time_conv', 'time_conv', WINDOW),)  # where a resampler changes the frame rate
HALF = (  # of the encoder and of the decoder
  Row('conv_in', 'conv1', 'conv_in', WINDOW),
  *under(('mid_1',         'middle.0', 'mid_block.resnets.0'), RES),
  *under(('mid_attention', 'middle.1', 'mid_block.attentions.0'), ATTENTION),
  *under(('mid_2',         'middle.2', 'mid_block.resnets.1'), RES),
  Row('norm_out', 'head.0', 'norm_out', gain(4)),
  Row('conv_out', 'head.2', 'conv_out', WINDOW),
)  # fmt: skip
OUTER = (
  Row('encoder/to_moments',  'conv1', 'quant_conv',      POINT3D),
  Row('decoder/from_latent', 'conv2', 'post_quant_conv', POINT3D),
)  # fmt: skip


def of_step(step: Step) -> tuple[Row, ...]:
  if step.kind == 'res':
    return RES + SHORTCUT if step.width_in != step.width_out else RES
  return SPACE + TIME if step.temporal else SPACE


def up_name(cfg: VAEConfig, i: int) -> str:
  """What diffusers calls ``decoder.upsamples.i``: it counts levels, each of residual blocks and an upsampler."""
  level, i = divmod(i, cfg.res_blocks + 2)
  return f'up_blocks.{level}.' + (f'resnets.{i}' if i <= cfg.res_blocks else 'upsamplers.0')


def rows(cfg: VAEConfig) -> tuple[Row, ...]:
  encoder, decoder = list(HALF), list(HALF)
  for i, step in enumerate(encoder_steps(cfg)):
    encoder += under((f'down_{i}', f'downsamples.{i}', f'down_blocks.{i}'), of_step(step))
  for i, step in enumerate(decoder_steps(cfg)):
    decoder += under((f'up_{i}', f'upsamples.{i}', up_name(cfg, i)), of_step(step))
  return (*under(('encoder',) * 3, encoder), *under(('decoder',) * 3, decoder), *OUTER)


def rules(cfg: VAEConfig, layout: str) -> tuple[Rule, ...]:
  """The table for one size, on which the numbers of the blocks depend."""
  return rules_of(rows(cfg), layout)


def ignored(cfg: VAEConfig, layout: str) -> tuple[str, ...]:
  return ()


def config(tensors: Mapping[str, Tensor], layout: str, described: Mapping[str, Any]) -> VAEConfig:
  """Sizes from shapes and from which blocks of the encoder there are; the latent's statistics from ``config.json``.

  The native layout has no description: the statistics are Wan2.1's.

  Raises:
    CheckpointError: for a VAE of another family, or a ``config.json`` of another network.
  """
  native = layout == 'native'
  described = {} if native else described
  conv_in = f'encoder.{"conv1" if native else "conv_in"}.weight'
  width, pixel, *_ = shape(tensors, conv_in, 5)
  if pixel != 3:
    raise CheckpointError(f'{conv_in} reads {pixel} channels, not 3: One4D needs the VAE of Wan2.1, not of Wan2.2')
  latent_channels = shape(tensors, f'{"conv2" if native else "post_quant_conv"}.weight', 5)[0]
  mult, blocks, temporal = levels(tensors, layout, width)
  res_blocks = blocks[0]
  if set(blocks) != {res_blocks} or not all(mult):
    raise CheckpointError(f'levels of the encoder have {list(blocks)} residual blocks: this is no VAE of Wan2.1')
  statistics = {
    ours: tuple(told(described, theirs, getattr(VAEConfig, ours)))
    for ours, theirs in (('latent_mean', 'latents_mean'), ('latent_std', 'latents_std'))
  }
  for name, values in statistics.items():
    if len(values) != latent_channels:
      raise CheckpointError(f'{name} has {len(values)} values for {latent_channels} latent channels')
  agree(
    described,
    {
      'base_dim': width,
      'dim_mult': mult,
      'num_res_blocks': res_blocks,
      'temperal_downsample': temporal,  # spelled so
      'z_dim': latent_channels,
    },
  )
  return VAEConfig(width, mult, res_blocks, temporal, latent_channels, **statistics)


def levels(
  tensors: Mapping[str, Tensor], layout: str, width: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
  """Of the encoder: multiples of ``width`` and residual blocks a level, and which resamplers also halve time."""
  steps, last = ('downsamples', 'residual.6') if layout == 'native' else ('down_blocks', 'conv2')
  mult, blocks, temporal = [0], [0], []
  found = re.findall(rf'^encoder\.{steps}\.(\d+)\.', '\n'.join(tensors), re.MULTILINE)
  for i in range(1 + max(map(int, found), default=-1)):
    step = f'encoder.{steps}.{i}.'
    if step + 'resample.1.weight' in tensors:
      temporal.append(step + 'time_conv.weight' in tensors)
      mult.append(0)
      blocks.append(0)
    else:
      mult[-1] = shape(tensors, f'{step}{last}.weight', 5)[0] // width
      blocks[-1] += 1
  return tuple(mult), tuple(blocks), tuple(temporal)


def targets(cfg: VAEConfig, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Our arrays; gains of norms are float32, kernels and biases ``dtype``."""
  flat = flat_shapes(jax.eval_shape(WanVAE(cfg).init, jax.random.key(0)))
  stored = lambda path, leaf: leaf.dtype if path.endswith('/gamma') else jnp.dtype(dtype)
  return {path: jax.ShapeDtypeStruct(leaf.shape, stored(path, leaf)) for path, leaf in flat.items()}
