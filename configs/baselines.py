"""What One4D is compared with, and One4D with one part changed, at the tiny sizes: see docs/ablations.md.

  python -m one4d_jax.train --config configs/baselines.py:spatial_concat
  python -m one4d_jax.train --config configs/baselines.py:spatial_concat_flops

All is as in ``one4d.py:tiny`` but the model, the rank, at which as many parameters are trained as there, and in the
presets ``…_flops`` the number of steps, in which as many operations are done. Rank and steps are computed, from the
sizes in this file: what the command line changes comes after.
"""

from configs import one4d
from one4d_jax.config import Config
from one4d_jax.model.baselines import MODELS
from one4d_jax.structs import from_dict
from one4d_jax.training import fairness

LINKS = {'links_one': (2,), 'links_first': (0, 1, 2), 'links_last': (3, 4, 5), 'links_all': (0, 1, 2, 3, 4, 5)}
NAMES = (*MODELS, *LINKS)
PRESETS = (*NAMES, *(f'{name}_flops' for name in NAMES if name != 'dlc'))


def get_config(preset: str):
  name = preset.removesuffix('_flops')
  c = one4d.get_config('tiny')
  reference = resolved(c)
  c.workdir = f'runs/tiny/baselines/{preset}'
  adapters = c.model.adapters
  adapters.kind = name if name in MODELS else 'dlc'
  adapters.link_layers = LINKS.get(name, adapters.link_layers)
  if name == 'full':
    c.train.learning_rate = 1e-3  # as the base was trained
  equal = fairness.equal_parameters(reference.model.dit, resolved(c).model.adapters, reference.model.adapters)
  adapters.rank, adapters.alpha = equal.rank, equal.alpha
  if preset != name:
    c.train.steps = fairness.equal_operations(resolved(c), reference)
  return c


def resolved(c) -> Config:
  return from_dict(c.to_dict(), Config)
