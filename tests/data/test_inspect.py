import dataclasses
import json

import numpy as np
import pytest

from one4d_jax.data import codec, example, inspect, prepared, render, shards
from one4d_jax.errors import DataError
from one4d_jax.viewer import scene as scenes
from tests.data.test_shards import safetensors_of

CLIPS = [render.clip(i, frames=5, height=32, width=48, supersample=1) for i in range(3)]
META = {
  'source': 'proc',
  'licence': ['free to use'],
  'problems': [f'problem {i}' for i in range(20)],
  'curation': {'quality': 92, 'limits': {'motion': 0.5}},
  'unverified': ['a long sentence ' * 30],
}
BFLOAT = b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'


@pytest.fixture(scope='module')
def out(tmp_path_factory):
  out = tmp_path_factory.mktemp('out')
  rows, paths = [], {}
  for split, numbers in {'train': (0, 1), 'dropped': (2,)}.items():
    paths[split] = [out / split]
    shards.write_file(out / split, [prepared.serialise(codec.encode(CLIPS[i], quality=92)) for i in numbers])
    for i in numbers:
      reasons = {'motion': 'motion 0 is under 0.5'} if split == 'dropped' else {}
      row = {
        'id': CLIPS[i].meta['id'],
        'split': split,
        'scene': f'room {i % 2}',
        'size': [5, 32, 48],
        'caption': f'c{i}',
      }
      rows.append(row | {'statistics': {'motion': 1.5 * i, 'hash': 'ff', 'none': None}, 'reasons': reasons})
  prepared.finish(out / 'proc' / '1.0.0', name='proc', shards=paths, rows=rows, meta=META)
  shards.write(
    out / 'encoded' / 'train-5x32x48',
    [{'z': np.zeros((2, 2, 4), np.float16), 'ids': np.zeros(n, np.int32), 'id': 'x'} for n in (3, 4)],
    meta={'kind': 'latents', 'vae': 'abc'},
  )
  return out


def test_a_prepared_set(out):
  text = inspect.describe(out / 'proc' / '1.0.0')
  for line in (
    'prepared clips, proc 1.0.0',
    'train: 2 clips, 1 file, 0.1 MB',
    'dropped: 1 clips, 1 file',
    '5x32x48: 3',
    'room 0: 2',
    'dropped for\n  motion: 1',
    'motion: 0 0.15 1.5 2.85 3',
    'world_from_cam: float32 [n 4 4]',
    'caption: text',
    "licence: ['free to use']",
    'curation\n    quality: 92\n    limits\n      motion: 0.5',
    'and 12 more',
  ):
    assert line in text, line
  assert 'hash' not in text and 'none' not in text
  assert max(map(len, text.splitlines())) < 220


def test_a_set_of_latents(out):
  text = inspect.describe(out / 'encoded' / 'train-5x32x48')
  assert '2 records, 1 file' in text
  assert 'z: float16 [2 2 4]' in text and 'ids: int32 [n]' in text and 'id: text' in text
  assert 'about\n  kind: latents\n  vae: abc' in text


def test_a_folder_of_sets(out):
  whole = inspect.describe(out)
  assert whole.split('\n\n') == [
    inspect.describe(out / 'encoded' / 'train-5x32x48'),
    inspect.describe(out / 'proc' / '1.0.0'),
  ]
  assert inspect.describe(out / 'proc') == inspect.describe(out / 'proc' / '1.0.0')
  (out / 'proc' / '.1.1.0.partial').mkdir()
  (out / 'proc' / '.1.1.0.partial' / 'checksums.json').write_text('{}')
  assert inspect.describe(out) == whole


def test_one_file(out, tmp_path):
  path = out / 'train'
  text = inspect.describe(path)
  assert '2 records' in text and shards.facts(path)['sha256'] in text
  assert f'id: {CLIPS[0].meta["id"]}' in text and 'size: int32 [3]' in text and 'K: float32 [5 3 3]' in text
  text = inspect.describe(out / 'encoded' / 'train-5x32x48' / 'data-00000.array_record')
  assert 'z: float16 [2 2 4]' in text and 'ids: int32 [3]' in text and 'id: x' in text
  for name, payload, expected in (
    ('other', example.pack({'image': b'abc'}), 'image: uint8 [3]'),
    ('bytes', b'\xff' * 40, 'payload: uint8 [40]'),
    ('bfloat', safetensors_of(BFLOAT, bytes(2)), f'payload: uint8 [{8 + len(BFLOAT) + 2}]'),
  ):
    shards.write_file(tmp_path / name, [payload])
    assert expected in inspect.describe(tmp_path / name)
  shards.write_file(tmp_path / 'empty', [])
  assert '0 records' in inspect.describe(tmp_path / 'empty')


def test_nothing_to_describe(tmp_path):
  for path in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(DataError, match='holds no data set'):
      inspect.describe(path)
  (tmp_path / 'text').write_text('hello')
  with pytest.raises(DataError, match='text cannot be read as ArrayRecord'):
    inspect.describe(tmp_path / 'text')


def test_a_clip_as_a_scene(out):
  scene = inspect.scene_of(inspect.clip_of(out / 'proc' / '1.0.0', 1))
  clip = CLIPS[1]
  np.testing.assert_array_equal(scene.valid, clip.valid)
  np.testing.assert_allclose(scene.depth, clip.depth, rtol=1e-4)
  np.testing.assert_allclose(scene.world_from_cam[0], np.eye(4), atol=1e-6)
  assert scene.observed.all() and np.isnan(scene.scale)
  # A point of the map lies on the ray of its pixel, at its depth, seen from its own camera.
  f, v, u = (index[-1] for index in np.nonzero(clip.valid))
  x, y, z, _ = np.linalg.inv(scene.world_from_cam[f].astype(np.float64)) @ [*scene.pointmap[f, v, u], 1]
  K = clip.K[f]
  np.testing.assert_allclose(
    [K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2], z], [u + 0.5, v + 0.5, clip.depth[f, v, u]], rtol=1e-4
  )
  np.testing.assert_array_equal(inspect.clip_of(out / 'train', 1).rgb, scene.rgb)
  assert inspect.clip_of(out / 'proc' / '1.0.0', 0, 'dropped').meta == CLIPS[2].meta


def test_metres_are_told():
  assert inspect.scene_of(dataclasses.replace(CLIPS[0], meta={'metric': True})).scale == 1


@pytest.mark.parametrize('index', [2, -1])
def test_clips_that_are_not_there(out, index):
  for path in (out / 'proc' / '1.0.0', out / 'train'):
    with pytest.raises(DataError, match=f'has no clip {index}; choose from 0 to 1'):
      inspect.clip_of(path, index)
  with pytest.raises(DataError, match='give the prepared set'):
    inspect.clip_of(out / 'encoded' / 'train-5x32x48', 0)


def test_a_scene_folder(out, tmp_path):
  written = inspect.write_scene(out / 'proc' / '1.0.0', 0, tmp_path / 'scene', split='dropped')
  assert all(path.exists() for path in written)
  found = scenes.load(tmp_path / 'scene')
  np.testing.assert_array_equal(found.valid, CLIPS[2].valid)
  run = json.loads((tmp_path / 'scene' / 'run.json').read_text())
  assert run['caption'] == 'c2' and run['split'] == 'dropped' and run['clip']['id'] == CLIPS[2].meta['id']
  with pytest.raises(DataError, match='already holds a scene'):
    inspect.write_scene(out / 'proc' / '1.0.0', 0, tmp_path / 'scene')
  inspect.write_scene(out / 'proc' / '1.0.0', 0, tmp_path / 'scene', overwrite=True)
