import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from one4d_jax.data import captioning
from one4d_jax.data.captioners import PROMPT_VERSION, Rejected, Unavailable
from one4d_jax.data.captioning import Captions, Pace, clean, shown, write_captions
from one4d_jax.errors import DataError, UserError

VIDEO = np.zeros((9, 12, 16, 3), np.uint8)
TEXT = 'A red ball rolls over a grey floor.'


class Scripted:
  """Answers by a table of clip number (the grey of its frames) to answers in turn; the last one stays."""

  name = 'scripted:1'

  def __init__(self, seconds=0.0, **answers):
    self.seconds = seconds
    self.answers = {int(key[1:]): list(value) for key, value in answers.items()}
    self.asked = []

  def __call__(self, frames, fps):
    number = int(frames[0, 0, 0, 0])
    self.asked.append(number)
    time.sleep(self.seconds)
    answers = self.answers.get(number, [f'{TEXT} Number {number}.'])
    result = answers.pop(0) if len(answers) > 1 else answers[0]
    if isinstance(result, BaseException):
      raise result
    return result


def clips(*numbers):
  return [(f'set/{i}', lambda i=i: (np.full_like(VIDEO, i), 16.0)) for i in numbers]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(captioning, 'FIRST_WAIT', 0.002)


def test_all_clips_get_their_own_caption_once(tmp_path):
  store, captioner = Captions(tmp_path / 'new' / 'captions.jsonl'), Scripted()
  report = write_captions(clips(*range(20)), captioner, store, workers=4)
  assert (report.written, report.skipped, report.failed) == (20, 0, {})
  rows = [json.loads(line) for line in store.path.read_text().splitlines()]
  assert sorted(row['clip_id'] for row in rows) == sorted(f'set/{i}' for i in range(20))
  for row in rows:
    number = row['clip_id'].removeprefix('set/')
    assert row['caption'] == f'{TEXT} Number {number}.' == Captions(store.path).get(row['clip_id'])
    assert row['model'] == 'scripted:1' and row['prompt_version'] == PROMPT_VERSION and row['lang'] == 'en'
  assert store.get('set/3').endswith('Number 3.') and store.get('set/99') is None

  report = write_captions(clips(*range(22)), captioner, Captions(store.path))
  assert (report.written, report.skipped) == (2, 20)
  assert sorted(captioner.asked) == list(range(22))


def test_another_model_or_prompt_is_asked_again_and_the_newest_counts(tmp_path, monkeypatch):
  store = Captions(tmp_path / 'captions.jsonl')
  write_captions(clips(1), Scripted(), store)
  other = Scripted(_1=['Something else is said of it.'])
  other.name = 'scripted:2'
  assert write_captions(clips(1), other, store).written == 1
  assert store.get('set/1') == Captions(store.path).get('set/1') == 'Something else is said of it.'
  assert store.get('set/1', 'scripted:1') == f'{TEXT} Number 1.'
  assert write_captions(clips(1), Scripted(), store).skipped == 1
  monkeypatch.setattr(captioning, 'PROMPT_VERSION', 'other')
  assert write_captions(clips(1), Scripted(), Captions(store.path)).written == 1


def test_one_clip_fails_and_the_others_go_on(tmp_path):
  captioner = Scripted(_1=[Rejected('blocked: SAFETY')], _2=['  '], _3=['Too short.'], _4=['long ' * 500])
  store = Captions(tmp_path / 'captions.jsonl')

  def broken():
    raise DataError('shard 3 is damaged')

  report = write_captions([*clips(0, 1, 2, 3, 4, 5), ('set/b', broken)], captioner, store)
  assert report.written == 2 and report.failed.keys() == {'set/1', 'set/2', 'set/3', 'set/4', 'set/b'}
  assert report.failed['set/1'] == 'blocked: SAFETY' and 'empty' in report.failed['set/2']
  assert '10 characters' in report.failed['set/3'] and '2499 characters' in report.failed['set/4']
  assert report.failed['set/b'] == 'shard 3 is damaged'
  assert sorted(captioner.asked) == [0, 1, 2, 3, 4, 5]  # none twice


def test_every_clip_has_its_own_time_base(tmp_path):
  rates = {}

  def describer(frames, fps):
    rates[int(frames[0, 0, 0, 0])] = fps
    return TEXT

  describer.name = 'describer'
  some = [(f'set/{i}', lambda i=i: (np.full_like(VIDEO, i), float(i))) for i in (5, 10, 15)]
  assert write_captions(some, describer, Captions(tmp_path / 'c.jsonl')).written == 3
  assert rates == {i: pytest.approx(i * 7 / 8) for i in (5, 10, 15)}  # 8 of 9 frames are shown


def test_an_unexpected_error_is_not_hidden(tmp_path):
  with pytest.raises(ZeroDivisionError):
    write_captions([('set/0', lambda: 1 / 0)], Scripted(), Captions(tmp_path / 'c.jsonl'))


def test_retries_until_there_is_an_answer_or_no_attempt_left(tmp_path):
  busy = Unavailable('503 overloaded')
  captioner = Scripted(_0=[busy, busy, TEXT], _1=[busy])
  report = write_captions(clips(0, 1, 2), captioner, Captions(tmp_path / 'c.jsonl'))
  assert report.written == 2 and report.failed == {'set/1': '503 overloaded'}
  assert (
    captioner.asked.count(0) == 3 and captioner.asked.count(1) == captioning.ATTEMPTS and captioner.asked.count(2) == 1
  )


def test_waits_double_and_differ(monkeypatch):
  monkeypatch.setattr(captioning, 'FIRST_WAIT', 2.0)
  ask = lambda after: _waits(Scripted(_0=[Unavailable('busy', after)]))
  waits = ask(0.0)
  bounds = [2.0 * 2**k for k in range(captioning.ATTEMPTS - 1)]  # and none after the last attempt
  assert len(waits) == len(bounds) and all(low <= wait <= 1.5 * low for wait, low in zip(waits, bounds, strict=True))
  assert ask(0.0) != waits
  assert all(30 <= wait <= 45 for wait in ask(30.0)[:4])  # what the service asks for is the least


def _waits(captioner):
  slept, clock = [], lambda: sum(slept)
  with pytest.raises(Unavailable):
    captioning._ask(captioner, VIDEO, 2.0, Pace(None, clock), slept.append)
  return [wait for wait in slept if wait]


def test_a_server_that_asks_to_wait_is_left_alone_by_all_workers(tmp_path):
  times = []

  class Limited(Scripted):
    def __call__(self, frames, fps):
      if self.asked:
        times.append(time.monotonic())
      time.sleep(0.02 * (frames[0, 0, 0, 0] > 0))
      return super().__call__(frames, fps)

  start = time.monotonic()
  busy = Limited(_0=[Unavailable('429', after=0.4), TEXT])
  assert write_captions(clips(*range(20)), busy, Captions(tmp_path / 'c'), workers=2).written == 20
  assert sum(moment < start + 0.35 for moment in times) <= 2  # only what was under way
  pace = Pace(None, clock=lambda: 5.0)
  pace.hold(3.0)
  assert [pace.take(), pace.take()] == [3.0, 3.0]


def test_pace():
  now = [100.0]
  pace = Pace(30, clock=lambda: now[0])
  assert [pace.take() for _ in range(3)] == [0.0, 2.0, 4.0]
  now[0] = 110.0  # idle time gives no right to a burst
  assert [pace.take() for _ in range(3)] == [0.0, 2.0, 4.0]
  pace.hold(1.0)  # shorter than what is waited anyway
  assert pace.take() == 6.0
  pace.hold(60.0)
  assert [pace.take(), pace.take()] == [60.0, 62.0]
  assert Pace(None).take() == 0.0


def test_requests_a_minute(tmp_path):
  start = time.monotonic()
  write_captions(clips(*range(6)), Scripted(), Captions(tmp_path / 'c'), workers=6, per_minute=60 / 0.05)
  assert time.monotonic() - start >= 0.25


@pytest.mark.parametrize('error', [UserError('no such key'), Unavailable('quota of the day', after=7200)])
def test_stops_at_once_where_asking_on_is_pointless(tmp_path, error):
  captioner, store = Scripted(0.03, _5=[error]), Captions(tmp_path / 'c.jsonl')
  with pytest.raises(UserError, match=r'no such key|2\.0 h \(quota of the day'):
    write_captions(clips(*range(100)), captioner, store, workers=1)
  assert len(captioner.asked) < 40  # those before, and what was under way
  assert all(store.get(f'set/{i}') for i in range(5)) and store.get('set/5') is None


def test_some_clips_without_an_answer_are_no_outage(tmp_path):
  down = {f'_{i}': [Unavailable('busy')] for i in range(0, 16, 2)}
  report = write_captions(clips(*range(16)), Scripted(**down), Captions(tmp_path / 'c'), workers=1)
  assert report.written == len(report.failed) == 8


def test_stops_in_an_outage(tmp_path):
  down = {f'_{i}': [Unavailable('no connection')] for i in range(10, 100)}
  captioner, store = Scripted(0.005, _3=[Unavailable('busy')], **down), Captions(tmp_path / 'c.jsonl')
  with pytest.raises(UserError, match=r'5 clips in a row \(no connection'):
    write_captions(clips(*range(100)), captioner, store, workers=1)
  assert max(captioner.asked) < 40
  assert all(store.get(f'set/{i}') for i in range(10) if i != 3)


LINE = json.dumps({'clip_id': 'set/1', 'caption': TEXT, 'model': 'm', 'prompt_version': 'p', 'lang': 'en'})


def test_a_torn_last_line(tmp_path):
  path = tmp_path / 'c.jsonl'
  for cut in (1, 20, len(LINE) - 1):
    path.write_text(LINE + '\n' + LINE.replace('set/1', 'set/2')[:cut])
    store = Captions(path)
    assert store.get('set/1') == TEXT and store.get('set/2') is None
    write_captions(clips(2), Scripted(), store)
    assert len(path.read_text().splitlines()) == 2 and Captions(path).get('set/2') == f'{TEXT} Number 2.'


def test_a_file_made_by_hand(tmp_path):
  path = tmp_path / 'c.jsonl'
  path.write_text('{"clip_id": "set/1", "caption": "Mine."}\n\n' + LINE.replace('set/1', 'set/2'))  # no line end
  store = Captions(path)
  assert (store.get('set/1'), store.get('set/2')) == ('Mine.', TEXT)
  write_captions(clips(3), Scripted(), store)
  assert len(path.read_text().split('\n')) == 5 and Captions(path).get('set/2') == TEXT


@pytest.mark.parametrize(
  'line', ['{"clip_id": "a"', '{"clip_id": "a"}', '[1]', '{"clip_id": 1, "caption": "x"}', '\xff']
)
def test_a_damaged_line(tmp_path, line):
  path = tmp_path / 'c.jsonl'
  path.write_bytes((LINE + '\n' + line + '\n' + LINE + '\n').encode('latin-1'))
  with pytest.raises(DataError, match=r'c\.jsonl, line 2: not a caption'):
    Captions(path)


def test_every_line_is_synced_before_the_next_step(tmp_path, monkeypatch):
  synced, path = [], tmp_path / 'c.jsonl'
  monkeypatch.setattr(os, 'fsync', lambda _: synced.append(path.read_text().count('\n')))
  write_captions(clips(0, 1, 2), Scripted(), Captions(path), workers=1)
  assert synced == [1, 2, 3]


def test_one_writer_at_a_time(tmp_path):
  path = tmp_path / 'c.jsonl'
  first, second = Captions(path), Captions(path)
  with first.writer() as add:
    with pytest.raises(DataError, match='another process'):
      write_captions(clips(1), Scripted(), second)
    add('set/1', TEXT, Scripted.name)
  assert write_captions(clips(1), Scripted(), second).skipped == 1  # it looks again before it asks


CTRL_C = """
import signal, sys, time, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell runs in the background
from one4d_jax.data.captioning import Captions, write_captions
class Slow:
  name = 'slow'
  def __call__(self, frames, fps):
    time.sleep(0.2)
    sys.stdout.write('answered\\n')
    sys.stdout.flush()
    return 'A red ball rolls over a grey floor.'
clips = [(str(i), lambda: (np.zeros((9, 12, 16, 3), np.uint8), 16.0)) for i in range(500)]
write_captions(clips, Slow(), Captions(sys.argv[1]), workers=4)
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_everything_answered_is_on_disk(tmp_path, number):
  path = tmp_path / 'c.jsonl'
  process = subprocess.Popen(
    [sys.executable, '-c', CTRL_C, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=os.getcwd()
  )
  seen = []
  for line in process.stdout:
    seen.append(line)
    if len(seen) == 9:
      process.send_signal(number)
  assert process.wait(timeout=5) != 0
  answered, lines = len(seen), path.read_text().count('\n')
  if number == signal.SIGINT:
    assert lines == answered < 30 and 'KeyboardInterrupt' in process.stderr.read()
  else:
    assert answered - 4 <= lines <= answered + 4
  process.stderr.close()
  assert sum(Captions(path).get(str(i)) is not None for i in range(500)) == lines


def test_frames_shown():
  video = np.broadcast_to(np.arange(81, dtype=np.uint8)[:, None, None, None], (81, 352, 624, 3))
  pictures, rate = shown(video, 16.0)
  assert pictures.shape == (8, 289, 512, 3) and pictures.dtype == np.uint8
  chosen = pictures[:, 0, 0, 0].astype(int)
  assert chosen[0] == 0 and chosen[-1] == 80 and set(np.diff(chosen)) <= {11, 12}
  assert rate == pytest.approx(7 / (80 / 16))
  assert shown(video[:, :, :352].swapaxes(1, 2)[:, :, :200], 16.0)[0].shape[1:3] == (352, 200)  # small stays
  few, rate = shown(video[:3, :20, :20], 16.0)
  assert len(few) == 3 and rate == 16.0
  assert len(shown(video[:1, :20, :20], 16.0)[0]) == 1
  pictures, _ = shown(np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8), 1.0)
  assert pictures.std() > 70


@pytest.mark.parametrize(
  ('answer', 'text'),
  [
    ('  A dog\n\nruns\tby the sea. ', 'A dog runs by the sea.'),
    ('"A dog runs by the sea."', 'A dog runs by the sea.'),
    ('“A dog runs by the sea.”\n', 'A dog runs by the sea.'),
    ('A dog reads a sign that says "STOP"', 'A dog reads a sign that says "STOP"'),
    ('**A dog**, *brown*, runs by the `sea`.', 'A dog, brown, runs by the sea.'),
    ('```text\nA dog runs by the sea.\n```', 'A dog runs by the sea.'),
    ('# Shot\n- A dog runs - fast - by\n> the sea.', 'Shot A dog runs - fast - by the sea.'),
    ('<think>"A cat?" No.</think>\nA dog runs by the sea.', 'A dog runs by the sea.'),
    ('Ein großer Hund läuft am Meer.', 'Ein großer Hund läuft am Meer.'),
  ],
)
def test_clean(answer, text):
  assert clean(answer) == text


def test_an_error_ends_the_waits_of_the_other_threads(tmp_path, monkeypatch):
  monkeypatch.setattr(captioning, 'FIRST_WAIT', 30.0)
  before, start = threading.active_count(), time.monotonic()
  captioner = Scripted(0.01, _0=[Unavailable('busy')], _9=[UserError('no such key')])
  fetched = []
  fetch = lambda i: fetched.append(i) or (np.full_like(VIDEO, min(i, 99)), 16.0)
  with pytest.raises(UserError, match='no such key'):
    write_captions([(str(i), lambda i=i: fetch(i)) for i in range(500)], captioner, Captions(tmp_path / 'c'))
  assert len(fetched) < 200  # and no more clips are read
  assert threading.active_count() == before and time.monotonic() - start < 5
