"""AdamW with warm-up and gradient clipping, from optax."""

import jax
import optax

from one4d_jax.training import moments

_VECTORS = ('bias', 'scale', 'modulation')  # stacked over layers they have two axes and more


def schedule(*, learning_rate: float, warmup: int, steps: int, kind: str) -> optax.Schedule:
  """Linear warm-up, then constant, or a cosine down to a tenth at ``steps``."""
  warmup = min(warmup, max(1, steps // 2))
  rise = optax.linear_schedule(0.0, learning_rate, warmup)
  after = optax.constant_schedule(learning_rate)
  if kind == 'cosine':
    after = optax.cosine_decay_schedule(learning_rate, max(1, steps - warmup), alpha=0.1)
  return optax.join_schedules([rise, after], [warmup])


def _decays(params: dict) -> dict:
  name = lambda path: jax.tree_util.keystr(path[-1:], simple=True)
  return jax.tree.map_with_path(lambda path, a: a.ndim > 1 and name(path) not in _VECTORS, params)


def make(
  *,
  learning_rate: float,
  warmup: int,
  steps: int,
  kind: str,
  weight_decay: float,
  clip_norm: float,
  state: str = 'float32',
) -> optax.GradientTransformation:
  """The optimizer of every stage. Weight decay spares vectors: norms, biases and modulation, of stacked layers too.

  ``kind`` is the schedule's, ``state`` that of the moments between steps: one of ``moments.KINDS``.
  """
  rate = schedule(learning_rate=learning_rate, warmup=warmup, steps=steps, kind=kind)
  adam = optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=weight_decay, mask=_decays)
  return optax.chain(optax.clip_by_global_norm(clip_norm), moments.compressed(adam, state))
