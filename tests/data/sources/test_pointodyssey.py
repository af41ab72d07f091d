"""PointOdyssey as it is stored -> the rendered truth, to a step of its depth code."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from one4d_jax.data.sources import pointodyssey
from one4d_jax.errors import DataError
from tests.data.sources import readback
from tests.data.sources.formats import pointodyssey as written
from tests.data.sources.readback import relative

STEP = 1000 / 65535


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
  root = tmp_path_factory.mktemp('pointodyssey')
  return root, written.write(root, recordings=4, frames=6)


@pytest.fixture
def one(stored, tmp_path):
  """A copy to damage: (folder of the sequence, its truth)."""
  name = 'train/cnb_dlab_0215_3rd'
  shutil.copytree(stored[0] / name, tmp_path / name)
  return tmp_path / name, stored[1][name]


def opened(root):
  return {listed.name: listed.open() for listed in pointodyssey.find(root)}


def rewrite(folder, **changed):
  with np.load(folder / 'anno.npz') as old:
    arrays = dict(old) | changed
  np.savez(folder / 'anno.npz', **{name: array for name, array in arrays.items() if array is not None})


def test_reads_back_what_was_rendered(stored):
  root, truth = stored
  recordings = opened(root)
  assert list(recordings) == sorted(truth) and len(truth) == 4
  for name, expected in truth.items():
    recording = recordings[name]
    clip = recording.read(range(6))
    assert clip.size == expected.size and clip.meta['fps'] == 30 and clip.meta['metric'] is False
    assert recording.scene == name.split('/')[1]
    for mask in ('valid', 'sky'):
      np.testing.assert_array_equal(getattr(clip, mask), getattr(expected, mask))
    assert 0.02 < clip.sky.mean() < 0.98 and not clip.dynamic.any()
    assert np.abs(clip.rgb.astype(int) - expected.rgb).mean() < 6  # JPEG
    error = (expected.depth - clip.depth)[clip.valid]
    assert error.min() >= -1e-5 and 0.9 * STEP < error.max() <= STEP + 1e-5
    np.testing.assert_allclose(clip.K, expected.K, rtol=1e-6)
    assert readback.pose_error(recording, expected) < 1e-6


def test_pixels_land_where_the_truth_has_them(stored):
  root, truth = stored
  for name, expected in truth.items():
    clip, poses = opened(root)[name].read(range(6)), relative(expected.world_from_cam)
    v, u = np.indices(clip.size) + 0.5
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    rays, rendered = (pixels @ np.linalg.inv(K.astype(np.float64)).T for K in (clip.K[5], expected.K[5]))
    there = (rendered * expected.depth[5, ..., None]) @ poses[5][:3, :3].T + poses[5][:3, 3]
    pose = clip.world_from_cam[5].astype(np.float64)
    seen = expected.valid[5]
    local = (there[seen] - pose[:3, 3]) @ pose[:3, :3]
    projected = local @ clip.K[5].T.astype(np.float64)
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], pixels[seen][:, :2], atol=1e-3)
    points = (rays * clip.depth[5, ..., None]) @ pose[:3, :3].T + pose[:3, 3]
    length = np.linalg.norm(rays, axis=-1)[seen]
    assert (np.linalg.norm(points[seen] - there[seen], axis=-1) <= STEP * length + 1e-4).all()


def test_a_split_or_one_folder_above(stored):
  root, truth = stored
  names = [listed.name for listed in pointodyssey.find(root / 'train')]
  assert names == [name for name in sorted(truth) if name.startswith('train/')] and len(names) == 2


def test_codes_at_both_ends(one, tmp_path):
  folder, truth = one
  codes = np.full(truth.size, 1000, np.uint16)
  codes[0, :4] = 0, 1, 65534, 65535
  Image.fromarray(codes).save(folder / 'depths' / 'depth_00002.png')
  (recording,) = opened(tmp_path).values()
  frame = recording.frame(2)
  for read in (recording.pixels(2), frame):
    assert read.valid[0, :4].tolist() == [False, True, True, False]
    assert read.sky[0, :4].tolist() == [False, False, False, True]
  assert frame.depth[0, :4].tolist() == pytest.approx([0, STEP, 65534 * STEP, 0])


def test_annotation_in_half_precision_is_still_a_rotation(one, tmp_path):
  folder, _ = one
  with np.load(folder / 'anno.npz') as old:
    rewrite(folder, **{name: old[name].astype(np.float16) for name in ('intrinsics', 'extrinsics')})
  (recording,) = opened(tmp_path).values()
  assert recording.read(range(6)).frames == 6


def test_missing_cameras_spoil_their_own_frames(one, tmp_path):
  folder, _ = one
  with np.load(folder / 'anno.npz') as old:
    extrinsics, intrinsics = old['extrinsics'].copy(), old['intrinsics']
  extrinsics[1] = np.nan
  rewrite(folder, extrinsics=extrinsics[:5], intrinsics=intrinsics)  # and ends a frame early
  (recording,) = opened(tmp_path).values()
  assert np.isnan(recording.world_from_cam).any(axis=(1, 2)).tolist() == [False, True, False, False, False, True]
  assert recording.read(range(2, 5)).frames == 3
  with pytest.raises(DataError, match='frame 1: the camera pose is missing'):
    recording.frame(1)


@pytest.mark.parametrize(
  ('name', 'content', 'says'),
  [
    ('rgbs/rgb_00001.jpg', None, r'rgb_00001\.jpg does not exist'),
    ('rgbs/rgb_00001.jpg', b'\xff\xd8\xff', r'rgb_00001\.jpg'),
    ('depths/depth_00001.png', None, r'depth_00001\.png does not exist'),
    ('depths/depth_00001.png', b'', r'depth_00001\.png'),
  ],
)
def test_damage_to_a_frame(one, tmp_path, name, content, says):
  path = one[0] / name
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  (recording,) = opened(tmp_path).values()
  readback.check_frame_1_alone_is_spoilt(recording, says)


def test_depth_of_another_kind_or_size(one, tmp_path):
  (recording,) = opened(tmp_path).values()
  path = one[0] / 'depths' / 'depth_00001.png'
  Image.fromarray(np.zeros((54, 96), np.uint8)).save(path)
  with pytest.raises(DataError, match='mode L; expected 16-bit grey'):
    recording.frame(1)
  Image.fromarray(np.ones((27, 48), np.uint16)).save(path)
  with pytest.raises(DataError, match=r'frame 1: depth is 27x48 \(height x width\), the recording 54x96'):
    recording.frame(1)


def test_every_cut_of_a_file_is_one_line(one, tmp_path):
  (recording,) = opened(tmp_path).values()
  for name in ('rgbs/rgb_00001.jpg', 'depths/depth_00001.png'):
    path = one[0] / name
    whole = path.read_bytes()
    for share in (0.05, 0.3, 0.6, 0.9):
      path.write_bytes(whole[: int(share * len(whole))])
      with pytest.raises(DataError, match=path.name):
        recording.frame(1)
    path.write_bytes(whole)
  path = one[0] / 'anno.npz'
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  for share in (0, 0.01, 0.3, 0.9, 0.999):
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r'anno\.npz'):
      opened(tmp_path)
  for _ in range(200):  # bytes flipped anywhere: read, or one clear line
    damaged = np.frombuffer(whole, np.uint8).copy()
    damaged[rng.integers(0, len(whole), 20)] = rng.integers(0, 256, 20)
    path.write_bytes(damaged.tobytes())
    try:
      opened(tmp_path)
    except DataError as error:
      assert 'anno.npz' in str(error)


@pytest.mark.parametrize(
  ('changed', 'says'),
  [
    ({'extrinsics': None}, 'has no array extrinsics; it holds intrinsics, trajs_3d'),
    ({'extrinsics': np.zeros((6, 3, 4))}, r'extrinsics are float64 \(6, 3, 4\); expected floats \(frames, 4, 4\)'),
    ({'intrinsics': np.array([{'a': 1}], object)}, r'anno\.npz'),
  ],
)
def test_an_annotation_that_does_not_fit(one, tmp_path, changed, says):
  rewrite(one[0], **changed)
  with pytest.raises(DataError, match=says):
    opened(tmp_path)


@pytest.mark.parametrize('name', ['anno.npz', 'info.npz'])
def test_older_versions_are_refused(one, tmp_path, name):
  (one[0] / name).unlink()
  with pytest.raises(DataError, match=r'version 1\.2'):
    opened(tmp_path)


def test_nothing_to_read(one, tmp_path):
  for path in (one[0] / 'rgbs').iterdir():
    path.unlink()
  with pytest.raises(DataError, match='holds no image rgb_00000'):
    opened(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(DataError, match=r'holds no PointOdyssey sequence; expected SPLIT'):
    pointodyssey.find(tmp_path / 'empty')
  with pytest.raises(DataError, match='does not exist'):
    pointodyssey.find(tmp_path / 'nowhere')


def test_recordings_travel_and_clips_are_cut(stored, tmp_path):
  listed = pickle.loads(pickle.dumps(pointodyssey.find(stored[0])))
  assert pickle.loads(pickle.dumps(listed[0].open())).frame(1).rgb.shape == (54, 96, 3)
  written.write(tmp_path, frames=33, size=(18, 32))
  (clip,) = readback.clips(pointodyssey.find(tmp_path))
  assert clip.meta['id'] == 'pointodyssey/train/cnb_dlab_0215_3rd/000000-000032-1'
