"""Predictions of other methods through the command, on Sintel's format: known errors come out, bad files are named."""

import json
import pathlib
import re
import shutil
import types

import numpy as np
import pytest

from one4d_jax import cli, evaluate
from one4d_jax.errors import DataError
from one4d_jax.evaluation import methods, predictions, resize
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.evaluation.depth import depth_metrics
from one4d_jax.evaluation.sequence import Truth
from one4d_jax.evaluation.trajectory import trajectory_metrics
from one4d_jax.model.bundle import WAN
from one4d_jax.model.generate import Generated
from one4d_jax.viewer.scene import Scene
from tests.evaluation import downloads

CLIPS = {'ambush_6': downloads.clip(0, frames=20), 'ambush_2': downloads.clip(1, frames=21)}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sintel')
  for name, clip in CLIPS.items():
    downloads.sintel(folder, name, clip)
  return folder


def scored(clip):
  """Where Sintel's protocol looks: the clip is nearer than 70."""
  assert clip.depth[clip.valid].max() < 70
  return clip.valid


def run(root, made, out, *options):
  folders = ['--root', str(root), '--predictions', str(made), '--out', str(out)]
  choice = ['--config.sequences=[ambush_6,ambush_2]', '--config.align=[none,scale_shift]', *options]
  return cli.run(evaluate.main, evaluate.parser(), ['--config', 'configs/eval.py:sintel', *folders, *choice])


def rows(out, made):
  report = json.loads((out / 'report.json').read_text())
  return {row['name']: row for row in report['rows'][made.name]}, report['pooled'][made.name]['all']


def write(made: pathlib.Path, name: str, *, depth=None, noise=0.0, K=None):
  clip = CLIPS[name]
  depth = np.where(clip.valid, clip.depth, 3e5) if depth is None else depth
  poses = downloads.similar(clip.world_from_cam, noise=noise)
  downloads.monst3r(made / name, depth=depth, poses=poses, K=clip.K if K is None else K)


def test_known_errors_come_out_and_sequences_weigh_by_their_pixels(root, tmp_path, capsys):
  made, factors = tmp_path / 'method', {'ambush_6': 1.1, 'ambush_2': 1.3}
  for name, factor in factors.items():
    write(made, name, depth=np.where(CLIPS[name].valid, factor * CLIPS[name].depth, 3e5))
  assert run(root, made, tmp_path / 'out') == 0
  found, pooled = rows(tmp_path / 'out', made)
  counts = {name: int(scored(CLIPS[name]).sum()) for name in factors}
  for name, factor in factors.items():
    depth, true = found[name]['depth'], CLIPS[name].depth[CLIPS[name].valid].astype(float)
    np.testing.assert_allclose(depth['none']['abs_rel'], factor - 1, rtol=1e-5)
    np.testing.assert_allclose(depth['none']['rmse'], (factor - 1) * np.sqrt(np.mean(true**2)), rtol=1e-5)
    np.testing.assert_allclose(depth['none']['log_rmse'], np.log(factor), rtol=1e-5)
    assert [depth['none'][f'delta{n}'] for n in (1, 2, 3)] == [float(factor < 1.25), 1, 1]
    assert depth['scale_shift']['abs_rel'] < 1e-6 and depth['none']['pixels'] == counts[name]
    np.testing.assert_allclose(found[name]['frames']['abs_rel'], factor - 1, rtol=1e-5)
  want = np.average([f - 1 for f in factors.values()], weights=list(counts.values()))
  np.testing.assert_allclose(pooled['depth']['none']['abs_rel'], want, rtol=1e-5)
  assert found['ambush_6']['trajectory']['ate'] < 1e-5 and 'trajectory' not in found['ambush_2'], 'not one of the 14'
  assert found['ambush_6']['geometry']['focal_error'] < 1e-6
  shown = capsys.readouterr().out
  assert '| method | ambush_2 | 21 ' in shown and 'quaternions with w first (2 of 2 sequences)' in shown
  assert '23 training' not in shown and 'whole;' not in shown and 'depth under 70' in shown and 'cut at 70' in shown


def test_the_cut_the_mask_and_the_resize_are_those_of_the_protocol(root, tmp_path):
  """Depth of 60 said to be 90 counts as 70; what is 70 or beyond does not count; half the size is interpolated."""
  made, clip = tmp_path / 'method', CLIPS['ambush_6']
  far = tmp_path / 'sintel'
  shutil.copytree(root, far)
  depth = np.where(clip.valid, clip.depth, 1e10)
  depth[:, :, :4], depth[:, :, 4:8] = 60, 70
  for i in range(clip.frames):
    head = (far / f'training/depth/ambush_6/frame_{i + 1:04d}.dpt').read_bytes()[:12]
    content = head + depth[i].astype('<f4').tobytes()
    (far / f'training/depth/ambush_6/frame_{i + 1:04d}.dpt').write_bytes(content)
  said = np.where(depth < 1e9, depth, 1.0)
  said[:, :, :4], said[:, :, 4:8] = 90, 1
  write(made, 'ambush_6', depth=said)
  half = resize.bicubic(np.where(CLIPS['ambush_2'].valid, CLIPS['ambush_2'].depth, 30).astype(np.float32), 8, 16)
  write(made, 'ambush_2', depth=half)
  assert run(far, made, tmp_path / 'out') == 0
  found, _ = rows(tmp_path / 'out', made)
  valid = depth < 70
  assert found['ambush_6']['depth']['none']['pixels'] == valid.sum()
  np.testing.assert_allclose(
    found['ambush_6']['depth']['none']['abs_rel'], valid[:, :, :4].sum() / 6 / valid.sum(), rtol=1e-5
  )
  clip = CLIPS['ambush_2']
  want = depth_metrics(resize.bicubic(half, 16, 32), clip.depth, scored(clip), align='scale_shift', max_depth=70)
  np.testing.assert_allclose(found['ambush_2']['depth']['scale_shift']['abs_rel'], want.abs_rel, rtol=1e-9)


def test_a_noisy_path_scores_as_in_evo(root, tmp_path):
  evo = pytest.importorskip('evo.core.trajectory')
  from evo.core import metrics

  made, clip = tmp_path / 'method', CLIPS['ambush_6']
  write(made, 'ambush_6', noise=0.05)
  run(root, made, tmp_path / 'out')
  found, pooled = rows(tmp_path / 'out', made)
  pred = predictions.poses(made / 'ambush_6/pred_traj.txt')
  gt, estimate = (evo.PosePath3D(poses_se3=list(p.astype(float))) for p in (clip.world_from_cam, pred.copy()))
  estimate.align(gt, correct_scale=True)
  ape = metrics.APE(metrics.PoseRelation.translation_part)
  ape.process_data((gt, estimate))
  ate = ape.get_statistic(metrics.StatisticsType.rmse)
  np.testing.assert_allclose(found['ambush_6']['trajectory']['ate'], ate, rtol=1e-5)
  assert 0.01 < ate < 0.1 and pooled['trajectory']['ate'] == found['ambush_6']['trajectory']['ate']
  np.testing.assert_allclose(np.sqrt(np.mean(np.square(found['ambush_6']['frames']['ate']))), ate, rtol=1e-5)
  assert pooled['skipped']['depth'] == {'ambush_2': f'{made} has no prediction of it: no folder ambush_2'}


def test_w_stands_first_in_their_file_and_last_in_tums_own(tmp_path):
  poses = downloads.similar(CLIPS['ambush_6'].world_from_cam)
  rows = lambda w_first: ''.join(f'{i} {downloads.tum(p, w_first=w_first)}\n' for i, p in enumerate(poses))
  (tmp_path / 'pred_traj.txt').write_text(rows(True))
  (tmp_path / 'trajectory.tum').write_text('# t tx ty tz qx qy qz qw\n' + rows(False))
  for name in ('pred_traj.txt', 'trajectory.tum'):
    np.testing.assert_allclose(predictions.poses(tmp_path / name), poses, atol=1e-6)
  (tmp_path / 'pred_traj.txt').write_text(rows(False))
  assert trajectory_metrics(predictions.poses(tmp_path / 'pred_traj.txt'), poses).rpe_r > 1, 'the order matters'


def test_a_scene_of_this_program_scores_as_the_same_depth_and_path(root, tmp_path):
  clip = CLIPS['ambush_6']
  poses = np.linalg.inv(clip.world_from_cam[0]) @ clip.world_from_cam
  scene = Scene(
    rgb=clip.rgb,
    pointmap=methods.pointmap.from_depth(clip.depth, clip.K, poses),
    depth=clip.depth / 4,
    valid=clip.valid,
    K=clip.K,
    world_from_cam=poses,
    observed=np.ones(clip.frames, bool),
    residual=np.zeros(clip.frames),
  )
  (tmp_path / 'method/ambush_6').mkdir(parents=True)
  scene.save(tmp_path / 'method/ambush_6')
  run(root, tmp_path / 'method', tmp_path / 'out')
  row = rows(tmp_path / 'out', tmp_path / 'method')[0]['ambush_6']
  np.testing.assert_allclose(row['depth']['none']['abs_rel'], 0.75, rtol=1e-5)
  assert row['depth']['scale_shift']['abs_rel'] < 1e-6 and row['trajectory']['ate'] < 1e-5
  assert row['geometry']['point_rel'] < 1e-5 and row['video']['psnr'] is None, 'equal images: infinite'


def damage_nan(folder):
  depth = np.load(folder / 'frame_0003.npy')
  depth[CLIPS['ambush_6'].valid[3]] = np.nan
  np.save(folder / 'frame_0003.npy', depth)


def damage_size(folder):
  np.save(folder / 'frame_0007.npy', np.ones((8, 8), np.float32))


def damage_crop(folder):
  for i in range(20):
    np.save(folder / f'frame_{i:04d}.npy', np.load(folder / f'frame_{i:04d}.npy')[:, :16])


def damage_shorter(folder):
  (folder / 'frame_0019.npy').unlink()


def damage_gap(folder):
  for i in (4, 5):
    (folder / f'frame_{i:04d}.npy').unlink()


def damage_path(folder):
  lines = (folder / 'pred_traj.txt').read_text().splitlines(keepends=True)
  (folder / 'pred_traj.txt').write_text(''.join(lines[:-2]))


def damage_rows(folder):
  (folder / 'pred_traj.txt').write_text('0 1 2 3\n')


def damage_lens(folder):
  np.savetxt(folder / 'pred_intrinsics.txt', np.zeros((20, 9)))


def damage_poses(folder):
  text = (folder / 'pred_traj.txt').read_text().splitlines(keepends=True)
  (folder / 'pred_traj.txt').write_text(''.join([*text[:-1], '19 nan nan nan 1 0 0 0\n']))


@pytest.mark.parametrize(
  ('damage', 'part', 'reason'),
  [
    (damage_nan, 'depth', 'depth is not finite at '),
    (damage_size, 'depth', 'frame 7 is 8x8 (height x width), the first 16x32; 1 differ'),
    (damage_crop, 'depth', 'the prediction is 16x16 (height x width), the sequence 16x32: it is turned or cropped'),
    (damage_shorter, 'depth', 'the prediction has 19 depth maps, the sequence 20 frames'),
    (damage_gap, 'depth', 'lacks 2 of 20 frames: frame_0004.npy, frame_0005.npy'),
    (damage_path, 'trajectory', 'the prediction has 18 poses, the sequence 20 frames'),
    (damage_rows, 'trajectory', 'expected 7 numbers behind a stamp'),
    (damage_poses, 'trajectory', 'a pose is not finite'),
    (damage_lens, 'geometry', 'row 1 is no K with positive focal lengths (20 such rows)'),
  ],
)
def test_what_is_wrong_is_named_and_counted_and_the_rest_scored(root, tmp_path, damage, part, reason, capsys):
  made = tmp_path / 'method'
  for name in CLIPS:
    write(made, name)
  damage(made / 'ambush_6')
  assert run(root, made, tmp_path / 'out', '--config.align=[none]') == 0
  found, pooled = rows(tmp_path / 'out', made)
  assert reason in found['ambush_6']['skipped'][part] and part not in found['ambush_6']
  other = 'trajectory' if part == 'depth' else 'depth'
  assert other in found['ambush_6'] and pooled['skipped'][part].keys() == {'ambush_6'}
  if part == 'depth':
    assert pooled['evaluated']['depth'] == 1 and pooled['depth']['none'] == pytest.approx(
      {name: found['ambush_2']['depth']['none'][name] for name in pooled['depth']['none']}
    ), 'the mean is that of the other sequence'
  shown = capsys.readouterr().out
  assert (
    re.search(f'ambush_6: [a-z, ]*{part}[a-z, ]* skipped: ', shown)
    and reason in shown
    and ('1 of 2 ' in shown or part == 'trajectory')
  )
  if damage is damage_nan:
    count = CLIPS['ambush_6'].valid[3].sum()
    assert f'not finite at {count} of {CLIPS["ambush_6"].valid.sum()} valid pixels, in 1 frames from 3 on' in shown


def test_a_benchmark_with_missing_files_is_scored_as_far_as_it_goes_and_again_once_they_are_there(root, tmp_path):
  broken, made, out = tmp_path / 'sintel', tmp_path / 'method', tmp_path / 'out'
  for name in CLIPS:
    write(made, name)
  shutil.copytree(root, broken)
  shutil.rmtree(broken / 'training/depth/ambush_6')
  (broken / 'training/final/ambush_2/frame_0005.png').unlink()
  assert run(broken, made, out) == 0
  found, pooled = rows(out, made)
  assert 'depth/ambush_6 does not exist' in found['ambush_6']['skipped']['depth'] and found['ambush_6']['trajectory']
  assert 'lacks 1 of 21 frames: frame_0005.png' in found['ambush_2']['skipped']['depth']
  assert pooled['evaluated'] == {'depth': 0, 'trajectory': 1, 'video': 0, 'geometry': 1} and pooled['depth'] == {}
  assert run(root, made, out) == 0
  found, pooled = rows(out, made)
  assert pooled['evaluated']['depth'] == 2 and found['ambush_6']['skipped'] == {}
  kept = (out / 'rows/method/ambush_6.json').stat().st_mtime_ns
  assert run(root, made, out) == 0 and (out / 'rows/method/ambush_6.json').stat().st_mtime_ns == kept
  shutil.copytree(made / 'ambush_6', made / 'ambush_4')
  assert run(root, made, out) == 2, 'other predictions are not mixed in'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--config', 'configs/eval.py:sintel'], 'the benchmark sintel is read from where it was unpacked: add --root DIR'),
    (['--config', 'configs/eval.py:bonn', '--root', '{tmp}'], 'holds no sequence of bonn; expected folders such as'),
    (['--config', 'configs/eval.py:sintel', '--predictions', '{tmp}/no'], 'does not exist; --predictions takes'),
    (['--config', 'configs/eval.py:sintel', '--predictions', 'a', '--weights', 'b'], 'not allowed with'),
    (['--config', 'configs/eval.py:sintel', '--config.methods=[mean]'], 'needs the exact pointmaps'),
    (['--config', 'configs/eval.py:smoke', '--config.sequences=[alley_1]'], 'are for other benchmarks'),
    (['--config', 'configs/eval.py:bonn', '--config.height=352'], 'must be multiples of 16, or both 0'),
    (['--config', 'configs/eval.py:smoke', '--config.lpips=True', '--predictions', '{tmp}'], 'pip install lpips'),
  ],
)
def test_mistakes_are_one_line(options, message, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'lpips', None)
  options = [option.format(tmp=tmp_path) for option in [*options, '--out', '{tmp}/out']]
  assert cli.run(evaluate.main, evaluate.parser(), options) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


def test_a_folder_without_any_prediction_is_said_so(tmp_path):
  (tmp_path / 'a').mkdir()
  with pytest.raises(DataError, match=r'holds no prediction: expected scene.npz, or pred_traj.txt and frame_0000.npy'):
    predictions.read(tmp_path / 'a')
  with pytest.raises(DataError, match='no folder crowd2 or rgbd_bonn_crowd2'):
    predictions.find(tmp_path, 'crowd2', 'rgbd_bonn_crowd2')


def test_the_model_sees_whole_frames_in_windows_whose_padding_is_discarded(monkeypatch):
  seen, decoded = [], []

  def generate(bundle, video, observed, prompt, **settings):
    seen.append((video.shape, observed.sum(), prompt, settings['seed']))
    return Generated(rgb=video, xyz=video)

  monkeypatch.setattr('one4d_jax.model.generate.generate', generate)

  def decode(codes, cut, *, options):
    decoded.extend((code.shape[0], span) for code, span in zip(codes, cut, strict=True))
    raise DataError('nothing to fit')

  monkeypatch.setattr(methods, 'decode_windows', decode)
  sizes = types.SimpleNamespace(frames=9, height=32, width=32, steps=1)
  predict = methods.model(types.SimpleNamespace(config=sizes), EvalConfig(task='image'))
  clip = CLIPS['ambush_6']
  found = predict(Truth(name='a', rgb=clip.rgb, caption='a room'))
  assert [shape for shape, *_ in seen] == [(9, 16, 48, 3)] * 3, '32x32 pixels in the aspect 1:2, sides multiples of 16'
  assert decoded == [(9, range(0, 9)), (9, range(5, 14)), (9, range(11, 20))]
  assert found.notes[0] == 'whole frames, 16x48 of 16x32, resized by Lanczos'
  assert found.notes[1:] == ('1 of 20 frames observed', 'windows 0-8, 5-13, 11-19')
  assert found.lacks == {'depth': 'nothing to fit', 'trajectory': 'nothing to fit'} and found.rgb.shape[0] == 20
  seen.clear(), decoded.clear()
  notes = predict(Truth(name='a', rgb=clip.rgb[:7])).notes
  assert seen[0][0][0] == 9 and seen[0][2] == '' and decoded == [(7, range(0, 7))]
  assert notes[2] == 'windows 0-6, each padded by 2 frames that are discarded'


def test_the_size_that_the_model_sees_keeps_pixels_and_aspect():
  assert methods.grid((436, 1024), EvalConfig(), WAN) == (304, 720)
  assert methods.grid((480, 640), EvalConfig(), WAN) == (400, 544)
  assert methods.grid((436, 1024), EvalConfig(height=352, width=624), WAN) == (352, 624)
