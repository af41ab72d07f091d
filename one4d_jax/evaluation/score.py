"""One clip, one prediction, one row: cameras are fitted to the predicted pointmap and compared with the true ones."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from one4d_jax.data.clip import Clip, signed
from one4d_jax.errors import DataError
from one4d_jax.evaluation.depth import depth_metrics
from one4d_jax.evaluation.trajectory import trajectory_metrics
from one4d_jax.evaluation.video import psnr
from one4d_jax.model import pointmap
from one4d_jax.postopt.decode import decode
from one4d_jax.postopt.options import FitOptions


def score(
  clip: Clip,
  code: Float[np.ndarray, 'F H W 3'],
  rgb: Float[np.ndarray, 'F H W 3'] | None,
  *,
  align: str,
  options: FitOptions = FitOptions(),
) -> dict[str, Any]:
  """The row of a prediction: errors as JSON-able numbers, ``None`` where one does not apply.

  Args:
    code: the decoded, normalised XYZ video.
    rgb: the generated video in [-1, 1], if the method makes one.
    align: of depth, see ``depth_metrics``.
    options: of the camera fit.
  """
  row: dict[str, Any] = {'clip': clip.meta['id'], 'level': clip.meta['level'], 'failed': ''}
  row['psnr'] = None if rgb is None else psnr(rgb, signed(clip.rgb))
  shown = pointmap.valid_from_code(code)
  row['valid_iou'] = float((shown & clip.valid).sum() / max((shown | clip.valid).sum(), 1))
  try:
    found = decode(code, options=options)
  except DataError as error:  # an untrained model may show nothing a camera could be fitted to
    return row | {'failed': str(error)}
  # Every pixel whose depth is true is scored: where no point is shown, with the largest depth of the clip.
  predicted = np.where(shown, found.z, found.z[shown].max())
  depth = depth_metrics(predicted, clip.depth, clip.valid, align=align)
  cameras = found.cameras
  path = trajectory_metrics(cameras.world_from_cam, clip.world_from_cam)
  focal, true_focal = (np.mean(K[:, [0, 1], [0, 1]]) for K in (cameras.K, clip.K))
  return row | {
    **dataclasses.asdict(depth),
    'focal_error': float(abs(focal - true_focal) / true_focal),
    'ate': path.ate,
    'rpe_t': path.rpe_t,
    'rpe_r': path.rpe_r,
    'still': path.degenerate,
    'residual': float(np.nanmean(cameras.residual)),
  }


def true_pointmap(clip: Clip) -> Float[np.ndarray, 'F H W 3']:
  """The XYZ video that a perfect model would decode."""
  points = pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam)
  return pointmap.encode_input(pointmap.normalise(points, clip.valid)[0], clip.valid)


def mean_pointmap(clips, *, progress=lambda clips: clips) -> Float[np.ndarray, 'F H W 3']:
  """The XYZ video that knows nothing of its input: the mean normalised pointmap of ``clips``, coded like any other.

  A pixel is invalid where more than half of the clips are.
  """
  total = seen = count = 0
  for clip in progress(clips):
    points, _ = pointmap.normalise(pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam), clip.valid)
    total = total + np.where(clip.valid[..., None], points, 0).astype(np.float64)
    seen = seen + clip.valid
    count += 1
  mean = (total / np.maximum(seen, 1)[..., None]).astype(np.float32)
  return pointmap.encode_input(mean, 2 * seen >= count)
