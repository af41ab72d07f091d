"""How close a generated video is to the true one: PSNR, SSIM, LPIPS. NumPy float64, videos in [-1, 1]."""

import functools

import numpy as np
from jaxtyping import Float

from one4d_jax.errors import DataError, ShapeError
from one4d_jax.viewer.pictures import to_uint8

RANGE = 2.0  # from -1 to 1
WINDOW = 11  # pixels, of SSIM


def _same_shape(pred: np.ndarray, gt: np.ndarray):
  if pred.shape != gt.shape:
    raise ShapeError(f'video: pred and gt need one shape, got {pred.shape} and {gt.shape}')


def psnr(pred: Float[np.ndarray, '*any'], gt: Float[np.ndarray, '*any']) -> float:
  """Peak signal-to-noise ratio over all pixels, in dB; ``pred`` is cut to [-1, 1], equal videos give infinity.

  Raises:
    ShapeError: shapes differ.
  """
  _same_shape(pred, gt)
  error = np.mean((np.clip(pred, -1, 1).astype(np.float64) - gt) ** 2)
  return float('inf') if error == 0 else float(10 * np.log10(RANGE**2 / error))


def ssim(pred: Float[np.ndarray, 'F H W c'], gt: Float[np.ndarray, 'F H W c']) -> float:
  """Structural similarity (Wang et al. 2004), Gaussian window of sigma 1.5, mean over frames, pixels and channels.

  Raises:
    ShapeError: shapes differ, or frames are smaller than the window of 11 pixels.
  """
  from scipy.ndimage import gaussian_filter

  _same_shape(pred, gt)
  if min(pred.shape[1:3]) < WINDOW:
    raise ShapeError(f'ssim: frames must be at least 11x11, got {pred.shape[1]}x{pred.shape[2]}')
  blur = lambda a: gaussian_filter(a, (0, 1.5, 1.5, 0), truncate=3.5)[:, 5:-5, 5:-5]
  x, y = np.clip(pred, -1, 1).astype(np.float64), gt.astype(np.float64)
  mean_x, mean_y = blur(x), blur(y)
  var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
  c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
  index = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
  return float(index.mean())


def lpips(pred: Float[np.ndarray, 'F H W 3'], gt: Float[np.ndarray, 'F H W 3']) -> float:
  """Learned perceptual distance (Zhang et al. 2018, version 0.1 on AlexNet), mean over frames.

  Raises:
    DataError: the ``lpips`` package or its weights are not there.
    ShapeError: shapes differ.
  """
  _same_shape(pred, gt)
  package, network = load_lpips()
  tensors = ([package.im2tensor(frame) for frame in to_uint8(frames)] for frames in (pred, gt))
  return float(np.mean([float(network(a, b)) for a, b in zip(*tensors, strict=True)]))


@functools.lru_cache(maxsize=1)
def load_lpips():
  """The package and its network. It is PyTorch's, takes arrays, and downloads AlexNet's weights when first used."""
  try:
    import lpips as package
  except ImportError as error:
    raise DataError('LPIPS needs the lpips package: pip install lpips, or leave --config.lpips out') from error
  try:
    return package, package.LPIPS(net='alex', verbose=False).eval().requires_grad_(False)
  except OSError as error:  # no network, no weights
    raise DataError(f'LPIPS cannot get the weights of AlexNet ({error}); put them into the cache of torch') from error
