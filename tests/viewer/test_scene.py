"""A scene survives the disk; what is not a scene is named."""

import dataclasses

import numpy as np
import pytest

from one4d_jax.errors import DataError, ShapeError
from one4d_jax.viewer import scene as scenes
from one4d_jax.viewer.scene import Scene
from tests.viewer.scenes import small_scene


def test_save_and_load_return_the_same_arrays(tmp_path):
  scene = dataclasses.replace(small_scene(), scale=np.float32(2.5))
  scene.save(tmp_path)
  for back in (scenes.load(tmp_path), scenes.load(tmp_path / 'scene.npz')):
    for field in dataclasses.fields(scene):
      want, got = getattr(scene, field.name), getattr(back, field.name)
      assert got.dtype == want.dtype and np.array_equal(got, want), field.name


def test_types_are_those_of_the_format(tmp_path):
  scene = small_scene()
  with np.load(scene.save(tmp_path), allow_pickle=False) as stored:
    kinds = {name: stored[name].dtype.str[1:] for name in stored.files}
  assert kinds == {
    'rgb': 'u1', 'pointmap': 'f4', 'depth': 'f4', 'valid': 'b1', 'K': 'f4', 'world_from_cam': 'f4',
    'observed': 'b1', 'residual': 'f4', 'scale': 'f4',
  }  # fmt: skip
  assert np.isnan(scene.scale) and (scene.frames, scene.size) == (5, (24, 32))


@pytest.mark.parametrize('name', ['rgb', 'pointmap', 'depth', 'valid', 'K', 'world_from_cam', 'observed', 'residual'])
def test_shapes_must_agree(name):
  scene = small_scene()
  with pytest.raises(ShapeError, match='expected shape'):
    dataclasses.replace(scene, **{name: getattr(scene, name)[:-1]})


def test_what_is_not_a_scene_is_a_data_error(tmp_path):
  scene = small_scene()
  arrays = {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene)}
  lost = scene.world_from_cam.copy()
  lost[3, 0, 3] = np.nan
  cases = {'lacks depth': {k: v for k, v in arrays.items() if k != 'depth'}}
  cases['inconsistent'] = arrays | {'K': scene.K[:2]}
  cases['cannot be read'] = arrays | {'K': np.array([{'a': 1}], dtype=object)}  # would need pickle
  cases['rgb holds float64 where a scene has uint8'] = arrays | {'rgb': scene.rgb / 255}
  cases['rgb holds int32'] = arrays | {'rgb': scene.rgb.astype(np.int32)}
  cases['valid holds float32'] = arrays | {'valid': scene.depth}
  cases['K holds complex64'] = arrays | {'K': scene.K.astype(np.complex64)}
  cases['frame 3 .* not finite'] = arrays | {'world_from_cam': lost}
  cases['frame 0 .* no focal length'] = arrays | {'K': 0 * scene.K}
  for words, stored in cases.items():
    np.savez(tmp_path / 'scene.npz', **stored)
    with pytest.raises(DataError, match=words):
      scenes.load(tmp_path)
  for data in (b'', b'not a zip', (tmp_path / 'scene.npz').read_bytes()[:500]):
    (tmp_path / 'scene.npz').write_bytes(data)
    with pytest.raises(DataError, match='cannot be read'):
      scenes.load(tmp_path)
  with pytest.raises(DataError, match='does not exist'):
    scenes.load(tmp_path / 'nowhere')


def test_the_public_class_reads_too(tmp_path):
  np.testing.assert_array_equal(Scene.load(small_scene().save(tmp_path)).rgb, small_scene().rgb)


def test_other_floats_are_taken(tmp_path):
  scene = small_scene()
  arrays = {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene)}
  np.savez(
    tmp_path / 'scene.npz', **arrays | {'K': scene.K.astype(np.float64), 'depth': scene.depth.astype(np.float16)}
  )
  back = scenes.load(tmp_path)
  np.testing.assert_array_equal(back.K, scene.K)
  np.testing.assert_allclose(back.depth, scene.depth, rtol=1e-3)


def test_damage_anywhere_is_one_error_or_harmless(tmp_path):
  path = small_scene(frames=2).save(tmp_path)
  whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
  for place in rng.integers(len(whole), size=300):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
    try:
      scenes.load(tmp_path)
    except DataError as error:
      assert str(path) in str(error)
      refused += 1
  assert refused > 200
  for size in range(0, len(whole), len(whole) // 50):
    path.write_bytes(whole[:size])
    with pytest.raises(DataError, match='cannot be read'):
      scenes.load(tmp_path)


def test_metric_lengths():
  scene = small_scene()
  assert scene.metric() is scene and 'relative' in scene.unit
  scene = dataclasses.replace(scene, scale=2.5)
  metric = scene.metric()
  assert metric.scale == 1 and metric.unit == '1 metre' and metric.metric() is metric
  for name in ('pointmap', 'depth', 'residual'):
    np.testing.assert_array_equal(getattr(metric, name), getattr(scene, name) * np.float32(2.5))
  np.testing.assert_array_equal(metric.world_from_cam[:, :3, 3], scene.world_from_cam[:, :3, 3] * np.float32(2.5))
  for name in ('K', 'rgb', 'valid', 'observed'):
    assert np.array_equal(getattr(metric, name), getattr(scene, name))
  assert np.array_equal(metric.world_from_cam[:, :, :3], scene.world_from_cam[:, :, :3])
  assert (metric.world_from_cam[:, 3] == [0, 0, 0, 1]).all()
