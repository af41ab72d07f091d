"""The orbit video shows the scene, from places that differ, without holes."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from one4d_jax.viewer import orbit
from tests.viewer.scenes import small_scene


def flat_scene(frames=3, colour=(200, 90, 40)):
  """A wall that fills the view, in one colour."""
  scene = small_scene(frames=frames)
  u, v = np.meshgrid(np.arange(32) + 0.5, np.arange(24) + 0.5)
  rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(scene.K[0].astype(np.float64)).T
  return dataclasses.replace(
    scene,
    rgb=np.tile(np.uint8(colour), (*scene.valid.shape, 1)),
    depth=np.full(scene.depth.shape, 4.0),
    pointmap=np.tile(4 * rays, (frames, 1, 1, 1)),
    valid=np.ones_like(scene.valid),
    world_from_cam=np.tile(np.eye(4), (frames, 1, 1)),
  )


def test_a_wall_has_no_holes_from_any_side():
  background = (1, 2, 3)
  video = orbit.orbit_frames(flat_scene(), height=120, width=160, count=8, background=background)
  assert video.shape == (8, 120, 160, 3) and video.dtype == np.uint8
  for picture in video:
    wall, empty = (picture == (200, 90, 40)).all(-1), (picture == background).all(-1)
    assert (wall | empty).all() and wall.mean() > 0.5
    assert np.array_equal(ndimage.binary_fill_holes(wall), wall)
    assert wall[ndimage.binary_erosion(ndimage.binary_closing(wall, iterations=6), iterations=6)].all()  # nor a slit


def test_the_camera_swings_to_both_sides_and_comes_back():
  video = orbit.orbit_frames(flat_scene(frames=1), height=60, width=80, count=8).astype(int)
  wall = (video == (200, 90, 40)).all(-1)
  heights = wall[:, :, :40].sum(axis=(1, 2)) - wall[:, :, 40:].sum(axis=(1, 2))  # the nearer side is larger
  assert abs(heights[0]) < 60 and abs(heights[4]) < 60
  assert heights[2] * heights[6] < 0 and min(abs(heights[[2, 6]])) > 100
  assert np.abs(video[1] - video[0]).mean() < np.abs(video[2] - video[0]).mean()


def test_near_hides_far_and_colours_are_those_of_the_points():
  scene = small_scene(frames=1)
  rgb = np.full_like(scene.rgb, 60)
  rgb[0, 8:16, 6:14] = (250, 10, 10)  # the near square
  scene = dataclasses.replace(scene, rgb=rgb)
  picture = orbit.orbit_frames(scene, height=240, width=320, count=1)[0]
  red = (picture == (250, 10, 10)).all(-1)
  # Seen from 1.12 times as far as the clip's camera: the square stands at 2, the median point at 4.5.
  rows, columns = np.nonzero(red)
  assert 55 < np.ptp(rows) < 85 and 55 < np.ptp(columns) < 85
  inside = red[rows.min() + 6 : rows.max() - 6, columns.min() + 6 : columns.max() - 6]
  assert inside.all(), 'the wall shines through the square'


def test_many_points_in_one_pixel_show_the_nearest():
  scene = flat_scene(frames=1)
  points, rgb = scene.pointmap.copy(), scene.rgb.copy()
  points[0, :, ::2] *= 1.5  # every second column stands behind the others
  rgb[0, :, ::2] = (10, 10, 250)
  for order in (1, -1):
    turned = dataclasses.replace(scene, pointmap=points[:, ::order], rgb=rgb[:, ::order])
    picture = orbit.orbit_frames(turned, height=6, width=8, count=1, background=(0, 0, 0))[0]
    assert (picture[2:5, 2:6] == (200, 90, 40)).all()


def test_what_lies_behind_or_right_before_the_camera_is_not_seen():
  scene = flat_scene(frames=1)
  pivot, pose, _ = orbit._base(scene, scene.valid, 30, 40)
  camera = orbit._swung(pose, pivot, 0.0)
  for ahead in (0.02, -1e-3, -9.0):
    points, rgb = scene.pointmap.copy(), scene.rgb.copy()
    points[0, 5, 5], rgb[0, 5, 5] = camera[:3, 3] + ahead * camera[:3, 2], (0, 255, 0)
    picture = orbit.orbit_frames(dataclasses.replace(scene, pointmap=points, rgb=rgb), height=30, width=40, count=1)[0]
    assert not (picture == (0, 255, 0)).all(-1).any() and (picture == (200, 90, 40)).all(-1).mean() > 0.4


def test_time_plays_and_progress_is_told():
  scene = flat_scene(frames=3)
  rgb = scene.rgb.copy()
  rgb[1], rgb[2] = (10, 200, 30), (30, 10, 200)
  told = []
  video = orbit.orbit_frames(
    dataclasses.replace(scene, rgb=rgb), height=30, width=40, count=5, progress=lambda *a: told.append(a)
  )
  assert [tuple(p[15, 20]) for p in video] == [tuple(rgb[i % 3, 0, 0]) for i in range(5)]
  assert told == [(n, 5) for n in range(1, 6)]
  assert orbit.orbit_frames(scene, height=6).shape == (96, 6, 8, 3)  # 3 frames, 32 times; as wide as the scene


@pytest.mark.parametrize('case', ['nothing valid', 'not numbers', 'behind'])
def test_scenes_without_anything_to_see(case):
  scene = flat_scene(frames=1)
  scene = dataclasses.replace(
    scene,
    valid=np.zeros_like(scene.valid) if case == 'nothing valid' else scene.valid,
    pointmap=scene.pointmap * np.float32(np.nan) if case == 'not numbers' else scene.pointmap,
    depth=-scene.depth if case == 'behind' else scene.depth,
  )
  video = orbit.orbit_frames(scene, height=12, width=16, count=2, background=(9, 9, 9))
  assert (video == 9).all()
