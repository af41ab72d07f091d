"""BEDLAM as it is stored -> the rendered truth: depth, lens, place and direction of the camera, upright portraits."""

import pickle
import shutil

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from one4d_jax.data.sources import bedlam
from one4d_jax.errors import DataError
from tests.data.sources import readback
from tests.data.sources.formats import bedlam as written
from tests.data.sources.readback import relative

PLAIN, ZOOM, CLOSEUP = written.SCENES


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
  root = tmp_path_factory.mktemp('bedlam')
  return root, written.write(root, recordings=3, frames=6)


@pytest.fixture
def plain(stored, tmp_path):
  """A copy to damage: (folder of the scene, its recording's truth)."""
  shutil.copytree(stored[0] / PLAIN, tmp_path / PLAIN)
  return tmp_path / PLAIN, stored[1][f'{PLAIN}/seq_000000']


def opened(root):
  return {listed.name: listed.open() for listed in bedlam.find(root)}


def world_points(K, pose, depth):
  """[H W 3] by the rays through the centres of pixels."""
  v, u = np.indices(depth.shape) + 0.5
  rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(K.astype(np.float64)).T
  return (rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]


def test_reads_back_what_was_rendered(stored):
  root, truth = stored
  recordings = opened(root)
  assert list(recordings) == sorted(truth)
  for name, expected in truth.items():
    clip = recordings[name].read(range(6))
    assert clip.size == expected.size and clip.meta['fps'] == 30 and clip.meta['metric']
    assert recordings[name].scene == name.split('/')[0]
    for mask in ('rgb', 'valid', 'sky', 'dynamic'):
      np.testing.assert_array_equal(getattr(clip, mask), getattr(expected, mask), err_msg=f'{name} {mask}')
    assert 0.02 < clip.sky.mean() < 0.98 and clip.dynamic.any()
    np.testing.assert_allclose(clip.depth, expected.depth, rtol=3e-7)
    np.testing.assert_allclose(clip.K, expected.K, rtol=1e-6)
    assert readback.pose_error(recordings[name], expected) < 1e-6


@pytest.mark.parametrize('scene', written.SCENES)
def test_pixels_land_where_the_truth_has_them(stored, scene):
  root, truth = stored
  name = next(name for name in truth if name.startswith(scene))
  clip, expected = opened(root)[name].read(range(6)), truth[name]
  poses = relative(expected.world_from_cam)
  for i in (0, 5):
    seen = expected.valid[i]
    points = world_points(clip.K[i], clip.world_from_cam[i], clip.depth[i])[seen]
    there = world_points(expected.K[i], poses[i], expected.depth[i])[seen]
    np.testing.assert_allclose(points, there, atol=3e-5)  # some 40 units away


def test_a_camera_by_hand():
  """The example of the set's own document, and which way each angle turns."""
  example = np.array([[5.058579, -9.743741, 168.953232, 1.468127, -2.905068, 2.813995, 36.905, 36, 20.25]])
  K = bedlam._intrinsics(example, (720, 1280))[0]
  np.testing.assert_allclose(K, [[1312.178, 0, 640], [0, 1312.178, 360], [0, 0, 1]], atol=1e-3)
  np.testing.assert_allclose(bedlam._poses(example)[0, :3, 3], [-0.09743741, -1.68953232, 0.05058579])
  right, down, forward = bedlam._poses(example)[0, :3, :3].T
  assert forward[0] > 0 and forward[1] > 0  # to the right and, pitched down, down
  assert right[1] > 0 and down[0] < 0  # clockwise


def test_portrait_by_hand():
  """One pixel of the stored image: where it goes, and that its ray keeps its place in the world."""
  height, width = 72, 128
  example = np.array([[10.0, 20, 30, 25, -15, 100, 30, 36, 20.25]])
  K, pose = bedlam._intrinsics(example, (height, width)), bedlam._poses(example)
  K[0, 0, 2], K[0, 1, 2], K[0, 1, 1] = 60.3, 37.1, 105.0  # off centre and not square: nothing cancels
  upright_K, upright_pose = bedlam._upright(K, pose, (height, width))
  image = np.zeros((height, width))
  u, v = 9, 17
  image[v, u] = 1
  assert np.argwhere(np.rot90(image, -1)).tolist() == [[u, height - 1 - v]]
  before = pose[0, :3, :3] @ np.linalg.inv(K[0]) @ [u + 0.5, v + 0.5, 1]
  after = upright_pose[0, :3, :3] @ np.linalg.inv(upright_K[0]) @ [height - (v + 0.5), u + 0.5, 1]
  np.testing.assert_allclose(after, before, atol=1e-12)
  assert np.linalg.det(upright_pose[0, :3, :3]) == pytest.approx(1)


def test_every_fifth_frame_is_six_a_second(plain, tmp_path):
  scene, truth = plain
  for path in [*scene.glob('png/*/*'), *scene.glob('depth/*/*')]:
    if int(path.stem.split('_')[2]) % 5:
      path.unlink()
  subset = scene.rename(scene.with_name(f'{PLAIN}_6fps'))
  (recording,) = opened(tmp_path).values()
  assert (recording.fps, recording.numbers, recording.scene) == (6, (0, 5), PLAIN)
  np.testing.assert_array_equal(recording.frame(1).rgb, truth.rgb[5])
  np.testing.assert_allclose(relative(recording.world_from_cam)[1], relative(truth.world_from_cam)[5], atol=1e-6)
  assert opened(subset).keys() == {f'{PLAIN}_6fps/seq_000000'}  # the scene itself as root


def test_depth_that_is_released_at_six_a_second_sets_the_rate(plain, tmp_path):
  for path in plain[0].glob('depth/*/*'):
    if int(path.stem.split('_')[2]) % 5:
      path.unlink()
  (recording,) = opened(tmp_path).values()
  assert (recording.fps, recording.numbers) == (6, (0, 5))


def test_depth_that_is_none_or_too_far(plain, tmp_path):
  scene, truth = plain
  path = next(scene.glob('depth/*/*_0000_depth.exr'))
  depth = truth.depth[0] * 100
  depth[0, :5] = np.nan, np.inf, 0, 20_001, 19_999
  OpenEXR.File({}, {'Depth': depth}).write(str(path))
  (recording,) = opened(tmp_path).values()
  pixels, frame = recording.pixels(0), recording.frame(0)
  for read in (pixels, frame):
    assert read.valid[0, :5].tolist() == [False, False, False, False, True]
    assert read.sky[0, :5].tolist() == [False, False, False, True, False]
  assert frame.depth[0, :5].tolist() == pytest.approx([0, 0, 0, 0, 199.99])


def test_people_of_several_masks(plain, tmp_path):
  scene, truth = plain
  masks = scene / 'masks' / 'seq_000000'
  clothing = np.zeros(truth.size, np.uint8)
  clothing[:3, :7] = 255
  Image.fromarray(clothing).save(masks / 'seq_000000_0000_12_clothing.png')
  (masks / 'seq_000000_0001_env.png').unlink()
  (recording,) = opened(tmp_path).values()
  np.testing.assert_array_equal(recording.frame(0).dynamic, truth.dynamic[0] | (clothing > 0))
  assert recording.pixels(1).dynamic is None  # never processed
  Image.fromarray(clothing[:-1]).save(masks / 'seq_000000_0000_12_clothing.png')
  with pytest.raises(DataError, match=r'12_clothing\.png is'):
    recording.frame(0)


def test_a_missing_row_spoils_its_own_frame(plain, tmp_path):
  table = next(plain[0].glob('ground_truth/camera/*.csv'))
  header, *rows = table.read_text().splitlines()
  table.write_text('\n'.join([header, *reversed(rows[:2] + rows[3:])]))  # matched by name, not by order
  (recording,) = opened(tmp_path).values()
  assert np.isnan(recording.world_from_cam).any(axis=(1, 2)).tolist() == [i == 2 for i in range(6)]
  np.testing.assert_array_equal(recording.read(range(3, 6)).rgb, plain[1].rgb[3:])
  with pytest.raises(DataError, match=r'seq_000000, frame 2'):
    recording.frame(2)


@pytest.mark.parametrize(
  ('pattern', 'content', 'says'),
  [
    ('png/*/*_0001.png', None, r'seq_000000_0001\.png does not exist'),
    ('png/*/*_0001.png', b'\x89PNG\r\n', r'seq_000000_0001\.png'),
    ('depth/*/*_0001_*', None, r'_0001_depth\.exr does not exist'),
    ('depth/*/*_0001_*', b'', r'_0001_depth\.exr is damaged'),
    ('masks/*/*_0001_env*', b'no', r'_0001_env\.png'),
  ],
)
def test_damage_to_a_frame(plain, tmp_path, pattern, content, says):
  path = next(plain[0].glob(pattern))
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  (recording,) = opened(tmp_path).values()
  readback.check_frame_1_alone_is_spoilt(recording, says)


def test_every_cut_of_a_file_is_one_line(plain, tmp_path):
  (recording,) = opened(tmp_path).values()
  for pattern in ('png/*/*_0001.png', 'depth/*/*_0001_*'):
    path = next(plain[0].glob(pattern))
    whole = path.read_bytes()
    for share in (0.02, 0.1, 0.4, 0.7, 0.9):
      path.write_bytes(whole[: int(share * len(whole))])
      with pytest.raises(DataError, match=path.name):
        recording.frame(1)
    path.write_bytes(whole)
  OpenEXR.File({}, {'Y': np.ones((72, 128), np.float32)}).write(str(path))
  with pytest.raises(DataError, match='no channel Depth; it holds Y'):
    recording.frame(1)


def test_wrong_resolution(plain, tmp_path):
  (recording,) = opened(tmp_path).values()
  path = next(plain[0].glob('png/*/*_0003.png'))
  Image.open(path).resize((64, 36)).save(path)
  with pytest.raises(DataError, match=r'frame 3: rgb is 36x64 \(height x width\), the recording 72x128'):
    recording.frame(3)


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    (None, r'camera\.csv does not exist'),
    ('', r'camera\.csv has no column focal_length'),
    ('name,x,y\n', r'camera\.csv has no column focal_length'),
    (f'{written.HEADER}\nseq_000000_0000.png,1,2,3,4\n', r'camera\.csv, line 2: not a row of numbers'),
    (f'{written.HEADER}\nseq_000000_0000.png,1,2,3,a,5,6,7,8,9,1\n', r'camera\.csv, line 2: not a row of numbers'),
    (b'\xff\xfe\x00', r'camera\.csv is damaged or no CSV file'),
  ],
)
def test_damage_to_the_cameras(plain, tmp_path, text, says):
  table = next(plain[0].glob('ground_truth/camera/*.csv'))
  table.unlink()
  if text is not None:
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(DataError, match=says):
    opened(tmp_path)


def test_nothing_to_read(plain, tmp_path):
  with pytest.raises(DataError, match=r'none for the same frame'):
    shutil.rmtree(plain[0] / 'depth')
    opened(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(DataError, match=r'holds no BEDLAM sequence; expected SCENE/png'):
    bedlam.find(tmp_path / 'empty')
  with pytest.raises(DataError, match='does not exist'):
    bedlam.find(tmp_path / 'nowhere')


@pytest.mark.parametrize('ending', ['', '_6fps'])
def test_scenes_without_a_background_are_left_out(plain, tmp_path, ending):
  dome = plain[0].rename(tmp_path / f'20221018_3-8_250_batch01hand{ending}')
  with pytest.raises(DataError, match='HDRI'):
    bedlam.find(tmp_path)
  shutil.copytree(dome, tmp_path / f'{PLAIN}')
  assert [listed.open().scene for listed in bedlam.find(tmp_path)] == [PLAIN]


def test_recordings_travel_and_clips_are_cut(stored, tmp_path):
  recording = pickle.loads(pickle.dumps(bedlam.find(stored[0])))[0].open()
  assert pickle.loads(pickle.dumps(recording)).frame(1).rgb.shape == (128, 72, 3)  # the portrait sorts first
  written.write(tmp_path, frames=33, size=(18, 32))
  (clip,) = readback.clips(bedlam.find(tmp_path))
  assert clip.meta['id'] == f'bedlam/{PLAIN}/seq_000000/000000-000032-1'
