"""What ``--frames`` and ``--overlap`` make of any input: as many frames as asked, windows, and clear refusals."""

import av
import numpy as np
import pytest
from PIL import Image

from one4d_jax import request, sample
from one4d_jax.errors import UserError
from tests.bundles import looks_whole

SIZES = {'frames': 17, 'height': 32, 'width': 32, 'fps': 16.0, 'steps': 4, 'guidance': 2.0}


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A working folder with a bundle that looks whole, a photo and a film of 40 frames, each of another grey."""
  looks_whole(tmp_path / 'bundle', SIZES)
  Image.new('RGB', (32, 32), (200, 100, 50)).save(tmp_path / 'photo.png')
  with av.open(str(tmp_path / 'film.mp4'), 'w') as container:
    stream = container.add_stream('libx264', rate=10)
    stream.width, stream.height, stream.pix_fmt = 32, 32, 'yuv420p'
    for i in range(40):
      frame = np.full((32, 32, 3), 20 + 5 * i, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
    container.mux(stream.encode(None))
  monkeypatch.chdir(tmp_path)
  return tmp_path


def read(*argv):
  return request.read(sample.parser().parse_args(['--weights', 'bundle', *map(str, argv)]))


def shown(asked):
  """Numbers of the film's frames that the model is given."""
  return ((asked.video[asked.observed].mean(axis=(1, 2, 3)) - 20) / 5).round().astype(int).tolist()


@pytest.mark.parametrize('frames', [1, 2, 3, 4, 5, 17, 18, 20, 33, 40])
def test_a_film_of_any_length(place, frames):
  asked = read('--input', 'film.mp4', '--frames', frames)
  assert asked.video.shape == (frames, 32, 32, 3) and asked.video.dtype == np.uint8 and asked.observed.all()
  assert asked.task == ('image' if frames == 1 else 'video')
  assert asked.spans[0].start == 0 and asked.spans[-1].stop == frames
  assert {len(span) for span in asked.spans} == {min(frames, 17)}
  kept = shown(asked)
  assert kept[0] == 0 and len(set(kept)) == frames and (frames == 1 or kept[-1] == 39)
  assert any('windows' in line for line in asked.log) == (frames > 17)


def test_without_frames_the_model_decides(place):
  asked = read('--input', 'film.mp4')
  assert len(asked.video) == 17 and asked.spans == [range(17)] and asked.fps == pytest.approx(16 / 3.9)
  assert read('--input', 'photo.png').spans == read('--prompt', 'a room').spans == [range(17)]


def test_all_frames(place):
  asked = read('--input', 'film.mp4', '--frames', 'all')
  assert shown(asked) == list(range(40)) and asked.fps == pytest.approx(10)
  assert asked.spans == [range(0, 17), range(11, 28), range(23, 40)]
  assert 'windows: 3 of 17 frames, each sharing 5 or more with the next' in asked.log
  assert read('--input', 'film.mp4', '--frames', 'all', '--overlap', 1).spans == [
    range(0, 17), range(11, 28), range(23, 40)
  ]  # fmt: skip
  assert len(read('--input', 'film.mp4', '--frames', 'all', '--overlap', 10).spans) == 5


@pytest.mark.parametrize('frames', [1, 2, 6, 40])
def test_an_image_and_text_go_on_for_as_long_as_asked(place, frames):
  asked = read('--input', 'photo.png', '--frames', frames)
  assert asked.task == 'image' and asked.video.shape[0] == frames and asked.observed.nonzero()[0].tolist() == [0]
  assert np.abs(asked.video[0, 0, 0].astype(int) - [200, 100, 50]).max() < 2 and not asked.video[1:].any()
  asked = read('--prompt', 'a room', '--frames', frames)
  assert asked.task == 'text' and asked.video.shape == (frames, 32, 32, 3) and not asked.observed.any()
  assert asked.spans[-1].stop == frames


def test_some_frames_of_a_long_film(place):
  asked = read('--input', 'film.mp4', '--frames', 'all', '--observed', '3,39')
  assert asked.task == 'sparse' and asked.observed.nonzero()[0].tolist() == shown(asked) == [3, 39]
  assert not asked.video[~asked.observed].any()
  asked = read('--input', 'film.mp4', '--frames', 20, '--sparsity', 0.25)
  assert asked.observed.sum() == 5 and asked.observed[[0, 19]].all()


BAD = [
  (['--frames', '0'], "--frames '0' must be a whole number from 1, or 'all'"),
  (['--frames', '-3'], "--frames '-3'"),
  (['--frames', '5.5'], "--frames '5.5'"),
  (['--frames', 'many'], "--frames 'many'"),
  (['--frames', ''], "--frames ''"),
  (['--frames', '41'], 'the input has 40 frames'),
  (['--frames', '9' * 5000], 'whole number'),
  (['--overlap', '17'], '--overlap 17 must be from 1 to 16: windows have 17 frames'),
  (['--overlap', '0'], '--overlap 0 must be from 1'),
  (['--observed', '20', '--frames', '20'], 'out of range: the clip has frames 0 to 19'),
]


@pytest.mark.parametrize('flags, words', BAD, ids=[' '.join(flags)[:40] for flags, _ in BAD])
def test_refusals(place, flags, words):
  with pytest.raises(UserError) as caught:
    read('--input', 'film.mp4', *(f'{a}={b}' for a, b in zip(flags[::2], flags[1::2], strict=True)))
  assert words in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize('flags', [['--input', 'photo.png'], ['--prompt', 'a room']])
def test_all_frames_of_what_has_one_or_none(place, flags):
  with pytest.raises(UserError, match='needs a video'):
    read(*flags, '--frames', 'all')


def test_more_than_fits_in_memory_is_refused_before_it_is_read(place, monkeypatch):
  monkeypatch.setattr(request, 'MOST_PIXELS', 30 * 32 * 32)
  monkeypatch.setattr(request.media, 'read', lambda *args, **kwargs: pytest.fail('read it first'))
  for flags in (['--input', 'film.mp4', '--frames', 'all'], ['--prompt', 'a room', '--frames', '31']):
    with pytest.raises(UserError, match='too many for one scene; give --frames 30 or fewer'):
      read(*flags)
