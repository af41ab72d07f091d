"""One stream read by processes of their own: the same global batches for 1, 2 and 4 of them, also after a change."""

import json
import pathlib
import subprocess
import sys

import numpy as np

from one4d_jax.data import pipeline

ROOT = pathlib.Path(__file__).parent.parent.parent
GLOBAL, LENGTH, AFTER = 4, 16, 6


def draw(record, rng):
  return {**record, 'noise': rng.random(2)}


def mixture():
  """Three data sets in two buckets."""
  sets = (('a', 50, 3, 2), ('b', 30, 1, 2), ('c', 40, 2, 3))
  make = lambda name, count, side: [{'id': f'{name}{i}', 'z': np.full(side, i)} for i in range(count)]
  return [pipeline.Component(make(name, n, side), draw, weight, side, name) for name, n, weight, side in sets]


def main(index: int, count: int, state: dict | None, out: str) -> None:
  """Batches from the beginning, then, from ``state``, some more and the position after them."""
  stream = lambda: pipeline.batches(
    mixture(), batch_size=GLOBAL // count, seed=5, process_index=index, process_count=count
  )
  found, batches = [], stream()
  for _ in range(LENGTH):
    found.append(next(batches))
  batches.close()
  batches = stream()
  if state:
    batches.set_state(state)
  for _ in range(AFTER):
    found.append(next(batches))
  position = batches.get_state()
  batches.close()
  arrays = {f'{k}/{name}': value for k, batch in enumerate(found) for name, value in batch.items()}
  np.savez(out, state=json.dumps(position), **arrays)


def read(count: int, state: dict | None, folder: pathlib.Path) -> tuple[list[dict], list[dict], dict]:
  """Global batches of ``count`` processes: the first ones, those after ``state``, and the position after those."""
  files = [folder / f'{index}-of-{count}.npz' for index in range(count)]
  code = 'import json, sys; from tests.data.test_stream_hosts import main; main(*json.loads(sys.argv[1]))'
  commands = ([sys.executable, '-c', code, json.dumps([i, count, state, str(f)])] for i, f in enumerate(files))
  for process in [subprocess.Popen(command, cwd=ROOT) for command in commands]:
    assert process.wait(timeout=120) == 0
  parts = [np.load(file, allow_pickle=False) for file in files]
  names = ('id', 'z', 'noise')
  whole = [
    {name: np.concatenate([part[f'{k}/{name}'] for part in parts]) for name in names} for k in range(LENGTH + AFTER)
  ]
  states = {str(part['state']) for part in parts}
  assert len(states) == 1, 'one position for all processes'
  return whole[:LENGTH], whole[LENGTH:], json.loads(states.pop())


def assert_same(found, expected):
  for a, b in zip(found, expected, strict=True):
    for name in b:
      np.testing.assert_array_equal(a[name], b[name])


def test_one_two_and_four_processes_and_resuming_on_more_of_them(tmp_path):
  stream = pipeline.batches(mixture(), batch_size=GLOBAL, seed=5)
  expected = [next(stream) for _ in range(3 * AFTER)]
  assert {batch['z'].shape[1] for batch in expected[:LENGTH]} == {2, 3}
  assert {name[0] for batch in expected for name in batch['id']} == {'a', 'b', 'c'}
  state = None
  for turn, count in enumerate((1, 2, 4)):
    first, after, state = read(count, state, tmp_path)
    assert_same(first, expected[:LENGTH])
    assert_same(after, expected[turn * AFTER : (turn + 1) * AFTER])
    assert state['batch'] == (turn + 1) * AFTER
