"""Metres from what a user knows."""

import dataclasses

import numpy as np
import pytest

from one4d_jax.errors import UserError
from one4d_jax.viewer import metric
from tests.viewer.scenes import small_scene


def in_metres(texts, scene=None):
  return metric.apply(scene or small_scene(), metric.parse(texts))


def test_every_measure_gives_the_scale_that_makes_it_true():
  scene = small_scene()
  far = np.linalg.norm(scene.world_from_cam[4, :3, 3] - scene.world_from_cam[1, :3, 3])
  corner, other = scene.pointmap[2, 20, 3], scene.pointmap[2, 8, 29]
  for text, length in [
    (f'baseline=1,4:{3 * far}', far),
    (f'distance=2:3,20:29,8:{3 * np.linalg.norm(corner - other)}', None),
    (f'depth=2:3,20:{3 * scene.depth[2, 20, 3]}', None),
  ]:
    found, record, notes = in_metres([text])
    assert found.scale == pytest.approx(3, rel=0.02), text  # depth is the median of 3 x 3 pixels
    assert list(record) == [text] and not notes and (length is None or found.scale == pytest.approx(3, rel=1e-5))
    np.testing.assert_array_equal(found.depth, scene.depth)


def test_several_measures_give_their_median_and_say_when_they_disagree():
  scene = small_scene()
  depth = float(scene.depth[0, 12, 16])
  texts = [f'depth=0:16,12:{factor * depth}' for factor in (2.0, 2.02, 5.0)]
  found, record, notes = in_metres(texts)
  assert found.scale == pytest.approx(2.02, rel=0.01) and len(record) == 3
  assert len(notes) == 1 and 'disagree' in notes[0]
  assert not in_metres(texts[:2])[2]


def test_what_cannot_be_measured_leaves_the_scale_alone():
  still = dataclasses.replace(small_scene(), world_from_cam=np.tile(np.eye(4), (5, 1, 1)))
  for texts, scene, words in [
    (['baseline=0,4:1'], still, 'does not move'),
    (['depth=0:5,1:2'], small_scene(), 'shows no surface'),
  ]:
    found, record, notes = in_metres(texts, scene)
    assert np.isnan(found.scale) and not record and words in notes[0] and 'keeps its scale' in notes[0]
  found, record, notes = in_metres(['depth=0:5,1:2', f'depth=0:16,12:{2 * small_scene().depth[0, 12, 16]}'])
  assert found.scale == pytest.approx(2, rel=0.02) and len(record) == len(notes) == 1
  assert 'keeps its scale' not in notes[0], 'another measure sets it'


def test_a_focal_length_is_that_of_the_input():
  policy = {'source': {'size': [1920, 1080]}, 'size': [624, 352], 'crop': [0, 0, 1914.5, 1080]}
  assert metric.known_focal(metric.parse(['focal=1500']), policy) == pytest.approx(1500 * 624 / 1914.5)
  wide = metric.known_focal(metric.parse(['focal=26mm']), policy)
  assert wide == pytest.approx(26 / 43.2666 * np.hypot(1920, 1080) * 624 / 1914.5, rel=1e-5)
  assert metric.known_focal([], policy) == 0
  with pytest.raises(UserError, match='add --input'):
    metric.known_focal(metric.parse(['focal=1500']), {'source': None, 'size': [64, 64]})
  scene, record, _ = in_metres(['focal=1500'])
  assert np.isnan(scene.scale) and record['focal=1500'] == pytest.approx(scene.K[0, 0, 0])


@pytest.mark.parametrize('text', [
  'focal', 'focal=', 'focal=0', 'focal=-3', 'focal=nan', 'focal=1e999', 'focal=26cm', 'baseline=0:1', 'baseline=0,1:x',
  'baseline=2,2:1', 'baseline=0,1:0', 'distance=0:1,2:3', 'distance=0:1,2:1,2:3', 'depth=0:1:2', 'depth=-1:1,1:2',
  'height=3', '', '=1', 'depth=0:1,1:2m',
])  # fmt: skip
def test_mistakes_are_named(text):
  with pytest.raises(UserError, match='--metric'):
    metric.parse([text])


def test_frames_and_pixels_must_exist():
  for text, words in [
    ('baseline=0,5:1', 'frame 5 is out of range, the scene has frames 0 to 4'),
    ('depth=0:32,0:1', 'pixel 32,0 is out of range, the scene has 32 columns and 24 rows'),
    ('distance=0:0,0:0,24:1', 'pixel 0,24'),
  ]:
    with pytest.raises(UserError, match=words):
      metric.check(metric.parse([text]), frames=5, height=24, width=32)
  metric.check(metric.parse(['depth=4:31,23:1', 'focal=3']), frames=5, height=24, width=32)
  with pytest.raises(UserError, match='two focal'):
    metric.parse(['focal=1', 'focal=2'])
