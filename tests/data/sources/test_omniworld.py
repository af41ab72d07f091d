import json
import pickle

import numpy as np
import pytest
from PIL import Image

from one4d_jax.data.sources import annotations, omniworld
from one4d_jax.data.sources.recording import cuts
from one4d_jax.errors import DataError
from tests.data.sources import readback
from tests.data.sources.formats import omniworld as form

SEED, FRAMES = 2, 9


@pytest.fixture
def written(tmp_path):
  """(root, folder of the only scene, truth of its only split)."""
  truth = form.write(tmp_path, frames=FRAMES, seed=SEED)
  return tmp_path, next(tmp_path.iterdir()), next(iter(truth.values()))


def only(root):
  return omniworld.find(root)[0].open()


def change(path, **values):
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_reads_what_was_written(tmp_path):
  truth = form.write(tmp_path, recordings=3, frames=FRAMES, seed=SEED)
  listed = omniworld.find(tmp_path)
  assert [found.name for found in listed] == sorted(truth) and len(truth) == 3
  assert len({found.open().scene for found in listed}) == 2
  for found in listed:
    recording, clip = pickle.loads(pickle.dumps(found)).open(), truth[found.name]
    assert (recording.scene, recording.name) == (found.name.split('/')[0], found.name)
    assert recording.fps == 24 and not recording.metric and 'NC' in recording.licence and recording.unverified
    assert readback.pose_error(recording, clip) < 1e-6
    np.testing.assert_allclose(recording.K, clip.K, rtol=1e-6)
    read = recording.read(range(FRAMES))
    for name in ('rgb', 'valid', 'sky', 'dynamic'):
      np.testing.assert_array_equal(getattr(read, name), getattr(clip, name), err_msg=name)
    assert clip.sky.any() and clip.dynamic.any()
    z = clip.depth[clip.valid].astype(np.float64)
    half_step = 0.5 / 65535 * (1 + 999 * 0.004 * z) ** 2 / (1000 * 0.004)
    assert (np.abs(read.depth[clip.valid] - z) <= 1.01 * half_step + 1e-6 * z).all()
    assert not read.depth[clip.sky].any()


def test_a_pixel_lies_where_the_truth_has_it(written):
  root, _, truth = written
  recording = only(root)
  depth = recording.read(range(FRAMES)).depth
  v, u = np.argwhere(truth.valid.all(axis=0) & (np.abs(truth.depth - truth.depth[0]) < 1).all(axis=0))[0]
  found = readback.points(recording.K, recording.world_from_cam, depth, u, v)
  expected = readback.points(truth.K, truth.world_from_cam, truth.depth, u, v)
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_frames_confirm_each_other_and_no_other_convention_would(written, monkeypatch):
  root, folder, truth = written
  assert readback.agreement(only(root).read(range(FRAMES))) > 0.85
  path = folder / 'camera/split_0.json'
  camera = json.loads(path.read_text())
  change(path, cx=camera['cx'] - 0.5, cy=camera['cy'] - 0.5)
  assert readback.agreement(only(root).read(range(FRAMES))) < 0.5
  change(path, **camera)
  for wrong in (
    {'quats': np.roll(camera['quats'], -1, axis=1).tolist()},
    {'quats': (np.array(camera['quats']) * [1, -1, -1, -1]).tolist()},
  ):
    change(path, **camera | wrong)
    assert readback.pose_error(only(root), truth) > 0.01
  change(path, **camera)
  monkeypatch.setattr(annotations, 'inverse', lambda poses: poses)
  assert readback.pose_error(only(root), truth) > 0.01


def test_depth_curve():
  """Values that the formula in the set's own script gives."""
  near, far = omniworld._DEPTH[99], omniworld._DEPTH[65500]
  np.testing.assert_allclose([near, far], [99 / 65535 / (1000 - 999 * 99 / 65535) * 250, 162.95], rtol=1e-4)
  assert omniworld._DEPTH[98] == omniworld._DEPTH[0] == omniworld._DEPTH[65501] == 0
  assert (np.diff(omniworld._DEPTH[99:65501]) > 0).all()
  assert np.flatnonzero(omniworld._SKY)[0] == 65501


def test_captions_of_windows(written):
  root, folder, truth = written
  (folder / 'text/0_7.json').write_text(json.dumps(['starts', {'before': {'the': ' split '}}]))
  (folder / 'text/500_581.json').write_text('"of another split"')
  recording = only(root)
  assert recording.captions == ((0, 4, 'starts split'), (0, FRAMES, f'{truth.caption} split 0'))
  assert recording.caption(range(2)) == 'starts split'
  assert recording.caption(range(FRAMES)) == f'{truth.caption} split 0'
  for path in (folder / 'text').iterdir():
    path.unlink()
  assert only(root).captions == ()


def test_masks_are_optional(written):
  root, folder, _ = written
  for path in (folder / 'gdino_mask').iterdir():
    path.unlink()
  assert not only(root).frame(0).dynamic.any()


def test_rates_and_lengths_give_clips(tmp_path):
  form.write(tmp_path, frames=34, size=(18, 32))
  (clip,) = readback.clips(omniworld.find(tmp_path))
  assert clip.frames == 33 and clip.meta['numbers'][0] == form.GAP and clip.meta['metric'] is False
  assert cuts(200, 24.0)[0] == range(0, 161, 2)


def test_missing_annotations_spoil_one_frame(written):
  root, folder, _ = written
  path = folder / 'camera/split_0.json'
  camera = json.loads(path.read_text())
  trans, quats = camera['trans'], camera['quats']
  change(path, trans=[[None] * 3, *trans[1:]], quats=[*quats[:4], [0.0] * 4, *quats[5:]])
  recording = only(root)
  assert np.isnan(recording.world_from_cam).all(axis=(1, 2)).tolist() == [i in (0, 4) for i in range(FRAMES)]
  with pytest.raises(DataError, match='frame 7: the camera pose is missing'):
    recording.frame(4)
  recording.frame(1)
  change(path, trans=trans, quats=quats, focals=[None, *camera['focals'][1:]])
  with pytest.raises(DataError, match='frame 3: intrinsics'):
    only(root).frame(0)


def test_focal_lengths_may_change_and_belong_to_their_frames(written):
  root, folder, _ = written
  focals = [100.0 + i for i in range(FRAMES)]
  change(folder / 'camera/split_0.json', focals=focals)
  K = only(root).K
  assert K[:, 0, 0].tolist() == K[:, 1, 1].tolist() == focals


def test_a_frame_that_the_split_leaves_out_keeps_its_place(written):
  root, folder, truth = written
  frames = json.loads((folder / 'split_info.json').read_text())['split'][0]
  camera = json.loads((folder / 'camera/split_0.json').read_text())
  drop = lambda values: values[:3] + values[4:]
  change(folder / 'split_info.json', split=[drop(frames)])
  change(folder / 'camera/split_0.json', **{name: drop(camera[name]) for name in ('focals', 'quats', 'trans')})
  recording = only(root)
  assert recording.numbers == tuple(frames) and np.isnan(recording.world_from_cam[3]).all()
  kept = [i for i in range(FRAMES) if i != 3]
  expected = readback.relative(truth.world_from_cam)[kept]
  np.testing.assert_allclose(readback.relative(recording.world_from_cam[kept]), expected, atol=1e-6)


def test_scenes_known_to_be_broken_are_left_out(written):
  root, folder, _ = written
  folder.rename(root / omniworld.BROKEN[1])
  with pytest.raises(DataError, match=rf'holds no OmniWorld-Game scene.*{omniworld.BROKEN[1]}'):
    omniworld.find(root)
  form.write(root, frames=2, size=(18, 32))
  assert omniworld.BROKEN[1] not in {found.open().scene for found in omniworld.find(root)}


def test_root_may_be_a_scene_or_a_folder_above(written, monkeypatch):
  root, folder, _ = written
  names = {found.name for found in omniworld.find(root)}
  monkeypatch.chdir(folder)
  for place in (folder, root, root.parent, '.'):
    assert {found.name for found in omniworld.find(place)} >= names
  with pytest.raises(DataError, match=r'color holds no OmniWorld-Game scene.*split_info.json'):
    omniworld.find(folder / 'color')


def damage_png(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
  'damage, message',
  [
    (lambda folder: (folder / 'color/000005.png').unlink(), 'color/000005.png does not exist'),
    (lambda folder: (folder / 'depth/000005.png').unlink(), 'depth/000005.png does not exist'),
    (lambda folder: damage_png(folder / 'color/000005.png'), 'color/000005.png is damaged'),
    (lambda folder: damage_png(folder / 'depth/000005.png'), 'depth/000005.png is damaged'),
    (lambda folder: damage_png(folder / 'gdino_mask/000005.png'), 'gdino_mask/000005.png is damaged'),
    (lambda folder: (folder / 'depth/000005.png').write_bytes(b'no image'), 'depth/000005.png is not an image'),
    (lambda folder: Image.new('L', (128, 72)).save(folder / 'depth/000005.png'), '000005.png is an image of mode L'),
    (lambda folder: Image.new('RGB', (64, 36)).save(folder / 'color/000005.png'), 'frame 5: rgb is 36x64'),
    (lambda folder: Image.new('I;16', (64, 36)).save(folder / 'depth/000005.png'), 'frame 5: depth is 36x64'),
  ],
)
def test_a_damaged_frame_is_named(written, damage, message):
  root, folder, _ = written
  recording = only(root)
  damage(folder)
  with pytest.raises(DataError, match=message):
    recording.frame(2)
  recording.frame(1)


def test_a_recording_opens_without_its_first_image(written):
  root, folder, _ = written
  (folder / f'color/{form.GAP:06d}.png').unlink()
  recording = only(root)
  assert recording.size == (72, 128)
  recording.frame(1)
  with pytest.raises(DataError, match=r'000003.png does not exist'):
    recording.frame(0)


@pytest.mark.parametrize(
  'file, text, message',
  [
    ('split_info.json', '{"split": [[3, 4', 'split_info.json is damaged or no JSON'),
    ('split_info.json', '{"split": []}', 'split_info.json has no list of frames for split_0.json'),
    ('split_info.json', '[1]', 'split_info.json has no list of frames'),
    ('split_info.json', '{"split": [[4, 3]]}', 'no rising list of whole numbers'),
    ('split_info.json', '{"split": [[]]}', 'no rising list of whole numbers'),
    ('split_info.json', '{"split": [["a", "b"]]}', 'no rising list of whole numbers'),
    ('split_info.json', '{"split": [[3, 4]]}', 'split_0.json: focals, quats and trans are .* lists 2 frames'),
    ('camera/split_0.json', '{}', "split_0.json: expected numbers .*'focals'"),
    ('camera/split_0.json', '\x00', 'split_0.json is damaged or no JSON'),
    ('camera/split_0.json', None, 'split_0.json does not exist'),
    ('fps.txt', 'fast', "fps.txt holds no frame rate: 'fast'"),
    ('fps.txt', '-1', 'fps.txt holds no frame rate'),
    ('fps.txt', None, 'fps.txt does not exist'),
    ('text/3_12.json', '{', 'text/3_12.json is damaged or no JSON'),
    ('text/all.json', '{}', 'text/all.json: expected START_END.json'),
  ],
)
def test_a_damaged_annotation_is_named(written, file, text, message):
  root, folder, _ = written
  if text is None:
    (folder / file).unlink()
  else:
    (folder / file).write_text(text)
  with pytest.raises(DataError, match=message):
    only(root)
