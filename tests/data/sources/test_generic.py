import dataclasses
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from one4d_jax.data.sources import generic
from one4d_jax.errors import DataError
from tests.data.sources import readback
from tests.data.sources.formats import films, handheld
from tests.data.sources.formats import generic as form

FRAMES, SIZE = 5, (48, 64)


@pytest.fixture(scope='module')
def truth():
  return handheld.clip(3, frames=FRAMES, size=SIZE)


WORLD = handheld.world(3)


def only(root):
  (found,) = generic.find(root)
  return found.open()


def failing(root, match):
  """The one line with which reading the only recording of `root` ends."""
  with pytest.raises(DataError, match=match) as caught:
    recording = only(root)
    recording.read(range(len(recording)))
  message = str(caught.value)
  assert '\n' not in message and str(root) in message, message
  return message


def check(recording, truth, *, rtol, cameras=1e-6):
  assert readback.pose_error(recording, truth) < cameras
  np.testing.assert_allclose(recording.K, truth.K, rtol=1e-6)
  read = recording.read(range(len(recording)))
  np.testing.assert_array_equal(read.rgb, truth.rgb)
  np.testing.assert_array_equal(read.valid, truth.valid)
  np.testing.assert_allclose(read.depth, truth.depth, rtol=rtol, atol=0)
  assert truth.sky.any() and truth.valid.any()
  return read


def agrees(read, truth):
  """Whether frames fit each other as well as the rendered ones do, by the masks that were read."""
  return readback.agreement(read) > 0.98 * readback.agreement(dataclasses.replace(truth, dynamic=read.dynamic))


def test_finds_every_layout_at_any_depth(tmp_path):
  truth = form.write(tmp_path, recordings=6, frames=FRAMES, size=SIZE)
  (tmp_path / '._hidden.npz').write_bytes(b'')
  listed = generic.find(tmp_path)
  assert [found.name for found in listed] == sorted(truth) and len(truth) == 6
  for found in listed:
    recording = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(found)).open()))
    assert (recording.name, recording.scene, recording.fps) == (found.name, found.name, 16)
    read = check(recording, truth[found.name], rtol=1e-3, cameras=3e-6)
    assert read.caption == truth[found.name].caption
    assert agrees(read, truth[found.name])
  assert [found.open().provenance for found in listed[:3]] == ['exact', 'pseudo:renderer', 'pseudo:one4d']
  assert readback.clips(listed) == []  # none is of 33 frames


def test_the_root_may_be_the_recording(tmp_path, truth):
  form.write_images(tmp_path / 'walk', truth, WORLD)
  assert only(tmp_path / 'walk').name == 'walk'


@pytest.mark.parametrize('wrong', ['K', 'pose', 'depth'])
def test_agreement_notices_what_is_wrong(tmp_path, truth, wrong):
  changes = {
    'K': {'K': truth.K * np.float32([1.05, 1.05, 1])[:, None]},
    'pose': {'world_from_cam': np.linalg.inv(truth.world_from_cam)},
    'depth': {'depth': truth.depth[::-1]},
  }
  form.write_video(tmp_path / 'a', truth, WORLD if wrong != 'pose' else np.eye(4), **changes[wrong])
  recording = only(tmp_path)
  assert readback.agreement(recording.read(range(FRAMES))) < 0.6 * readback.agreement(truth)


# -- Folder -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'stated',
  [
    {},
    {'axes': 'opengl'},
    {'pose': 'cam_from_world'},
    {'axes': 'opengl', 'pose': 'cam_from_world'},
    {'pixel_centre': 0.0},
    {'depth': 'ray'},
    {'depth': 'ray', 'pixel_centre': 0.0},
  ],
  ids=lambda stated: ' '.join(map(str, stated.values())) or 'as here',
)
def test_conventions(tmp_path, truth, stated):
  form.write_images(tmp_path / 'a', truth, WORLD, suffix='.npy', depth_scale=1.0, **stated)
  recording = only(tmp_path)
  read = check(recording, truth, rtol=1e-6)
  np.testing.assert_array_equal(read.sky, truth.sky)
  assert agrees(read, truth)


@pytest.mark.parametrize('stated', [{'axes': 'opengl'}, {'pose': 'cam_from_world'}, {'depth': 'ray'}])
def test_a_convention_stated_wrongly_is_another_camera(tmp_path, truth, stated):
  form.write_images(tmp_path / 'a', truth, WORLD, suffix='.npy', depth_scale=1.0)
  change(tmp_path / 'a' / 'cameras.json', **stated)
  assert readback.agreement(only(tmp_path).read(range(FRAMES))) < 0.6 * readback.agreement(truth)


def change(path, remove=(), **values):
  stated = json.loads(path.read_text()) | values
  path.write_text(json.dumps({key: value for key, value in stated.items() if key not in remove}))


@pytest.mark.parametrize('suffix, scale', [('.png', 1e-3), ('.npy', 2.0), ('.npz', 2.0), ('.exr', 2.0)])
def test_kinds_of_depth(tmp_path, truth, suffix, scale):
  form.write_images(tmp_path / 'a', truth, WORLD, suffix=suffix, depth_scale=scale)
  read = only(tmp_path).read(range(FRAMES))
  np.testing.assert_array_equal(read.valid, truth.valid)
  np.testing.assert_array_equal(read.sky, truth.sky)
  error = np.abs(read.depth - truth.depth)[truth.valid].max()
  assert error <= (0.505 * scale if suffix == '.png' else 1e-5)


def test_values_that_mean_unknown(tmp_path, truth):
  form.write_images(tmp_path / 'a', truth, WORLD, suffix='.npy', depth_scale=1.0, invalid=-1, sky=None)
  path = tmp_path / 'a' / 'depth' / '1.npy'
  depth = np.load(path)
  depth[:4], depth[4], depth[5], depth[6] = -1, np.nan, np.inf, 0
  np.save(path, depth)
  frame = only(tmp_path).frame(0)
  assert not frame.valid[:7].any() and not frame.sky.any() and frame.valid[30:].all()


def test_intrinsics_for_all_frames_and_as_four_numbers(tmp_path, truth):
  stated = form.write_images(tmp_path / 'a', truth, WORLD)
  K = stated['frames'][0].pop('K')
  frames = [{key: value for key, value in frame.items() if key != 'K'} for frame in stated['frames']]
  change(tmp_path / 'a' / 'cameras.json', frames=frames, K=K)
  np.testing.assert_allclose(only(tmp_path).K, truth.K)
  four = {'fx': K[0][0], 'fy': K[1][1], 'cx': K[0][2], 'cy': K[1][2]}
  change(tmp_path / 'a' / 'cameras.json', remove=['K'], **four)
  np.testing.assert_allclose(only(tmp_path).K, truth.K)
  change(tmp_path / 'a' / 'cameras.json', remove=['cy'])
  failing(tmp_path, '1 lacks "K" .* or "cy"')


def test_intrinsics_of_a_frame_go_before_those_for_all(tmp_path, truth):
  stated = form.write_images(tmp_path / 'a', truth, WORLD)
  K = stated['frames'][0]['K']
  zoomed = {'fx': 2 * K[0][0], 'fy': 2 * K[1][1], 'cx': K[0][2], 'cy': K[1][2]}
  frames = [{key: value for key, value in frame.items() if key != 'K'} for frame in stated['frames']]
  frames[1] |= zoomed
  change(tmp_path / 'a' / 'cameras.json', frames=frames, K=K)
  np.testing.assert_allclose(only(tmp_path).K[1], truth.K[1] * [[2, 1, 1], [1, 2, 1], [1, 1, 1]])
  np.testing.assert_allclose(only(tmp_path).K[2], truth.K[2])
  del frames[1]['cy']
  change(tmp_path / 'a' / 'cameras.json', frames=frames)
  failing(tmp_path, '2 lacks "K" .* or "cy"')
  frames[1]['K'] = K
  change(tmp_path / 'a' / 'cameras.json', frames=frames, remove=['K'], **zoomed)
  np.testing.assert_allclose(only(tmp_path).K[1], truth.K[1])


def test_what_is_optional(tmp_path, truth):
  form.write_images(tmp_path / 'a', truth, WORLD)
  path = tmp_path / 'a' / 'cameras.json'
  change(path, remove=['metric', 'provenance', 'caption'])
  recording = only(tmp_path)
  assert (recording.metric, recording.provenance, recording.licence) == (False, 'pseudo:unknown', 'not stated')
  change(path, scene='kitchen', licence='mine', provenance='pseudo:other', metric=True)
  recording = only(tmp_path)
  assert (recording.scene, recording.licence, recording.provenance) == ('kitchen', 'mine', 'pseudo:other')
  assert recording.metric


@pytest.mark.parametrize(
  'key, allowed',
  [
    ('fps', 'a positive number'),
    ('size', 'height, width'),
    ('axes', '"opencv" or "opengl"'),
    ('pose', '"world_from_cam" or "cam_from_world"'),
    ('pixel_centre', '0.5 or 0.0'),
    ('depth', '"z" or "ray"'),
    ('depth_scale', 'a positive number'),
    ('invalid', 'null'),
    ('sky', 'null'),
    ('frames', 'a list of'),
  ],
)
def test_a_convention_is_never_guessed(tmp_path, truth, key, allowed):
  form.write_images(tmp_path / 'a', truth, WORLD)
  path = tmp_path / 'a' / 'cameras.json'
  change(path, **{key: 'sideways'})
  failing(tmp_path, f'"{key}" must be .*{allowed}.*, got "sideways"')
  change(path, remove=[key])
  failing(tmp_path, f'lacks "{key}": .*{allowed}')


@pytest.mark.parametrize(
  'values, words',
  [
    ({'license': 'mine'}, 'there is no "license"; known are .*licence'),
    ({'fps': True}, '"fps" must be'),
    ({'fps': float('inf')}, '"fps" must be'),
    ({'depth_scale': -1}, '"depth_scale" must be'),
    ({'size': [48, 64.5]}, '"size" must be'),
    ({'frames': []}, '"frames" must be'),
    ({'metric': 'no'}, '"metric" must be true or false'),
    ({'provenance': 'guessed'}, "provenance must be exact .*'guessed'"),
    ({'size': [96, 128]}, '(rgb|depth) is 48x64 .* 96x128'),
  ],
)
def test_statements_that_cannot_be(tmp_path, truth, values, words):
  form.write_images(tmp_path / 'a', truth, WORLD)
  change(tmp_path / 'a' / 'cameras.json', **values)
  with pytest.raises(DataError, match=words):
    only(tmp_path).frame(0)


def edit_frame(root, i, **values):
  path = root / 'a' / 'cameras.json'
  frames = json.loads(path.read_text())['frames']
  frames[i] |= values
  change(path, frames=frames)


def test_cameras_that_cannot_be(tmp_path, truth):
  stated = form.write_images(tmp_path / 'a', truth, WORLD)
  K, pose = (np.array(stated['frames'][2][key]) for key in ('K', 'pose'))
  edit_frame(tmp_path, 2, pose=pose.T.tolist())
  failing(tmp_path, 'last row of pose 2 must be 0 0 0 1.*transposed')
  edit_frame(tmp_path, 2, pose=[[1, 2], [3, 4]])
  failing(tmp_path, 'frame 3: "pose" must be 4 rows of 4 numbers')
  edit_frame(tmp_path, 2, pose=pose.tolist(), K=K.T.tolist())
  failing(tmp_path, 'K of frame 2 must be')
  edit_frame(tmp_path, 2, K=K.tolist(), name='2')
  failing(tmp_path, 'names a frame twice|does not name')


def test_a_pose_that_is_unknown_spoils_its_frame_only(tmp_path, truth):
  form.write_images(tmp_path / 'a', truth, WORLD, pose='cam_from_world', axes='opengl')
  edit_frame(tmp_path, 2, pose=None)
  recording = only(tmp_path)
  recording.read([0, 1])
  recording.read([3, 4])
  with pytest.raises(DataError, match='frame 2: the camera pose is missing'):
    recording.frame(2)


def test_files_of_a_folder_that_are_missing_or_damaged(tmp_path, truth):
  form.write_images(tmp_path / 'a', truth, WORLD)
  depth, rgb = tmp_path / 'a' / 'depth' / '3.png', tmp_path / 'a' / 'rgb' / '2.png'
  stored = depth.read_bytes()
  depth.write_bytes(stored[: len(stored) // 2])
  failing(tmp_path, '3.png is damaged')
  Image.fromarray(truth.rgb[0]).save(depth)
  failing(tmp_path, '3.png is an image of mode RGB; expected 16-bit')
  depth.unlink()
  assert 'depth/3.png' in failing(tmp_path, 'does not exist')
  only(tmp_path).read([0, 1, 3, 4])
  depth.write_bytes(stored)
  Image.fromarray(truth.rgb[0].swapaxes(0, 1)).save(rgb)
  failing(tmp_path, '2.png is 64x48 .* its depth 48x64')
  rgb.unlink()
  assert 'rgb/2.png' in failing(tmp_path, 'does not exist')


def test_images_that_the_list_leaves_out(tmp_path, truth):
  form.write_images(tmp_path / 'a', truth, WORLD)
  Image.fromarray(truth.rgb[0]).save(tmp_path / 'a' / 'rgb' / '10.png')
  failing(tmp_path, 'does not name 10 of rgb/')


@pytest.mark.parametrize('name', ['../outside', '/outside', '', '..', 3])
def test_names_in_the_list_lead_nowhere_else(tmp_path, truth, name):
  form.write_images(tmp_path / 'a', truth, WORLD)
  edit_frame(tmp_path, 0, name=name)
  failing(tmp_path, 'frame 0 needs a "name"|does not name 1')


def test_two_files_for_one_frame(tmp_path, truth):
  form.write_images(tmp_path / 'a', truth, WORLD)
  np.save(tmp_path / 'a' / 'depth' / '2.npy', truth.depth[1])
  failing(tmp_path, '2.npy and 2.png')


@pytest.mark.parametrize('content, words', [('{"fps": ', 'no JSON'), ('[1]', 'expected an object'), ('', 'no JSON')])
def test_a_list_that_is_damaged(tmp_path, truth, content, words):
  form.write_images(tmp_path / 'a', truth, WORLD)
  (tmp_path / 'a' / 'cameras.json').write_text(content)
  failing(tmp_path, words)
  (tmp_path / 'a' / 'cameras.json').unlink()
  failing(tmp_path, 'cameras.json does not exist')


def test_larger_images_are_averaged_down_to_the_depth(tmp_path, truth):
  form.write_images(tmp_path / 'a', truth, WORLD)
  dots = np.zeros((144, 192, 3), np.uint8)
  dots[1::3, 1::3] = 252  # one of nine: a nearest pixel would be 0 or 252
  for path in (tmp_path / 'a' / 'rgb').iterdir():
    Image.fromarray(dots).save(path)
  seen = only(tmp_path).frame(0).rgb
  assert seen.shape == (*SIZE, 3) and np.abs(seen[4:-4, 4:-4].astype(int) - 28).max() <= 2


# -- Video ------------------------------------------------------------------------------------------------------------


def test_frames_of_the_video_are_those_that_it_names(tmp_path, truth):
  form.write_video(tmp_path / 'a', truth, WORLD, step=7)
  recording = only(tmp_path)
  assert recording.fps == pytest.approx(16) and recording.numbers == tuple(range(0, 7 * FRAMES, 7))
  check(recording, truth, rtol=0)
  for i in (4, 0, 2, 1, 3, 3):
    frame = recording.frame(i)
    np.testing.assert_array_equal(frame.rgb, truth.rgb[i])
    np.testing.assert_array_equal(frame.depth, truth.depth[i])


def test_masks_and_texts_of_a_video(tmp_path, truth):
  confidence = np.random.default_rng(0).uniform(0, 1, truth.depth.shape).astype(np.float32)
  form.write_video(
    tmp_path / 'a', truth, WORLD, dynamic=truth.dynamic, valid=np.uint8(truth.dynamic), confidence=confidence,
    confidence_at_least=0.25, metric=True, licence='mine', scene='kitchen', fps='8.0',
  )  # fmt: skip
  recording = only(tmp_path)
  read = recording.read(range(FRAMES))
  assert truth.dynamic.any()
  np.testing.assert_array_equal(read.dynamic, truth.dynamic)
  np.testing.assert_array_equal(read.sky, truth.sky)
  np.testing.assert_array_equal(read.valid, truth.dynamic & (confidence >= 0.25))
  assert (recording.licence, recording.scene, recording.metric, recording.fps) == ('mine', 'kitchen', True, 8)


def test_a_video_larger_than_its_depth(tmp_path, truth):
  form.write_video(tmp_path / 'a', truth, WORLD)
  films.write(tmp_path / 'a.mp4', np.repeat(np.repeat(truth.rgb, 2, axis=1), 2, axis=2))
  seen = only(tmp_path).read(range(FRAMES)).rgb
  assert seen.shape == truth.rgb.shape
  assert np.abs(seen.astype(int) - truth.rgb).mean() < 3


@pytest.mark.parametrize(
  'arrays, words',
  [
    ({'frames': None}, 'a.npz has no array frames; it holds K, caption'),
    ({'K': None}, 'has no array K'),
    ({'depth': None}, 'has no array depth'),
    ({'frames': np.array([0, 1, 1, 2, 3])}, 'frames must increase by one and the same step'),
    ({'frames': np.array([0, 1, 2, 3, 9])}, 'frames must be whole numbers from 0 to 4'),
    ({'frames': np.array([-1, 0, 1, 2, 3])}, 'frames must be whole numbers from 0 to 4'),
    ({'frames': np.arange(5.0)}, 'frames must be whole numbers'),
    ({'frames': np.arange(4)}, r'expected K of shape \[4, 3, 3\]'),
    ({'frames': np.array(3)}, 'expected frames'),
    ({'K': np.full((5, 3, 3), 'a')}, 'expected K in numbers'),
    ({'sky': np.zeros((5, 9, 9))}, r'expected sky of shape \[5, 48, 64\]'),
    ({'depth': np.zeros((5, 64, 48), np.float32), 'sky': None}, 'a.mp4 is 48x64 .* its depth 64x48'),
    ({'confidence': np.zeros((5, 48, 64))}, 'lacks confidence_at_least'),
    ({'fps': 'fast'}, "fps must be one number, got 'fast'"),
    ({'fps': -1.0}, 'fps, a positive number'),
    ({'metric': 'no'}, 'metric must be true or false'),
    ({'caption': np.array(['a', 'b'])}, 'caption must be one value'),
    ({'provenance': np.array({'a': 1}, object)}, 'provenance is damaged .*allow_pickle'),
    ({'K': np.array([None] * 5)}, 'K is damaged .*allow_pickle'),
    ({'depth': np.full((5, 48, 64), None)}, 'depth is damaged .*object'),
  ],
)
def test_geometry_that_does_not_fit(tmp_path, truth, arrays, words):
  form.write_video(tmp_path / 'a', truth, WORLD, **arrays)
  failing(tmp_path, words)


def test_poses_that_are_unknown_or_none(tmp_path, truth):
  poses = truth.world_from_cam.astype(np.float64)
  poses[1] = np.nan
  poses[2, :3] *= 2
  form.write_video(tmp_path / 'a', truth, WORLD, world_from_cam=poses)
  recording = only(tmp_path)
  recording.read([3, 4])
  for i, words in ((1, 'missing'), (2, 'no rotation')):
    with pytest.raises(DataError, match=words):
      recording.frame(i)


def test_files_of_a_video_that_are_missing_or_damaged(tmp_path, truth):
  form.write_video(tmp_path / 'a', truth, WORLD)
  film, stored = (tmp_path / f'a{suffix}' for suffix in ('.mp4', '.npz'))
  whole = stored.read_bytes()
  stored.write_bytes(whole[: len(whole) // 2])
  failing(tmp_path, 'a.npz is damaged or no .npz')
  stored.write_bytes(b'')
  failing(tmp_path, 'a.npz is damaged or no .npz')
  stored.write_bytes(whole)
  film.unlink()
  failing(tmp_path, 'has no video a.mp4 beside it')
  film.write_bytes(b'no video')
  failing(tmp_path, 'FFmpeg cannot read it|is neither')


def test_damage_inside_of_an_array_is_found_when_it_is_read(tmp_path, truth):
  form.write_video(tmp_path / 'a', truth, WORLD)
  stored = tmp_path / 'a.npz'
  data = bytearray(stored.read_bytes())
  middle = data.index(b'depth.npy') + 3000
  data[middle : middle + 200] = bytes(200)
  stored.write_bytes(data)
  failing(tmp_path, r'array depth\[\d\] is damaged')


# -- Whole roots ------------------------------------------------------------------------------------------------------


def test_a_root_without_recordings(tmp_path):
  with pytest.raises(DataError, match=r'holds no recording; expected folders with rgb/, depth/ and cameras\.json'):
    generic.find(tmp_path)
  with pytest.raises(DataError, match='does not exist'):
    generic.find(tmp_path / 'nowhere')


def test_two_recordings_of_one_name(tmp_path, truth):
  form.write_images(tmp_path / 'a', truth, WORLD)
  form.write_video(tmp_path / 'a', truth, WORLD)
  with pytest.raises(DataError, match='two recordings are called a'):
    generic.find(tmp_path)


def test_a_scene_of_unknown_scale(tmp_path, truth):
  form.write_scene(tmp_path / 'a', truth, WORLD, scale=1.0)
  with np.load(tmp_path / 'a' / 'scene.npz') as stored:
    arrays = dict(stored)
  np.savez(tmp_path / 'a' / 'scene.npz', **arrays | {'scale': np.float32(np.nan)})
  recording = only(tmp_path)
  assert not recording.metric
  check(recording, truth, rtol=0, cameras=3e-6)
  (tmp_path / 'a' / 'run.json').write_text('{}')
  failing(tmp_path, 'run.json does not tell fps.in_time')
