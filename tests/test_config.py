"""Configuration files, presets and overrides."""

import dataclasses
import itertools
import json

import pytest

from one4d_jax import cli, presets, train
from one4d_jax import config as configs
from one4d_jax.config import Config
from one4d_jax.errors import ConfigError, UserError
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.model.files import EMBEDDED
from one4d_jax.postopt.options import FitOptions
from one4d_jax.structs import from_dict

FILES = ('configs/vae.py:tiny', 'configs/base.py:tiny', 'configs/one4d.py:tiny')


@pytest.mark.parametrize('spec', [*FILES, *(f'configs/one4d.py:{name}' for name in ('paper', 'one_gpu', 'pod'))])
def test_every_preset_resolves_and_survives_json(spec):
  config = configs.load(spec)
  assert from_dict(json.loads(configs.to_json(config)), Config) == config


def test_the_paper_preset_is_the_paper():
  config = configs.load('configs/one4d.py')
  assert (config.data.frames, config.data.height, config.data.width) == (81, 352, 624)
  train = config.train
  assert (train.learning_rate, train.steps, train.batch, train.accumulation) == (1e-4, 5500, 8, 4)
  assert train.tasks == (0.35, 0.30, 0.35)
  assert (config.sample.steps, config.sample.guidance, config.sample.shift) == (50, 6.0, 5.0)
  assert config.model.adapters.rank == 64 and config.model.dit.layers == 40
  assert dataclasses.replace(config, workdir='') == Config(), 'the defaults are the paper preset'


def test_every_size_of_machine_takes_the_samples_of_the_paper():
  for name in ('paper', 'one_gpu', 'pod'):
    train = configs.load(f'configs/one4d.py:{name}').train
    assert train.batch * train.accumulation == 32


def test_the_tiny_stages_build_on_each_other():
  stages = [configs.load(spec) for spec in FILES]
  for before, after in itertools.pairwise(stages):
    assert after.model.weights == f'{before.workdir}/export'
    assert (after.model.dit, after.model.vae) == (before.model.dit, before.model.vae)


def test_overrides_reach_any_value():
  changes = ['train.steps=10', 'model.adapters.link_layers=[0, 2]', 'data.fps=12', 'data.cache=elsewhere']
  changes += ['train.learning_rate=3e-4']
  config = configs.load('configs/one4d.py:tiny', changes)
  assert (config.train.steps, config.model.adapters.link_layers) == (10, (0, 2))
  assert (config.data.fps, config.data.cache, config.train.learning_rate) == (12.0, 'elsewhere', 3e-4)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ('train.stepz=1', "unknown config key 'train.stepz'.*steps"),
    ('steps=1', "unknown config key 'steps'.*train"),
    ('train.steps.x=1', 'unknown config key'),
    ('train.steps', 'KEY=VALUE'),
    ('train.steps=many', "train.steps='many' must be of type int"),
    ('train.learning_rate=fast', "train.learning_rate='fast' must be of type float"),
    ('train.steps=true', 'train.steps=True must be of type int'),
    ('train.tasks=[1, 1, 1]', 'sum to 1'),
    ('train.shift=0', 'train.shift=0.0 must be above 0'),
    ('train.shift_max=0.5', 'train.shift_max=0.5 0 .off. or no less'),
    ('train.schedule=linear', "train.schedule='linear' must be one of constant, cosine"),
    ('train.keep_every=-1', r'must be 0 \(off\) or more'),
    ('parallel.attention=spiral', 'must be one of ulysses, ring'),
    ('parallel.mesh=fsdp=-1,tensor=3', 'tensor must divide model.dit.heads=4'),
    ('data.frames=18', 'nearest are 17 and 21'),
    ('data.width=100', 'multiple of 16; nearest is 96'),
    ('model.adapters.link_layers=[9]', r'must lie in \[0, 6\)'),
    ('model.adapters.kind=dual', "model.adapters.kind='dual' must be one of dlc, channel_concat, spatial_concat"),
    ('model.dit.heads=7', 'even multiple of heads'),
    ('sample.solver=heun', 'euler, unipc'),
    ('train.batch=0', 'at least 1'),
    ('train.crop=[9]', r'train.crop=\[9\] must have 2 values'),
    ('sample.guidance_interval=[0.2]', r'sample.guidance_interval=\[0.2\] must have 2 values'),
    ('sample.steps=0', 'sample.steps=0 must be at least 1'),
    ('sample.shift=0', 'sample.shift=0.0 must be above 0'),
    ('train.ema=1', 'train.ema=1.0 must be from 0 to below 1'),
    ('train.ema=-0.1', 'train.ema=-0.1 must be from 0'),
    ('train.text_only=1.5', 'train.text_only=1.5 must be from 0 to 1'),
    ('train.text_dropout=-1', 'train.text_dropout=-1.0 must be from 0 to 1'),
    ('train.image_dropout=.nan', 'train.image_dropout=nan must be from 0 to 1'),
    ('data.sparse_masks=0', 'data.sparse_masks=0 must be at least 1'),
    ('data.validation_clips=0', 'data.validation_clips=0 must be at least 1'),
    ('data.fps=0', 'data.fps=0.0 must be above 0'),
    ('data.frames=1', 'data.frames=1 must be at least 5'),
    ('model.dit.heads=0', 'even multiple of heads=0'),
    ('model.adapters.rank=0', 'model.adapters.rank=0 must be at least 1'),
    ("model.adapters.targets='['", r"model.adapters.targets='\[' is no regular expression"),
  ],
)
def test_a_bad_value_is_named(change, message):
  with pytest.raises(ConfigError, match=message):
    configs.load('configs/one4d.py:tiny', [change])


@pytest.mark.parametrize('crop, message', [
  ('[21, 64]', r'train.crop=\(21, 64\) must fit into 17 frames of 64x64'),
  ('[17, 72]', 'must fit into'),
  ('[9, 20]', 'a side that is a multiple of 8'),
  ('[1, 32]', '4n.1 frames, at least 5'),
])  # fmt: skip
def test_what_the_vae_trains_on_lies_in_a_clip(crop, message):
  with pytest.raises(ConfigError, match=message):
    configs.load('configs/vae.py:tiny', [f'train.crop={crop}'])
  configs.load('configs/one4d.py:tiny', [f'train.crop={crop}'])  # which trains no VAE


def test_sizes_of_clips_are_those_of_procedural_ones():
  sizes = ['data.frames=1', 'data.height=16', 'data.width=16']
  configs.load('configs/vae.py:tiny', ['data.source=DIR', *sizes])
  with pytest.raises(ConfigError, match='must fit into'):
    configs.load('configs/vae.py:tiny', ['data.source=DIR@2, procedural@1', *sizes])


def test_a_recipe_is_changed_by_what_is_asked_for():
  parse = lambda *argv: cli.parse(train.parser(), ['--recipe', 'tiny', '--workdir', 'here', *argv])
  assert [config.data.cache for config in train.recipe(parse())] == ['here/data'] * 3
  chosen = train.recipe(parse('--config.data.cache=clips'))
  assert [config.data.cache for config in chosen] == ['clips'] * 3
  assert [config.workdir for config in chosen] == ['here/vae', 'here/base', 'here/one4d']
  with pytest.raises(UserError, match=r'--config mine\.py and --recipe tiny both choose configurations; use one'):
    train.recipe(parse('--config', 'mine.py'))


def test_kinds_of_models_and_what_they_cannot_use():
  load = lambda kind, *changes: configs.load('configs/one4d.py:tiny', [f'model.adapters.kind={kind}', *changes])
  for kind in ('rgb_to_xyz', 'xyz_to_rgb'):
    with pytest.raises(ConfigError, match=f'kind={kind} needs model.adapters.link_layers; without links it is no_link'):
      load(kind, 'model.adapters.link_layers=[]')
  for kind in ('channel_concat', 'spatial_concat'):
    with pytest.raises(ConfigError, match=f'modality is for two branches, and model.adapters.kind={kind} has one'):
      load(kind, 'parallel.mesh=fsdp_modality')
    load(kind, 'parallel.mesh=fsdp_sequence', 'model.adapters.link_layers=[]')
  with pytest.raises(ConfigError, match=r'kind=full trains the base, which model\.int8=True freezes'):
    load('full', 'model.int8=True')


def test_heads_that_a_mesh_must_divide_are_those_of_the_weights(tmp_path, capsys):
  values = [f'model.weights={EMBEDDED}', 'model.dit.heads=8', 'parallel.mesh=fsdp=1,sequence=8']
  arguments = ['--config', 'configs/one4d.py:tiny', '--workdir', str(tmp_path / 'run')]
  assert cli.run(train.main, train.parser(), [*arguments, *(f'--config.{value}' for value in values)]) == 2
  assert 'sequence=8 does not divide the 4 attention heads of a device' in capsys.readouterr().err


def test_unknown_files_and_presets_are_named():
  with pytest.raises(ConfigError, match=r"no config file 'configs/none.py'"):
    configs.load('configs/none.py')
  with pytest.raises(ConfigError, match="no preset 'nano'; choose from paper, one_gpu, pod, tiny"):
    configs.load('configs/one4d.py:nano')


def test_how_cameras_are_fitted():
  assert presets.read('', [], FitOptions) == FitOptions() == presets.read('configs/postopt.py', [], FitOptions)
  paper = presets.read('configs/postopt.py:paper', ['adam.iterations=7'], FitOptions)
  assert (paper.method, paper.loss, paper.adam.iterations) == ('adam', 'l1', 7)
  assert presets.read('configs/postopt.py:zoom', [], FitOptions).focal == 'per_frame'
  assert presets.read('configs/postopt.py:cropped', [], FitOptions).principal_point == 'shared'
  assert presets.read('configs/eval.py', ['postopt.smoothness=0'], EvalConfig).postopt.smoothness == 0
  for change, words in [('loss=l0', "loss='l0'"), ('los=l1', "unknown config key 'los'"), ('method=adam', "loss='l1'")]:
    with pytest.raises(ConfigError, match=words):
      presets.read('', [change], FitOptions)


def test_sources_of_data():
  assert configs.DataConfig(source='procedural').sources == [('procedural', 1.0)]
  assert configs.DataConfig(source='a/b@3, c@0.5,d').sources == [('a/b', 3.0), ('c', 0.5), ('d', 1.0)]


@pytest.mark.parametrize('text', ['', 'a,', 'a@', '@2', 'a@x', 'a@0', 'a@-1', 'a@nan', 'a@inf'])
def test_malformed_sources_of_data(text):
  with pytest.raises(ConfigError, match=r'data.source=.*DIR@3,DIR2@1'):
    _ = configs.DataConfig(source=text).sources
