"""What the backward pass of a stack keeps of each layer, by name.

none              everything, and layers stand one after the other in the program (fastest, only for small models)
block             the input of each layer; the layer is computed again
attention_saved   that, and what attention gave, so that attention is not computed again
offload           the input of each layer, in pinned memory of the host
"""

import functools
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

POLICIES = ('none', 'block', 'attention_saved', 'offload')


def layer(body: Callable, policy: str) -> Callable:
  """``body`` of a ``scan`` over layers, under one of ``POLICIES``."""
  if policy == 'none':
    return body
  policies = jax.checkpoint_policies
  keep = {
    'block': policies.nothing_saveable,
    'attention_saved': policies.save_from_both_policies(
      policies.save_only_these_names('attention'),
      _self_attention,
    ),
    'offload': policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=['layer_input'],
      offload_src='device',
      offload_dst='pinned_host',
    ),
  }
  return functools.partial(jax.checkpoint, prevent_cse=False, policy=keep[policy])(body)


def stack(body: Callable, x: jax.Array, layers, *, policy: str = 'block') -> jax.Array:
  """``x`` through all of ``layers`` (a tree, stacked): a ``scan`` of ``body``, which gives ``(x, None)``.

  A scan that keeps everything would copy all of it into stacks, so that one is unrolled.
  """
  return jax.lax.scan(layer(body, policy), x, layers, unroll=policy == 'none')[0]


def _self_attention(primitive, query=None, key=None, *_, **__) -> bool:
  """Whether it is cuDNN's kernel, whose statistics have no name, and not over text or image."""
  return 'dot_product_attention' in primitive.name and query.shape == key.shape


def layer_input(x: jax.Array) -> jax.Array:
  """Marks what enters a layer."""
  return checkpoint_name(x, 'layer_input')


def attention(x: jax.Array) -> jax.Array:
  """Marks what attention gave."""
  return checkpoint_name(x, 'attention')
