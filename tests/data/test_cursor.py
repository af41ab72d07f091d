"""Frames of a video one by one: the right one in any order, and each decoded once where the order is the film's."""

import os

import av
import numpy as np
import pytest

from one4d_jax.data import video
from one4d_jax.errors import DataError
from tests.data.sources.formats import films

COUNT = 60


def pictures():
  """Frame i shows i: a stripe for each of its six bits, above something that never changes."""
  frames = np.empty((COUNT, 32, 48, 3), np.uint8)
  frames[:] = np.random.default_rng(0).integers(0, 256, (32, 48, 3))
  bits = np.arange(COUNT)[:, None] >> np.arange(6) & 1
  frames[:, :16] = np.repeat(40 + 160 * bits, 8, axis=1)[:, None, :, None]
  return frames


def shown(image):
  stripes = np.asarray(image)[:16].reshape(16, 6, 8, 3).mean(axis=(0, 2, 3)) > 120
  return int((stripes << np.arange(6)).sum())


def film(path, **options):
  films.write(path, pictures(), **{'qp': '12', 'b_strategy': '0', 'sc_threshold': '0'} | options)
  with av.open(str(path)) as container:
    times = [packet.pts for packet in container.demux(video=0) if packet.size]
  assert times != sorted(times), 'every frame is stored in the order shown'
  return path


@pytest.fixture(params=[{'gop': 12}, {'gop': 9, 'x264-params': 'open-gop=1'}, {'gop': 250}], ids=str)
def path(tmp_path, request, monkeypatch):
  monkeypatch.setattr(video, '_SEEK_AFTER', 4)  # so that a film of two seconds is jumped through
  return film(tmp_path / 'film.mp4', **request.param)


def test_every_frame_in_order(path):
  assert [shown(video.cursor(path).frame(i)) for i in range(COUNT)] == list(range(COUNT))


def test_every_frame_in_any_order(path):
  order = [*np.random.default_rng(1).permutation(COUNT), COUNT - 1, 0, 0, 1, COUNT - 1, COUNT - 2]
  assert [shown(video.cursor(path).frame(i)) for i in order] == order


def test_a_pass_decodes_no_frame_twice(tmp_path, monkeypatch):
  path = film(tmp_path / 'film.mkv')
  decoded = []
  original = video._decoded
  monkeypatch.setattr(video, '_decoded', lambda *args: (decoded.append(at) or at for at in original(*args)))
  cursor = video.Cursor(video.Video(path))
  decoded.clear()
  for i in range(0, COUNT, 3):
    assert shown(cursor.frame(i)) == i
  assert len(decoded) <= COUNT


def test_no_such_frame(path):
  for i in (COUNT, -1):
    with pytest.raises(DataError, match=f'film.mp4 has {COUNT} frames; there is no frame {i}'):
      video.cursor(path).frame(i)


def test_frames_that_do_not_decode_spoil_no_others(tmp_path):
  path = film(tmp_path / 'film.mp4')
  data = bytearray(path.read_bytes())
  with av.open(str(path)) as container:
    packets = [p for p in container.demux(video=0) if p.size]
    keys = [i for i, p in enumerate(packets) if p.is_keyframe]
    first, last = packets[keys[2]].pos, packets[keys[3]].pos
  data[first:last] = bytes(last - first)
  path.write_bytes(data)
  cursor, lost = video.Cursor(video.Video(path)), []
  for i in range(COUNT):
    try:
      assert shown(cursor.frame(i)) == i
    except DataError as error:
      assert 'does not decode' in str(error) and 'film.mp4' in str(error)
      lost.append(i)
  assert lost and set(lost) <= set(range(keys[2] - 3, keys[3] + 3))


def test_a_film_without_time_stamps(tmp_path, monkeypatch):
  monkeypatch.setattr(video, '_SEEK_AFTER', 4)
  options = {'qp': '12', 'b_strategy': '0', 'sc_threshold': '0'}
  path = films.write(tmp_path / 'film.h264', pictures(), **options)
  order = [*np.random.default_rng(1).permutation(COUNT), 0, COUNT - 1, 0]
  assert [shown(video.cursor(path).frame(i)) for i in order] == order


def chosen_frames(path, step):
  return [shown(image) for image in video.Video(path).frames(range(0, COUNT, step), np.asarray)]


@pytest.mark.parametrize('step', [1, 7])
def test_frames_of_one_pass(path, step):
  assert chosen_frames(path, step) == list(range(0, COUNT, step))


@pytest.mark.parametrize('suffix', ['h264', 'ts', 'mkv', 'avi'])
def test_a_pass_costs_no_more_than_a_few_whether_jumps_are_exact_or_not(tmp_path, monkeypatch, suffix):
  monkeypatch.setattr(video, '_SEEK_AFTER', 4)
  path = films.write(tmp_path / f'film.{suffix}', pictures(), **{'qp': '12'}, gop=250)
  decoded, original = [], video._decoded
  monkeypatch.setattr(video, '_decoded', lambda *args: (decoded.append(at) or at for at in original(*args)))
  assert chosen_frames(path, 6) == list(range(0, COUNT, 6))
  assert len(decoded) <= 5 * COUNT


def test_each_process_has_its_own_place(tmp_path, monkeypatch):
  """A real fork would copy whatever locks other threads of the test hold, and may wait for them forever."""
  path = film(tmp_path / 'film.mp4')
  own, process = video.cursor(path), os.getpid()
  assert video.cursor(path) is own
  monkeypatch.setattr(os, 'getpid', lambda: process + 1)
  assert video.cursor(path) is not own


def test_a_film_that_was_written_anew(tmp_path):
  path = film(tmp_path / 'film.mp4')
  assert shown(video.cursor(path).frame(7)) == 7
  films.write(path, pictures()[::-1])
  assert shown(video.cursor(path).frame(7)) == COUNT - 8
