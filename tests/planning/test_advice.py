"""What to change: it fits, it keeps the recipe, and nothing nearer would have done."""

import itertools

import pytest

from one4d_jax import config as configs
from one4d_jax.errors import ConfigError
from one4d_jax.planning import advice, hardware
from one4d_jax.planning.hardware import GIB


def paper(*values):
  return configs.load('configs/one4d.py', values)


def changed(*values, machine='h100:8', mesh='fsdp', task='train', limit=None):
  return advice.smallest_change(task, paper(*values), mesh, hardware.parse(machine), limit)


@pytest.mark.parametrize(
  'limit, changes',
  [
    (30, {'model.remat': 'offload'}),
    (20, {'parallel.mesh': 'fsdp=-1,sequence=4'}),
    (12, {'parallel.mesh': 'fsdp=-1,sequence=8', 'model.remat': 'offload'}),
  ],
)
def test_the_least_that_is_enough(limit, changes):
  option = changed(limit=limit * GIB)
  kept = {name: value for name, value in option.choice.changes.items() if name in ('model.remat', 'parallel.mesh')}
  assert kept == changes and option.memory.peak <= limit * GIB
  settings = option.choice.config.train
  assert settings.batch * settings.accumulation == 32  # the recipe's samples


def test_one_device_takes_one_sample_at_a_time():
  option = changed(machine='h200:1')
  assert option.choice.changes == {'train.batch': 1, 'train.accumulation': 32}
  assert option.choice.words() == '--config.train.batch=1 --config.train.accumulation=32'


def test_precision_and_clips_are_given_up_last():
  int8 = changed('train.batch=1', 'train.accumulation=32', machine='h100:1', limit=52 * GIB)
  assert int8.choice.config.model.int8 and int8.choice.config.data.frames == 81
  shorter = changed('train.batch=1', 'train.accumulation=32', machine='h100:1', limit=42 * GIB)
  data = shorter.choice.config.data
  assert shorter.choice.config.model.int8 and data.frames * data.height * data.width < 81 * 352 * 624
  assert changed(machine='v5e:1x1') is None  # the base alone does not fit


def test_search_lists_what_nothing_beats():
  machine = hardware.parse('h100:8')
  found = advice.search('train', paper(), machine)
  assert len(found) > 3
  assert [o.speed.expected for o in found] == sorted(o.speed.expected for o in found)
  for one, other in itertools.permutations(found, 2):
    assert not advice._beats(one, other)
  for option in found:
    settings = option.choice.config.train
    assert option.memory.peak <= machine.kind.memory and settings.batch * settings.accumulation == 32


def test_search_comes_down_to_the_largest_clip_that_fits():
  [first, *_] = advice.search('sample', paper('data.height=720', 'data.width=1280'), hardware.parse('a100-40:1'))
  data = first.choice.config.data
  assert data.frames * data.height * data.width < 81 * 720 * 1280
  assert {'data.frames', 'data.height'} & set(first.choice.changes)


def test_heads_limit_the_axes():
  meshes = advice._meshes('train', paper('model.dit.heads=10', 'model.dit.width=1280'), 8)
  assert not [m for m in meshes if 'tensor=4' in m or 'sequence=4' in m] and 'sequence=2,tensor=1' not in meshes
  assert [m for m in meshes if 'sequence=2' in m]


def test_microbatches_that_do_not_divide():
  with pytest.raises(ConfigError, match='into 64 parts, and a step has 32 samples'):
    advice.divided(paper(), 'fsdp', 64)


def test_default_meshes():
  assert advice.default_mesh('sample', paper(), 8) == 'cfg=2,modality=2,sequence=-1'
  assert advice.default_mesh('sample', paper(), 2) == 'cfg=2,sequence=-1'
  assert advice.default_mesh('sample', paper(), 1) == advice.default_mesh('encode', paper(), 8) == 'fsdp'
