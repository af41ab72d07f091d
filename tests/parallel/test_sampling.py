"""One scene spread over devices is the scene of one device."""

import json
import re

import jax
import numpy as np
import pytest

from one4d_jax import cli, sample
from one4d_jax.errors import ConfigError
from one4d_jax.model import bundle as bundles
from one4d_jax.model.generate import compiled, generate, with_defaults
from one4d_jax.parallel import load
from tests import small


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A whole bundle with adapters that do something."""
  home = tmp_path_factory.mktemp('bundle')
  base = bundles.load(small.bundle(home / 'base')).untrained()
  noisy = lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape)
  bundles.save(base.replace({'adapters': jax.tree.map(noisy, base.params['adapters'])}), home / 'whole')
  return home / 'whole'


@pytest.fixture(scope='module')
def alone(folder):
  return made(bundles.load(folder))


def made(bundle, **settings):
  video = np.random.default_rng(0).uniform(-1, 1, (5, 32, 32, 3)).astype(np.float32)
  observed = np.array([True, False, False, False, True])
  settings = {'seed': 3, 'steps': 3, 'guidance': 3.0} | settings
  return generate(bundle, video, observed, 'a red box', **settings)


MESH = 'cfg=2,modality=2,sequence=2'


def test_the_same_videos(folder, alone):
  bundle = load.load_bundle(folder, MESH)
  kernel = bundle.params['base']['blocks']['ffn_in']['kernel']
  assert len({str(shard.index) for shard in kernel.addressable_shards}) > 1, 'weights lie in shares'
  for found, expected in zip(made(bundle, progress=lambda _: None), alone, strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-4)
  chosen = with_defaults(bundle.config, {'steps': 3, 'guidance': 3.0})
  assert compiled(bundle.config, bundle.layout, **chosen).advance._cache_size() == 1, 'one program does every step'


def test_steps_are_skipped_and_guidance_stops_on_a_mesh_as_on_one_device(folder):
  settings = {'cache': 0.3, 'guidance_interval': (0.9, 1.0), 'steps': 6}
  one = made(bundles.load(folder), **settings)
  for found, expected in zip(made(load.load_bundle(folder, MESH), **settings), one, strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_mesh_that_does_not_fit_is_named(folder):
  with pytest.raises(ConfigError, match='does not fit 8 devices'):
    load.load_bundle(folder, 'cfg=2,modality=2')


def test_the_command(folder, tmp_path, capsys):
  arguments = ['--weights', str(folder), '--prompt', 'a red box', '--steps', '2', '--guidance', '3']
  run = lambda name, *more: cli.run(sample.main, sample.parser(), [*arguments, '--out', str(tmp_path / name), *more])
  assert run('one') == 0 and run('eight', '--mesh', MESH) == 0
  one, eight = (np.load(tmp_path / name / 'scene.npz')['rgb'].astype(int) for name in ('one', 'eight'))
  assert np.abs(one - eight).max() <= 1
  command = json.loads((tmp_path / 'eight' / 'run.json').read_text())['command']
  assert f'--mesh {MESH}' in command
  capsys.readouterr()
  assert run('wrong', '--mesh', 'cfg=3') == 2
  assert re.search(r"mesh 'cfg=3'.*sizes are 1 or 2", capsys.readouterr().err)
