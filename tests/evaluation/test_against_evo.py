"""Trajectory metrics against evo 1.38, with which the published tables are made; and what ours says where evo refuses.

To align two paths evo needs centres of both that span a plane: on a line the rotation about it is free, at a point the
scale too. The metrics do not depend on what is free on a line, so ours are defined there: the least error of any
alignment. (Rounding may hide a line from evo: then it gives the same numbers.)
"""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from one4d_jax.evaluation.trajectory import trajectory_metrics
from one4d_jax.geometry.align import umeyama

pytest.importorskip('evo')
from evo.core import geometry, metrics, trajectory

pytestmark = pytest.mark.parity


def poses(centres, rotations=None, seed=0):
  centres = np.asarray(centres, np.float64)
  found = np.tile(np.eye(4), (len(centres), 1, 1))
  found[:, :3, 3] = centres
  found[:, :3, :3] = Rotation.random(len(centres), rng=seed).as_matrix() if rotations is None else rotations
  return found


def by_evo(pred, gt, align):
  """(ate, rpe_t, rpe_r, scale); the paths are copied, for evo aligns in place. ``origin`` joins the first poses."""
  pred, gt = (trajectory.PosePath3D(poses_se3=[p.copy() for p in path]) for path in (pred, gt))
  scale = 1.0
  if align == 'origin':
    pred.align_origin(gt)
  elif align != 'none':
    scale = pred.align(gt, correct_scale=align == 'sim3')[2]
  found = []
  for metric in (
    metrics.APE(metrics.PoseRelation.translation_part),
    metrics.RPE(metrics.PoseRelation.translation_part, delta=1, delta_unit=metrics.Unit.frames, all_pairs=True),
    metrics.RPE(metrics.PoseRelation.rotation_angle_deg, delta=1, delta_unit=metrics.Unit.frames, all_pairs=True),
  ):
    metric.process_data((gt, pred))
    found.append(metric.get_statistic(metrics.StatisticsType.rmse))
  return [*found, scale]


def ours(pred, gt, align):
  found = trajectory_metrics(pred, gt, align=align)
  return [found.ate, found.rpe_t, found.rpe_r, found.scale]


def close(a, b, unit=1.0):
  """To 1e-9 of the size of the true path; angles and scale as they are."""
  np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * unit)


def refused(pred, gt, align):
  with pytest.raises(geometry.GeometryException, match='Degenerate covariance'):
    by_evo(pred, gt, align)


def refused_or_equal(pred, gt, align, unit):
  try:
    want = by_evo(pred, gt, align)
  except geometry.GeometryException:
    return
  close(ours(pred, gt, align), want, unit)


@pytest.mark.parametrize('align', ['sim3', 'se3', 'none'])
@pytest.mark.parametrize('frames', [3, 4, 17, 90])
def test_random_paths(align, frames):
  for seed in range(20):
    rng = np.random.default_rng((seed, frames))
    size, shrink, noise = 10.0 ** rng.uniform([-2, -2, -4], [2, 2, 0])
    gt = poses(size * rng.normal(size=(frames, 3)).cumsum(axis=0), seed=seed)
    turn = Rotation.random(rng=seed + 1).as_matrix()
    wobble = Rotation.from_rotvec(0.1 * noise * rng.normal(size=(frames, 3))).as_matrix()
    centres = (gt[:, :3, 3] + noise * size * rng.normal(size=(frames, 3))) @ turn.T * shrink + rng.normal(size=3)
    pred = poses(centres, turn @ gt[:, :3, :3] @ wobble)
    found, want = ours(pred, gt, align), by_evo(pred, gt, align)
    close(found[:2], want[:2], size + np.abs(centres).max() if align == 'none' else size)
    close(found[2:], want[2:])


def test_unrelated_paths():
  for seed in range(20):
    rng = np.random.default_rng(seed)
    gt, pred = poses(rng.normal(size=(12, 3)), seed=seed), poses(rng.normal(size=(12, 3)), seed=seed + 99)
    for align in ('sim3', 'se3', 'none'):
      close(ours(pred, gt, align), by_evo(pred, gt, align))


@pytest.mark.parametrize('thickness', [0, 1e-6, 1])
def test_mirrored_paths(thickness):
  """A reflection would fit best and is not allowed; of a plane path it is a rotation."""
  for seed in range(10):
    centres = np.random.default_rng(seed).normal(size=(15, 3)) * [1, 1, thickness]
    gt, pred = poses(centres, seed=seed), poses(2 * centres * [-1, 1, 1], seed=seed)
    for align in ('sim3', 'se3'):
      close(ours(pred, gt, align), by_evo(pred, gt, align))
    best = trajectory_metrics(pred, gt).ate
    assert best < 1e-5 if thickness < 1 else best > 0.1


@pytest.mark.parametrize('thickness', [1e-3, 1e-5, 1e-7])
def test_almost_straight_paths(thickness):
  for seed in range(10):
    rng = np.random.default_rng(seed)
    line = np.linspace(0, 5, 20)[:, None] * [1, 2, -1]
    gt = poses(line + thickness * rng.normal(size=(20, 3)), seed=seed)
    pred = poses(0.3 * line @ Rotation.random(rng=seed).as_matrix().T + thickness * rng.normal(size=(20, 3)), seed=seed)
    for align in ('sim3', 'se3'):
      close(ours(pred, gt, align), by_evo(pred, gt, align))


def test_alignment_parameters():
  for seed in range(20):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 9, 3)) * 10.0 ** rng.uniform(-2, 2)
    for with_scale in (True, False):
      found, want = umeyama(x, y, with_scale=with_scale), geometry.umeyama_alignment(x.T, y.T, with_scale)
      for a, b in zip((found.rotation, found.translation, found.scale), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def least_error_on_a_line(along, gt, with_scale):
  """(ATE, scale) of a path on a line: only its direction and scale can be chosen."""
  p, y = along - along.mean(), gt[:, :3, 3] - gt[:, :3, 3].mean(axis=0)
  pull = np.linalg.norm(p @ y)
  scale = pull / (p @ p) if with_scale else 1.0
  return np.sqrt((np.sum(y * y) - 2 * scale * pull + scale**2 * (p @ p)) / len(p)), scale


@pytest.mark.parametrize('true_path', ['line', 'uneven line', 'curve'])
@pytest.mark.parametrize('align', ['sim3', 'se3'])
def test_straight_predictions(align, true_path):
  """evo refuses; ours is the least error there is, and RPE is evo's of the prediction scaled by hand."""
  rng = np.random.default_rng(0)
  along = np.cumsum(rng.uniform(0.5, 1, 12)) if true_path == 'uneven line' else np.arange(12.0)
  centres = np.outer(along, [1, 0, 2])
  gt = poses(centres if 'line' in true_path else centres + np.outer(np.sin(along), [0, 1, 0]), seed=1)
  pred = poses(np.outer(np.arange(12.0), Rotation.random(rng=3).as_matrix()[0] * 0.25) + 7, seed=2)
  refused_or_equal(pred, gt, align, 30)
  found = trajectory_metrics(pred, gt, align=align)
  ate, scale = least_error_on_a_line(0.25 * np.arange(12.0), gt, align == 'sim3')
  close([found.ate, found.scale], [ate, scale], 30)
  scaled = pred.copy()
  scaled[:, :3, 3] *= found.scale
  close([found.rpe_t, found.rpe_r], by_evo(scaled, gt, 'none')[1:3], 30)
  assert not found.degenerate


@pytest.mark.parametrize('align', ['sim3', 'se3'])
def test_a_straight_truth(align):
  """The same the other way round: a bent prediction of a straight path."""
  rng = np.random.default_rng(0)
  gt, pred = poses(np.outer(np.arange(12.0), [1, 0, 2]), seed=1), poses(rng.normal(size=(12, 3)), seed=2)
  refused_or_equal(pred, gt, align, 30)
  found = trajectory_metrics(pred, gt, align=align)
  p, q = pred[:, :3, 3] - pred[:, :3, 3].mean(axis=0), (np.arange(12.0) - 5.5) * np.sqrt(5)
  pull = np.linalg.norm(q @ p)
  scale = pull / np.sum(p * p) if align == 'sim3' else 1.0
  close([found.ate, found.scale], [np.sqrt((q @ q - 2 * scale * pull + scale**2 * np.sum(p * p)) / 12), scale], 30)


@pytest.mark.parametrize('align', ['sim3', 'se3'])
def test_a_line_along_an_axis_is_refused_by_evo_and_scored_by_ours(align):
  gt = poses(np.outer(np.arange(6.0), [0, 0, 2]), seed=1)
  pred = poses(np.outer(np.arange(6.0), [1, 0, 0]), seed=2)
  refused(pred, gt, align)
  found = trajectory_metrics(pred, gt, align=align)
  close([found.ate, found.scale], [0, 2] if align == 'sim3' else [np.sqrt(35 / 12), 1], 10)
  pred[:, :3, 3] *= found.scale
  close([found.rpe_t, found.rpe_r], by_evo(pred, gt, 'none')[1:3])


@pytest.mark.parametrize('align', ['sim3', 'se3'])
def test_two_poses(align):
  """Two centres are always on a line: with scale they fit exactly, without it half the difference is left at each."""
  gt, pred = poses([[0, 0, 0], [3, 0, 4]], seed=1), poses([[1, 1, 1], [1, 3, 1]], seed=2)
  refused(pred, gt, align)
  found = trajectory_metrics(pred, gt, align=align)
  close([found.ate, found.scale], [0, 2.5] if align == 'sim3' else [1.5, 1])
  pred[:, :3, 3] *= found.scale
  close([found.rpe_t, found.rpe_r], by_evo(pred, gt, 'none')[1:3])
  close(ours(pred, gt, 'none'), by_evo(pred, gt, 'none'))


@pytest.mark.parametrize('align', ['sim3', 'se3'])
def test_a_prediction_that_stands_still(align):
  """evo refuses; ours puts it into the middle with scale 1, the least error of a point."""
  gt = poses(np.random.default_rng(0).normal(size=(10, 3)).cumsum(axis=0), seed=1)
  for pred in (poses(np.ones((10, 3)), seed=2), poses(np.zeros((10, 3)), np.eye(3))):
    refused(pred, gt, align)
    found = trajectory_metrics(pred, gt, align=align)
    spread = np.sqrt(np.mean(np.sum((gt[:, :3, 3] - gt[:, :3, 3].mean(axis=0)) ** 2, axis=1)))
    close([found.ate, found.scale, found.rpe_t, found.rpe_r], [spread, 1, *by_evo(pred, gt, 'none')[1:3]])
    assert not found.degenerate
  jitter = poses(1 + 1e-12 * np.random.default_rng(1).normal(size=(10, 3)), seed=2)  # rounding is no path to scale up
  close(trajectory_metrics(jitter, gt, align=align).scale, 1)


@pytest.mark.parametrize('align', ['sim3', 'se3'])
@pytest.mark.parametrize('moves', [True, False])
def test_a_truth_that_stands_still(align, moves):
  """Pure rotation, or nothing at all: evo refuses; ours joins the first poses as evo's align_origin, and flags it."""
  rng = np.random.default_rng(0)
  turning = Rotation.from_rotvec(np.outer(np.arange(10) * 0.05, [0.2, 1, 0])).as_matrix()
  gt = poses(np.tile([3.0, 2, 1], (10, 1)), turning)
  pred = poses(rng.normal(size=(10, 3)) if moves else np.zeros((10, 3)), turning @ Rotation.random(rng=4).as_matrix())
  refused(pred, gt, align)
  found = trajectory_metrics(pred, gt, align=align)
  close([found.ate, found.rpe_t, found.rpe_r, found.scale], by_evo(pred, gt, 'origin'))
  assert found.degenerate and (moves or found.ate < 1e-12)


def test_half_turns():
  """The angle of a step is exact up to 180 degrees and symmetric beyond."""
  for degrees in (0, 1e-7, 1e-3, 90, 179.999999, 180, 181, 359):
    gt = poses(np.random.default_rng(0).normal(size=(5, 3)), np.eye(3))
    axes = Rotation.from_rotvec(np.radians(degrees) * np.arange(5)[:, None] * [0, 0.6, 0.8]).as_matrix()
    pred = poses(gt[:, :3, 3], axes)
    found = trajectory_metrics(pred, gt).rpe_r
    np.testing.assert_allclose(found, by_evo(pred, gt, 'sim3')[2], atol=1e-9)
    np.testing.assert_allclose(found, min(degrees, 360 - degrees), atol=1e-9)
