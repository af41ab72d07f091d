"""Depth metrics: known transforms come back exactly, least absolute deviations equals brute force."""

import dataclasses
import itertools

import numpy as np
import pytest

from one4d_jax.errors import ConfigError, DataError, ShapeError
from one4d_jax.evaluation import alignment, depth


def scene(seed=0, shape=(3, 8, 9)):
  rng = np.random.default_rng(seed)
  return rng.uniform(1, 9, shape), rng.uniform(size=shape) < 0.8


def absolute(p, g, s, t):
  return np.abs(s * p + t - g).sum()


@pytest.mark.parametrize('align', ['scale_shift', 'least_squares'])
def test_scale_and_shift_are_undone(align):
  gt, valid = scene()
  result = depth.depth_metrics((gt - 0.7) / 2.5, gt, valid, align=align)
  np.testing.assert_allclose((result.scale, result.shift), (2.5, 0.7), rtol=1e-10)
  assert result.abs_rel < 1e-12 and result.rmse < 1e-11 and result.delta1 == 1 and result.pixels == valid.sum()


@pytest.mark.parametrize('align', ['scale', 'median'])
def test_scale_is_undone(align):
  gt, valid = scene()
  result = depth.depth_metrics(gt / 3, gt, valid, align=align)
  assert result.abs_rel < 1e-12 and result.shift == 0


def test_known_errors_without_alignment():
  gt = np.full((2, 2), 2.0)
  pred = np.array([[2.0, 3.0], [1.0, 4.0]])
  result = depth.depth_metrics(pred, gt, np.ones((2, 2), bool), align='none')
  np.testing.assert_allclose(result.abs_rel, (0 + 0.5 + 0.5 + 1) / 4)
  np.testing.assert_allclose(result.rmse, np.sqrt((0 + 1 + 1 + 4) / 4))
  np.testing.assert_allclose(result.log_rmse, np.sqrt((np.log(1.5) ** 2 + 2 * np.log(2) ** 2) / 4))
  assert (result.delta1, result.delta2, result.delta3) == (0.25, 0.5, 0.5)


def test_the_cut_and_the_floor_are_the_published_ones():
  """From above all errors see the cut; from below only those that divide by the prediction or take its logarithm."""
  gt, pred, valid = np.array([2.0, 60.0]), np.array([-1.0, 90.0]), np.ones(2, bool)
  result = depth.depth_metrics(pred, gt, valid, align='none', max_depth=70)
  np.testing.assert_allclose(result.abs_rel, (3 / 2 + 10 / 60) / 2)
  np.testing.assert_allclose(result.rmse, np.sqrt((9 + 100) / 2))
  np.testing.assert_allclose(result.log_rmse, np.sqrt((np.log(2 / 1e-5) ** 2 + np.log(70 / 60) ** 2) / 2))
  assert result.delta1 == 0.5
  np.testing.assert_allclose(depth.depth_metrics(pred, gt, valid, align='none').abs_rel, (3 / 2 + 30 / 60) / 2)


def test_curves_over_frames_are_those_of_the_one_alignment():
  gt, valid = scene()
  pred = gt * np.array([1.0, 1.1, 1.4])[:, None, None]
  valid[2] = False
  found = depth.depth_metrics(pred, gt, valid, align='none')
  curves = depth.frame_errors(pred, gt, valid, found)
  np.testing.assert_allclose(curves['abs_rel'][:2], [0, 0.1], atol=1e-12)
  assert curves['abs_rel'][2] is None and curves['delta1'] == [1, 1, None]


def test_invalid_pixels_do_not_count():
  gt, valid = scene()
  pred = np.where(valid, gt, np.nan)
  assert depth.depth_metrics(pred, np.where(valid, gt, 0), valid).abs_rel < 1e-12


@pytest.mark.parametrize('n', [2, 3, 8, 15])
@pytest.mark.parametrize('seed', range(6))
def test_least_absolute_equals_the_best_of_all_lines(n, seed):
  """A best line passes through two of the points, so trying all pairs is exact."""
  rng = np.random.default_rng([n, seed])
  p, g = rng.normal(size=n), rng.normal(size=n) * 10.0 ** rng.integers(-3, 4)
  if seed % 2:  # ties and duplicates
    p = np.round(p)
  lines = [((g[j] - g[i]) / (p[j] - p[i]), i) for i, j in itertools.combinations(range(n), 2) if p[i] != p[j]]
  lines += [(0.0, i) for i in range(n)]
  best = min(absolute(p, g, s, g[i] - s * p[i]) for s, i in lines)
  s, t = alignment.least_absolute(p, g)
  np.testing.assert_allclose(absolute(p, g, s, t), best, rtol=1e-12, atol=1e-12 * np.abs(g).max())


def test_least_absolute_ignores_gross_outliers():
  rng = np.random.default_rng(1)
  p = rng.uniform(1, 5, 4001)
  g = 2 * p + 1
  g[:1500] += rng.uniform(5, 500, 1500)
  np.testing.assert_allclose(alignment.least_absolute(p, g), (2, 1), rtol=1e-9)


def test_no_nearby_line_is_better_on_a_real_size():
  rng = np.random.default_rng(2)
  p = rng.uniform(1, 5, 70000)
  g = 2 * p + 1 + rng.standard_cauchy(p.shape)
  s, t = alignment.least_absolute(p, g)
  best = absolute(p, g, s, t)
  for ds, dt in itertools.product([-1e-6, 0, 1e-6], repeat=2):
    assert absolute(p, g, s + ds, t + dt) >= best * (1 - 1e-14)


def test_constant_prediction_is_aligned_by_its_shift():
  gt, valid = scene()
  result = depth.depth_metrics(np.ones_like(gt), gt, valid)
  np.testing.assert_allclose(result.scale + result.shift, np.median(gt[valid]))


def test_scale_alignment_is_the_best_scale():
  rng = np.random.default_rng(3)
  p, g = rng.uniform(0.5, 2, 31), rng.uniform(0.5, 2, 31)
  s, _ = alignment.alignment(p, g, 'scale')
  assert absolute(p, g, s, 0) <= min(absolute(p, g, r, 0) for r in g / p) + 1e-12


def test_pooling_weighs_by_pixels():
  gt, _ = scene()
  one = depth.depth_metrics(gt * 1.1, gt, np.ones(gt.shape, bool), align='none')
  few = np.zeros(gt.shape, bool)
  few[0, 0, :2] = True
  two = depth.depth_metrics(gt * 1.4, gt, few, align='none')
  pooled = depth.pool([dataclasses.asdict(row) for row in (one, two)])
  np.testing.assert_allclose(pooled['abs_rel'], (0.1 * gt.size + 0.4 * 2) / (gt.size + 2))
  alike = depth.pool([dataclasses.asdict(row) for row in (one, two)], weight='sequences')
  np.testing.assert_allclose(alike['abs_rel'], 0.25)


def test_mistakes_are_named():
  gt, valid = scene()
  with pytest.raises(ConfigError, match="'affine'; choose from scale_shift"):
    depth.depth_metrics(gt, gt, valid, align='affine')
  with pytest.raises(DataError, match='no valid pixel'):
    depth.depth_metrics(gt, gt, np.zeros_like(valid))
  with pytest.raises(DataError, match='not finite'):
    depth.depth_metrics(gt * np.nan, gt, valid)
  with pytest.raises(DataError, match='must be positive'):
    depth.depth_metrics(gt, gt - 20, valid)
  with pytest.raises(ShapeError, match='one shape'):
    depth.depth_metrics(gt[0], gt, valid)
