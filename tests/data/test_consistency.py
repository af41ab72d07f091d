"""Faults that readers and data have are told from clips that are as they should be, by geometry and colours alone."""

import dataclasses

import numpy as np
import pytest

from one4d_jax.data import consistency, curate
from tests.data.faults import FAULTS, SPLITS, clip, moved, noisy, rebased, rejected, unmarked

MOVING = (('medium', 4), ('hard', 4), ('hard', 5))  # rises, dollies out, orbits


@pytest.mark.parametrize('level, seed', MOVING)
def test_clean_clips_pass(level, seed):
  for variant in (lambda clip: clip, lambda clip: noisy(unmarked(rebased(clip)))):
    stats = consistency.measure(variant(clip(level, seed)))
    assert not curate.reasons(stats | {'depth_p50': 1.0, 'change': 9.0}, curate.Limits())
  stats = consistency.measure(clip(level, seed))
  assert not curate.notes(stats)
  assert stats['consistency'] > 0.97 and stats['consistency_long'] > 0.9 and stats['focal_best'] == 1


NAMED = {
  'longer focal': 'focal_0.9',
  'shorter focal': 'focal_1.1',
  'transposed': 'transposed',
  'inverted': 'inverted',
  'inverted in the first camera': 'inverted',
  'colours early': 'lag_-1',
  'colours late': 'lag_+1',
}


@pytest.mark.parametrize('fault', NAMED)
def test_each_fault_is_named(fault):
  for place in MOVING[:2]:
    assert NAMED[fault] in rejected(FAULTS[fault](clip(*place)))


def test_same_clip_gives_the_same_numbers():
  assert consistency.measure(clip('hard', 1)) == consistency.measure(clip('hard', 1))


def test_where_nothing_can_be_told_nothing_is_rejected():
  """A camera that stands still has no focal length; a short or empty clip has no numbers."""
  still = next(c for c in (clip('easy', seed) for seed in range(12, 20)) if c.meta['camera'] == 'stays still')
  for fault in ('longer focal', 'shorter focal', 'transposed', 'inverted'):
    assert not rejected(FAULTS[fault](still))
  empty = np.zeros_like(still.valid)
  blind = consistency.measure(dataclasses.replace(still, valid=empty, sky=empty, depth=np.zeros_like(still.depth)))
  short = {'rgb', 'depth', 'valid', 'sky', 'dynamic', 'K', 'world_from_cam'}
  brief = consistency.measure(dataclasses.replace(still, **{name: getattr(still, name)[:4] for name in short}))
  assert set(blind.values()) == set(brief.values()) == {None}
  assert blind.keys() == brief.keys() == consistency.measure(still).keys()


def test_depth_of_another_scene_is_inconsistent():
  a, b = clip('medium', 1), clip('medium', 4)
  mixed = dataclasses.replace(a, depth=np.concatenate([a.depth[:8], 2 * b.depth[8:]]))
  assert 'consistency_long' in rejected(mixed)
  away = a.world_from_cam.copy()
  away[:, :3, 3] += 100 * np.arange(a.frames)[:, None]
  assert 'consistency_seen' in rejected(dataclasses.replace(a, world_from_cam=away))


def test_what_is_hidden_does_not_count():
  """A wall behind a box that the camera passes: covered points are neither right nor wrong."""
  F, H, W = 17, 48, 64
  poses = np.tile(np.eye(4, dtype=np.float32), (F, 1, 1))
  poses[:, 0, 3] = np.linspace(-1, 1, F)
  K = np.tile(np.float32([[60, 0, W / 2], [0, 60, H / 2], [0, 0, 1]]), (F, 1, 1))
  x = (np.arange(W) + 0.5 - W / 2) / 60
  box = np.abs(x * 3 + poses[:, 0, 3, None]) < 0.8  # at 3, before a wall at 6
  depth = np.broadcast_to(np.where(box, 3, 6)[:, None], (F, H, W)).astype(np.float32)
  none = np.zeros(depth.shape, bool)
  scene = dataclasses.replace(
    clip('easy', 0), rgb=np.zeros((*depth.shape, 3), np.uint8), depth=depth, valid=~none, sky=none, dynamic=none,
    K=K, world_from_cam=poses,
  )  # fmt: skip
  assert consistency.measure(scene)['consistency_long'] > 0.93
  view = consistency._View.of(scene)
  hidden = view.compare(K[view.frames], poses[view.frames].astype(float)).depth < -0.5
  assert hidden[view.gap == 4].mean() > 0.05  # many of them


@pytest.mark.parametrize('x, y', [(0.5, -0.5), (-0.5, 0.5)])
def test_half_a_pixel_of_the_principal_point_is_noted(x, y):
  off = []
  for place in (('hard', 1), ('hard', 5)):
    stats = consistency.measure(moved(clip(*place), x, y))
    off.append((stats['principal_x'], stats['principal_y']))
    assert curate.notes(stats).keys() == {'principal_x', 'principal_y'}
    assert not curate.reasons(stats | {'depth_p50': 1.0, 'change': 9.0}, curate.Limits())
  np.testing.assert_allclose(np.mean(off, axis=0), [-x, -y], atol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
  'nuisance',
  [pytest.param(lambda clip: clip, marks=pytest.mark.full, id='exact'), lambda clip: noisy(unmarked(clip))],
)
def test_false_rejections_of_many_clips(nuisance):
  places = [(level, seed) for level in SPLITS for seed in range(100, 116)]
  wrong = {place: found for place in places if (found := rejected(nuisance(clip(*place))))}
  assert len(wrong) <= 1, wrong


FLOORS = {  # of the share found, well under what was measured on these clips; the rest cannot be told
  'longer focal': 0.65,  # 0.81; straight ahead every focal length explains the same
  'shorter focal': 0.6,  # 0.76
  'transposed in the first camera': 0.75,  # 0.90; a camera that never turns has nothing to transpose
  'colours early': 0.75,
  'colours late': 0.75,
}


SOME = ('shorter focal', 'transposed', 'inverted, then from the first camera')  # the others in test-full


@pytest.mark.slow
@pytest.mark.parametrize('fault', [pytest.param(f, marks=() if f in SOME else pytest.mark.full) for f in FAULTS])
def test_share_of_faults_found(fault):
  """Over every level and any motion of the camera but none."""
  places = [(level, seed) for level in SPLITS for seed in range(100, 107)]
  clips = [c for c in (clip(*place) for place in places) if c.meta['camera'] != 'stays still']
  found = np.mean([bool(rejected(FAULTS[fault](c))) for c in clips])
  assert len(clips) > 15 and found >= FLOORS.get(fault, 0.9), found
