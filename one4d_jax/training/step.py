"""One optimisation step: gradients of microbatches added in a scan, one update, an average of the weights.

A step whose loss or gradient is not finite, or whose gradient is far longer than usual, changes nothing but counters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from one4d_jax.nn import partition

SETTLED = 20  # good steps before a long gradient counts as a spike


@struct.dataclass
class Health:
  """What is usual, and how often it was not."""

  norm: jax.Array  # float32, running mean of the gradient's length over good steps
  good: jax.Array  # int32, good steps so far
  skipped: jax.Array  # int32, steps skipped in a row


@struct.dataclass
class State:
  """All that a step changes. ``params`` are what is trained, nothing else."""

  step: jax.Array  # int32
  params: dict
  average: dict  # exponential moving average of ``params``; empty without one
  optimizer: optax.OptState
  key: jax.Array  # raw PRNG key data; each step folds its number in
  health: Health


def init_state(params: dict, optimizer: optax.GradientTransformation, *, seed: int, ema: float) -> State:
  """The state before the first step."""
  average = jax.tree.map(jnp.copy, params) if ema else {}
  key = jax.random.key_data(jax.random.key(seed))
  zero = lambda dtype: jnp.zeros((), dtype)
  health = Health(zero(jnp.float32), zero(jnp.int32), zero(jnp.int32))
  return State(zero(jnp.int32), params, average, optimizer.init(params), key, health)


def mean(values: jax.Array, weight: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """A metric as ``(sum, count)``, which adds up over microbatches, steps and devices; of some values by ``weight``."""
  values = values.astype(jnp.float32)
  if weight is None:
    return values.sum(), jnp.float32(values.size)
  weight = weight.astype(jnp.float32)
  return (values * weight).sum(), weight.sum()


def make_step(
  loss: Callable,
  optimizer: optax.GradientTransformation,
  *,
  accumulation: int,
  ema: float,
  spike: float = 0.0,
  layout: partition.Layout | None = None,
  shardings: State | None = None,
) -> Callable[[State, dict, dict], tuple[State, dict]]:
  """``step(state, frozen, batch) -> (state, metrics)``, jitted, the old state donated.

  Args:
    loss: ``(params, frozen, batch, key) -> (scalar, metrics)``, each metric as ``mean`` gives it. So are those of the
      step: the loss's own, ``loss``, ``gradient_norm``, ``skipped`` and ``skipped_in_a_row``.
    accumulation: how many microbatches a batch is cut into: sample i goes into microbatch i mod ``accumulation``, so
      that samples stay on their devices.
    ema: decay of the average; it grows to this value over the first steps.
    spike: a gradient this many times longer than usual is skipped; 0 skips none but those that are not finite.
    layout: how the networks use the mesh.
    shardings: of the state.
  """
  place = lambda grads: grads if shardings is None else jax.lax.with_sharding_constraint(grads, shardings.params)

  def step(state: State, frozen: dict, batch: dict) -> tuple[State, dict]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    micro = jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch)

    gradient = jax.value_and_grad(loss, has_aux=True)

    def one(micro):
      piece, key = micro
      (value, metrics), grads = gradient(state.params, frozen, piece, key)
      return place(grads), metrics | {'loss': mean(value)}

    micro = micro, jax.random.split(key, accumulation)
    if accumulation == 1:
      total = one(jax.tree.map(lambda x: x[0], micro))
    else:  # from zero, so that the network is compiled once
      shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro))
      grads, metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
      add = lambda total, piece: (jax.tree.map(jnp.add, total, one(piece)), None)
      total, _ = jax.lax.scan(add, (place(grads), metrics), micro)
    grads, metrics = jax.tree.map(lambda x: x / accumulation, total[0]), total[1]

    norm, health = optax.tree.norm(grads), state.health
    good = jnp.isfinite(metrics['loss'][0]) & jnp.isfinite(norm)
    if spike:
      good &= (health.good < SETTLED) | (norm <= spike * health.norm)
    with jax.numpy_dtype_promotion('standard'):  # optax promotes internally
      updates, moments = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema, (1 + count) / (10 + count))
    average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.average, params) if ema else {}
    share = jnp.maximum(1 / (1 + health.good.astype(jnp.float32)), 0.01)  # a plain mean first, then a running one
    after = Health(health.norm + share * (norm - health.norm), health.good + 1, jnp.zeros_like(health.skipped))
    changed = (params, average, moments, after)
    kept = (state.params, state.average, state.optimizer, health.replace(skipped=health.skipped + 1))
    params, average, moments, health = jax.tree.map(lambda new, old: jnp.where(good, new, old), changed, kept)
    metrics |= {
      'gradient_norm': mean(norm),
      'skipped': mean(1 - good.astype(jnp.float32)),
      'skipped_in_a_row': mean(health.skipped),
    }
    return State(state.step + 1, params, average, moments, state.key, health), metrics

  def traced(*args):
    with partition.using(layout):
      return step(*args)

  return jax.jit(traced, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))
