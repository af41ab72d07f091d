"""Benchmarks.

  python -m one4d_jax.evaluate --config configs/eval.py:procedural
  python -m one4d_jax.evaluate --config configs/eval.py:sintel --root downloads/sintel

``procedural`` reconstructs 32 held-out clips from their whole video. ``sparse`` and ``image`` give the model a quarter
of the frames, or the first only. ``smoke`` is two clips of the trained model. The others are the benchmarks of
``one4d_jax/evaluation/protocols/``, the model alone.
"""

import dataclasses

import ml_collections

from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.evaluation.protocol import NAMES

PRESETS = ('procedural', 'sparse', 'image', 'smoke', *(name for name in NAMES if name != 'procedural'))


def get_config(preset: str):
  c = ml_collections.ConfigDict(dataclasses.asdict(EvalConfig())).lock()
  if preset in ('sparse', 'image'):
    c.task = preset
  if preset == 'smoke':
    c.clips, c.methods = 2, ('model',)
  if preset in NAMES and preset != 'procedural':
    c.benchmark, c.methods = preset, ('model',)
  return c
