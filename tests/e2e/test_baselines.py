"""Every model and every place of links: trained by the command, read from its bundle, evaluated by the command."""

import json
import sys

import pytest
import safetensors.numpy

from configs.baselines import LINKS
from one4d_jax.model import bundle as bundles
from one4d_jax.model.baselines import MODELS
from one4d_jax.training import fairness
from tests import e2e, small

STEPS = 20
_OWN = ('model.adapters', 'model.dit.heads', 'model.dit.layers')  # of the presets; all the rest is small
CHANGES = [value for value in (*e2e.DATA, *e2e.MODEL) if not value.startswith(_OWN)]
CHANGES += ['train.batch=2', 'train.log_every=1', 'train.validate_every=0', 'train.ema=0', f'train.steps={STEPS}']
EVALUATE = ['methods=[model]', 'clips=1', 'levels=[easy]', 'steps=2', 'postopt.iterations=2']


def options(values):
  return [f'--config.{value}' for value in values]


def train(home, name):
  """The command that trains a preset in the folder of its name."""
  changes = options([*CHANGES, f'model.weights={home / "base"}', f'data.cache={home / "data"}'])
  return ['one4d_jax.train', '--config', f'configs/baselines.py:{name}', '--workdir', str(home / name), *changes]


def evaluate(home, name):
  """The command that evaluates what was trained there."""
  folders = ['--weights', str(home / name / 'export'), '--out', str(home / name / 'eval')]
  return ['one4d_jax.evaluate', '--config', 'configs/eval.py:procedural', *folders, *options(EVALUATE)]


SOME = ('spatial_concat', 'rgb_to_xyz')  # as far from One4D as they go; the others in test-full
NAMES = (*MODELS, *LINKS)
ALL = [pytest.param(name, marks=() if name in SOME else pytest.mark.full) for name in NAMES]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  home = tmp_path_factory.mktemp('baselines')
  small.bundle(home / 'base', 'model.dit.layers=6', 'model.text.layers=1', 'model.image.layers=2')
  return home


@pytest.fixture
def home(base, name):
  """Trained and evaluated: the preset that is asked for, and its like in the same process, which loads JAX once."""
  if not (base / name).exists():
    names = SOME if name in SOME else [other for other in NAMES if other not in SOME]
    commands = [command(base, each) for each in names for command in (train, evaluate)]
    e2e.run([sys.executable, '-m', 'tests.e2e.together', json.dumps(commands)], timeout=3600)
  return base


@pytest.mark.parametrize('name', ALL)
def test_training_exports_a_model_of_its_kind(home, name):
  """A run of its length that learns, and exports as many parameters as are counted."""
  losses = small.losses(home / name)
  assert list(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1]
  config, _ = bundles.describe(home / name / 'export')
  assert config.adapters.kind == (name if name in MODELS else 'dlc')
  assert name in MODELS or config.adapters.link_layers == LINKS[name]
  exported = safetensors.numpy.load_file(home / name / 'export' / 'adapters.safetensors')
  counted = sum(fairness.trained(config.dit, config.adapters).values())
  assert sum(leaf.size for leaf in exported.values()) == counted


@pytest.mark.parametrize(
  ('name', 'into'),
  [
    ('rgb_to_xyz', ('xyz',)),
    pytest.param('dlc', ('rgb', 'xyz'), marks=pytest.mark.full),
    pytest.param('no_links', (), marks=pytest.mark.full),
  ],
)
def test_norms_of_the_links_that_there_are(home, name, into):
  last = json.loads((home / name / 'metrics.jsonl').read_text().splitlines()[-1])
  norms = {key.removeprefix('link/'): value for key, value in last.items() if key.startswith('link/')}
  other = {'rgb': 'xyz', 'xyz': 'rgb'}
  assert set(norms) == {f'{to}_from_{other[to]}/{layer}' for to in into for layer in range(5)}
  assert all(value > 0 for value in norms.values())


@pytest.mark.parametrize('name', ALL)
def test_evaluation_scores_it(home, name):
  report = json.loads((home / name / 'eval' / 'report.json').read_text())
  pooled = report['pooled']['model']['all']
  assert pooled['evaluated']['video'] == 1 and pooled['video']['psnr'] > 0
  assert report['weights'] == bundles.load(home / name / 'export').hash
