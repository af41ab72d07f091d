"""Captions of clips: asked for in parallel at a bounded rate, and kept line by line.

What is answered is on disk at once: a run may be stopped at any time, and the next one asks for what is missing.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tqdm
from PIL import Image

from one4d_jax.data.captioners import PROMPT_VERSION, Captioner, Rejected, Unavailable, Video
from one4d_jax.errors import DataError, UserError

LANGUAGE = 'en'
PICTURES, LONG_SIDE = 8, 512  # what a model is shown of a clip
SHORTEST, LONGEST = 20, 2000  # characters of a caption
ATTEMPTS = 6  # requests for one clip
FIRST_WAIT = 2.0  # seconds before the second attempt; doubles from then on
PATIENCE = 900.0  # the longest wait, in seconds, that a service may ask for
OUTAGE = 5  # clips in a row that no attempt got an answer for


class Captions:
  """Captions in a file of JSON lines: clip_id, caption, model, prompt_version, lang. The last line of a clip counts.

  A last line that was cut off by a kill is ignored. Raises DataError for any other line that cannot be read.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self._captions: dict[str | tuple[str, str, str], str] = {}
    if self.path.exists():
      self._read(self.path.read_bytes())

  def get(self, clip_id: str, model: str | None = None) -> str | None:
    """The newest caption of a clip, or the newest that `model` gave to today's prompt. None if there is none."""
    return self._captions.get(clip_id if model is None else (clip_id, model, PROMPT_VERSION))

  @contextlib.contextmanager
  def writer(self) -> Iterator[Callable[[str, str, str], None]]:
    """`add(clip_id, caption, model)`, for any thread: the line is on disk when it returns.

    Raises DataError if another process is writing.
    """
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with self.path.open('a+b') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise DataError(f'{self.path} is being written by another process; wait for it or stop it') from error
      file.seek(0)
      kept = self._read(file.read())
      file.truncate(len(kept))
      if kept and not kept.endswith(b'\n'):
        file.write(b'\n')

      def add(clip_id: str, caption: str, model: str) -> None:
        row = {'clip_id': clip_id, 'caption': caption, 'model': model}
        row |= {'prompt_version': PROMPT_VERSION, 'lang': LANGUAGE}
        file.write(json.dumps(row).encode() + b'\n')  # a buffered file locks: lines of two threads do not mix
        file.flush()
        os.fsync(file.fileno())
        self._take(row)

      yield add

  def _read(self, data: bytes) -> bytes:
    """Takes in all lines; returns the data less a torn last line."""
    lines = data.split(b'\n')
    for number, line in enumerate(lines, 1):
      try:
        if line.strip():
          self._take(json.loads(line))
      except (ValueError, TypeError, KeyError) as error:
        if number == len(lines):
          return data[: len(data) - len(line)]
        raise DataError(f'{self.path}, line {number}: not a caption ({error!r}); repair or remove the line') from error
    return data

  def _take(self, row: dict) -> None:
    clip_id, caption = row['clip_id'], row['caption']
    if not isinstance(clip_id, str) or not isinstance(caption, str):
      raise TypeError('clip_id and caption must be strings')
    self._captions[clip_id] = caption
    self._captions[clip_id, row.get('model', ''), row.get('prompt_version', '')] = caption


@dataclasses.dataclass(frozen=True)
class Report:
  """How many captions were written and were there before, and the reason for every clip that got none."""

  written: int
  skipped: int
  failed: dict[str, str]


def write_captions(
  clips: Iterable[tuple[str, Callable[[], tuple[Video, float]]]],
  captioner: Captioner,
  store: Captions,
  *,
  workers: int = 4,
  per_minute: float | None = None,
  desc: str | None = None,
) -> Report:
  """Asks for every clip that `captioner` has not described yet.

  Args:
    clips: id of each, and what gives its frames and their rate; it is called when their turn comes.
    captioner: see `captioners.make`.
    store: where captions go, each as soon as it is there.
    workers: how many requests are under way at a time.
    per_minute: how many requests start in a minute at most, repeated ones included.
    desc: label of the progress bar; no bar without it.

  Raises:
    UserError: asking on is pointless (key, model, quota, an outage). What was answered before is in `store`.
  """
  pace, stop, failed, in_a_row = Pace(per_minute), threading.Event(), {}, 0

  def sleep(seconds: float) -> None:
    if stop.wait(seconds):
      raise concurrent.futures.CancelledError

  def work(clip_id: str, frames: Callable[[], tuple[Video, float]]) -> None:
    try:
      pictures, rate = shown(*frames())
    except DataError as error:
      raise Rejected(str(error)) from error
    add(clip_id, _ask(captioner, pictures, rate, pace, sleep), captioner.name)

  with store.writer() as add, concurrent.futures.ThreadPoolExecutor(workers) as pool:
    clips = dict(clips)
    missing = [clip_id for clip_id in clips if store.get(clip_id, captioner.name) is None]
    try:
      asked = {pool.submit(work, clip_id, clips[clip_id]): clip_id for clip_id in missing}
      done = concurrent.futures.as_completed(asked)
      for future in tqdm.tqdm(done, desc=desc, total=len(asked), unit='clip', disable=desc is None):
        error = future.exception()
        in_a_row = in_a_row + 1 if isinstance(error, Unavailable) else 0
        if in_a_row == OUTAGE:
          raise UserError(f'{captioner.name} gave no answer for {OUTAGE} clips in a row ({error}); run again later')
        if isinstance(error, Rejected | Unavailable):
          failed[asked[future]] = str(error)
        elif error:
          raise error
    except BaseException:  # also ctrl-C: what is under way is still written, nothing new is asked
      stop.set()
      pool.shutdown(cancel_futures=True)
      raise
  return Report(len(missing) - len(failed), len(clips) - len(missing), failed)


class Pace:
  """When requests may start, for all workers: a token bucket that holds one token."""

  def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic):
    self._gap = 60 / per_minute if per_minute else 0.0
    self._clock, self._next, self._lock = clock, clock(), threading.Lock()

  def take(self) -> float:
    """Seconds to wait before the next request."""
    with self._lock:
      now = self._clock()
      start = max(now, self._next)
      self._next = start + self._gap
      return start - now

  def hold(self, seconds: float) -> None:
    """No request starts for so long."""
    with self._lock:
      self._next = max(self._next, self._clock() + seconds)


def shown(video: Video, fps: float) -> tuple[Video, float]:
  """What a model sees of a clip: at most `PICTURES` even frames, ends included, the long side bounded; their rate."""
  chosen = np.unique(np.linspace(0, len(video) - 1, PICTURES).round().astype(int))
  height, width = video.shape[1:3]
  scale = min(1.0, LONG_SIDE / max(height, width))
  size = round(width * scale), round(height * scale)
  pictures = [np.asarray(Image.fromarray(video[i]).resize(size, Image.Resampling.LANCZOS)) for i in chosen]
  return np.stack(pictures), fps * max(len(chosen) - 1, 1) / max(len(video) - 1, 1)


def clean(answer: str) -> str:
  """One line of prose, without what was thought before it, Markdown and quotes around it. Raises Rejected."""
  text = answer.rpartition('</think>')[2]
  text = re.sub(r'```\w*|[*`]+|^\s*(#+|[-•>])\s+', '', text, flags=re.MULTILINE)
  text = ' '.join(text.split())
  if text[:1] in ('"', '“') and text[-1:] in ('"', '”'):
    text = text[1:-1].strip()
  if not text:
    raise Rejected('the answer is empty')
  if not SHORTEST <= len(text) <= LONGEST:
    raise Rejected(f'the answer has {len(text)} characters, not {SHORTEST} to {LONGEST}: {text[:40]}')
  return text


def _ask(captioner: Captioner, pictures: Video, fps: float, pace: Pace, sleep: Callable[[float], None]) -> str:
  for attempt in itertools.count(1):
    sleep(pace.take())
    try:
      return clean(captioner(pictures, fps))
    except Unavailable as error:
      if error.after > PATIENCE:
        raise UserError(
          f'{captioner.name} asks to wait {error.after / 3600:.1f} h ({error}); run again later'
        ) from error
      if attempt == ATTEMPTS:
        raise
      pace.hold(error.after)
      sleep(max(FIRST_WAIT * 2 ** (attempt - 1), error.after) * random.uniform(1.0, 1.5))  # not all at once
