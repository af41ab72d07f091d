"""From a configuration to the step that a run takes and the state it begins with, placed on a mesh.

Nothing here needs devices that are there: ``frozen`` may be shapes, and then the step can be compiled, not run.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from one4d_jax.parallel import load, rules
from one4d_jax.parallel.layout import MeshLayout
from one4d_jax.training import optimizer as optimizers
from one4d_jax.training.step import State, init_state, make_step


class Setup(NamedTuple):
  """What a run is made of, beside its data."""

  step: Callable[[State, dict, dict], tuple[State, dict]]
  state: State  # shapes, dtypes and shardings
  begin: Callable[[], State]  # the state before the first step


def setup(config, stage, layout: MeshLayout, frozen: dict) -> Setup:
  """The step of ``stage`` over the parameters ``frozen``, arrays on the mesh of ``layout`` or their shapes."""
  train = config.train
  optimizer = optimizers.make(
    learning_rate=train.learning_rate,
    warmup=train.warmup,
    steps=train.steps,
    kind=train.schedule,
    weight_decay=train.weight_decay,
    clip_norm=train.clip_norm,
    state=train.optimizer_state,
  )
  fresh = functools.partial(init_state, optimizer=optimizer, seed=train.seed, ema=train.ema)
  key = np.asarray(jax.random.key_data(jax.random.key(train.seed)))
  init = lambda key, frozen: stage.init(jax.random.wrap_key_data(key), frozen)
  named = jax.eval_shape(init, key, frozen)
  shapes = jax.eval_shape(fresh, nn.unbox(named))
  shardings = rules.state_shardings(shapes, named, layout.mesh)
  step = make_step(
    stage.loss,
    optimizer,
    accumulation=train.accumulation,
    ema=train.ema,
    spike=train.spike,
    layout=layout,
    shardings=shardings,
  )

  def begin() -> State:
    if stage.given is None:
      params = jax.jit(lambda key, frozen: nn.unbox(init(key, frozen)), out_shardings=shardings.params)(key, frozen)
    else:
      params = load.put(stage.given, shardings.params)
    return jax.jit(fresh, out_shardings=shardings)(params)

  return Setup(step, load.placed(shapes, shardings), begin)
