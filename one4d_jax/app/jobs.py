"""The queue of the app: one job at a time, in the order in which they came, in a process that may crash.

A job is a list of arguments for ``python -m one4d_jax.sample``, perhaps with a file. It has a folder of its own:

  <folder>/<id>/input    the file, until the job has ended
  <folder>/<id>/scene/   the result, until ``keep`` newer ones exist

The id cannot be guessed and is told to nobody but the caller of ``submit``: who knows it may see and cancel the job.
"""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import secrets
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from one4d_jax.app.worker import Crash, Worker
from one4d_jax.errors import UserError
from one4d_jax.model.files import link_or_copy

INPUT, SCENE = 'input', 'scene'  # names in the folder of a job, in which it runs
_STAGES = {  # what ``sample.produce`` reports, for people
  'start': 'reading the input',
  'load': 'loading the networks',
  'sample': 'sampling',
  'fit cameras': 'fitting cameras',
  'write': 'writing files',
}


@dataclasses.dataclass(frozen=True)
class Status:
  """What there is to know of a job now.

  Attributes:
    state: 'waiting', 'running', 'done', 'failed' or 'cancelled'.
    position: 1 for the next one to run; 0 if not waiting.
    waiting: how many wait, this one among them.
    stage: what a running job does, and how many of how many steps of it are done.
    seconds_left: until the stage is done; None before two of its steps have been seen.
    error: why it failed.
  """

  state: str
  position: int = 0
  waiting: int = 0
  stage: str = ''
  done: int = 0
  total: int = 0
  seconds_left: float | None = None
  error: str = ''

  @property
  def ended(self) -> bool:
    return self.state in ('done', 'failed', 'cancelled')


@dataclasses.dataclass(eq=False)
class _Job:
  id: str
  folder: pathlib.Path
  arguments: list[str]
  state: str = 'waiting'
  stage: str = 'start'
  done: int = 0
  total: int = 0
  first: tuple[float, int] | None = None  # (time, steps done) of the first report of the stage with a step done
  last: float = 0.0  # time of the last report
  error: str = ''


class Jobs:
  """Runs ``function`` ('package.module:name', called with a job's folder and arguments) for one job after the other.

  Use as a context manager: at the end everything is cancelled and the process is gone.

  Args:
    folder: where the folders of jobs are made; exists.
    keep: how many scenes stay; older ones are deleted. As many records of failures stay.
    most_waiting: jobs that may wait; more are refused.
    clock: seconds; for tests.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    function: str,
    *,
    keep: int = 20,
    most_waiting: int = 20,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._folder, self._function = pathlib.Path(folder).resolve(), function
    self._keep, self._most_waiting, self._clock = keep, most_waiting, clock
    self._jobs: dict[str, _Job] = {}  # in the order in which they came
    self._waiting: collections.deque[_Job] = collections.deque()
    self._running: _Job | None = None
    self._worker: Worker | None = None
    self._closing = False
    self._change = threading.Condition()  # guards all of the above
    self._runner = threading.Thread(target=self._run, name='jobs', daemon=True)

  def __enter__(self):
    self._runner.start()
    return self

  def __exit__(self, *_):
    with self._change:
      self._closing = True
      for job in (*self._waiting, *filter(None, [self._running])):
        self.cancel(job.id)
      self._change.notify_all()
    self._runner.join()
    if self._worker is not None:
      self._worker.kill()

  def submit(self, arguments: Sequence[str], file: str | pathlib.Path | None = None) -> str:
    """Queues a job and returns its id. ``file`` becomes ``input`` in its folder. Raises UserError if too many wait."""
    job = _Job(secrets.token_urlsafe(16), pathlib.Path(), list(arguments))
    job.folder = self._folder / job.id
    job.folder.mkdir(mode=0o700)
    try:
      if file is not None:
        link_or_copy(pathlib.Path(file), job.folder / INPUT)
      with self._change:
        if self._closing or len(self._waiting) >= self._most_waiting:
          raise UserError(f'{len(self._waiting)} jobs are waiting already; try again when some are done')
        self._jobs[job.id] = job
        self._waiting.append(job)
        self._change.notify_all()
    except BaseException:
      shutil.rmtree(job.folder, ignore_errors=True)
      raise
    return job.id

  def status(self, id: str) -> Status | None:
    """None for a job that is not known (any more)."""
    with self._change:
      job = self._jobs.get(id)
      return None if job is None else self._status(job)

  def now(self) -> tuple[Status | None, int]:
    """The status of the job that runs, and how many wait; nothing that tells whose they are."""
    with self._change:
      running = None if self._running is None else self._status(self._running)
      return running, len(self._waiting)

  def scene(self, id: str) -> pathlib.Path | None:
    """The folder of a finished scene."""
    with self._change:
      job = self._jobs.get(id)
      return job.folder / SCENE if job is not None and job.state == 'done' else None

  def cancel(self, id: str) -> None:
    """Ends a job that waits or runs; its files go. Nothing happens to one that has ended."""
    with self._change:
      job = self._jobs.get(id)
      if job is None or job.state not in ('waiting', 'running'):
        return
      if job.state == 'waiting':
        self._waiting.remove(job)
        self._end(job, 'cancelled')
      else:
        job.state = 'cancelled'
        if self._worker is not None:
          self._worker.kill()

  def _run(self) -> None:
    """The thread that runs the jobs."""
    while (job := self._next()) is not None:
      state, error = 'failed', ''
      try:
        self._worker_for(job).call(str(job.folder), job.arguments, report=functools.partial(self._report, job))
        state = 'done'
      except (UserError, Crash) as failure:
        error = str(failure)
      except Exception as failure:  # the thread must go on, whatever happens (no process to be had, say)
        traceback.print_exc()
        error = str(failure) or type(failure).__name__
      with self._change:
        self._running = None
        self._end(job, 'cancelled' if job.state == 'cancelled' else state, error)

  def _next(self) -> _Job | None:
    """Waits for a job and marks it as running; None at the end."""
    with self._change:
      self._change.wait_for(lambda: self._waiting or self._closing)
      if self._closing:
        return None
      self._running = job = self._waiting.popleft()
      job.state = 'running'
      return job

  def _worker_for(self, job: _Job) -> Worker:
    """The worker, a new one if the last has died; not for a job that was cancelled meanwhile."""
    with self._change:
      if job.state == 'cancelled':
        raise Crash('cancelled')
      if self._worker is None or not self._worker.alive:
        self._worker = Worker(self._function)
      return self._worker

  def _report(self, job: _Job, stage: str, done: int, total: int) -> None:
    with self._change:
      now = self._clock()
      if (stage, total) != (job.stage, job.total):
        job.first = None
      if done and job.first is None:
        job.first = (now, done)  # later than the start: the first step includes compilation
      job.stage, job.done, job.total, job.last = stage, done, total, now

  def _status(self, job: _Job) -> Status:
    position = self._waiting.index(job) + 1 if job.state == 'waiting' else 0
    left = None
    if job.state == 'running' and job.first is not None and job.done > job.first[1]:
      start, done = job.first
      pace = (job.last - start) / (job.done - done)
      left = max(pace * (job.total - job.done) - (self._clock() - job.last), 0.0)
    return Status(job.state, position, len(self._waiting), job.stage, job.done, job.total, left, job.error)

  def _end(self, job: _Job, state: str, error: str = '') -> None:
    """Records the end of a job, and deletes what is not kept. Holds the lock."""
    job.state, job.error = state, error
    with contextlib.suppress(OSError):
      (job.folder / INPUT).unlink()
    if state != 'done':
      shutil.rmtree(job.folder, ignore_errors=True)
    for group in (('done',), ('failed', 'cancelled')):
      ended = [other for other in self._jobs.values() if other.state in group and other is not self._running]
      for old in ended[: max(len(ended) - self._keep, 0)]:
        del self._jobs[old.id]
        shutil.rmtree(old.folder, ignore_errors=True)


def describe(status: Status) -> str:
  """One line for people."""
  if status.state == 'waiting':
    return f'position {status.position} of {status.waiting} in the queue'
  if status.state == 'failed':
    return f'failed: {status.error}'
  if status.state != 'running':
    return status.state
  if status.stage == 'sample' and not status.done:
    return 'preparing to sample'  # compiling, the first time
  text = _STAGES.get(status.stage, status.stage)
  if status.total > 1:
    text += f' {status.done}/{status.total}'
  if status.seconds_left is not None and status.done < status.total:
    text += f', about {duration(status.seconds_left)} left'
  return text


def duration(seconds: float) -> str:
  """14 s, 3 min, 1 h 20 min."""
  minutes = round(seconds / 60)
  if seconds < 90:
    return f'{max(round(seconds), 1)} s'
  return f'{minutes} min' if minutes < 90 else f'{minutes // 60} h {minutes % 60} min'
