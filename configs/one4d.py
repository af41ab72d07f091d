"""Stage 3, One4D itself: a frozen base, two LoRA branches and the control links between them.

  python -m one4d_jax.train --config configs/one4d.py --config.model.weights=DIR --config.data.source=DIR
  python -m one4d_jax.train --config configs/one4d.py:one_gpu --config.model.weights=DIR --config.data.source=DIR
  python -m one4d_jax.train --config configs/one4d.py:tiny

``paper`` is what the paper tells: 352 x 624, 81 frames, rank 64, 5500 steps of 8 x 4 samples, lr 1e-4, tasks
.35/.30/.35; all of it stands in the defaults. It takes eight devices, a sample on each. ``one_gpu`` takes as many
samples a step on one device, one after the other; ``pod`` all 32 at once, on as many devices. ``tiny`` and ``small``
need no weights and no data but those that the other two stages make.
"""

from configs import tiny
from one4d_jax.config import defaults

PRESETS = ('paper', 'one_gpu', 'pod', 'tiny', 'small')


def get_config(preset: str):
  if preset in ('tiny', 'small'):
    c = tiny.common(preset)
    c.workdir = f'runs/{preset}/one4d'
    c.model.weights = f'runs/{preset}/base/export'
    c.train.batch, c.train.steps = (64, 20000) if preset == 'small' else (4, 6500)
    c.train.learning_rate = 1e-3 if preset == 'small' else 2e-3
    c.train.ema = 0.998
    c.train.text_only = 0.1
    c.train.shift, c.train.shift_max = 1.0, 40.0  # much noise alone hides a pointmap's layout, little shows its edges
    c.sample.shift = 80.0  # the mean of what could be, more than one of it: nearer to the truth
    return c
  c = defaults()
  c.workdir = 'runs/one4d'
  if preset == 'one_gpu':
    c.train.batch, c.train.accumulation = 1, 32
    c.model.remat = 'offload'
  if preset == 'pod':
    c.train.batch, c.train.accumulation = 32, 1
  return c
