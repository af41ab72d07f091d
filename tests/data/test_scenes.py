import dataclasses

import numpy as np
import pytest

from one4d_jax.data import scenes, textures
from one4d_jax.errors import DataError, UserError


def kinds(scene):
  walls = scene.walls.textures if scene.walls else ()
  return {texture.kind for texture in (scene.floor, *walls, *(body.texture for body in scene.bodies))}


@pytest.mark.parametrize('level', ['easy', 'medium'])
def test_nothing_held_out_occurs_in_training(level):
  for seed in range(300):
    scene = scenes.sample(seed, level=level, split='train')
    assert scene.held_out == ()
    assert textures.HELD_OUT not in kinds(scene)


def test_what_is_held_out_occurs_in_test_and_is_said():
  sampled = [scenes.sample(seed, level='medium', split='test') for seed in range(300)]
  for scene in sampled:
    assert ('texture' in scene.held_out) == (textures.HELD_OUT in kinds(scene))
  assert {'texture', 'pair'} <= {name for scene in sampled for name in scene.held_out}
  assert 'level' in scenes.sample(0, level='hard', split='val').held_out


def test_splits_share_no_seed():
  starts = sorted(scenes.SPLIT_SEEDS.values())
  assert (np.diff(starts) >= scenes.SEEDS_PER_SPLIT).all()
  first = [scenes.sample(0, level='easy', split=split).sun for split in scenes.SPLIT_SEEDS]
  assert len({tuple(sun) for sun in first}) == len(first)


@pytest.mark.parametrize(
  ('seed', 'level', 'split', 'says'),
  [
    (0, 'harder', 'train', 'easy, medium, hard'),
    (0, 'easy', 'training', 'train, val, test'),
    (-1, 'easy', 'train', '0 .. 99999999'),
    (10**8, 'easy', 'val', '0 .. 99999999'),
    (0, 'hard', 'train', 'held out'),
  ],
)
def test_bad_requests_are_told_the_choices(seed, level, split, says):
  with pytest.raises(DataError, match=says) as error:
    scenes.sample(seed, level=level, split=split)
  assert isinstance(error.value, UserError)


@pytest.mark.parametrize(('level', 'split'), [('easy', 'train'), ('medium', 'train'), ('hard', 'test')])
def test_bodies_stay_apart_above_the_floor_and_in_the_room(level, split):
  times = np.linspace(0, 1, 33)
  for seed in range(40):
    scene = scenes.sample(seed, level=level, split=split)
    assert scene.bodies and len(scene.bodies) <= scenes.LEVELS[level].objects[1]
    eye = scene.camera.poses(times)[:, :3, 3]
    centres = [body.poses(times)[0] for body in scene.bodies]
    for k, (body, centre) in enumerate(zip(scene.bodies, centres, strict=True)):
      assert (centre[:, 1] + body.half[1] < 1e-9).all()  # y is down
      assert (np.linalg.norm(centre - eye, axis=1) > body.radius + scenes.CLEARANCE).all()
      for other, at in zip(scene.bodies[:k], centres, strict=False):
        assert (np.linalg.norm(centre - at, axis=1) > body.radius + other.radius - 0.1).all()
      if scene.walls:
        assert (abs(centre[:, 0]) + body.half.min() < scene.walls.half_width).all()
        assert (centre[:, 2] + body.half.min() < scene.walls.depth).all()
    if scene.walls:
      assert (abs(eye[:, 0]) < scene.walls.half_width).all() and (-eye[:, 1] < scene.walls.height).all()


@pytest.mark.parametrize(
  ('motion', 'axis', 'sign'),
  [
    ('dollies in', 2, 1), ('dollies out', 2, -1), ('trucks right', 0, 1), ('trucks left', 0, -1),
    ('orbits right', 0, 1), ('orbits left', 0, -1),
  ],
)  # fmt: skip
def test_camera_goes_where_its_name_says(motion, axis, sign):
  camera = dataclasses.replace(scenes.sample(0, level='easy').camera, motion=motion)
  pose = camera.poses(np.linspace(0, 1, 5))
  last_seen_from_first = np.linalg.inv(pose[0]) @ pose[-1]
  assert sign * last_seen_from_first[axis, 3] > 0.3


@pytest.mark.parametrize(('motion', 'sign'), [('pans right', 1), ('pans left', -1)])
def test_pan_turns_without_moving(motion, sign):
  pose = dataclasses.replace(scenes.sample(0, level='easy').camera, motion=motion).poses(np.linspace(0, 1, 5))
  np.testing.assert_allclose(pose[:, :3, 3], pose[:1, :3, 3].repeat(5, axis=0), atol=1e-12)
  assert sign * (pose[0, :3, 0] @ pose[-1, :3, 2]) > 0.1  # looks towards its first right


@pytest.mark.parametrize('motion', scenes.CAMERAS)
def test_poses_are_rotations_with_y_down(motion):
  pose = dataclasses.replace(scenes.sample(3, level='easy').camera, motion=motion).poses(np.linspace(0, 1, 7))
  rotation = pose[:, :3, :3]
  np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.eye(3)[None].repeat(7, axis=0), atol=1e-12)
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-12)
  assert (rotation[:, 1, 1] > 0.5).all() and (pose[:, 1, 3] < 0).all()


@pytest.mark.parametrize(
  ('motion', 'axis', 'sign'), [('slides left', 0, -1), ('slides right', 0, 1), ('comes closer', 2, -1)]
)
def test_bodies_move_as_seen_from_the_first_camera(motion, axis, sign):
  scene = scenes.sample(1, level='medium')
  body = dataclasses.replace(scene.bodies[0], motion=motion, amount=1.0)
  start, end = body.poses(np.array([0.0, 1.0]))[0]
  assert sign * (scene.camera.poses(np.zeros(1))[0, :3, :3].T @ (end - start))[axis] > 0.5


def test_a_scene_does_not_depend_on_how_often_it_is_looked_at():
  camera = scenes.sample(5).camera
  np.testing.assert_allclose(camera.poses(np.linspace(0, 1, 33))[::2], camera.poses(np.linspace(0, 1, 17)))
