"""Trajectory metrics: similarities are undone, known errors are measured, still cameras are flagged."""

import numpy as np
import pytest

from one4d_jax.errors import ConfigError, DataError, ShapeError
from one4d_jax.evaluation.trajectory import trajectory_metrics


def rotation(axis, degrees):
  axis = np.asarray(axis, float) / np.linalg.norm(axis)
  k = np.cross(np.eye(3), -axis)
  angle = np.radians(degrees)
  return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def path(frames=12, seed=0):
  """A smooth path that turns."""
  rng = np.random.default_rng(seed)
  poses = np.tile(np.eye(4), (frames, 1, 1))
  axis = rng.normal(size=3)
  for i in range(frames):
    poses[i, :3, :3] = rotation(axis, 4.0 * i)
    poses[i, :3, 3] = [np.sin(0.3 * i), 0.2 * i, np.cos(0.2 * i)]
  return poses


def similar(poses, s, R, t):
  moved = poses.copy()
  moved[:, :3, :3] = R @ poses[:, :3, :3]
  moved[:, :3, 3] = s * poses[:, :3, 3] @ R.T + t
  return moved


def test_a_similarity_is_undone():
  gt = path()
  pred = similar(gt, 0.2, rotation([1, 2, 3], 70), [4, 5, 6])
  result = trajectory_metrics(pred, gt)
  assert max(result.ate, result.rpe_t) < 1e-6 and result.rpe_r < 1e-5 and not result.degenerate
  np.testing.assert_allclose(result.scale, 5, rtol=1e-6)


def test_without_scale_the_size_stays_wrong():
  gt = path()
  assert trajectory_metrics(similar(gt, 2, np.eye(3), [1, 0, 0]), gt, align='se3').ate > 0.3
  assert trajectory_metrics(similar(gt, 1, np.eye(3), [1, 0, 0]), gt, align='se3').ate < 1e-6
  np.testing.assert_allclose(trajectory_metrics(similar(gt, 1, np.eye(3), [1, 0, 0]), gt, align='none').ate, 1)


def test_a_turn_of_one_frame_is_seen_by_its_two_steps():
  gt = path()
  pred = gt.copy()
  pred[5, :3, :3] = pred[5, :3, :3] @ rotation([0, 1, 0], 3)
  np.testing.assert_allclose(trajectory_metrics(pred, gt).rpe_r, 3 * np.sqrt(2 / 11), rtol=1e-6)


def test_a_shift_of_one_frame_without_alignment():
  gt = path()
  pred = gt.copy()
  pred[5, :3, 3] += [0, 0.1, 0]
  result = trajectory_metrics(pred, gt, align='none')
  np.testing.assert_allclose(result.ate, 0.1 / np.sqrt(12))
  np.testing.assert_allclose(result.rpe_t, 0.1 * np.sqrt(2 / 11), rtol=1e-6)
  assert result.rpe_r < 1e-9


def test_half_a_turn_is_measured():
  gt = path(2)
  pred = gt.copy()
  pred[1, :3, :3] = pred[1, :3, :3] @ rotation([0, 0, 1], 180)
  np.testing.assert_allclose(trajectory_metrics(pred, gt, align='none').rpe_r, 180)


def test_the_alignment_is_the_best_one():
  rng = np.random.default_rng(0)
  gt, pred = path(), path(seed=0)
  pred[:, :3, 3] += 0.05 * rng.normal(size=(12, 3))
  best = trajectory_metrics(pred, gt).ate
  for s, degrees, t in [(1.02, 0, 0), (0.98, 0, 0), (1, 1, 0), (1, 0, 0.02)]:
    centre = gt[:, :3, 3].mean(axis=0)
    R = rotation([0, 1, 0], degrees)
    moved = similar(pred, s, R, centre - s * R @ centre + t)
    assert trajectory_metrics(moved, gt, align='none').ate >= best - 1e-9


def test_a_straight_path_is_scored():
  gt = np.tile(np.eye(4), (6, 1, 1))
  gt[:, 2, 3] = np.arange(6)
  result = trajectory_metrics(similar(gt, 3, rotation([1, 1, 0], 40), [1, 2, 3]), gt)
  assert result.ate < 1e-6 and result.rpe_t < 1e-6 and not result.degenerate


def test_a_camera_that_stands_still_is_flagged_not_refused():
  gt = np.tile(np.eye(4), (6, 1, 1))
  pred = gt.copy()
  pred[:, 0, 3] = 0.1 * np.arange(6)
  result = trajectory_metrics(pred, gt)
  assert result.degenerate and np.isfinite([result.ate, result.rpe_t, result.rpe_r]).all() and result.ate > 0.2


def test_a_prediction_that_stands_still_scores_the_spread_of_the_truth():
  gt = path()
  pred = np.tile(np.eye(4), (12, 1, 1))
  centres = gt[:, :3, 3]
  expected = np.sqrt(np.mean(np.sum((centres - centres.mean(axis=0)) ** 2, axis=1)))
  result = trajectory_metrics(pred, gt)
  np.testing.assert_allclose(result.ate, expected)
  assert not result.degenerate


def test_inputs_are_left_alone():
  gt, pred = path(), path(seed=1)
  copies = gt.copy(), pred.copy()
  trajectory_metrics(pred, gt)
  np.testing.assert_array_equal(gt, copies[0])
  np.testing.assert_array_equal(pred, copies[1])


def test_mistakes_are_named():
  with pytest.raises(ConfigError, match="'rigid'; choose from sim3"):
    trajectory_metrics(path(), path(), align='rigid')
  with pytest.raises(ShapeError, match=r'\(5, 4, 4\) and \(6, 4, 4\)'):
    trajectory_metrics(path(5), path(6))
  with pytest.raises(DataError, match='not finite'):
    trajectory_metrics(path() * np.nan, path())
