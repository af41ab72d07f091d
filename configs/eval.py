"""Benchmarks.

  python -m one4d_jax.evaluate --config configs/eval.py:procedural

``procedural`` reconstructs 32 held-out clips from their whole video. ``sparse`` and ``image`` give the model a quarter
of the frames, or the first only. ``smoke`` is two clips of the trained model.
"""

import dataclasses

import ml_collections

from one4d_jax.evaluation.benchmarks import EvalConfig

PRESETS = ('procedural', 'sparse', 'image', 'smoke')


def get_config(preset: str):
  c = ml_collections.ConfigDict(dataclasses.asdict(EvalConfig())).lock()
  if preset in ('sparse', 'image'):
    c.task = preset
  if preset == 'smoke':
    c.clips, c.methods = 2, ('model',)
  return c
