"""Programs that take turns in processes of their own."""

import pathlib

import pytest

from benchmarks import race

SCRIPT = f"""
import sys, time
sys.path.insert(0, {str(pathlib.Path(race.__file__).resolve().parent.parent)!r})
from benchmarks import race

def build(entry):
  kept = bytearray(30_000_000)  # as libraries take
  yield
  if entry['status'] is not None:
    sys.exit(entry['status'])
  def program():
    held = b'x' * entry['bytes']
    time.sleep(entry['seconds'])
    print('said on the way')
  yield program

race.enter({{'anyone': build}})
"""


@pytest.fixture
def script(tmp_path):
  path = tmp_path / 'entries.py'
  path.write_text(SCRIPT)
  return str(path)


def test_time_and_memory_of_each_entry_are_its_own(script, capfd):
  entry = {'who': 'anyone', 'status': None}
  entries = {
    'quick and large': entry | {'seconds': 0.01, 'bytes': 80_000_000},
    'slow and small': entry | {'seconds': 1.5, 'bytes': 1000},
  }
  quick, slow = race.race(script, entries, 3).values()
  assert 0.01 <= quick.seconds < 1.5 <= slow.seconds
  assert 70e6 < quick.memory < 100e6 and slow.memory < 20e6
  assert 'said on the way' in capfd.readouterr().out


def test_an_entry_that_ends_early_is_named(script):
  with pytest.raises(RuntimeError, match='broken ended with status 3'):
    race.race(script, {'broken': {'who': 'anyone', 'status': 3}}, 1)


def test_columns_say_how_many_times_the_other_ours_is():
  row = {
    'ours': {'seconds': 1.0, 'spread': 0.2, 'memory': 2**30},
    'peer': {'seconds': 2.0, 'spread': 0, 'memory': 2**31},
  }
  cells = race.columns(row, 'ours', 'peer')
  assert cells == ('1.00 ± 0.10', '2.00 ± 0.00', '0.50', '1.00', '2.00', '0.50')
  assert len(cells) == len(race.headings('ours', 'peer'))
