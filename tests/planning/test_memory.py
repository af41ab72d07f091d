"""The model of memory against programs: what lies on a device exactly, the peak within what is claimed."""

import dataclasses
import json
import math
import pathlib
import types

import jax
import pytest

from benchmarks import planning as benchmark
from one4d_jax.errors import ConfigError
from one4d_jax.parallel import mesh as meshes
from one4d_jax.parallel.layout import MeshLayout
from one4d_jax.planning import compiled, hardware, memory, programs
from one4d_jax.planning.hardware import GIB
from tests.planning import small

RESULTS = json.loads((pathlib.Path(benchmark.page.ROOT) / 'benchmarks/results/planning.json').read_text())


@pytest.mark.parametrize(
  'task, name, mesh',
  [
    ('train', 'step', 'fsdp'),
    ('train', 'step', 'fsdp=2,sequence=2,modality=2'),
    ('train', 'step', 'fsdp=4,tensor=2'),
    ('sample', 'begin', 'cfg=2,modality=2,sequence=2'),
    ('sample', 'advance', 'cfg=2,modality=2,sequence=2'),
    ('sample', 'decode', 'fsdp=4,sequence=2'),
  ],
)
def test_what_lies_on_a_device_is_what_the_compiled_program_takes(task, name, mesh):
  config = small.config('sample.guidance=2.0')
  program = programs.programs(task, config, meshes.make(mesh))[name]
  analysis = program.run.lower(*program.arguments.values()).compile().memory_analysis()
  held = memory.memory(task, config, mesh, 8, platform='gpu')
  if task == 'sample':
    held = memory.sampling(name, config, mesh, 8, platform='gpu')
  padding = 64 * len(jax.tree.leaves(program.arguments))  # arrays begin at multiples of so many bytes
  assert held.resident <= analysis.argument_size_in_bytes <= held.resident + padding


def test_encoding_keeps_the_whole_vae_on_every_device():
  config = small.config()
  program = programs.programs('encode', config, meshes.make('fsdp'))['vae']
  weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.arguments['params']))
  assert weights / 8 < memory.encoding('vae', config, 8, platform='gpu').parts['encoders'] <= weights


@pytest.mark.parametrize('row', RESULTS['programs'], ids=lambda row: ' '.join(benchmark.key(row))[:60])
def test_the_peak_is_the_compilers_within_the_stated_error(row):
  if 'peak' not in row['compiled']:
    pytest.skip('the results hold no compiled peak of it')
  peak = benchmark.modelled(row)
  assert peak == pytest.approx(row['compiled']['peak'], rel=memory.ERROR)


def test_results_cover_what_is_claimed():
  rows = [row for row in RESULTS['programs'] if 'peak' in row['compiled']]
  assert len(rows) >= 12 and {row['task'] for row in rows} == {'train', 'sample', 'encode'}
  for row in rows:
    assert row['model'] == benchmark.modelled(row), 'run python benchmarks/planning.py --resume'


def held(*values, mesh='fsdp', devices=8, task='train'):
  return memory.memory(task, small.config(*values), mesh, devices, platform='gpu')


def test_what_each_lever_does():
  block = held('model.remat=block')
  none, saved, offload = (held(f'model.remat={name}') for name in ('none', 'attention_saved', 'offload'))
  assert none.peak > saved.peak > block.peak > offload.peak
  assert block.host == 0 < offload.host == block.parts['activations']
  assert held('model.int8=True').parts['base'] < block.parts['base']
  moments = [held(f'train.optimizer_state={kind}').parts['optimizer'] for kind in ('float32', 'bfloat16', 'int8')]
  assert moments == sorted(moments, reverse=True) and len(set(moments)) == 3
  half = held('model.remat=block', 'train.batch=4', mesh='fsdp=4,sequence=2')
  assert half.parts['activations'] == pytest.approx(block.parts['activations'] / 2, rel=0.3)  # tokens are padded


def test_a_batch_that_cannot_be_split_is_refused():
  with pytest.raises(ConfigError, match='make it a multiple of 8'):
    held('train.batch=6')
  with pytest.raises(ConfigError, match='does not fit 8 devices'):
    held(mesh='fsdp=3')


def test_encoding_takes_no_other_mesh():
  assert held(mesh='fsdp=8', task='encode') == held(task='encode')
  with pytest.raises(ConfigError, match=r"mesh 'fsdp=4,sequence=2': encoding .* leave --mesh out"):
    held(mesh='fsdp=4,sequence=2', task='encode')


@pytest.mark.parametrize(
  'task, name', [('sample', 'begin'), ('sample', 'decode'), ('encode', 'vae'), ('encode', 'decode')]
)
def test_programs_are_those_of_the_platform_that_is_planned_for(task, name, monkeypatch):
  """And not those of the CPU that plans, whose convolutions over time are folded into channels."""
  monkeypatch.setattr(MeshLayout, 'platform', 'gpu')
  config = small.config('data.height=16', 'data.width=48')  # of its own: what is traced is kept by size
  assert '[b, 0, 1, 2, f]' in programs.programs(task, config, meshes.make('fsdp'))[name].lower().as_text()


def test_a_refusal_is_read():
  tpu = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 34.50G of 31.25G hbm. Exceeded by 3.25G.'
  assert compiled.refusal(tpu) == {'needs': int(34.5 * GIB), 'available': int(31.25 * GIB)}
  assert compiled.refusal('INTERNAL: something\n else') == {'not_compiled': 'INTERNAL: something else'}


def test_a_compiler_that_ends_without_a_word(monkeypatch):
  monkeypatch.setattr(hardware, 'missing_plugin', lambda kind: None)
  ended = types.SimpleNamespace(returncode=1, stdout='', stderr='\n')
  monkeypatch.setattr(compiled.subprocess, 'run', lambda *args, **kwargs: ended)
  found = compiled.compiled(hardware.parse('h100:8'), 'train', small.config(), 'fsdp', name='step')
  assert found == {'not_compiled': 'no message'}


def test_collectives_are_counted():
  text = '%a = f32[8]{0} all-gather(%b), x\n%c = (f32[8], f32[8]) all-gather-start(%d)\n%e = f32[2] all-to-all(%f)'
  assert compiled.collectives(text) == {'all-gather': 2, 'all-to-all': 1}


def test_the_process_that_compiles(monkeypatch):
  """Over devices of a CPU, which stand for the described ones."""
  monkeypatch.setattr(hardware, 'describe', lambda machine: jax.devices()[: machine.devices])
  monkeypatch.setattr(jax.config, 'update', lambda *_: None)
  config = dataclasses.asdict(small.config())
  request = {'topology': 'h100:8', 'task': 'train', 'name': 'step', 'mesh': 'fsdp', 'config': config}
  found = compiled._compile(request)
  resident = memory.memory('train', small.config(), 'fsdp', 8, platform='gpu').resident
  assert found['arguments'] == pytest.approx(resident, rel=0.1)
  assert found['collectives']['all-gather'] > 0 and found['temporaries'] > 0 and math.isfinite(found['seconds'])
