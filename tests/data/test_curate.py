"""Resizing keeps geometry; every filter fires on the clip that it is for and on no ordinary one."""

import dataclasses
import functools
import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from one4d_jax import presets
from one4d_jax.data import curate, render
from one4d_jax.data.curate import Curation, Limits
from one4d_jax.data.sources.recording import Frame
from one4d_jax.errors import ConfigError, DataError


@functools.cache
def clip(seed=1, level='medium', frames=17, size=(48, 80)):
  return render.clip(seed, level=level, frames=frames, height=size[0], width=size[1])


@functools.cache
def statistics(seed=1):
  return curate.statistics(clip(seed))


def change(clip, **fields):
  return dataclasses.replace(clip, **fields)


def frame_of(clip, i=0):
  names = ('rgb', 'depth', 'valid', 'sky', 'dynamic')
  K, pose = clip.K[i].astype(float), clip.world_from_cam[i].astype(float)
  return Frame(**{name: getattr(clip, name)[i] for name in names}, K=K, world_from_cam=pose)


@pytest.mark.parametrize(
  'size, target, kept',
  [
    ((720, 1280), (352, 624), 0.997),
    ((1080, 1920), (352, 624), 0.997),
    ((1280, 720), (624, 352), 0.997),
    ((480, 640), (352, 480), 0.978),
    ((436, 1024), (352, 624), 0.755),
    ((352, 624), (352, 624), 1),
  ],
)
def test_nearest_aspect_and_what_is_kept(size, target, kept):
  view = curate.fit(size, Curation().sizes)
  assert view.target == target
  assert view.kept == pytest.approx(kept, abs=0.002)
  assert pickle.loads(pickle.dumps(view)) == view


@pytest.mark.parametrize('target', [(48, 80), (64, 48), (32, 112), (96, 128)])
def test_points_stay_where_they_are(target):
  """Colour of a picked pixel, its depth and its ray agree with the source's, crop or not, larger or smaller."""
  height, width = 90, 122
  v, u = np.mgrid[:height, :width] + 0.5
  K = np.array([[100.0, 0, 57], [0, 104, 41], [0, 0, 1]])
  rgb = np.stack([2 * u, 2 * v, np.full_like(u, 7)], -1).round().astype(np.uint8)  # says where it is
  depth = (1 + u + 1000 * v).astype(np.float32)
  yes = np.ones(depth.shape, bool)
  out = curate.fit((height, width), [target])(Frame(rgb, depth, yes, ~yes, u > 61, K, np.eye(4)))
  assert out.rgb.shape == (*target, 3) and out.depth.shape == out.dynamic.shape == target
  y, x = np.mgrid[: target[0], : target[1]] + 0.5
  ray = np.linalg.inv(out.K) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
  source = (K @ ray)[:2].reshape(2, *target)  # where in the source each pixel's centre lies
  picked_v, picked_u = np.divmod(out.depth - 1, 1000)
  picked_v, picked_u = picked_v + 0.5 * (picked_u >= 500), picked_u - 500 * (picked_u >= 500)
  assert np.abs(picked_u - source[0]).max() <= 0.501 and np.abs(picked_v - source[1]).max() <= 0.501
  inner = (slice(3, -3), slice(3, -3))
  for channel in (0, 1):
    error = (out.rgb[..., channel] / 2.0 - source[channel])[inner]
    assert np.abs(error).max() < 0.6 and abs(error.mean()) < 0.06  # a shift of half a pixel would be 0.3 or more
  np.testing.assert_array_equal(out.dynamic, picked_u > 61)
  assert out.depth.dtype == np.float32 and out.rgb.dtype == np.uint8


def test_resized_clip_is_that_of_the_smaller_camera():
  """Depth as if it had been rendered small, but for edges."""
  large, small = clip(2, size=(96, 160)), clip(2)
  out = curate.fit((96, 160), [(48, 80)])(frame_of(large))
  np.testing.assert_allclose(out.K, small.K[0], atol=1e-4)
  error = np.abs(out.depth / np.maximum(small.depth[0], 1e-6) - 1)[small.valid[0]]
  assert np.median(error) < 0.01
  assert np.abs(out.rgb.astype(int) - small.rgb[0]).mean() < 4


def test_statistics_are_plain_and_those_of_an_ordinary_clip():
  stats = statistics()
  assert json.loads(json.dumps(stats, allow_nan=False)) == stats
  assert {type(value) for value in stats.values()} <= {float, str, type(None)}
  assert stats['frames'] == 17 and stats['fps'] == 16
  assert stats['depth_p2'] < stats['depth_p50'] < stats['depth_p98']
  source = clip()
  assert stats['dynamic'] == pytest.approx(source.dynamic.mean(), rel=1e-5) and stats['known'] == 1
  step = np.linalg.inv(source.world_from_cam[:-1]) @ source.world_from_cam[1:]
  angles = np.degrees(np.arccos(np.clip((np.trace(step[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1)))
  assert stats['rotation_max'] == pytest.approx(angles.max(), rel=1e-2)
  length = np.linalg.norm(np.diff(source.world_from_cam[:, :3, 3], axis=0), axis=1)
  assert stats['path'] * stats['depth_p50'] == pytest.approx(length.sum(), rel=1e-4)
  assert stats['consistency'] > 0.9
  assert curate.reasons(stats, Limits()) == {}


def poses_with(clip, frame, *, turn=0.0, step=0.0):
  poses = clip.world_from_cam.copy()
  c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
  poses[frame, :3, :3] = poses[frame, :3, :3] @ np.float32([[c, 0, s], [0, 1, 0], [-s, 0, c]])
  poses[frame, 0, 3] += step
  return poses


def still(clip):
  shown = ('rgb', 'depth', 'valid', 'sky', 'K', 'world_from_cam')
  first = {name: np.repeat(getattr(clip, name)[:1], clip.frames, axis=0) for name in shown}
  return change(clip, **first, dynamic=np.zeros_like(clip.dynamic))


def without_depth(clip, frame=slice(None), share=1.0):
  valid = clip.valid.copy()
  valid[frame, : round(share * clip.size[0])] = False
  return change(clip, valid=valid, sky=clip.sky & valid)


SPOILED = {
  'fps': lambda c: change(c, meta=c.meta | {'fps': 6.0}),
  'known': lambda c: without_depth(c, share=0.5),
  'known_frame': lambda c: without_depth(c, frame=3, share=0.8),
  'sky': lambda c: change(c, sky=c.depth > 0, valid=np.zeros_like(c.valid)),
  'depth_range': lambda c: change(c, depth=c.depth * np.where(np.arange(c.size[1]) < 8, 1, 400).astype(np.float32)),
  'nearest': lambda c: change(c, depth=c.depth * np.float32(0.001)),
  'farthest': lambda c: change(c, depth=c.depth * np.float32(1000)),
  'rotation': lambda c: change(c, world_from_cam=poses_with(c, 5, turn=20)),
  'translation': lambda c: change(c, world_from_cam=poses_with(c, 5, step=3)),
  'jump': lambda c: change(c, world_from_cam=poses_with(c, 5, step=3)),
  'pose_error': lambda c: change(c, world_from_cam=c.world_from_cam * np.float32([[1.01]])),
  'frozen': still,
  'motion': still,
  'dark': lambda c: change(c, rgb=c.rgb // 16),
  'bright': lambda c: change(c, rgb=255 - c.rgb // 16),
  'cut': lambda c: change(c, rgb=np.concatenate([c.rgb[:8], 255 - c.rgb[8:]])),
  'depth': lambda c: without_depth(c),
  'consistency': lambda c: change(c, depth=c.depth * np.where(np.arange(17) % 4 < 2, 1, 1.3)[:, None, None]),
}


@pytest.mark.parametrize('name', SPOILED)
def test_every_filter_fires(name):
  stats = curate.statistics(SPOILED[name](clip()))
  json.dumps(stats, allow_nan=False)
  found = curate.reasons(stats, Limits())
  assert name in found
  if name not in ('depth', 'motion', 'cut'):
    statistic, limit = {rule[0]: (stats[rule[1]], getattr(Limits(), rule[3])) for rule in curate._RULES}[name]
    assert f'{statistic:.4g}' in found[name] and f'{limit:g}' in found[name]
    widest = dataclasses.replace(Limits(), **{name: -1e9 if statistic < limit else 1e9})
    assert name not in curate.reasons(stats, widest)


def test_reasons_need_no_statistic_that_cannot_be_told():
  stats = {'depth_p50': 3.0, 'path': 1.0, 'consistency': None, 'fps': None}
  assert curate.reasons(stats, Limits()) == {}
  assert curate.reasons(stats | {'focal_0.9_margin': 0.9, 'focal_0.9_told': 0.001}, Limits()) == {}
  sentence = curate.reasons(stats | {'focal_0.9_margin': 0.9, 'focal_0.9_told': 0.1}, Limits())['focal_0.9']
  assert '0.9 times the focal length' in sentence and '10.0%' in sentence


def test_cameras_that_are_not_finite():
  poses = clip().world_from_cam.copy()
  poses[3, 0, 3] = np.nan
  with pytest.raises(DataError, match=r'proc4d-train-medium-00000001: cameras are not finite'):
    curate.statistics(change(clip(), world_from_cam=poses))


def test_copies_are_found_and_ordinary_clips_are_none():
  hashes = {}
  for seed in range(6):
    source = clip(seed)
    for name, rgb in ((f'{seed}', source.rgb), (f'{seed} again', np.clip(source.rgb * 0.9 + 9, 0, 255))):
      frames = rgb[[0, 8, 16]].astype(np.uint8)
      hashes[name] = [curate.dhash(frame) for frame in frames]
  assert curate.duplicates(hashes, Limits()) == {f'{seed} again': f'{seed}' for seed in range(6)}
  assert curate.hashes(statistics()) == hashes['1']
  larger = [curate.fit((48, 80), [(96, 160)])(frame_of(clip(1), i)).rgb for i in (0, 8, 16)]
  assert curate.duplicates({'1': hashes['1'], 'large': [curate.dhash(f) for f in larger]}, Limits()) == {'large': '1'}


def test_duplicates_of_a_duplicate():
  """What repeats a clip that is itself dropped is kept: it differs from all that are kept."""
  code = lambda bits: [f'{(1 << bits) - 1:016x}'] * 3
  hashes = {'a': code(0), 'b': code(4), 'c': code(8), 'd': code(0)}
  assert curate.duplicates(hashes, Limits()) == {'b': 'a', 'd': 'a'}
  assert curate.duplicates({}, Limits()) == {}


def test_duplicates_of_a_large_set_are_found_quickly():
  rng = np.random.default_rng(0)
  codes = rng.bytes(8 * 3 * 8000).hex()
  hashes = {str(i): [codes[48 * i + 16 * j :][:16] for j in range(3)] for i in range(8000)}
  hashes |= {f'copy of {i}': hashes[str(i)] for i in range(0, 8000, 1000)}
  start = time.process_time()
  found = curate.duplicates(hashes, Limits())
  assert found == {f'copy of {i}': str(i) for i in range(0, 8000, 1000)}
  assert time.process_time() - start < 5


def test_held_out_share_is_kept_and_stable():
  names = [f'scene {i}' for i in range(20000)]
  for share in (0.0, 0.02, 0.3):
    assert np.mean([curate.held_out(name, share) for name in names]) == pytest.approx(share, abs=0.004)
  held = {name for name in names if curate.held_out(name, 0.02)}
  assert held <= {name for name in names if curate.held_out(name, 0.05)}
  assert sorted(held)[:3] == ['scene 10017', 'scene 10276', 'scene 1028']  # forever: splits must not mix


def test_configuration():
  Curation().check()
  read = presets.read('', ['limits.consistency=0.6', 'sizes=[[64, 96]]', 'frames=17', 'shortest=9'], Curation)
  assert read.limits.consistency == 0.6 and read.sizes == ((64, 96),)
  read.check()
  for wrong in (
    {'frames': 80}, {'shortest': 85}, {'fps': 0.0}, {'sizes': ((100, 96),)}, {'sizes': ()}, {'held_out': 1.0},
    {'quality': 0}, {'quality': 96},
  ):  # fmt: skip
    with pytest.raises(ConfigError, match=f'^{next(iter(wrong))}='):
      dataclasses.replace(Curation(), **wrong).check()


def test_no_array_library_is_loaded():
  code = "import sys, one4d_jax.data.curate; sys.exit(bool({'jax', 'torch', 'tensorflow'} & set(sys.modules)))"
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
