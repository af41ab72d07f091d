"""Machines by name."""

import importlib.util

import pytest

from one4d_jax.errors import UserError
from one4d_jax.planning import hardware
from one4d_jax.training import flops


@pytest.mark.parametrize(
  'text, devices, hosts',
  [
    ('h100:8', 8, 1),
    ('h200:1', 1, 1),
    ('h100:16', 16, 2),
    ('v5p:2x2x2', 8, 2),
    ('v6e:4x8', 32, 8),
    ('v7x:2x2x1', 8, 1),
  ],
)
def test_devices_and_hosts(text, devices, hosts):
  machine = hardware.parse(text)
  assert (machine.devices, machine.hosts) == (devices, hosts)
  assert machine.described.startswith(f'{devices} x {machine.kind.name} (')


@pytest.mark.parametrize(
  'text, message',
  [
    ('p100:8', "'p100:8': expected KIND:SHAPE with KIND of a100-40, a100, h100"),
    ('h100', "'' is no shape of it; expected one as in h100:8"),
    ('h100:2x4', "'2x4' is no shape of it; expected one as in h100:8"),
    ('v5p:8', "'8' is no shape of it; expected one as in v5p:2x2x2"),
    ('v6e:4x0', "'4x0' is no shape of it; expected one as in v6e:4x4"),
    ('h100:12', 'machines of 8 must be whole ones; give h100:8 or h100:16'),
  ],
)
def test_machines_that_there_are_not(text, message):
  with pytest.raises(UserError, match='--topology') as error:
    hardware.parse(text)
  assert message in str(error.value)


def test_every_kind_is_known_by_the_name_that_jax_gives_it():
  for kind in hardware.KINDS.values():
    assert flops.peak(kind.name) and hardware.of_device(type('D', (), {'device_kind': kind.name})()) == kind
  assert hardware.of_device(type('D', (), {'device_kind': 'cpu'})()) is None


def test_a_missing_plugin_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  for text, extra in (('h100:8', 'plan-gpu'), ('v5p:2x2x2', 'plan-tpu')):
    with pytest.raises(UserError, match=f'pip install .*{extra}'):
      hardware.describe(hardware.parse(text))
