"""Windows of generation: what they cover, what each is shown, and that padding stays inside."""

import itertools
import types

import numpy as np
import pytest

from one4d_jax.errors import ConfigError, ShapeError
from one4d_jax.model import generate as generation
from one4d_jax.model.windows import check_spans, default_overlap, generate_windows, spans, window_seed

LENGTHS = (1, 2, 3, 4, 5, 17, 18, 20, 33, 40, 200)


@pytest.mark.parametrize('most, overlap', [(17, 4), (17, 1), (17, 16), (5, 2), (81, 20)])
def test_spans_cover_any_length(most, overlap):
  for frames in (*LENGTHS, *range(75, 110)):
    cut = spans(frames, most, overlap)
    check_spans(cut, frames)
    assert {len(span) for span in cut} == {min(frames, most)}
    shared = [a.stop - b.start for a, b in itertools.pairwise(cut)]
    assert all(count >= overlap for count in shared)
    if shared:
      assert max(shared) - min(shared) <= 1, 'spread evenly'
      fewer = most + (len(cut) - 2) * (most - overlap)
      assert fewer < frames, 'no window too many'


def test_spans_refuse_what_cannot_be():
  for frames, most, overlap in ((0, 17, 4), (18, 17, 17), (18, 17, 0), (2, 1, 1)):
    with pytest.raises(ConfigError):
      spans(frames, most, overlap)
  assert [default_overlap(most) for most in (1, 5, 9, 17, 81)] == [0, 2, 2, 4, 20]


def test_spans_that_leave_gaps_are_refused():
  for bad in ([], [range(4)], [range(1, 5)], [range(3), range(3, 5)], [range(4), range(4)], [range(0, 5, 2)]):
    with pytest.raises(ShapeError, match='do not cover 5 frames'):
      check_spans(bad, 5)


POISON = 99.0


class Model:
  """Stands in for ``generate``: notes what it is given; what it makes of padding is poison."""

  def __init__(self, monkeypatch, lengths=()):
    self.calls, self.lengths = [], list(lengths)
    self.bundle = types.SimpleNamespace(config=types.SimpleNamespace(steps=3))
    monkeypatch.setattr(generation, 'generate', self)

  def __call__(self, bundle, video, observed, prompt, *, seed, progress=None, **settings):
    assert bundle is self.bundle
    self.calls.append(types.SimpleNamespace(video=video, observed=observed, seed=seed, prompt=prompt, **settings))
    for step in range(3):
      if progress:
        progress(step)
    i = len(self.calls)
    length = self.lengths[i - 1] if self.lengths else len(video)
    rgb = np.full(video.shape, i / 10, np.float32) + np.arange(len(video), dtype=np.float32)[:, None, None, None] / 1000
    rgb[length:] = POISON
    xyz = np.full(video.shape, -i, np.float32)
    xyz[length:] = POISON
    return generation.Generated(rgb, xyz)


@pytest.mark.parametrize('frames', LENGTHS)
def test_padding_never_gets_out(monkeypatch, frames):
  cut = spans(frames, 17, 4)
  model = Model(monkeypatch, [len(span) for span in cut])
  made = generate_windows(model.bundle, np.zeros((frames, 2, 2, 3), np.float32), np.zeros(frames, bool), '', spans=cut)
  assert [len(piece.rgb) for piece in made] == [len(piece.xyz) for piece in made] == [len(span) for span in cut]
  assert all((piece.rgb < POISON).all() and (piece.xyz < POISON).all() for piece in made)
  shapes = {call.video.shape for call in model.calls}
  assert len(shapes) == 1, 'one compilation'
  (shape,) = shapes
  assert shape[0] % 4 == 1 and shape[0] - len(cut[0]) < 4
  assert all((call.video < POISON).all() for call in model.calls), 'nor into what later windows see'


def test_padding_repeats_the_last_frame(monkeypatch):
  model = Model(monkeypatch)
  video = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((2, 2, 3), np.float32) / 6
  generate_windows(model.bundle, video, np.array([True, False] * 3), '', spans=[range(6)])
  (call,) = model.calls
  np.testing.assert_array_equal(call.video[:, 0, 0, 0], video[[0, 1, 2, 3, 4, 5, 5, 5, 5], 0, 0, 0])
  assert call.observed.tolist() == [True, False] * 3 + [False] * 3


def test_later_windows_see_what_earlier_ones_made(monkeypatch):
  model = Model(monkeypatch)
  observed = np.zeros(30, bool)
  observed[[0, 14, 29]] = True
  video = np.full((30, 2, 2, 3), -1, np.float32)
  made = generate_windows(
    model.bundle, video, observed, 'a room', spans=[range(17), range(13, 30)], seed=7, guidance=2.0
  )
  first, second = model.calls
  assert first.observed.nonzero()[0].tolist() == [0, 14] and (first.video == -1).all()
  assert second.observed.nonzero()[0].tolist() == [0, 1, 2, 3, 16]
  np.testing.assert_array_equal(second.video[[0, 2, 3]], made[0].rgb[[13, 15, 16]])
  assert (second.video[[1, *range(4, 17)]] == -1).all(), 'what was given stays as it was given'
  assert first.seed == 7 and second.seed != 7 and first.guidance == second.guidance == 2.0
  assert (video == -1).all() and observed.sum() == 3, 'arguments stay as they are'


def test_three_windows_that_share_a_frame_see_the_newest(monkeypatch):
  model = Model(monkeypatch)
  made = generate_windows(
    model.bundle,
    np.zeros((9, 2, 2, 3), np.float32),
    np.zeros(9, bool),
    '',
    spans=[range(5), range(2, 7), range(4, 9)],
  )
  assert model.calls[2].observed.tolist() == [True] * 3 + [False] * 2
  np.testing.assert_array_equal(model.calls[2].video[:3], made[1].rgb[2:])


def test_a_whole_video_is_shown_as_it_is(monkeypatch):
  model = Model(monkeypatch)
  video = np.random.default_rng(0).integers(0, 256, (20, 2, 2, 3), dtype=np.uint8)
  generate_windows(model.bundle, video, np.ones(20, bool), '', spans=spans(20, 17, 4))
  for call, start in zip(model.calls, (0, 3), strict=True):
    assert call.observed.all() and call.video.dtype == np.float32
    np.testing.assert_allclose((call.video + 1) * 127.5, video[start : start + 17], atol=1e-4)


def test_colours_beyond_their_range_are_cut_before_they_are_shown(monkeypatch):
  model = Model(monkeypatch)
  loud = generation.Generated(np.full((5, 2, 2, 3), 1.5, np.float32), np.zeros((5, 2, 2, 3), np.float32))
  monkeypatch.setattr(generation, 'generate', lambda *a, **k: model(*a, **k) and loud)
  generate_windows(model.bundle, np.zeros((8, 2, 2, 3), np.float32), np.zeros(8, bool), '', spans=spans(8, 5, 2))
  assert model.calls[1].video[:2].max() == 1


def test_seeds_differ_and_repeat():
  assert window_seed(5, 0) == 5
  drawn = [window_seed(seed, i) for seed in (0, 1, 2**32 - 1) for i in range(5)]
  assert len(set(drawn)) == 15 and drawn == [window_seed(s, i) for s in (0, 1, 2**32 - 1) for i in range(5)]
  assert all(0 <= seed < 2**32 for seed in drawn)


@pytest.mark.parametrize('settings, steps', [({}, 3), ({'steps': 3}, 3), ({'steps': None}, 3)])
def test_progress_counts_on(monkeypatch, settings, steps):
  model, seen = Model(monkeypatch), []
  video = np.zeros((20, 2, 2, 3), np.float32)
  generate_windows(
    model.bundle, video, np.zeros(20, bool), '', spans=spans(20, 17, 4), progress=seen.append, **settings
  )
  assert seen == list(range(2 * steps))


def test_arrays_that_do_not_belong_together_are_refused(monkeypatch):
  model = Model(monkeypatch)
  video = np.zeros((20, 2, 2, 3), np.float32)
  for bad, seen, cut in (
    (video, np.zeros(19, bool), spans(20, 17, 4)),
    (video[0], np.zeros(2, bool), [range(2)]),
    (video, np.zeros(20, bool), spans(21, 17, 4)),
    (video, np.zeros(20, bool), [range(17)]),
  ):
    with pytest.raises(ShapeError):
      generate_windows(model.bundle, bad, seen, '', spans=cut)
  assert not model.calls
