"""Video metrics against closed forms and scikit-image."""

import sys
import types

import numpy as np
import pytest

from one4d_jax.errors import DataError, ShapeError
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


class Network:
  """Stands in for the network of the lpips package, which no test can download: the mean difference, of 255."""

  made = 0

  def __init__(self, net, verbose):
    assert (net, verbose) == ('alex', False)
    Network.made += 1

  def eval(self):
    return self

  def requires_grad_(self, wanted):
    assert not wanted
    return self

  def __call__(self, a, b):
    assert a.shape == (24, 28, 3) and a.min() >= 0 and a.max() <= 255 and (a == np.round(a)).all()
    return np.abs(a - b).mean() / 255


@pytest.fixture
def package(monkeypatch):
  video.load_lpips.cache_clear()
  module = types.SimpleNamespace(LPIPS=Network, im2tensor=lambda image: image.astype(float))
  monkeypatch.setitem(sys.modules, 'lpips', module)
  yield module
  video.load_lpips.cache_clear()


def test_lpips_is_the_mean_over_frames_of_one_network(package):
  pred, gt = pair()
  Network.made = 0
  found = video.lpips(pred, gt)
  np.testing.assert_allclose(found, np.abs(pred - gt).mean() / 2, atol=2e-3)
  assert video.lpips(gt, gt) == 0 and Network.made == 1


def test_lpips_without_its_package_or_weights_says_what_to_do(package, monkeypatch):
  def no_network(**_):
    raise OSError('no route to host')

  package.LPIPS = no_network
  with pytest.raises(DataError, match=r'cannot get the weights of AlexNet \(no route to host\)'):
    video.lpips(*pair())
  monkeypatch.setitem(sys.modules, 'lpips', None)
  with pytest.raises(DataError, match='pip install lpips'):
    video.lpips(*pair())


def test_psnr_equals_scikit_image():
  metrics = pytest.importorskip('skimage.metrics')
  pred, gt = pair()
  expected = metrics.peak_signal_noise_ratio(gt.astype(float), pred.astype(float), data_range=2)
  np.testing.assert_allclose(video.psnr(pred, gt), expected, rtol=1e-9)


def test_mistakes_are_named():
  pred, gt = pair()
  with pytest.raises(ShapeError, match='one shape'):
    video.psnr(pred[:1], gt)
  with pytest.raises(ShapeError, match='11x11'):
    video.ssim(pred[:, :8], gt[:, :8])
