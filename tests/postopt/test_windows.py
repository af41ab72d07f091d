"""Windows of a long clip become one scene: exact where they are, close under noise, finite where nothing fits."""

import dataclasses
import json

import numpy as np
import pytest

from one4d_jax.data import render, scenes
from one4d_jax.errors import DataError, ShapeError
from one4d_jax.geometry.align import Similarity
from one4d_jax.model import pointmap
from one4d_jax.model.windows import spans
from one4d_jax.postopt.decode import decode
from one4d_jax.postopt.options import FitOptions
from one4d_jax.postopt.windows import blend, decode_windows, similarity

WINDOW, OVERLAP, HEIGHT, WIDTH = 17, 4, 24, 32
FRAMES = 33


def clip(frames=FRAMES, seed=2, motion=None):
  scene = scenes.sample(seed, level='hard', split='test')
  if motion:
    scene = dataclasses.replace(scene, camera=dataclasses.replace(scene.camera, motion=motion))
  return render.render(scene, frames=frames, height=HEIGHT, width=WIDTH, supersample=1)


def windows(clip, *, spoil=lambda points, i: points, zoom=(), size=WINDOW, overlap=OVERLAP):
  """(codes, spans, S of each window): what a perfect model would make of each window on its own, or a spoilt one."""
  made, units, cut = [], [], spans(clip.frames, size, overlap)
  for i, span in enumerate(cut):
    at = slice(span.start, span.stop)
    K = clip.K[at].copy()
    K[:, [0, 1], [0, 1]] *= zoom[i] if len(zoom) else 1
    points = spoil(pointmap.from_depth(clip.depth[at], K, clip.world_from_cam[at]), i)
    normalised, unit = pointmap.normalise(points.astype(np.float32), clip.valid[at])
    made.append(pointmap.encode_input(normalised, clip.valid[at]))
    units.append(unit)
  return made, cut, units


def errors(found, clip, unit):
  """Worst (focal, relative; rotation, degrees; position over the median depth) of all frames, nothing aligned."""
  truth = np.linalg.inv(clip.world_from_cam[0].astype(np.float64)) @ clip.world_from_cam
  pose = found.cameras.world_from_cam.astype(np.float64)
  turn = np.einsum('fji,fjk->fik', pose[:, :3, :3], truth[:, :3, :3]) - np.eye(3)
  moved = np.linalg.norm(pose[:, :3, 3] * unit / 2 - truth[:, :3, 3], axis=1)
  result = (
    np.abs(found.cameras.K[:, 0, 0] / clip.K[:, 0, 0] - 1).max(),
    np.degrees(np.linalg.norm(turn, axis=(1, 2)).max() / 2**0.5),
    moved.max() / np.median(clip.depth[clip.valid]),
  )
  print('focal {:.1e}, rotation {:.1e} degrees, position {:.1e}'.format(*result))
  return result


def noise(clip, level, seed=0):
  sigma = level * np.median(clip.depth[clip.valid])
  return lambda points, i: points + sigma * np.random.default_rng([seed, i]).normal(size=points.shape)


@pytest.mark.parametrize('frames', [1, 2, 3, 4, 5, 17])
def test_one_window_is_decode(frames):
  codes, cut, _ = windows(clip(frames))
  found, seams = decode_windows(codes, cut)
  alone = decode(codes[0])
  assert len(cut) == 1 and seams.seams == () and seams.drift_rotation == seams.drift_translation == 0
  for name in ('points', 'valid', 'z'):
    np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
  np.testing.assert_array_equal(found.cameras.world_from_cam, alone.cameras.world_from_cam)
  assert found.valid.shape == (frames, HEIGHT, WIDTH)


@pytest.mark.parametrize('frames', [18, 20, 33, 40])
def test_exact_windows_give_the_exact_clip(frames):
  truth = clip(frames)
  codes, cut, units = windows(truth)
  found, seams = decode_windows(codes, cut)
  focal, rotation, position = errors(found, truth, units[0])
  assert focal < 1e-4 and rotation < 1e-3 and position < 1e-4
  assert found.points.shape == (frames, HEIGHT, WIDTH, 3) and found.z.shape == (frames, HEIGHT, WIDTH)
  assert len(seams.seams) == len(cut) - 1
  for seam, scale in zip(seams.seams, np.divide(units[1:], units[:-1]), strict=True):
    assert seam.method == 'points' and abs(seam.scale / scale - 1) < 1e-5
    assert seam.point_p90 < 1e-5 and seam.rotation < 1e-3 and seam.translation < 1e-4 and seam.residual_after < 1e-5
  seen = truth.valid & (np.abs(found.points) < 2).all(axis=-1)  # beyond, the code bends points
  points = pointmap.from_depth(truth.depth, truth.K, truth.world_from_cam) * 2 / units[0]
  assert np.quantile(np.linalg.norm(found.points - points, axis=-1)[seen], 0.95) < 1e-4
  assert (found.valid == truth.valid).mean() > 0.98


@pytest.mark.parametrize('motion', ['stays still', 'pans left'])
def test_a_camera_that_does_not_move(motion):
  truth = clip(motion=motion)
  codes, cut, units = windows(truth)
  found, _ = decode_windows(codes, cut)
  focal, rotation, position = errors(found, truth, units[0])
  assert focal < 1e-4 and rotation < 1e-3 and position < 1e-4


def test_the_scale_does_not_leak_away_with_noise():
  truth = clip(57)
  codes, cut, units = windows(truth, spoil=noise(truth, 0.05))
  _, seams = decode_windows(codes, cut)
  assert len(cut) == 5
  leak = np.prod([seam.scale for seam in seams.seams]) / (units[-1] / units[0])
  assert abs(leak - 1) < 0.01


@pytest.mark.parametrize(('level', 'limits'), [(0.01, (2e-3, 0.2, 0.005)), (0.05, (1e-2, 1.0, 0.03))])
def test_noise(level, limits):
  truth = clip()
  codes, cut, units = windows(truth, spoil=noise(truth, level))
  found, seams = decode_windows(codes, cut)
  assert all(error < limit for error, limit in zip(errors(found, truth, units[0]), limits, strict=True))
  assert np.ptp(found.cameras.K[:, 0, 0]) == 0, 'one focal length'
  (seam, _) = seams.seams
  # each point is off by sqrt(3) sigma in each window, and the fit's miss lacks one of three directions
  assert 0.5 * level < seam.point_median / 6**0.5 < 2 * level
  assert seam.residual_after < seam.residual_before < 3 * level


def test_outliers_are_ignored():
  truth = clip()
  rng = np.random.default_rng(0)

  def spoil(points, i):
    wild = rng.random(points.shape[:3]) < 0.15
    return np.where(wild[..., None] & (i == 1), points + rng.normal([2, 0, 0], 0.5, points.shape), points)

  codes, cut, units = windows(truth, spoil=spoil)
  focal, rotation, position = errors(decode_windows(codes, cut)[0], truth, units[0])
  assert focal < 1e-3 and rotation < 0.05 and position < 1e-3


def test_windows_of_different_focal_length_get_the_common_one():
  truth = clip(43)
  codes, cut, units = windows(truth, zoom=(1, 1.04, 1))
  shared, _ = decode_windows(codes, cut)
  focal, rotation, position = errors(shared, truth, units[0])
  assert len(cut) == 3 and focal < 1e-3 and rotation < 0.02 and position < 1e-3
  assert errors(decode_windows(codes, cut, options=FitOptions(focal='per_frame'))[0], truth, units[0])[0] > 0.03


def test_a_dynamic_scene_and_wide_overlap():
  truth = clip(20, seed=6)
  assert truth.dynamic.mean() > 0.02
  codes, cut, units = windows(truth, size=9, overlap=7)  # three windows share a frame
  focal, rotation, position = errors(decode_windows(codes, cut)[0], truth, units[0])
  assert len(cut) > 3 and focal < 1e-4 and rotation < 1e-3 and position < 1e-4


def hide(codes, cut, frames, which):
  """The codes with some of the clip's frames invalid in some windows."""
  codes = [code.copy() for code in codes]
  for i in which:
    for frame in frames:
      if frame in cut[i]:
        codes[i][frame - cut[i].start] = pointmap.FILL
  return codes


def test_a_seam_that_shares_no_points_uses_its_cameras():
  truth = clip(30)
  codes, cut, units = windows(truth)
  left, right = (code.copy() for code in codes)
  left[cut[1].start :, HEIGHT // 2 :] = pointmap.FILL
  right[: cut[0].stop - cut[1].start, : HEIGHT // 2] = pointmap.FILL
  found, seams = decode_windows([left, right], cut)
  (seam,) = seams.seams
  assert seam.method == 'cameras' and seam.pixels == 0 and np.isnan(seam.point_median)
  assert abs(seam.scale / (units[1] / units[0]) - 1) < 1e-4, 'by the path, not the depths'
  focal, rotation, position = errors(found, truth, units[0])
  assert focal < 1e-3 and rotation < 0.1 and position < 0.01
  halves = found.valid[:, : HEIGHT // 2].any(axis=(1, 2)), found.valid[:, HEIGHT // 2 :].any(axis=(1, 2))
  assert [part[cut[1].start : cut[0].stop].tolist() for part in halves] == [
    [True] * 2 + [False] * 2,
    [False] * 2 + [True] * 2,
  ]
  assert any('too few points' in text for text in found.cameras.warnings)


def test_such_a_seam_of_a_still_camera_takes_the_scale_of_depths():
  truth = clip(30, motion='stays still')
  codes, cut, units = windows(truth)
  codes = hide(codes, cut, range(cut[1].start, cut[0].stop), [1])
  found, seams = decode_windows(codes, cut)
  (seam,) = seams.seams
  assert seam.method == 'cameras' and abs(seam.scale / (units[1] / units[0]) - 1) < 0.1
  assert errors(found, truth, units[0])[1] < 0.1


@pytest.mark.parametrize('blank', [0, 1, 2])
def test_a_window_that_shows_nothing(blank):
  truth = clip(43)
  codes, cut, _ = windows(truth)
  codes[blank] = np.full_like(codes[blank], np.nan if blank == 1 else -1)
  found, seams = decode_windows(codes, cut)
  for array in (found.points, found.z, found.cameras.K, found.cameras.world_from_cam, found.cameras.depth):
    assert np.isfinite(array).all()
  assert [seam.method for seam in seams.seams] == [['points'], ['held'], ['points']][blank]
  only = [f for f in cut[blank] if not any(f in other for i, other in enumerate(cut) if i != blank)]
  assert not found.valid[only].any() and found.valid[[f for f in range(43) if f not in only]].any(axis=(1, 2)).all()
  assert np.isnan(found.cameras.residual[only]).all()
  json.dumps(seams.record(), allow_nan=False)
  said = ' '.join(found.cameras.warnings)
  assert 'too few valid pixels' in said and ('stand still' in said) == (blank == 1)


def test_pixels_that_are_not_finite_show_nothing():
  codes, cut, _ = windows(clip())
  made = []
  for value in (-1, np.nan, np.inf):
    for code in codes:
      code[:, 5:9, 3:20] = value
    made.append(decode_windows(codes, cut)[0])
  assert not made[0].valid[:, 5:9, 3:20].any() and made[0].valid.any()
  for other in made[1:]:
    for name in ('points', 'valid', 'z'):
      np.testing.assert_array_equal(getattr(made[0], name), getattr(other, name))


def test_nothing_at_all_is_refused():
  codes, cut, _ = windows(clip())
  with pytest.raises(DataError, match='no frame of any window'):
    decode_windows([np.full_like(code, np.nan) for code in codes], cut)


def test_codes_that_do_not_belong_to_their_windows_are_refused():
  codes, cut, _ = windows(clip())
  for wrong in (codes[:-1], [codes[0][:-1], *codes[1:]], [codes[0][:, :-1], *codes[1:]], []):
    with pytest.raises(ShapeError, match='windows of'):
      decode_windows(wrong, cut)
  for bad in ([], [range(17), range(17, 34)], [range(17), range(4, 17)], [range(1, 18), range(14, 31)]):
    with pytest.raises(ShapeError, match='do not cover'):
      decode_windows(codes, bad)


def test_blend_fades_from_one_window_to_the_next():
  cut = [range(0, 9), range(5, 14)]
  made = blend([np.zeros((9, 1, 1, 3)), np.ones((9, 1, 1, 3))], cut)
  np.testing.assert_allclose(made[:, 0, 0, 0], [0] * 5 + [0.2, 0.4, 0.6, 0.8] + [1] * 5, atol=1e-6)
  for cut in ([range(7)], [range(0, 9), range(2, 11), range(4, 13)], spans(200, 81, 20)):
    flat = blend([np.ones((len(span), 2, 2, 3)) for span in cut], cut)
    assert flat.shape == (cut[-1].stop, 2, 2, 3)
    np.testing.assert_allclose(flat, 1, atol=1e-6)


def test_similarity_of_noisy_points_is_the_true_one():
  rng = np.random.default_rng(0)
  points = rng.normal(size=(4000, 3))
  axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
  truth = Similarity(1.7, axes * np.sign(np.linalg.det(axes)), np.array([1.0, -2, 3]))
  found = similarity(points, truth(points))
  np.testing.assert_allclose(found(points), truth(points), atol=1e-9)
  shaky = [x + size * rng.normal(size=x.shape) for x, size in ((points, 0.2), (truth(points), 0.34))]
  shaky[1][:600] += [8, 0, 0]
  found = similarity(*shaky)
  assert abs(found.scale / 1.7 - 1) < 0.01 and np.abs(found.rotation - truth.rotation).max() < 0.02
  still = similarity(np.ones((40, 3)), np.zeros((40, 3)))
  assert still.scale == 1 and np.allclose(still(np.ones(3)), 0)
