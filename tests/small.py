"""A One4D of a few thousand parameters that nobody trained, and runs that train it for some steps."""

import json
import pathlib

import flax.linen as nn
import jax

from one4d_jax import config as configs
from one4d_jax.model import bundle as bundles
from tests.e2e import DATA, MODEL, command

TRAIN = ('train.batch=8', 'train.log_every=1', 'train.validate_every=0', 'train.ema=0', 'train.warmup=1')
TRAIN += ('train.schedule=constant',)  # the same for any number of steps


def bundle(folder: pathlib.Path, *changes: str) -> pathlib.Path:
  """Writes a bundle with random parts, as the stages before would export it."""
  values = (*DATA, *MODEL, 'model.dit.heads=4', 'data.clips=16', *changes)
  sizes = configs.sizes(configs.load('configs/one4d.py:tiny', values))
  parts = bundles.Bundle({}, sizes, {})
  init = {'vae': parts.vae.init, 'base': parts.model.init_base, 'text': parts.text.init, 'image': parts.image.init}
  params = {name: nn.unbox(jax.jit(make)(jax.random.key(i))) for i, (name, make) in enumerate(init.items())}
  bundles.save(bundles.Bundle(params, sizes, {}), folder)
  return folder


def train(home: pathlib.Path, run: str, *arguments: str, **values) -> list[str]:
  """The command line of a run of the one4d stage in ``home / run`` on the bundle ``home / 'base'``."""
  changes = (f'model.weights={home / "base"}', f'data.cache={home / "data"}', 'data.clips=16')
  named = (f'{key.replace("__", ".")}={value}' for key, value in values.items())
  config = (f'--config.{value}' for value in (*DATA, *MODEL, *TRAIN, 'model.dit.heads=4', *changes, *named))
  workdir = ('--workdir', str(home / run))
  return command('one4d_jax.train', '--config', 'configs/one4d.py:tiny', *workdir, *config, *arguments)


def losses(workdir: pathlib.Path) -> dict[int, float]:
  """By step, the newest where a step was taken twice."""
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {row['step']: row['loss'] for row in rows if 'loss' in row}


def whole(workdir: pathlib.Path) -> list[int]:
  """Steps of the checkpoints that are complete."""
  return sorted(int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit())
