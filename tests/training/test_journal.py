"""What a run tells: means over steps, rates, and steps that were skipped."""

import json

import pytest

from one4d_jax.errors import UserError
from one4d_jax.training.journal import LAG, Journal

WORK = {'samples': 2, 'tokens': 100, 'flops': 1e6}


def step(loss, *, skipped=0, in_a_row=0, **more):
  metrics = {'loss': (loss, 1.0), 'skipped': (float(skipped), 1.0), 'skipped_in_a_row': (float(in_a_row), 1.0)}
  return metrics | more


def test_means_weigh_by_count_and_leave_out_what_no_step_had(tmp_path):
  journal = Journal(tmp_path, 3)
  journal.add(1, step(1.0, image=(6.0, 2.0), text=(0.0, 0.0)), ['a'], WORK)
  journal.add(2, step(3.0, image=(1.0, 1.0), text=(0.0, 0.0)), ['b'], WORK)
  found = journal.drain()
  assert found['loss'] == 2 and found['image'] == pytest.approx(7 / 3) and 'text' not in found
  assert found['samples_per_second'] == pytest.approx(4 / (2 * found['seconds_per_step']))
  assert 'mfu' not in found
  journal.add(3, step(5.0), ['c'], WORK)
  assert journal.drain()['loss'] == 5
  assert not (tmp_path / 'skipped.jsonl').exists()


def test_mfu_is_of_the_peak_of_all_devices(tmp_path):
  journal = Journal(tmp_path, 3, peak=1e9)
  journal.add(1, step(1.0), ['a'], WORK)
  found = journal.drain()
  assert found['mfu'] == pytest.approx(found['flops_per_second'] / 1e9)


def test_a_skipped_step_is_recorded_with_its_clips_and_counts_in_no_mean(tmp_path):
  journal = Journal(tmp_path, 3)
  journal.add(1, step(1.0), ['a'], WORK)
  journal.add(2, step(float('nan'), skipped=1, in_a_row=1, loss_xyz=(float('inf'), 1.0)), ['b', 'c'], WORK)
  found = journal.drain()
  assert found['loss'] == 1 and found['skipped'] == 0.5
  (row,) = map(json.loads, (tmp_path / 'skipped.jsonl').read_text().splitlines())
  assert row['step'] == 2 and row['clips'] == ['b', 'c'] and (row['loss'], row['loss_xyz']) == ('nan', 'inf')


def test_too_many_in_a_row_end_the_run(tmp_path):
  journal = Journal(tmp_path, 2)
  journal.add(1, step(float('nan'), skipped=1, in_a_row=1), ['a'], WORK)
  journal.add(2, step(float('nan'), skipped=1, in_a_row=2), ['b'], WORK)
  with pytest.raises(UserError, match=r'2 steps in a row were skipped, the last at 2 .*clips b\); see .*skipped.jsonl'):
    journal.drain()


def test_metrics_are_read_when_later_steps_have_been_started(tmp_path):
  read = []

  class Value(float):
    def __float__(self):
      read.append(float.__repr__(self))
      return float.__add__(self, 0.0)

  journal = Journal(tmp_path, 3)
  for i in range(LAG):
    journal.add(i, step(Value(i)), [], WORK)
  assert not read
  journal.add(LAG, step(Value(9)), [], WORK)
  assert read == ['0.0']
