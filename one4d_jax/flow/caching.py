"""Steps that are skipped: where the first layer says what it said before, so do the others (first-block cache).

The network's change of its tokens varies little from one noise level to the next. Each step runs the first layer; if
what it adds differs, relative to the step that was last computed, by less than ``threshold``, what all other layers
added then is added again. ParaAttention's first-block cache, kin of TeaCache (arXiv 2411.19108) without its fitted
polynomials; one decision for all rows, so that branches and guidance stay in step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Kept(NamedTuple):
  """Of the step that was last computed; rows on the second axis, as ``guidance.guided`` wants them."""

  first: Float[Array, 'm b s d']  # what the first layer added
  rest: Float[Array, 'm b s d']  # and the others
  known: Bool[Array, '1 b 1 1']


def nothing(x: Float[Array, 'm b s d'] | jax.ShapeDtypeStruct) -> Kept:
  """Before the first step, for tokens ``x``."""
  return Kept(jnp.zeros(x.shape, x.dtype), jnp.zeros(x.shape, x.dtype), jnp.zeros((1, x.shape[1], 1, 1), bool))


def change(now: Array, before: Array) -> Float[Array, '']:
  """Mean absolute difference, relative."""
  now, before = now.astype(jnp.float32), before.astype(jnp.float32)
  return jnp.abs(now - before).mean() / jnp.abs(before).mean()


class FirstBlock:
  """A ``stack`` (``dlc.run``) for one step; ``kept`` is what was kept before, and after the call what is to be."""

  def __init__(self, threshold: float, kept: Kept):
    self.threshold, self.kept = threshold, kept

  def __call__(self, layer: Callable, x: Float[Array, 'm b s d'], layers) -> Float[Array, 'm b s d']:
    """``x`` through ``layers`` (a tree, stacked) by ``layer(x, one) -> (x, None)``."""
    kept, at = self.kept, lambda i: jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), layers)
    count = jax.tree.leaves(layers)[0].shape[0]
    after = layer(x, at(0))[0]
    first = after - x
    skip = kept.known.all() & (change(first, kept.first) < self.threshold)
    others = lambda: jax.lax.fori_loop(1, count, lambda i, x: layer(x, at(i))[0], after) - after
    rest = jax.lax.cond(skip, lambda: kept.rest, others)
    self.kept = Kept(jnp.where(skip, kept.first, first), rest, jnp.ones_like(kept.known))
    return after + rest
