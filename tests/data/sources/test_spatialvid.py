import dataclasses
import io
import json
import pickle
import zipfile
from fractions import Fraction

import numpy as np
import pytest

from one4d_jax.data.sources import spatialvid
from one4d_jax.errors import DataError
from tests.data.sources import readback
from tests.data.sources.formats import films, generic
from tests.data.sources.formats import spatialvid as form

FRAMES, SIZE, SEED = 6, (41, 73), 3
HALF = 2.0**-11  # of a half float's own value: as far as rounding goes


@pytest.fixture
def written(tmp_path):
  """(root, {kind: path of the only video's}, truth)."""
  ((name, truth),) = form.write(tmp_path, frames=FRAMES, size=SIZE, seed=SEED).items()
  paths = {kind: tmp_path / kind / name for kind in ('annotations', 'videos', 'depths')}
  paths = {kind: p if kind == 'annotations' else next(p.parent.iterdir()) for kind, p in paths.items()}
  return tmp_path, paths, truth


def only(root):
  (found,) = spatialvid.find(root)
  return found.open()


def failing(root, match):
  with pytest.raises(DataError, match=match) as caught:
    recording = only(root)
    recording.read(range(len(recording)))
  assert '\n' not in str(caught.value) and str(root) in str(caught.value)


def test_reads_what_was_written(tmp_path):
  truth = form.write(tmp_path, recordings=3, frames=FRAMES, size=SIZE, seed=SEED)
  listed = spatialvid.find(tmp_path)
  assert [found.name for found in listed] == sorted(truth) and len(listed) == 3
  for found in listed:
    recording, clip = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(found)).open())), truth[found.name]
    assert (recording.source, recording.scene, recording.name) == ('spatialvid', found.name.split('/')[1], found.name)
    assert recording.fps == pytest.approx(5) and recording.numbers == tuple(range(0, 5 * FRAMES, 5))
    assert recording.size == SIZE and not recording.metric and recording.provenance == 'pseudo:megasam'
    assert 'NC' in recording.licence and recording.unverified
    assert readback.pose_error(recording, clip) < 1e-6
    np.testing.assert_allclose(recording.K, clip.K, rtol=1e-6)
    assert recording.K[0, 0, 2] == SIZE[1] / 2 and recording.K[0, 1, 2] == SIZE[0] / 2
    read = recording.read(range(FRAMES))
    for name in ('rgb', 'valid', 'dynamic'):
      np.testing.assert_array_equal(getattr(read, name), getattr(clip, name), err_msg=name)
    np.testing.assert_allclose(read.depth, clip.depth, rtol=1.01 * HALF, atol=0)
    assert read.caption == f'{clip.caption} The camera wanders.'
  assert any(clip.dynamic.any() for clip in truth.values()) and any(clip.sky.any() for clip in truth.values())


def test_cameras_fit_the_depth(written):
  root, _, truth = written
  read = only(root).read(range(FRAMES))
  right = readback.agreement(truth)
  assert readback.agreement(read) > 0.85 * right
  assert readback.agreement(dataclasses.replace(read, world_from_cam=np.linalg.inv(read.world_from_cam))) < 0.6 * right


def test_frames_in_any_order(written):
  root, _, truth = written
  recording = only(root)
  for i in (5, 0, 3, 2, 2, 4):
    np.testing.assert_array_equal(recording.frame(i).rgb, truth.rgb[i])


def test_a_video_is_averaged_down_to_the_depth(written):
  root, paths, truth = written
  films.write(
    paths['videos'],
    films.between(np.repeat(np.repeat(truth.rgb, 2, axis=1), 2, axis=2), form.STEP),
    fps=Fraction(30000, 1001),
  )
  recording = only(root)
  assert recording.fps == pytest.approx(5.994, abs=1e-3)
  seen = recording.read(range(FRAMES)).rgb
  assert seen.shape == truth.rgb.shape and np.abs(seen.astype(int) - truth.rgb).mean() < 3


def test_depth_out_of_reach_is_not_valid(written):
  root, paths, truth = written
  values = form.inverse(truth, 0)
  values[0, :6] = 0, -1, np.nan, np.inf, 0.001, 2000
  form.write_depths(paths['depths'], [form.exr(values)] * FRAMES)
  frame = only(root).frame(0)
  assert not frame.valid[0, :6].any() and not frame.sky.any()
  np.testing.assert_array_equal(frame.valid[1:], truth.valid[0, 1:])


def test_masks_of_another_size(written):
  root, paths, truth = written
  large = np.repeat(np.repeat(~truth.dynamic, 2, axis=1), 3, axis=2)
  large[:, 1::2, 1::3] = truth.dynamic  # the pixels nearest to the centres of the depth's
  (paths['annotations'] / 'dyn_masks.npz').unlink()
  assert not only(root).read(range(FRAMES)).dynamic.any()
  masks = {'shape': np.array(large.shape[1:])}
  for k, mask in enumerate(large):
    starts = np.concatenate([[0], np.cumsum(mask.sum(1))])
    masks |= {f'f_{k}_data': np.ones(mask.sum()), f'f_{k}_indices': np.nonzero(mask)[1], f'f_{k}_indptr': starts}
  np.savez(paths['annotations'] / 'dyn_masks.npz', **masks)
  np.testing.assert_array_equal(only(root).read(range(FRAMES)).dynamic, truth.dynamic)


@pytest.mark.parametrize(
  'told, caption',
  [
    ({'SceneSummary': 'A.', 'SceneDescription': 'B.', 'OptCamMotion': 'C.', 'CamMotion': 'D.'}, 'A. B. C.'),
    ({'SceneDesc': 'B.', 'CamMotion': 'D.', 'LLM': 'x'}, 'B. D.'),
    ({'SceneSummary': ['A'], 'SceneDescription': ' '}, ''),
    ({'SceneSummary': 'A.', 'SceneDescription': 'A.'}, 'A.'),
    ([], ''),
    (None, ''),
  ],
)
def test_captions(written, told, caption):
  root, paths, _ = written
  path = paths['annotations'] / 'caption.json'
  path.write_text(json.dumps(told))
  assert only(root).caption(range(FRAMES)) == caption
  if told is None:
    path.unlink()
    assert only(root).caption(range(FRAMES)) == ''
    path.write_text('{')
    failing(root, 'caption.json is damaged')


def test_other_geometry_takes_the_place(written):
  root, paths, truth = written
  name = paths['videos'].stem
  other = root / 'geometry' / 'some' / 'where' / name
  other.parent.mkdir(parents=True)
  made = generic.write_video(other, truth, np.eye(4), step=2, caption=None, provenance='pseudo:geo4d')
  other.with_name(name + '.mp4').replace(paths['videos'])
  recording = only(root)
  assert (recording.provenance, recording.source, recording.scene) == ('pseudo:geo4d', 'spatialvid', name)
  assert recording.fps == pytest.approx(16) and recording.numbers == tuple(made['frames'].tolist())
  assert recording.name == f'group_0000/{name}' and 'NC' in recording.licence
  assert recording.caption([0]).endswith('The camera wanders.')
  np.testing.assert_array_equal(recording.read(range(FRAMES)).depth, truth.depth)
  (root / 'geometry' / f'{name}.npz').write_bytes(b'')
  with pytest.raises(DataError, match='has geometry twice'):
    only(root)


# -- Damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_depth_file_spoils_its_frame_only(written):
  root, paths, truth = written
  members = [form.exr(form.inverse(truth, k)) for k in range(FRAMES)]
  for broken in (members[0][:200], b'', b'junk' * 50, exr_of_channel('Y')):
    form.write_depths(paths['depths'], [broken, *members[1:]])
    recording = only(root)
    np.testing.assert_allclose(recording.frame(1).depth, truth.depth[1], rtol=1.01 * HALF)
    with pytest.raises(DataError, match=r'\.zip: 00000\.exr (is damaged|has no channel Z; it holds Y)'):
      recording.frame(0)
  form.write_depths(paths['depths'], [b'junk'] * FRAMES)
  failing(root, r'00005\.exr is damaged')


def exr_of_channel(name):
  import OpenEXR

  buffer = io.BytesIO()
  OpenEXR.File({'type': OpenEXR.scanlineimage}, {name: np.ones(SIZE, np.float16)}).write(buffer)
  return buffer.getvalue()


def test_bits_that_flipped_in_the_zip(written):
  root, paths, _ = written
  data = bytearray(paths['depths'].read_bytes())
  at = data.index(b'00002.exr') + 600
  data[at] ^= 0xFF
  paths['depths'].write_bytes(data)
  failing(root, r'00002\.exr is damaged: Bad CRC')


def test_depth_of_another_size(written):
  root, paths, truth = written
  members = [form.exr(form.inverse(truth, k)) for k in range(FRAMES)]
  members[3] = form.exr(np.ones((41, 70), np.float16))
  form.write_depths(paths['depths'], members)
  with pytest.raises(DataError, match=r'frame 15: .* is 41x70 .* 41x73'):
    only(root).read(range(FRAMES))


def test_names_in_the_zip_lead_nowhere(written):
  root, paths, truth = written
  with zipfile.ZipFile(paths['depths'], 'w') as archive:
    for k in range(FRAMES):
      archive.writestr(f'../../../{k}.exr', form.exr(form.inverse(truth, k)))
  before = sorted(root.parent.rglob('*'))
  only(root).read(range(FRAMES))
  assert sorted(root.parent.rglob('*')) == before


@pytest.mark.parametrize('kind', ['depths', 'videos'])
def test_a_file_that_is_cut_or_not_there(written, kind):
  root, paths, _ = written
  path = paths[kind]
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  failing(root, path.name)
  if kind == 'depths':
    path.unlink()
    failing(root, f'{path.name} does not exist')


@pytest.mark.parametrize('name', ['poses.npy', 'intrinsics.npy', 'indexes.txt', 'dyn_masks.npz'])
def test_an_annotation_that_is_cut_or_not_there(written, name):
  root, paths, _ = written
  path = paths['annotations'] / name
  data = path.read_bytes()
  path.write_bytes(data[:-10])
  failing(root, name)
  path.unlink()
  if name == 'dyn_masks.npz':
    only(root).frame(0)
  else:
    failing(root, f'{name} does not exist')


@pytest.mark.parametrize(
  'name, value, words',
  [
    ('poses.npy', np.zeros((FRAMES - 1, 7)), 'counts of frames differ: indexes.txt 6, poses.npy 5, intrinsics.npy 6, '),
    ('poses.npy', np.zeros((FRAMES, 6)), r'poses.npy: expected numbers \[N 7\]'),
    ('poses.npy', np.full((FRAMES, 7), None), 'poses.npy is damaged .*allow_pickle'),
    ('intrinsics.npy', np.zeros((FRAMES, 4)), 'intrinsics are not positive'),
  ],
)
def test_arrays_that_do_not_fit(written, name, value, words):
  root, paths, _ = written
  np.save(paths['annotations'] / name, value)
  with pytest.raises(DataError, match=words):
    only(root).read(range(FRAMES))


@pytest.mark.parametrize(
  'text, words',
  [
    ('', 'indexes.txt is empty'),
    ('0 0\n1 5\n2 10\n', 'counts of frames differ: indexes.txt 3'),
    ('0 0\n1 5\n2 x\n', r'indexes.txt, line 3: expected "2 FRAME"'),
    ('0 0\n2 5\n', r'indexes.txt, line 2: expected "1 FRAME"'),
    (''.join(f'{k} {k * k}\n' for k in range(FRAMES)), 'increase by one and the same step'),
    (''.join(f'{k} {k * 50}\n' for k in range(FRAMES)), 'indexes.txt names frame 250; .* has 30 frames'),
  ],
)
def test_indexes_that_do_not_fit(written, text, words):
  root, paths, _ = written
  (paths['annotations'] / 'indexes.txt').write_text(text)
  failing(root, words)


def test_indexes_with_a_heading(written):
  root, paths, _ = written
  path = paths['annotations'] / 'indexes.txt'
  path.write_text('index frame\n' + path.read_text())
  assert only(root).numbers == tuple(range(0, 30, 5))


@pytest.mark.parametrize('row', [[np.nan] * 7, [0] * 7])
def test_a_pose_that_is_missing_spoils_its_frame_only(written, row):
  root, paths, _ = written
  poses = np.load(paths['annotations'] / 'poses.npy')
  poses[2] = row
  np.save(paths['annotations'] / 'poses.npy', poses)
  recording = only(root)
  recording.read([3, 4, 5])
  with pytest.raises(DataError, match='frame 10: the camera pose is missing'):
    recording.frame(2)


@pytest.mark.parametrize(
  'part, value',
  [
    ('indices', np.array([10**6])),
    ('indptr', np.array([0, 5])),
    ('indptr', np.full(SIZE[0] + 1, -1)),
    ('data', np.ones(999)),
  ],
)
def test_masks_that_do_not_fit(written, part, value):
  root, paths, truth = written
  i = int(truth.dynamic.any((1, 2)).argmax())
  path = paths['annotations'] / 'dyn_masks.npz'
  with np.load(path) as stored:
    arrays = dict(stored)
  if part == 'indices':
    value = np.full_like(arrays[f'f_{i}_indices'], value[0])
  np.savez(path, **arrays | {f'f_{i}_{part}': value})
  failing(root, f'dyn_masks.npz: (arrays of mask {i} do not fit|mask {i} has pixels outside)')


def test_a_root_without_videos(tmp_path):
  with pytest.raises(DataError, match=r'no video of SpatialVID; expected videos/GROUP/ID\.mp4'):
    spatialvid.find(tmp_path)
  with pytest.raises(DataError, match='does not exist'):
    spatialvid.find(tmp_path / 'nowhere')
