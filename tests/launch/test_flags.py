"""The flags in ``launch/env``: the compilers that are installed here know each of them."""

import importlib.util
import itertools
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ENV = ROOT / 'launch/env'
COMPILE = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
device = topologies.get_topology_desc('v5e:2x2', 'tpu').devices[0]
x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=SingleDeviceSharding(device))
jax.jit(lambda x: x + 1).lower(x).compile()
"""


def flags(name: str) -> list[str]:
  return re.findall(r'^\s*(--xla_\S+=\S+)$', (ENV / f'{name}.sh').read_text(), re.MULTILINE)


def python(code: str, **variables: str) -> subprocess.CompletedProcess:
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '0'} | variables
  return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)


def test_xla_knows_the_flags_for_gpus():
  assert len(flags('gpu')) >= 3
  code = 'import jax; jax.devices()'
  out = python(code, XLA_FLAGS=' '.join(flags('gpu')))
  assert out.returncode == 0, out.stderr
  out = python(code, XLA_FLAGS='--xla_gpu_no_such_flag=true')
  assert out.returncode != 0 and 'Unknown flag in XLA_FLAGS: --xla_gpu_no_such_flag' in out.stderr


def test_libtpu_knows_the_flags_for_tpus():
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('needs libtpu')
  alone = {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}  # another process may hold libtpu's lock
  out = python(COMPILE, **alone, LIBTPU_INIT_ARGS=' '.join(flags('tpu')))
  assert out.returncode == 0, out.stderr
  out = python(COMPILE, **alone, LIBTPU_INIT_ARGS='--xla_tpu_no_such_flag=true')
  assert "Unknown command line flag 'xla_tpu_no_such_flag'" in out.stderr


@pytest.mark.parametrize('path', sorted(ENV.glob('*.sh')), ids=lambda path: path.name)
def test_every_setting_says_why(path):
  lines = path.read_text().splitlines()
  for before, line in itertools.pairwise(lines):
    if re.match(r'\s*--xla|export (?!XLA_FLAGS|LIBTPU)', line):
      assert before.lstrip().startswith('# '), f'{line}: no reason before it'
