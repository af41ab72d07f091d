"""The queue of the app, with jobs that crash, wait and misbehave."""

import json
import os
import pathlib

import pytest

from one4d_jax.app.jobs import Jobs, Status, describe, duration
from one4d_jax.errors import UserError
from tests.app import eventually, gone

FUNCTION = 'tests.app.producers:produce'


@pytest.fixture
def jobs(tmp_path):
  home = tmp_path / 'jobs'
  home.mkdir()
  with Jobs(home, FUNCTION, keep=3, most_waiting=3) as made:
    yield made


def submit(jobs: Jobs, prompt: str, file=None) -> str:
  return jobs.submit([f'--prompt={prompt}'], file)


def ended(jobs: Jobs, id: str) -> Status:
  return eventually(lambda: (status := jobs.status(id)).ended and status)


def record(jobs: Jobs, id: str) -> dict:
  return json.loads((jobs.scene(id) / 'run.json').read_text())


def folders(tmp_path: pathlib.Path) -> set[str]:
  return set(os.listdir(tmp_path / 'jobs'))


def blocked(jobs: Jobs, tmp_path, name='gate') -> tuple[str, pathlib.Path]:
  """A job that runs until its gate is made."""
  gate = tmp_path / name
  id = submit(jobs, f'wait {gate}')
  eventually(lambda: jobs.status(id).done == 2)
  return id, gate


def test_a_job_makes_a_scene_in_a_folder_that_nobody_can_guess(jobs, tmp_path):
  upload = tmp_path / 'clip.mp4'
  upload.write_bytes(b'film')
  id = submit(jobs, 'a room', upload)
  assert ended(jobs, id) == Status('done', stage='load', total=1)
  assert len(id) >= 22 and folders(tmp_path) == {id}
  assert jobs.scene(id) == tmp_path / 'jobs' / id / 'scene'
  assert set(record(jobs, id)['stage']) == {'input', 'scene'}
  assert os.listdir(tmp_path / 'jobs' / id) == ['scene'], 'the input goes when the job has ended'
  assert upload.read_bytes() == b'film', 'what was uploaded stays for the next job'
  assert (tmp_path / 'jobs' / id).stat().st_mode & 0o077 == 0


def test_the_process_is_kept_from_job_to_job_and_replaced_after_a_crash(jobs):
  pids = []
  for prompt in ('one', 'refuse', 'two', 'segfault', 'three'):
    id = submit(jobs, prompt)
    if ended(jobs, id).state == 'done':
      pids.append(record(jobs, id)['pid'])
  assert pids[0] == pids[1] != pids[2]


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('exit', 'failed: its process ended with status 3'),
    ('segfault', 'failed: its process was ended by SIGSEGV'),
    ('refuse', 'failed: the input is no <b>good</b>'),
    ('bug', 'failed: RuntimeError: first line'),
  ],
)
def test_a_job_that_fails_harms_no_other(jobs, tmp_path, word, message):
  bad, good = submit(jobs, word), submit(jobs, 'good')
  assert describe(ended(jobs, bad)) == message
  assert ended(jobs, good).state == 'done'
  assert jobs.scene(bad) is None and folders(tmp_path) == {good}


def test_jobs_run_in_order_and_know_their_place(jobs, tmp_path):
  first, gate = blocked(jobs, tmp_path)
  order = [submit(jobs, name) for name in 'abc']
  assert [jobs.status(id).position for id in (first, *order)] == [0, 1, 2, 3]
  assert describe(jobs.status(order[1])) == 'position 2 of 3 in the queue'
  running, waiting = jobs.now()
  assert (running.state, running.stage, running.done, running.total, waiting) == ('running', 'sample', 2, 4, 3)
  with pytest.raises(UserError, match='3 jobs are waiting already'):
    submit(jobs, 'one too many')
  assert len(folders(tmp_path)) == 4, 'what is refused leaves nothing'
  jobs.cancel(order[0])
  assert jobs.status(order[0]).state == 'cancelled' and jobs.status(order[1]).position == 1
  assert order[0] not in folders(tmp_path)
  gate.touch()
  done = [(ended(jobs, id), record(jobs, id)['prompt'])[1] for id in (first, order[1], order[2])]
  assert done[1:] == ['b', 'c'] and jobs.now() == (None, 0)
  stamps = [(jobs.scene(id) / 'run.json').stat().st_mtime_ns for id in (first, order[1], order[2])]
  assert stamps == sorted(stamps)


def test_cancelling_a_running_job_ends_its_process_and_nothing_else(jobs, tmp_path):
  before = submit(jobs, 'before')
  ended(jobs, before)
  id, _ = blocked(jobs, tmp_path)
  after = submit(jobs, 'after')
  jobs.cancel(id)
  assert jobs.status(id).state == 'cancelled'
  assert gone(record(jobs, before)['pid'])
  assert ended(jobs, after).state == 'done'
  assert describe(jobs.status(id)) == 'cancelled' and folders(tmp_path) == {before, after}
  for known in (before, id, 'unknown'):
    jobs.cancel(known)  # too late, or nothing
  assert jobs.status(before).state == 'done' and jobs.scene(before).is_dir()


def test_the_newest_scenes_stay_whatever_fails_meanwhile(jobs, tmp_path):
  done = [submit(jobs, name) for name in 'abc']
  for id in done:
    ended(jobs, id)
  bad = [submit(jobs, 'refuse') for _ in range(3)]
  ended(jobs, bad[-1])
  assert [jobs.scene(id) is not None for id in done] == [True, True, True]
  newest = submit(jobs, 'd')
  ended(jobs, newest)
  assert jobs.status(done[0]) is None and jobs.scene(done[0]) is None
  assert folders(tmp_path) == {*done[1:], newest}
  bad.append(submit(jobs, 'refuse'))
  ended(jobs, bad[-1])
  assert [jobs.status(id) is None for id in bad] == [True, False, False, False]


def test_the_time_left_is_reckoned_from_the_second_step(tmp_path):
  now = [100.0]
  made = Jobs(tmp_path, FUNCTION, clock=lambda: now[0])
  id = made.submit([])
  job = made._jobs[id]
  made._running, job.state = job, 'running'
  made._waiting.clear()

  def step(seconds: float, *report) -> Status:
    now[0] += seconds
    made._report(job, *report)
    return made.status(id)

  assert describe(made.status(id)) == 'reading the input'
  assert describe(step(1, 'load', 0, 1)) == 'loading the networks'
  assert describe(step(5, 'sample', 0, 1)) == 'preparing to sample'
  assert describe(step(40, 'sample', 1, 12)) == 'sampling 1/12', 'the first step compiles'
  assert step(2, 'sample', 2, 12).seconds_left == 20
  assert step(4, 'sample', 3, 12).seconds_left == 27
  now[0] += 2
  assert describe(made.status(id)) == 'sampling 3/12, about 25 s left'
  now[0] += 100
  assert made.status(id).seconds_left == 0
  assert describe(step(1, 'sample', 12, 12)) == 'sampling 12/12'
  assert describe(step(1, 'fit cameras', 0, 1)) == 'fitting cameras', 'a new stage, a new count'
  assert describe(step(1, 'write', 0, 1)) == 'writing files'
  assert describe(step(1, 'something new', 2, 3)) == 'something new 2/3'


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.2, '1 s'), (14.4, '14 s'), (89, '89 s'), (91, '2 min'), (3600, '60 min'), (6000, '1 h 40 min')],
)
def test_durations(seconds, text):
  assert duration(seconds) == text


def test_at_the_end_nothing_is_left_running(tmp_path):
  with Jobs(tmp_path, FUNCTION) as made:
    done = made.submit(['--prompt=done'])
    ended(made, done)
    pid = record(made, done)['pid']
    running = made.submit([f'--prompt=wait {tmp_path / "never"}'])
    waiting = made.submit([])
    eventually(lambda: made.status(running).state == 'running')
  assert gone(pid)
  assert [made.status(id).state for id in (done, running, waiting)] == ['done', 'cancelled', 'cancelled']
  assert set(os.listdir(tmp_path)) == {done}
  with pytest.raises(UserError):
    made.submit([])


def test_a_process_that_cannot_be_had_is_a_failure_of_one_job(jobs, monkeypatch):
  from one4d_jax.app import jobs as module

  class NoWorker:
    def __init__(self, _):
      raise OSError(11, 'Resource temporarily unavailable')

  with monkeypatch.context() as patch:
    patch.setattr(module, 'Worker', NoWorker)
    assert 'temporarily unavailable' in ended(jobs, submit(jobs, 'a')).error
  assert ended(jobs, submit(jobs, 'b')).state == 'done'


def test_an_upload_that_is_gone_leaves_nothing(jobs, tmp_path):
  with pytest.raises(FileNotFoundError):
    submit(jobs, 'a', tmp_path / 'gone.mp4')
  assert folders(tmp_path) == set()


def test_a_job_cancelled_between_its_turn_and_its_start_does_not_run(jobs, tmp_path, monkeypatch):
  start = jobs._worker_for

  def cancel_first(job):
    jobs.cancel(job.id)
    return start(job)

  with monkeypatch.context() as patch:
    patch.setattr(jobs, '_worker_for', cancel_first)
    id = submit(jobs, f'wait {tmp_path / "never"}')
    eventually(lambda: jobs.now() == (None, 0))
  assert jobs.status(id).state == 'cancelled' and folders(tmp_path) == set()
  assert ended(jobs, submit(jobs, 'next')).state == 'done'
