"""Video metrics against closed forms and scikit-image."""

import numpy as np
import pytest

from one4d_jax.errors import ShapeError
from one4d_jax.evaluation import video


def pair():
  rng = np.random.default_rng(0)
  gt = rng.uniform(-1, 1, (2, 24, 28, 3)).astype(np.float32)
  return np.clip(gt + 0.2 * rng.normal(size=gt.shape), -1, 1).astype(np.float32), gt


def test_psnr_of_a_known_error():
  gt = np.zeros((2, 4, 4, 3), np.float32)
  np.testing.assert_allclose(video.psnr(gt + 0.02, gt), 40, rtol=1e-6)
  assert video.psnr(gt, gt) == float('inf')


def test_psnr_cuts_what_a_screen_cannot_show():
  gt = np.ones((1, 2, 2, 3), np.float32)
  assert video.psnr(gt + 5, gt) == float('inf')


def test_ssim_equals_scikit_image():
  metrics = pytest.importorskip('skimage.metrics')
  pred, gt = pair()
  options = {'data_range': 2, 'channel_axis': -1, 'gaussian_weights': True, 'use_sample_covariance': False}
  expected = np.mean(
    [metrics.structural_similarity(p.astype(float), g.astype(float), **options) for p, g in zip(pred, gt, strict=True)]
  )
  np.testing.assert_allclose(video.ssim(pred, gt), expected, rtol=1e-6)
  assert video.ssim(gt, gt) == 1


def test_mistakes_are_named():
  pred, gt = pair()
  with pytest.raises(ShapeError, match='one shape'):
    video.psnr(pred[:1], gt)
  with pytest.raises(ShapeError, match='11x11'):
    video.ssim(pred[:, :8], gt[:, :8])
