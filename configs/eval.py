"""Benchmarks.

  python -m one4d_jax.evaluate --config configs/eval.py:procedural
  python -m one4d_jax.evaluate --config configs/eval.py:sintel --root downloads/sintel

``procedural`` reconstructs 32 held-out clips from their whole video. ``sparse`` and ``image`` give the model a quarter
of the frames, or the first only. ``smoke`` is two clips of the trained model. The others are the benchmarks of
``one4d_jax/evaluation/protocols/``, the model alone. ``table2`` to ``table6`` are those of the paper: the runs of all
their rows, printed beside the paper's numbers.
"""

import dataclasses

import ml_collections

from one4d_jax.evaluation import paper
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.evaluation.protocol import NAMES

PRESETS = ('procedural', 'sparse', 'image', 'smoke', *(n for n in NAMES if n != 'procedural'), *paper.names())


def get_config(preset: str):
  c = ml_collections.ConfigDict(dataclasses.asdict(EvalConfig())).lock()
  if preset in ('sparse', 'image'):
    c.task = preset
  if preset == 'smoke':
    c.clips, c.methods = 2, ('model',)
  if preset in NAMES and preset != 'procedural':
    c.benchmark, c.methods = preset, ('model',)
  if preset in paper.names():
    c.table, c.methods = preset, ('model',)
  return c
