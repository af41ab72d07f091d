"""One optimisation step: gradients of microbatches added in a scan, one update, an average of the weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class State:
  """All that a step changes. ``params`` are what is trained, nothing else."""

  step: jax.Array  # int32
  params: dict
  average: dict  # exponential moving average of ``params``; empty without one
  optimizer: optax.OptState
  key: jax.Array  # raw PRNG key data; each step folds its number in


def init_state(params: dict, optimizer: optax.GradientTransformation, *, seed: int, ema: float) -> State:
  """The state before the first step."""
  average = jax.tree.map(jnp.copy, params) if ema else {}
  key = jax.random.key_data(jax.random.key(seed))
  return State(jnp.zeros((), jnp.int32), params, average, optimizer.init(params), key)


def make_step(
  loss: Callable, optimizer: optax.GradientTransformation, *, accumulation: int, ema: float
) -> Callable[[State, dict, dict], tuple[State, dict]]:
  """``step(state, frozen, batch) -> (state, metrics)``, jitted, the old state donated.

  Args:
    loss: ``(params, frozen, batch, key) -> (scalar, metrics)``.
    accumulation: how many microbatches a batch is cut into along its leading axis.
    ema: decay of the average; it grows to this value over the first steps.
  """

  def step(state: State, frozen: dict, batch: dict) -> tuple[State, dict]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    micro = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch)

    gradient = jax.value_and_grad(loss, has_aux=True)

    def one(micro):
      piece, key = micro
      (value, metrics), grads = gradient(state.params, frozen, piece, key)
      return grads, metrics | {'loss': value}

    micro = micro, jax.random.split(key, accumulation)
    total = one(jax.tree.map(lambda x: x[0], micro))
    if accumulation > 1:
      add = lambda total, piece: (jax.tree.map(jnp.add, total, one(piece)), None)
      total, _ = jax.lax.scan(add, total, jax.tree.map(lambda x: x[1:], micro))
    grads, metrics = jax.tree.map(lambda x: x / accumulation, total)

    with jax.numpy_dtype_promotion('standard'):  # optax promotes internally
      updates, moments = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema, (1 + count) / (10 + count))
    average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.average, params) if ema else {}
    metrics['gradient_norm'] = optax.tree.norm(grads)
    return State(state.step + 1, params, average, moments, state.key), metrics

  return jax.jit(step, donate_argnums=0)
