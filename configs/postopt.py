"""How cameras are fitted to pointmaps.

  python -m one4d_jax.sample --config configs/postopt.py:paper

``default`` is Levenberg-Marquardt with depth eliminated. ``paper`` is the objective of Eq. 11-12 under Adam; the paper
names neither its optimiser nor its weights, so rates and steps are Geo4D's. ``zoom`` lets every frame have a focal
length of its own, ``cropped`` fits the principal point too. For comparisons see ``benchmarks/postopt.py``.
"""

import dataclasses

import ml_collections

from one4d_jax.postopt.options import FitOptions

PRESETS = ('default', 'paper', 'zoom', 'cropped')


def get_config(preset: str):
  c = ml_collections.ConfigDict(dataclasses.asdict(FitOptions())).lock()
  if preset == 'paper':
    c.method, c.loss = 'adam', 'l1'
  if preset == 'zoom':
    c.focal = 'per_frame'
  if preset == 'cropped':
    c.principal_point = 'shared'
  return c
