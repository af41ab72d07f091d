"""What every reader relies on: cutting, checks of a frame, poses relative to the first, captions, ids."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from one4d_jax.data.sources import load
from one4d_jax.data.sources.recording import Pixels, Recording, cuts
from one4d_jax.errors import DataError

SIZE = (4, 6)


def pixels(i, **changes):
  depth = np.full(SIZE, 2.0, np.float32)
  depth[0] = [np.nan, np.inf, 0, -1, 3, 4]
  fields = {'rgb': np.full((*SIZE, 3), i, np.uint8), 'depth': depth, 'valid': np.ones(SIZE, bool)}
  return Pixels(**fields | changes)


def turned(angle, centre):
  pose = np.eye(4)
  pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  pose[:3, 3] = centre
  return pose


def make(count=40, **changes):
  fields = {
    'source': 'made', 'scene': 'hall', 'name': 'hall/a', 'fps': 30.0, 'size': SIZE,
    'K': np.tile([[5.0, 0, 3], [0, 5, 2], [0, 0, 1]], (count, 1, 1)),
    'world_from_cam': np.stack([turned(0.1 * i, [1e6 + i, 0, 0]) for i in range(count)]),
    'pixels': pixels, 'numbers': tuple(range(100, 100 + 2 * count, 2)), 'licence': 'free',
  }  # fmt: skip
  return Recording(**fields | changes)


@pytest.mark.parametrize(
  'count, fps, step, clips',
  [
    (81, 16, 1, 1),
    (80, 16, 1, 1),  # 77 frames
    (161, 16, 1, 1),
    (162, 16, 1, 2),
    (161, 30, 2, 1),
    (160, 30, 1, 1),  # too short for every second frame
    (1000, 24, 2, 6),
    (1000, 24000 / 1001, 2, 6),
    (1000, 22, 2, 6),
    (1000, 21, 1, 12),
    (1000, 25, 2, 6),
    (241, 50, 3, 1),
    (321, 60, 4, 1),
    (320, 60, 3, 1),
    (1000, 8, 1, 12),
  ],
)
def test_cuts_at_about_sixteen_a_second(count, fps, step, clips):
  found = cuts(count, fps)
  assert len(found) == clips
  assert {indices.step for indices in found} == {step}
  assert all(indices[0] >= 0 and indices[-1] < count and len(indices) % 4 == 1 for indices in found)
  assert all(a[-1] < b[0] for a, b in itertools.pairwise(found))  # none shared


@pytest.mark.parametrize('count', range(0, 260, 7))
@pytest.mark.parametrize('fps', [10, 24, 30, 60])
def test_cuts_waste_less_than_a_clip(count, fps):
  found = cuts(count, fps)
  if count < 33:
    assert found == []
  elif count < 81:
    assert [len(indices) for indices in found] == [(count - 1) // 4 * 4 + 1]
  else:
    span = found[0][-1] + 1
    assert all(len(indices) == 81 for indices in found) and count - found[-1][-1] - 1 < span


def test_cuts_of_other_lengths():
  assert cuts(40, 16, frames=17, shortest=9) == [range(0, 17), range(17, 34)]
  assert cuts(40, 16, frames=17, target=8) == [range(0, 33, 2)]
  assert cuts(32, 16, shortest=29) == [range(29)]
  assert cuts(32, 16) == []


def test_frame_is_cleaned():
  sky = np.zeros(SIZE, bool)
  sky[0, 4] = True
  frame = make(pixels=functools.partial(pixels, sky=sky)).frame(3)
  assert frame.depth.dtype == np.float32 and np.isfinite(frame.depth).all()
  np.testing.assert_array_equal(frame.valid[0], [False] * 5 + [True])
  np.testing.assert_array_equal(frame.depth[0], [0, 0, 0, 0, 0, 4])
  assert frame.valid[1:].all() and not (frame.sky & frame.valid).any() and frame.sky[0, 4]
  assert frame.dynamic.shape == SIZE and not frame.dynamic.any()


def spoiled(name, value):
  values = getattr(make(), name).copy()
  values[3] = value
  return make(**{name: values})


@pytest.mark.parametrize(
  'broken, message',
  [
    (lambda: spoiled('K', np.nan), 'intrinsics are not positive numbers'),
    (lambda: spoiled('K', np.diag([0.0, 5, 1])), 'intrinsics are not positive numbers'),
    (lambda: spoiled('world_from_cam', np.nan), 'pose is missing or not finite'),
    (lambda: spoiled('world_from_cam', np.diag([2.0, 2, 2, 1])), 'pose is no rotation'),
    (lambda: spoiled('world_from_cam', np.diag([1.0, 1, -1, 1])), 'pose is no rotation'),
    (lambda: make(pixels=lambda i: pixels(i, depth=np.ones((4, 7), np.float32))), 'depth is 4x7 .* recording 4x6'),
    (lambda: make(pixels=lambda i: pixels(i, rgb=np.zeros((8, 6, 3), np.uint8))), 'rgb is 8x6 .* recording 4x6'),
    (lambda: make(pixels=lambda i: pixels(i, sky=np.zeros((4, 7), bool))), 'sky is 4x7'),
  ],
)
def test_what_is_wrong_with_a_frame_is_named(broken, message):
  with pytest.raises(DataError, match=rf'^made hall/a, frame 106: .*{message}'):
    broken().frame(3)


def test_a_bad_frame_spoils_only_its_clip():
  lost = spoiled('world_from_cam', np.nan)
  lost.read(range(4, 13))
  with pytest.raises(DataError, match='frame 106'):
    lost.read(range(0, 9))


def test_world_is_that_of_the_first_camera():
  source = make()
  clip = source.read(range(2, 20, 2))
  assert clip.frames == 9 and clip.size == SIZE
  np.testing.assert_array_equal(clip.rgb[:, 0, 0, 0], range(2, 20, 2))
  np.testing.assert_allclose(clip.world_from_cam[0], np.eye(4), atol=1e-9)
  expected = np.linalg.inv(source.world_from_cam[2]) @ source.world_from_cam[2:20:2]
  np.testing.assert_allclose(clip.world_from_cam, expected, atol=1e-5)  # a million units from the origin
  assert clip.world_from_cam.dtype == clip.K.dtype == np.float32


def test_frames_pass_through_the_view():
  view = lambda frame: dataclasses.replace(frame, rgb=frame.rgb + 1, K=2 * frame.K)
  clip = make().read(range(5), view)
  np.testing.assert_array_equal(clip.rgb[:, 0, 0, 0], range(1, 6))
  np.testing.assert_array_equal(clip.K[0], [[10, 0, 6], [0, 10, 4], [0, 0, 2]])


def test_caption_that_covers_most():
  told = make(captions=((0, 10, 'first'), (10, 30, 'second'), (0, 40, 'all')))
  assert told.caption(range(0, 12)) == 'all'  # covers 12, 'first' only 10
  assert told.caption(range(12, 28)) == 'second'  # as many as 'all', of fewer others
  assert told.caption(range(0, 9)) == 'first'
  assert make(captions=((0, 10, 'first'),)).caption(range(10, 20)) == ''
  assert make().caption(range(5)) == ''
  assert told.read(range(12, 21)).caption == 'second'


def test_where_a_clip_comes_from():
  about = make().about(range(2, 20, 2))
  assert about['id'] == 'made/hall/a/000104-000136-2'
  assert about['fps'] == 15 and about['numbers'] == list(range(104, 140, 4))
  assert (about['source'], about['scene'], about['recording']) == ('made', 'hall', 'hall/a')
  assert (about['licence'], about['provenance'], about['metric']) == ('free', 'exact', True)
  assert make().about([7])['id'] == 'made/hall/a/000114-000114-1'
  ids = [make(200).about(indices)['id'] for indices in cuts(200, 16)]
  assert len(set(ids)) == len(ids) == 2


def test_unknown_reader():
  with pytest.raises(DataError, match=r"no data source 'nothing'; choose from omniworld"):
    load('nothing')
