"""Every data set's format, from its files to training steps: prepare, encode, train."""

import importlib
import json

import pytest

from one4d_jax import cli, encode, prepare, train
from one4d_jax.data import prepared
from one4d_jax.data.sources import NAMES
from one4d_jax.model.files import EMBEDDED

# Rendered clips of a few frames are not the footage that the limits are for: what is tested here is the path.
OPEN = ('fps=0', 'frozen=1', 'sky=1', 'change=0', 'jump=1000', 'duplicate=-1', 'dark=0', 'consistency=0.3')
CLIPS = ('frames=17', 'shortest=17', 'sizes=[[64,64]]', 'held_out=0')
STEPS = 5


def encoded(names, folder):
  """Latents of each source, by the commands that a user gives."""
  found = {}
  for name in names:
    importlib.import_module(f'tests.data.sources.formats.{name}').write(folder / name, recordings=2, frames=17)
    options = [f'--config.{value}' for value in CLIPS] + [f'--config.limits.{value}' for value in OPEN]
    argv = ['--source', name, '--root', str(folder / name), '--out', str(folder / 'sets'), '--workers=1', '--strict']
    assert cli.run(prepare.main, prepare.parser(), argv + options) == 0, name
    found[name] = folder / 'latents' / name
    argv = ['--data', str(folder / 'sets' / name / '1.0.0'), '--weights', str(EMBEDDED), '--out', str(found[name])]
    assert cli.run(encode.main, encode.parser(), [*argv, '--strict']) == 0, name
  return found


@pytest.mark.slow
@pytest.mark.parametrize('names', [('tartanair', 'generic'), pytest.param(NAMES, marks=pytest.mark.full)], ids=len)
def test_training_on_a_mixture(names, tmp_path):
  folder, latents = tmp_path, encoded(names, tmp_path)
  for name in names:
    kept = prepared.open(folder / 'sets' / name / '1.0.0')
    assert len(kept) == 2, name
  mixture = ','.join(f'{path}@{i % 2 + 1}' for i, path in enumerate(latents.values()))
  options = ('train.batch=8', f'train.steps={STEPS}', 'train.log_every=1', 'train.warmup=1', 'data.validation_clips=2')
  argv = ['--config', 'configs/one4d.py:tiny', '--workdir', str(folder / 'run')]
  argv += [f'--config.model.weights={EMBEDDED}', f'--config.data.source={mixture}']
  assert cli.run(train.main, train.parser(), argv + [f'--config.{value}' for value in options]) == 0
  lines = [json.loads(line) for line in (folder / 'run/metrics.jsonl').read_text().splitlines()]
  losses = [line['loss'] for line in lines if 'loss' in line]
  assert len(losses) == STEPS and all(0 < loss < 10 for loss in losses)
  assert (folder / 'run/export/bundle.json').is_file()
