import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from one4d_jax.data.sources import tartanair
from one4d_jax.errors import DataError
from tests.data.sources import readback
from tests.data.sources.formats import tartanair as form

SEED, FRAMES = 2, 9
VERSIONS = pytest.mark.parametrize('version, size', [(1, (60, 80)), (2, (64, 64))])


def only(root):
  return tartanair.find(root)[0].open()


@pytest.fixture(params=[1, 2], ids=['V1', 'V2'])
def written(request, tmp_path):
  """(root, folder of the only trajectory, truth)."""
  (name, truth), *_ = form.write(tmp_path, frames=FRAMES, seed=SEED, version=request.param).items()
  return tmp_path, tmp_path / name, truth


@VERSIONS
def test_reads_what_was_written(tmp_path, version, size):
  truth = form.write(tmp_path, recordings=3, frames=FRAMES, size=size, seed=SEED, version=version)
  listed = tartanair.find(tmp_path)
  assert [found.name for found in listed] == sorted(truth) and len(truth) == 3
  assert [found.open().scene for found in listed] == ['office0', 'office0', 'office1']
  for found in listed:
    recording, clip = pickle.loads(pickle.dumps(found)).open(), truth[found.name]
    recording = pickle.loads(pickle.dumps(recording))
    assert (recording.name, recording.size) == (found.name, size)
    assert recording.metric and recording.provenance == 'exact' and recording.fps == 10 and recording.unverified
    assert readback.pose_error(recording, clip) < 1e-6
    np.testing.assert_allclose(recording.K, clip.K, rtol=1e-6)
    assert recording.K[0, 0, 2] == size[1] / 2 == recording.K[0, 0, 0] and recording.K[0, 1, 2] == size[0] / 2
    read = recording.read(range(FRAMES))
    for name in ('rgb', 'depth', 'valid', 'sky'):
      np.testing.assert_array_equal(getattr(read, name), getattr(clip, name), err_msg=name)
    assert clip.sky.any() and not read.dynamic.any() and read.caption == ''


def test_both_versions_under_one_root(tmp_path):
  truth = [form.write(tmp_path, recordings=1, frames=2, version=version) for version in (1, 2)]
  listed = tartanair.find(tmp_path)
  assert {found.name for found in listed} == truth[0].keys() | truth[1].keys()
  assert {found.open().scene for found in listed} == {'office0'}  # so that none of it is held out while another is not
  assert len({found.open().licence for found in listed}) == 2


def test_a_pixel_lies_where_the_truth_has_it(written):
  root, _, truth = written
  recording = only(root)
  depth = recording.read(range(FRAMES)).depth
  v, u = np.argwhere(truth.valid.all(axis=0))[0]
  found = readback.points(recording.K, recording.world_from_cam, depth, u, v)
  expected = readback.points(truth.K, truth.world_from_cam, truth.depth, u, v)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_frames_confirm_each_other_and_only_with_half_pixel_centres(written):
  root, _, truth = written
  read = dataclasses.replace(only(root).read(range(FRAMES)), dynamic=truth.dynamic)
  assert readback.agreement(read) > 0.85
  K = read.K.copy()
  K[:, :2, 2] -= 0.5
  assert readback.agreement(dataclasses.replace(read, K=K)) < 0.5


def test_no_other_order_of_the_quaternion_would_do(written):
  root, folder, truth = written
  (path,) = folder.glob('pose_*.txt')
  np.savetxt(path, np.loadtxt(path)[:, [0, 1, 2, 6, 3, 4, 5]])
  assert readback.pose_error(only(root), truth) > 0.05


def test_no_other_axes_would_do(written, monkeypatch):
  root, _, truth = written
  right = tartanair._AXES
  errors = []
  for order in itertools.permutations(range(3)):
    for signs in itertools.product((1, -1), repeat=3):
      axes = np.eye(4)
      axes[:3, :3] = np.diag(signs) @ np.eye(3)[list(order)]
      monkeypatch.setattr(tartanair, '_AXES', axes)
      errors.append((readback.pose_error(only(root), truth), (axes == right).all()))
  best, second = sorted(errors)[:2]
  assert len(errors) == 48 and best[1] and best[0] < 1e-6 and second[0] > 0.05


def test_depth_of_any_float_type(tmp_path):
  form.write(tmp_path, frames=2)
  folder = tmp_path / 'office0/Easy/P000/depth_left'
  depth = np.full((60, 80), 3.5)
  depth[0, :5] = 999.5, 1000.0, np.inf, np.nan, 0
  for dtype in (np.float16, np.float32, np.float64, '>f4'):
    np.save(folder / '000001_left_depth.npy', depth.astype(dtype))
    frame = only(tmp_path).frame(1)
    assert frame.depth[5, 5] == 3.5 and frame.depth.dtype == np.float32
    assert frame.valid[0, :6].tolist() == [True, False, False, False, False, True]
    assert frame.sky[0, :6].tolist() == [False, True, True, False, False, False]


def test_packed_depth_is_read_bit_for_bit(tmp_path):
  values = np.float32([[1.5, 3.1415927], [1e-3, 12345.678]]).repeat(8, axis=0).repeat(8, axis=1)
  Image.fromarray(form.packed(values)).save(tmp_path / 'depth.png')
  np.testing.assert_array_equal(tartanair._depth_png(tmp_path / 'depth.png'), values)
  # 1.5 is 0x3fc00000: OpenCV's blue and green are its low bytes, Pillow's order is red first.
  assert np.asarray(Image.open(tmp_path / 'depth.png'))[0, 0].tolist() == [0xC0, 0x00, 0x00, 0x3F]


def test_missing_poses_spoil_one_frame(written):
  root, folder, _ = written
  (path,) = folder.glob('pose_*.txt')
  lines = path.read_text().splitlines()
  lines[2] = 'nan ' * 7
  lines[5] = '1 2 3 0 0 0 0'
  path.write_text('\n'.join(lines))
  recording = only(root)
  assert np.isnan(recording.world_from_cam).all(axis=(1, 2)).tolist() == [i in (2, 5) for i in range(FRAMES)]
  with pytest.raises(DataError, match='frame 5: the camera pose is missing'):
    recording.frame(5)
  recording.frame(4)


def test_root_may_be_any_folder_of_the_layout(written, monkeypatch):
  root, folder, _ = written
  name = str(folder.relative_to(root))
  monkeypatch.chdir(folder)
  for place in (root.parent, root, folder.parent.parent, folder.parent, folder, '.'):
    assert name in [found.name for found in tartanair.find(place)]
  environment = folder.parent.parent
  environment.rename(root / 'moved')
  environment.mkdir()
  (root / 'moved').rename(environment / environment.name)
  assert [found.name for found in tartanair.find(root)] == [name]  # ENV/ENV/Easy, as the archives are packed


def test_a_folder_of_something_else(written):
  root, folder, _ = written
  images = next(folder.glob('image_*'))
  (root / 'empty').mkdir()
  for place in (images, root / 'empty', root / 'absent'):
    with pytest.raises(DataError, match=r'holds no TartanAir trajectory; expected ENV/Easy/P000/pose_left.txt'):
      tartanair.find(place)


def test_clips(tmp_path):
  form.write(tmp_path, frames=33, size=(18, 24))
  (clip,) = readback.clips(tartanair.find(tmp_path))
  assert clip.frames == 33 and clip.meta['id'] == 'tartanair/office0/Easy/P000/000000-000032-1'
  assert clip.meta['fps'] == 10 and clip.meta['scene'] == 'office0'


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
  'file, damage, message',
  [
    ('image', lambda path: path.unlink(), 'does not exist'),
    ('depth', lambda path: path.unlink(), 'does not exist'),
    ('image', cut, 'is damaged'),
    ('depth', cut, 'is damaged'),
    ('depth', lambda path: path.write_bytes(b''), r'is damaged or no \.npy|is not an image'),
    ('depth', lambda path: path.write_bytes(b'\x80\x04nonsense'), r'is damaged or no \.npy|is not an image'),
    ('image', lambda path: Image.new('RGB', (20, 20)).save(path), 'frame 3: rgb is 20x20'),
  ],
)
def test_a_damaged_frame_is_named(written, file, damage, message):
  root, folder, _ = written
  recording = only(root)
  (path,) = folder.glob(f'{file}_*/000003_*')
  damage(path)
  with pytest.raises(DataError, match=message) as caught:
    recording.frame(3)
  assert path.name in str(caught.value) or 'frame 3' in str(caught.value)
  recording.frame(2)


def test_a_recording_opens_without_its_first_image(written):
  root, folder, _ = written
  next(folder.glob('image_*/000000_*')).write_bytes(b'')
  recording = only(root)
  assert recording.size == (60, 80)
  recording.frame(1)
  with pytest.raises(DataError, match=r'000000_.* is not an image'):
    recording.frame(0)
  for path in folder.glob('image_*/*'):
    path.unlink()
  with pytest.raises(DataError, match='the images before it cannot be read'):
    only(root)


def test_depth_of_another_kind(tmp_path):
  path = tmp_path / 'depth'
  for value in (np.zeros((4, 4), np.uint16), np.zeros((4, 4, 1)), np.array([{}], object)):
    with open(path, 'wb') as file:
      np.save(file, value)
    with pytest.raises(DataError, match=r'depth is (no depth map|damaged)'):
      tartanair._depth_npy(path)
  with open(path, 'wb') as file:
    np.savez(file, value=np.zeros((4, 4)))
  with pytest.raises(DataError, match='archive of several arrays'):
    tartanair._depth_npy(path)
  Image.new('RGB', (16, 16)).save(path, format='PNG')
  with pytest.raises(DataError, match='mode RGB; expected four'):
    tartanair._depth_png(path)


@pytest.mark.parametrize(
  'text, message',
  [
    (None, 'does not exist'),
    ('', 'is empty; expected 7 numbers'),
    ('1 2 3 0 0 0 1\n1 2 3 0', 'row 2: 4 values, expected 7'),
    ('1 2 3 0 0 0 one', 'holds something that is no number'),
    ('\udcff', 'is not a text file'),
  ],
)
def test_damaged_poses_are_named(written, text, message):
  root, folder, _ = written
  (path,) = folder.glob('pose_*.txt')
  if text is None:
    path.unlink()
  else:
    path.write_text(text, errors='surrogateescape')
  with pytest.raises(DataError, match=message) as caught:
    only(root)
  assert path.name in str(caught.value)
