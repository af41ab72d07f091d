"""Every detail of a protocol, and the readers against files in each benchmark's format."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from one4d_jax.errors import ConfigError, DataError
from one4d_jax.evaluation import protocol as protocols
from one4d_jax.evaluation import recorded, scannet, sintel
from one4d_jax.evaluation.benchmarks import EvalConfig
from tests.evaluation import downloads

POSES = (
  'alley_2 ambush_4 ambush_5 ambush_6 cave_2 cave_4 market_2 market_5 market_6 shaman_3 sleeping_1 sleeping_2 temple_2 '
  'temple_3'
)
MORE = 'alley_1 ambush_2 ambush_7 bamboo_1 bamboo_2 bandage_1 bandage_2 mountain_1 shaman_2'
DYNAMIC = [f'{what}_{how}' for what in ('sitting', 'walking') for how in ('static', 'xyz', 'halfsphere', 'rpy')]
PUBLISHED = ('scale_shift', 'adam_1e-4_1000', 'adam_1e-2_5000', 'median')


def test_sintel():
  p = protocols.load('sintel')
  assert sorted(p.depth) == sorted(p.lengths) == sorted(f'{POSES} {MORE}'.split())
  assert list(p.trajectory) == POSES.split() and (len(p.depth), len(p.trajectory)) == (23, 14)
  assert sum(p.lengths[name] for name in p.trajectory) == 643 and sum(p.lengths.values()) == 1064
  short = {'ambush_2': 21, 'ambush_4': 33, 'ambush_6': 20, 'market_6': 40}
  assert p.lengths == dict.fromkeys(p.lengths, 50) | short and p.chosen(33) == list(range(33))
  assert (p.far, p.cut, p.align, p.depth_weight, p.trajectory_align) == (70, 70, PUBLISHED, 'pixels', 'sim3')


def test_bonn():
  by_place, by_time = protocols.load('bonn'), protocols.load('bonn_time')
  assert list(by_place.depth) == ['balloon2', 'crowd2', 'crowd3', 'person_tracking2', 'synchronous']
  for p in (by_place, by_time):
    assert p.chosen(400) == list(range(30, 140)) and set(p.lengths.values()) == {110} and p.trajectory == ()
    assert (p.far, p.cut, p.align, p.depth_weight, p.folder) == (70, 70, PUBLISHED, 'pixels', 'rgbd_bonn_{}')
    assert p.focal == (542.822841, 542.57687, 315.59352, 237.756098)
  assert (by_place.pairing, by_time.pairing, by_time.within) == ('index', 'depth_time', 0.02)


def test_tum():
  for name, frames in (('tum', list(range(0, 270, 3))), ('tum_30', list(range(0, 90, 3)))):
    p = protocols.load(name)
    assert list(p.trajectory) == list(p.lengths) == DYNAMIC and p.depth == ()
    assert p.chosen(900) == frames and set(p.lengths.values()) == {len(frames)}
    assert (p.pairing, p.within, p.folder) == ('pose_time', 0.02, 'rgbd_dataset_freiburg3_{}')
    assert (p.focal, p.trajectory_align) == ((535.4, 539.2, 320.1, 247.6), 'sim3')


def test_scannet():
  p = protocols.load('scannet')
  assert len(p.lengths) == 100 and p.trajectory[0] == 'scene0707_00' and p.trajectory[-1] == 'scene0806_00'
  assert p.chosen(5000) == list(range(0, 270, 3)) and set(p.lengths.values()) == {90} and p.depth == ()


def test_the_procedural_world_scores_everything_it_knows():
  p = protocols.load('procedural')
  assert p.scores('depth', 'easy-0000') and p.scores('trajectory', 'hard-0003')
  assert (p.far, p.cut, p.align, p.depth_weight) == (0, 0, ('scale_shift',), 'pixels')


def test_a_run_takes_some_of_the_sequences_and_other_alignments():
  p = EvalConfig(benchmark='sintel', sequences=('cave_2', 'alley_1'), align=('none',)).protocol()
  assert list(p.lengths) == ['cave_2', 'alley_1'] and p.align == ('none',)
  assert p.scores('depth', 'alley_1') and not p.scores('trajectory', 'alley_1') and p.scores('trajectory', 'cave_2')
  with pytest.raises(ConfigError, match=r"sequences names 'cave_3'; choose from alley_1, "):
    EvalConfig(benchmark='sintel', sequences=('cave_3',)).protocol()
  with pytest.raises(ConfigError, match=r"benchmark='kitti' must be one of bonn, bonn_time, procedural, scannet"):
    protocols.load('kitti')
  with pytest.raises(ConfigError, match="method 'mean' needs the exact pointmaps"):
    EvalConfig(benchmark='bonn').check()


def test_sintel_is_read_as_it_was_written(tmp_path):
  clip = downloads.clip(frames=20)
  downloads.sintel(tmp_path, 'ambush_6', clip)
  for root in (tmp_path, tmp_path / 'training'):
    truth = sintel.read(root, 'ambush_6', protocols.load('sintel'))
    np.testing.assert_array_equal(truth.rgb, clip.rgb)
    np.testing.assert_array_equal(truth.depth, np.where(clip.valid, clip.depth, np.float32(1e10)))
    np.testing.assert_allclose(truth.world_from_cam, clip.world_from_cam, atol=1e-6)
    np.testing.assert_array_equal(truth.K, clip.K)
    assert truth.lacks == {}


def test_sintel_with_files_missing_damaged_or_of_other_sizes(tmp_path):
  protocol, clip = protocols.load('sintel'), downloads.clip(frames=21)
  downloads.sintel(tmp_path, 'ambush_2', clip)
  read = lambda: sintel.read(tmp_path, 'ambush_2', protocol)
  assert read().world_from_cam is None, 'not one of the 14'
  depth, final = (tmp_path / 'training' / part / 'ambush_2' for part in ('depth', 'final'))
  whole = (depth / 'frame_0003.dpt').read_bytes()
  (depth / 'frame_0003.dpt').write_bytes(whole[:-4])
  assert 'frame_0003.dpt is damaged' in read().lacks['depth'] and read().depth is None
  (depth / 'frame_0003.dpt').write_bytes(b'\0' * len(whole))
  assert 'tag of a Sintel file' in read().lacks['depth']
  (depth / 'frame_0003.dpt').write_bytes(whole[:4] + np.array([16, 32], '<i4').tobytes() + whole[12:])
  assert 'frame 2 is 32x16 (height x width), the first 16x32; 1 differ' in read().lacks['depth']
  for i in (3, 9):
    (depth / f'frame_{i:04d}.dpt').unlink()
  assert 'depth/ambush_2 lacks 2 of 21 frames: frame_0003.dpt, frame_0009.dpt' in read().lacks['depth']
  (final / 'frame_0021.png').unlink()
  with pytest.raises(DataError, match=r'final/ambush_2 lacks 1 of 21 frames: frame_0021\.png'):
    read()
  with pytest.raises(DataError, match='final/ambush_4 does not exist'):
    sintel.read(tmp_path, 'ambush_4', protocol)


def brute_force(a, b, within):
  """TUM's associate.py, all pairs."""
  near = sorted((abs(x - y), x, y, i, j) for i, x in enumerate(a) for j, y in enumerate(b) if abs(x - y) < within)
  used_a, used_b, pairs = set(), set(), []
  for _, _, _, i, j in near:
    if i not in used_a and j not in used_b:
      used_a.add(i)
      used_b.add(j)
      pairs.append((i, j))
  return sorted(pairs, key=lambda pair: a[pair[0]])


def test_stamps_are_paired_the_closest_first_and_each_once():
  rng = np.random.default_rng(0)
  for _ in range(20):
    a, b = rng.permutation(rng.uniform(0, 2, 40)), rng.permutation(rng.uniform(0, 2, 70))
    assert recorded.associate(a, b, within=0.02) == brute_force(a, b, 0.02)
  assert recorded.associate(np.array([0.0]), np.array([0.02]), within=0.02) == [], 'less than, not up to'


def bonn(root, count=150):
  """Depth maps lag by 4 ms and start 3 frames later; their number is written into them, in metres."""
  clip, stamps = downloads.clip(frames=5), 1548266470 + np.arange(count) / 30
  clip = dataclasses.replace(clip, rgb=np.stack([np.full((16, 32, 3), i, np.uint8) for i in range(count)]))
  depth = np.stack([np.full((16, 32), 0.5 + i / 100) for i in range(count - 3)])
  downloads.recorded(root / 'rgbd_bonn_crowd2', clip, stamps=stamps, depth_stamps=stamps[3:] + 0.004, depth=depth)


def test_bonn_pairs_by_place_or_by_time(tmp_path):
  bonn(tmp_path)
  numbers = lambda truth: np.round((truth.depth[:, 0, 0] - 0.5) * 100).astype(int)
  by_place = recorded.read(tmp_path, 'crowd2', protocols.load('bonn'))
  assert by_place.rgb[:, 0, 0, 0].tolist() == numbers(by_place).tolist() == list(range(30, 140))
  by_time = recorded.read(tmp_path, 'crowd2', protocols.load('bonn_time'))
  np.testing.assert_array_equal(by_time.rgb[:, 0, 0, 0], 3 + np.arange(30, 140))
  np.testing.assert_array_equal(numbers(by_time), np.arange(30, 140))
  np.testing.assert_allclose(by_place.K[0], [[542.822841, 0, 315.59352], [0, 542.57687, 237.756098], [0, 0, 1]])
  (tmp_path / 'rgbd_bonn_crowd2/depth' / f'{1548266470 + 40 / 30 + 0.004:.5f}.png').unlink()
  lacking = recorded.read(tmp_path, 'crowd2', protocols.load('bonn_time')).lacks['depth']
  assert 'lacks 1 of 110 frames: 1548266471.33733.png' in lacking


def test_bonn_that_is_too_short_is_not_scored(tmp_path):
  bonn(tmp_path / 'rgbd_bonn_dataset', count=140)
  for root in (tmp_path, tmp_path / 'rgbd_bonn_dataset'):
    with pytest.raises(DataError, match='has 107 depth maps where the protocol takes 110'):
      recorded.read(root, 'crowd2', protocols.load('bonn'))


@pytest.mark.parametrize('name', ['tum', 'tum_30'])
def test_tum_takes_images_with_a_pose_every_third(tmp_path, name):
  """Poses come at other times; images 0 to 4 have none within 20 ms and do not count."""
  clip = downloads.clip(frames=275)
  stamps = 1341845688 + np.arange(280) / 30
  with_all = dataclasses.replace(clip, rgb=np.concatenate([clip.rgb[:5], clip.rgb]))
  downloads.recorded(tmp_path / 'rgbd_dataset_freiburg3_walking_xyz', with_all, stamps=stamps, pose_stamps=None)
  poses = ''.join(f'{s + 0.003:.5f} {downloads.tum(p)}\n' for s, p in zip(stamps[5:], clip.world_from_cam, strict=True))
  (tmp_path / 'rgbd_dataset_freiburg3_walking_xyz/groundtruth.txt').write_text('# ground truth trajectory\n' + poses)
  truth = recorded.read(tmp_path, 'walking_xyz', protocols.load(name))
  taken = np.arange(0, 270, 3) if name == 'tum' else np.arange(0, 90, 3)
  np.testing.assert_array_equal(truth.rgb, clip.rgb[taken])
  np.testing.assert_allclose(truth.world_from_cam, clip.world_from_cam[taken], atol=1e-6)
  assert truth.depth is None and truth.K[0, 0, 0] == 535.4


def test_tum_files_that_are_none(tmp_path):
  folder = tmp_path / 'rgbd_dataset_freiburg3_sitting_rpy'
  read = lambda: recorded.read(tmp_path, 'sitting_rpy', protocols.load('tum'))
  with pytest.raises(DataError, match='sitting_rpy does not exist'):
    read()
  downloads.recorded(folder, downloads.clip(frames=3), stamps=np.arange(3.0), pose_stamps=np.arange(3.0))
  with pytest.raises(DataError, match='has 1 images with a pair where the protocol takes 90'):
    read()
  (folder / 'groundtruth.txt').write_text('stamp tx ty\n')
  with pytest.raises(DataError, match=r'groundtruth\.txt: a line does not start with a time stamp'):
    read()
  with pytest.raises(DataError, match=r'expected 7 numbers behind a stamp'):
    recorded.poses([['1', '2']], folder / 'groundtruth.txt')


def test_scannet_takes_every_third_frame_and_no_pose_that_was_lost(tmp_path):
  clip, folder = downloads.clip(frames=270), tmp_path / 'scene0707_00'
  (folder / 'color').mkdir(parents=True)
  (folder / 'pose').mkdir()
  for i in range(clip.frames):
    Image.new('L', (32, 16), i % 256).save(folder / 'color' / f'{i}.jpg')
    np.savetxt(folder / 'pose' / f'{i}.txt', clip.world_from_cam[i])
  truth = scannet.read(tmp_path, 'scene0707_00', protocols.load('scannet'))
  np.testing.assert_allclose(truth.world_from_cam, clip.world_from_cam[::3], atol=1e-6)
  np.testing.assert_allclose(truth.rgb[:, 8, 8, 0], np.arange(0, 270, 3) % 256, atol=1)
  np.savetxt(folder / 'pose/6.txt', np.full((4, 4), -np.inf))
  lacks = scannet.read(tmp_path, 'scene0707_00', protocols.load('scannet')).lacks
  assert '6.txt holds no finite 4x4 pose' in lacks['trajectory']
