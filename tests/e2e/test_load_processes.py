"""Two real processes load one base onto one mesh: each reads its half of the bytes.

Run as a module, this file is one of those processes.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from one4d_jax.wan.config import DiTConfig

ROOT = pathlib.Path(__file__).parents[2]
PROCESSES = 2
SECONDS = 240
# Stored arrays are cut into chunks of up to 640 x 640: a width of two chunks, half of them for each process.
WIDE = DiTConfig(width=1280, ffn_width=1280, heads=8, layers=1, text_width=32, image_width=32, freq_width=16)


def worker(address: str, index: int, folder: str) -> None:
  import jax
  import jax.numpy as jnp
  import numpy as np
  import tensorstore
  from jax.sharding import Mesh

  import one4d_jax
  from one4d_jax.nn import quantize
  from tests import converted

  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(address, PROCESSES, index, initialization_timeout=SECONDS // 2)
  devices = np.array(jax.devices())
  expected = jax.tree.leaves(quantize.blocks(converted.random_base(WIDE)))

  def load(devices) -> tuple[int, bool]:
    """Bytes read, and whether every slice here is right."""
    before = bytes_read(tensorstore)
    base = one4d_jax.load_base(folder, Mesh(devices.reshape(4, 2), ('fsdp', 'tensor')))
    read = bytes_read(tensorstore) - before
    leaves = zip(jax.tree.leaves(base), expected, strict=True)
    right = all(np.array_equal(s.data, whole[s.index]) for leaf, whole in leaves for s in leaf.addressable_shards)
    total = jax.jit(lambda base: sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(base)))(base)
    sums = sum(leaf.sum(dtype=np.float64) for leaf in expected)
    return read, right and bool(np.isclose(float(total), sums, rtol=1e-3, atol=1))

  read, right = load(devices)
  _, right_anyhow = load(np.stack([devices[:4], devices[4:]], axis=1).reshape(-1))  # the halves interleave
  report = {'devices': len(devices), 'read': read, 'right': [right, right_anyhow]}
  (pathlib.Path(folder) / f'{index}.json').write_text(json.dumps(report))
  jax.distributed.shutdown()


def bytes_read(tensorstore) -> int:
  metrics = tensorstore.experimental_collect_matching_metrics('/tensorstore/kvstore/file/bytes_read')
  return sum(value['value'] for metric in metrics for value in metric['values'])


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


@pytest.mark.slow
def test_each_of_two_processes_reads_its_half(tmp_path):
  from tests import converted

  manifest = converted.write_base(tmp_path / 'base', WIDE, int8=True)
  stored = sum(entry['bytes'] for entry in manifest['files'].values())
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
    'PYTHONPATH': str(ROOT),
  }
  command = [sys.executable, '-m', 'tests.e2e.test_load_processes', f'127.0.0.1:{free_port()}']
  started = [subprocess.Popen([*command, str(i), str(tmp_path)], cwd=ROOT, env=env) for i in range(PROCESSES)]
  try:
    assert [process.wait(timeout=SECONDS) for process in started] == [0] * PROCESSES
  finally:
    for process in started:
      process.kill()
      process.wait()
  for i in range(PROCESSES):
    report = json.loads((tmp_path / f'{i}.json').read_text())
    assert report['devices'] == 8 and report['right'] == [True, True]
    assert 0.45 * stored < report['read'] < 0.55 * stored


if __name__ == '__main__':
  worker(sys.argv[1], int(sys.argv[2]), sys.argv[3])
