"""The mesh: sizes, order of devices, and which rows of a batch a process reads."""

import dataclasses

import jax
import numpy as np
import pytest

from one4d_jax.errors import ConfigError
from one4d_jax.parallel import mesh as meshes
from one4d_jax.parallel.layout import batch_parts, check_batch, for_sampling, rows


@pytest.mark.parametrize(
  ('text', 'sizes'),
  [
    ('fsdp', {'fsdp': 8}),
    ('fsdp_modality', {'fsdp': 4, 'modality': 2}),
    ('fsdp_sequence', {'fsdp': 4, 'sequence': 2}),
    ('tensor', {'fsdp': 4, 'tensor': 2}),
    ('data=2,sequence=-1', {'data': 2, 'sequence': 4}),
    ('cfg=2, modality=2, sequence=2', {'cfg': 2, 'modality': 2, 'sequence': 2}),
  ],
)
def test_sizes(text, sizes):
  mesh = meshes.make(text)
  assert {name: size for name, size in mesh.shape.items() if size > 1} == sizes
  assert mesh.axis_names == meshes.AXES


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('fsdpp', "'fsdpp' is no part of one; give a preset .fsdp, fsdp_modality"),
    ('fsdp=x', "'fsdp=x' is no part"),
    ('fsdp=0', "'fsdp=0' is no part"),
    ('fsdp=-1,data=-1', 'only one axis can be -1'),
    ('modality=4,fsdp=2', 'sizes are 1 or 2'),
    ('fsdp=4', r'does not fit 8 devices \(sizes: fsdp 4\)'),
    ('fsdp=-1,sequence=3', r'does not fit 8 devices \(sizes: fsdp 2 x sequence 3\)'),
  ],
)
def test_mistakes_are_named(text, message):
  with pytest.raises(ConfigError, match=message):
    meshes.make(text)


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a device as a mesh looks at."""

  id: int
  process_index: int
  platform: str = 'gpu'
  device_kind: str = 'some GPU'


def cluster(text, processes, each):
  """A mesh over devices that JAX lists in no particular order."""
  devices = [Device(i, i // each) for i in range(processes * each)]
  np.random.default_rng(0).shuffle(devices)
  axes = meshes.parse(text)
  sizes = [len(devices) // -np.prod(list(axes.values())) if size == -1 else size for size in axes.values()]
  return meshes._arranged(tuple(int(size) for size in sizes), devices)


def test_inner_axes_stay_within_a_process():
  placed = cluster('data=2,fsdp=-1,tensor=2', 2, 8)
  process = np.vectorize(lambda device: device.process_index)(placed)
  assert [set(process[i].flat) for i in range(2)] == [{0}, {1}]
  ids = np.vectorize(lambda device: device.id)(placed)
  assert ids.reshape(-1).tolist() == list(range(16))


@pytest.mark.parametrize(
  ('text', 'processes', 'expected'),
  [
    ('fsdp=-1', 4, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ('data=2,fsdp=-1', 2, [(0, 2), (1, 2)]),
    ('modality=2,fsdp=-1', 2, [(0, 1), (0, 1)]),  # both processes hold all samples, a branch each
    ('sequence=-1', 2, [(0, 1), (0, 1)]),
    ('fsdp=2,sequence=-1', 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ('data=4,tensor=2', 2, [(0, 2), (1, 2)]),
  ],
)
def test_processes_that_share_samples_read_the_same_rows(text, processes, expected, monkeypatch):
  """Devices of this process stand for those of several: each is said to belong to another."""
  mesh = meshes.make(text)
  owner = {device: index * processes // 8 for index, device in enumerate(jax.devices())}
  monkeypatch.setattr('one4d_jax.parallel.layout._process', owner.get)
  assert [rows(mesh, process) for process in range(processes)] == expected


def test_a_batch_that_does_not_divide_is_refused():
  mesh = meshes.make('data=2,fsdp=2,sequence=2')
  assert batch_parts(mesh) == 4
  check_batch(mesh, 8, heads=40, attention='ulysses')
  with pytest.raises(ConfigError, match=r'train.batch=6 samples cannot be split among 4 parts.*multiple of 4'):
    check_batch(mesh, 6, heads=40, attention='ulysses')
  with pytest.raises(ConfigError, match=r'sequence=2 does not divide the 5 attention heads.*attention=ring'):
    check_batch(mesh, 8, heads=5, attention='ulysses')
  check_batch(mesh, 8, heads=5, attention='ring')


def test_sampling_takes_a_ring_where_ulysses_cannot_divide_the_heads():
  mesh = meshes.make('sequence=2,tensor=4')
  assert [for_sampling(mesh, heads).attention for heads in (8, 12, 40)] == ['ulysses', 'ring', 'ulysses']


def test_described():
  assert meshes.describe(meshes.make('fsdp_modality')) == '8 x cpu (modality 2, fsdp 4)'
