"""Runs made comparable: the rank at which as much is trained, the steps in which as many operations are done.

Both are computed, from the shapes of the parameters and from ``flops.py``. Ranks and steps are whole numbers, so what
is equal is so within half a rank or half a step.
"""

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import jax

from one4d_jax.model import baselines
from one4d_jax.model.one4d import AdapterConfig, base_shapes
from one4d_jax.training import flops
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig
from one4d_jax.wan.vae import latent_grid


@functools.cache
def trained(cfg: DiTConfig, adapters: AdapterConfig) -> Mapping[str, int]:
  """How many parameters the model of ``adapters.kind`` trains, by part: ``lora``, ``links`` …"""
  model, key = baselines.build(cfg, adapters), jax.random.key(0)
  base = nn.unbox(base_shapes(cfg, model.precision))
  parts = nn.unbox(jax.eval_shape(model.init_adapters, key, base))
  return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in parts.items()}


def equal_parameters(cfg: DiTConfig, adapters: AdapterConfig, reference: AdapterConfig) -> AdapterConfig:
  """``adapters`` of the rank at which they are nearest in number to ``reference``; ``alpha / rank`` is its own.

  What has no rank, ``full``, stays as it is.
  """
  found = trained(cfg, adapters)
  if 'lora' not in found:
    return adapters
  left = sum(trained(cfg, reference).values()) - (sum(found.values()) - found['lora'])
  rank = max(1, round(left / (found['lora'] / adapters.rank)))
  return dataclasses.replace(adapters, rank=rank, alpha=rank * reference.alpha / reference.rank)


def sample(config) -> flops.Sizes:
  """One sample of a run's ``config``."""
  data, model = config.data, config.model
  latent = (*latent_grid(data.frames, data.height, data.width), model.vae.latent_channels)
  return flops.Sizes(1, dit.token_grid(model.dit, latent), model.dit.text_len, model.image.tokens)


def equal_operations(config, reference) -> int:
  """The steps after which ``config`` has done as many operations as the run ``reference``, of steps as large."""
  cost = lambda run: sum(flops.one4d(run.model.dit, run.model.adapters, sample(run)).step.values())
  return round(reference.train.steps * cost(reference) / cost(config))
