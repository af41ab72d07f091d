"""From a release to a scene: convert, train adapters over the int8 base, sample, give a LoRA back."""

import json
import sys

import pytest

from one4d_jax.viewer.scene import load
from tests.e2e import DATA, TRAIN, command, run
from tests.weight_conversion import release


@pytest.mark.slow
def test_a_converted_release_is_trained_and_sampled(tmp_path):
  pytest.importorskip('torch', reason='.pth files need torch')
  src, dst, home = release.write(tmp_path / 'src', shards=2), tmp_path / 'wan', tmp_path / 'run'
  script = lambda name, *argv: [sys.executable, f'weight_conversion/{name}.py', *map(str, argv)]
  assert 'verified' in run(script('wan_to_flax', '--src', src, '--dst', dst, '--int8', '--verify')).stdout

  values = [*DATA, *TRAIN, 'train.steps=2', 'model.adapters.rank=2', 'model.adapters.link_layers=[1,3]']
  values += [f'model.weights={dst}', f'data.cache={tmp_path / "data"}']
  config = ['--config', 'configs/one4d.py:tiny', '--workdir', str(home)]
  run(command('one4d_jax.train', *config, *(f'--config.{value}' for value in values)))
  export = home / 'export'
  assert {path.name for path in export.iterdir()} == {'bundle.json', 'adapters.safetensors', 'tokenizer'}
  assert set(json.loads((export / 'bundle.json').read_text())['references']) == {'vae', 'base', 'text', 'image'}

  run(command('one4d_jax.sample', '--weights', str(export), '--prompt', 'a red ball', '--out', str(tmp_path / 'out')))
  assert load(tmp_path / 'out').rgb.shape == (5, 32, 32, 3)
  run(script('flax_to_wan', '--src', export, '--dst', tmp_path / 'back', '--what', 'merged,lora,control'))
  assert (tmp_path / 'back/merged-rgb-native/diffusion_pytorch_model.safetensors').is_file()
