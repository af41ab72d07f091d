"""Decoupled LoRA Control: two branches over one frozen stack (One4D, Sec. 3.2, Fig. 4).

  base   [l, ...]      frozen, shared, seen by both branches
  lora   [l, m, ...]   one adapter per layer and modality; m = 2, rgb then xyz
  links  [k, m, d, d]  zero-initialised, bias-free control links after k of the l layers

A layer is the block mapped over the modality axis with the base held fixed, so a base kernel is read
(and gathered across hosts) once for both branches. All layers share one scan; a link is a ``cond`` on the
layer's slot, so any subset of layers may be linked, nothing is padded and no part of a stack is copied.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from one4d_jax.checks import checked
from one4d_jax.errors import ConfigError
from one4d_jax.nn import partition, remat
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig

RGB, XYZ = 0, 1


@checked
def control_link(x: Float[Array, 'm b s d'], kernel: Float[Array, 'm d d']) -> Float[Array, 'm b s d']:
  """Adds to each branch a linear map of the other (Eq. 9); both read the features from before the update."""
  return x + jnp.einsum('mbsd,mde->mbse', x[::-1], kernel.astype(x.dtype))


def init_links(width: int, link_layers: tuple[int, ...], modalities: int = 2) -> nn.LogicallyPartitioned:
  """Zero control links: the branches start independent."""
  kernel = jnp.zeros((len(link_layers), modalities, width, width))
  return nn.LogicallyPartitioned(kernel, ('link', 'modality', 'embed', 'heads'))


def link_slots(link_layers: tuple[int, ...], layers: int) -> Int[Array, 'l']:
  """Per layer: which control link follows it, or -1. ``((1, 4), 6) -> [-1, 0, -1, -1, 1, -1]``.

  Raises:
    ConfigError: unless ``link_layers`` increase and lie within the stack.
  """
  if sorted(set(link_layers)) != list(link_layers) or not all(0 <= i < layers for i in link_layers):
    raise ConfigError(f'link_layers must be increasing and within [0, {layers}), got {link_layers}')
  slots = np.full(layers, -1, np.int32)
  slots[list(link_layers)] = np.arange(len(link_layers))
  return jnp.asarray(slots)


def run(
  cfg: DiTConfig,
  blocks: dict,
  adapters: dict,  # {'lora': [l m …], 'links': [k m d d] if any}, LoRA scale already folded in
  x: Float[Array, 'm b s d'],
  context: dit.Context,
  *,
  link_layers: tuple[int, ...],
  precision: dit.Precision = dit.BFLOAT16,
  stack: Callable = remat.stack,
  keys: dit.Keys | None = None,
) -> Float[Array, 'm b s d']:
  """Both branches through all layers. ``adapters`` is the only differentiated argument.

  Args:
    stack: how ``x`` goes through them, called as ``stack(layer, x, layers)``; see ``nn/remat.py``.
    keys: those of ``keys`` below, if they are known.
  """
  block = dit.WanBlock(cfg, precision)

  def branch(lora, x, params, keys):
    return block.apply({'params': params, 'lora': lora}, x, context, keys)

  both_branches = jax.vmap(branch, in_axes=(0, 0, None, 0), spmd_axis_name=_modality_axis(len(x)))

  # One checkpoint around block, gather and link: whatever is indexed outside it becomes a saved residual.
  def layer(x, inputs):
    params, lora, slot, keys = inputs
    x = remat.layer_input(partition.constrain(x, 'modality', 'batch', 'tokens', 'embed'))
    x = both_branches(lora, x, params, keys)
    if link_layers:
      x = jax.lax.cond(slot < 0, lambda x: x, lambda x: control_link(x, adapters['links'][slot]), x)
    return x, None

  return stack(layer, x, (blocks, adapters['lora'], link_slots(link_layers, cfg.layers), keys))


def keys(
  cfg: DiTConfig,
  blocks: dict,
  lora: dict,
  text: Float[Array, 'b t d'],
  image: Float[Array, 'b i d'],
  *,
  branches: int = 2,
  precision: dit.Precision = dit.BFLOAT16,
) -> dit.Keys:
  """Cross-attention keys and values of every layer and branch, ``[l m b t n h]``; they serve all steps of a sample."""
  block = dit.WanBlock(cfg, precision)

  def branch(lora, params):
    return block.apply({'params': params, 'lora': lora}, text, image, method='keys')

  branches = jax.vmap(branch, in_axes=(0, None), axis_size=branches, spmd_axis_name=_modality_axis(branches))
  return jax.lax.scan(lambda _, layer: (None, branches(*layer)), None, (lora, blocks))[1]


def _modality_axis(branches: int) -> str | None:
  """The mesh axis over which ``vmap`` maps the branches."""
  layout = partition.current()
  return layout.modality_axis if layout is not None and branches > 1 else None
