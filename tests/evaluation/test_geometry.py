"""Pointmap error, reprojection, edge agreement and resizing against closed forms, SciPy and PyTorch."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from one4d_jax.errors import DataError
from one4d_jax.evaluation import benchmarks, edges, points, protocol, reprojection, resize, score
from one4d_jax.evaluation.sequence import Prediction
from one4d_jax.model import pointmap
from tests.evaluation import downloads

F, H, W = 5, 24, 40
K = np.tile(np.array([[30.0, 0, W / 2], [0, 30, H / 2], [0, 0, 1]]), (F, 1, 1))


def moved(points, seed=0):
  return 0.4 * points @ Rotation.random(rng=seed).as_matrix().T + [1, 2, 3]


def test_a_similarity_of_the_whole_pointmap_is_no_error():
  clip = downloads.clip(frames=4)
  true = pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam)
  assert points.point_error(moved(true), true, clip.depth, clip.valid) < 1e-5
  spoilt = np.where(clip.valid[..., None], moved(true), 1e6)
  assert points.point_error(spoilt, true, clip.depth, clip.valid) < 1e-5, 'where the truth is not known, nothing counts'


def test_the_error_is_what_the_best_similarity_leaves_over_the_depth():
  """Points in a plane, every other one off along the normal: the best plane lies between, and no scale helps."""
  x, y = np.meshgrid(np.arange(8.0), np.arange(6.0))
  true = np.stack([x, y, np.full_like(x, 10.0)], axis=-1)[None]
  off = true + np.where((x + y) % 2 == 0, 0.1, -0.1)[None, ..., None] * [0, 0, 1]
  found = points.point_error(off, true, true[..., 2], np.ones(true.shape[:3], bool))
  np.testing.assert_allclose(found, 0.1 / 10, rtol=1e-3)
  with pytest.raises(DataError, match='no valid pixel'):
    points.point_error(off * np.nan, true, true[..., 2], np.ones(true.shape[:3], bool))


def test_the_similarity_takes_pixels_evenly_where_there_are_many(monkeypatch):
  monkeypatch.setattr(points, 'MOST', 100)
  clip = downloads.clip(frames=4)
  true = pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam)
  assert points.point_error(moved(true), true, clip.depth, clip.valid) < 1e-5


def wall(depth=4.0, step=0.0):
  """A wall ahead; the camera goes towards it by ``step`` a frame."""
  poses = np.tile(np.eye(4), (F, 1, 1))
  poses[:, 2, 3] = step * np.arange(F)
  return np.broadcast_to((depth - poses[:, 2, 3])[:, None, None], (F, H, W)).copy(), poses


def test_one_world_agrees_with_itself():
  depth, poses = wall(step=0.3)
  found = reprojection.reprojection(depth, np.ones(depth.shape, bool), K, poses)
  assert found == {'reprojection': pytest.approx(0, abs=1e-12), 'consistency': 1.0}
  clip = downloads.clip(frames=9, height=48, width=64)
  found = reprojection.reprojection(clip.depth, clip.valid & ~clip.dynamic, clip.K, clip.world_from_cam)
  assert found['consistency'] > 0.9 and found['reprojection'] < 0.02


def test_a_frame_of_another_scale_is_off_in_both_directions():
  """Frame 2 is 1.2 times too deep: of 8 directed pairs, 2 look for its depth and miss by 0.2, 2 for others' by 1/6."""
  depth, poses = wall()
  depth[2] *= 1.2
  found = reprojection.reprojection(depth, np.ones(depth.shape, bool), K, poses)
  inside = H * W  # nothing moves: every pixel falls into itself
  assert found['consistency'] == pytest.approx(4 * inside / (8 * inside)) and 0 <= found['reprojection'] <= 0.2
  depth[[0, 2, 4]] = 4.4
  depth[[1, 3]] = 4.0
  found = reprojection.reprojection(depth, np.ones(depth.shape, bool), K, poses)
  assert found['consistency'] == 0
  assert found['reprojection'] == pytest.approx((0.4 / 4.0 + 0.4 / 4.4) / 2)


def test_a_wrong_camera_is_seen_and_what_moves_is_left_out():
  depth, poses = wall()
  poses[:, 2, 3] = 0.4 * np.arange(F)  # says that it moves, but the wall stays at 4
  found = reprojection.reprojection(depth, np.ones(depth.shape, bool), K, poses)
  assert found['consistency'] == 0 and 0.4 / 4.4 <= found['reprojection'] <= 0.4 / 3.6
  depth, poses = wall()
  depth[:, :, :10] *= 1 + np.arange(F)[:, None, None]
  usable = np.ones(depth.shape, bool)
  usable[:, :, :10] = False
  assert reprojection.reprojection(depth, usable, K, poses)['consistency'] == 1
  assert reprojection.reprojection(depth, usable & False, K, poses) == {'reprojection': None, 'consistency': None}


def test_masks_are_compared_on_the_grid_of_the_prediction():
  clip, procedural = downloads.clip(frames=4), protocol.load('procedural')
  scored = lambda valid: score.score(benchmarks.truth(clip, 'a'), Prediction(valid=valid), procedural)
  half = resize.nearest(clip.valid, 8, 16)
  assert scored(half)['geometry'] == {'valid_iou': 1.0} and scored(~half)['geometry'] == {'valid_iou': 0.0}
  assert scored(half[:3])['skipped']['geometry'] == 'the prediction has 3 masks, the sequence 4 frames'


def squares(shift=0):
  """A near square before a wall, and a picture in which it is drawn ``shift`` pixels to the right."""
  depth, rgb = np.full((1, H, W), 8.0), np.zeros((1, H, W, 3))
  depth[:, 6:18, 10:26] = 4.0
  rgb[:, 6:18, 10 + shift : 26 + shift] = 1.0
  return depth, rgb


def test_edges_that_belong_together_agree_fully_and_others_as_chance_has_it():
  valid = np.ones((1, H, W), bool)
  depth, rgb = squares()
  assert edges.edge_agreement(depth, valid, K[:1], rgb) == pytest.approx(1)
  depth, rgb = squares(shift=5)
  broken = edges.geometry_edges(depth[0], valid[0], K[0])
  strength = np.hypot(*(ndimage.sobel(rgb[0, ..., 0], axis) for axis in (0, 1)))
  near = ndimage.binary_dilation((strength > 0) & (strength >= np.quantile(strength, 0.9)), np.ones((3, 3)))
  hit, chance = (broken & near).sum() / broken.sum(), near.mean()
  assert edges.edge_agreement(depth, valid, K[:1], rgb) == pytest.approx((hit - chance) / (1 - chance), abs=1e-9)
  assert edges.edge_agreement(depth, valid, K[:1], rgb) < 0.6
  assert edges.edge_agreement(np.full_like(depth, 3.0), valid, K[:1], rgb) is None, 'no edge, no verdict'


def test_where_a_surface_breaks_off_or_bends():
  depth = np.full((H, W), 10.0)
  depth[:, 20:] = 11.05
  found = edges.geometry_edges(depth, np.ones((H, W), bool), K[0])
  assert found[:, 19:21].all() and not found[:, :17].any() and not found[:, 23:].any(), '10.5% is a break'
  depth[:, 20:] = 10.9
  u = np.broadcast_to(np.arange(W) + 0.5, (H, W))
  assert not edges.geometry_edges(np.full((H, W), 10.0), np.ones((H, W), bool), K[0]).any()
  x = (u - W / 2) / 30
  for degrees, bends in ((20, False), (40, True)):  # two walls that meet at x = 0
    ridge = 10 / (1 - np.tan(np.radians(degrees)) * np.maximum(x, 0))
    assert edges.geometry_edges(ridge, np.ones((H, W), bool), K[0])[:, 18:23].any() == bends
  valid = np.ones((H, W), bool)
  valid[:, 20:] = False
  depth[:, 20:] = 100
  assert not edges.geometry_edges(depth, valid, K[0]).any(), 'what is not shown has no edge'


@pytest.mark.parity
@pytest.mark.parametrize('size', [(9, 14), (5, 31), (12, 17)])
def test_cubic_interpolation_is_that_of_pytorch_and_opencv(size):
  torch = pytest.importorskip('torch')
  maps = np.random.default_rng(0).normal(size=(2, 9, 14)).astype(np.float32)
  want = torch.nn.functional.interpolate(torch.tensor(maps)[None], size, mode='bicubic', align_corners=False)[0]
  np.testing.assert_allclose(resize.bicubic(maps, *size), want, atol=1e-5)


def test_the_nearest_value_is_that_under_the_centre_of_a_pixel():
  maps = np.arange(12).reshape(1, 2, 6)
  np.testing.assert_array_equal(resize.nearest(maps, 2, 3), [[[1, 3, 5], [7, 9, 11]]])
  np.testing.assert_array_equal(resize.nearest(maps[:, :, :2], 2, 4), [[[0, 0, 1, 1], [6, 6, 7, 7]]])


def test_pictures_are_whole():
  rgb = np.zeros((1, 20, 40, 3), np.uint8)
  rgb[:, :, 20:] = 200
  small = resize.pictures(rgb, 10, 16)
  assert small.shape == (1, 10, 16, 3) and (small[..., :4, :] == 0).all() and (small[..., 12:, :] == 200).all()
