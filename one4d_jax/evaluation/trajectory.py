"""Camera paths against ground truth: ATE and RPE with the formulas of evo, which the published tables use (Sec. 4.2).

  ATE     RMS distance between camera centres after one similarity over the whole path
  RPE     E_i = (Q_i^-1 Q_i+1)^-1 (P_i^-1 P_i+1), with Q true and P the aligned prediction; RMS over i of the length of
          its translation (RPE-T) and of its angle in degrees (RPE-R)

RPE does not see a common rotation or shift, only the scale. A path on a line is therefore scored like any other,
although its rotation about the line is not defined (evo refuses it). A true path that does not move has no scale: it
is compared as predicted, from its first camera, and flagged. NumPy float64.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from one4d_jax.errors import ConfigError, DataError, ShapeError
from one4d_jax.geometry.align import Similarity, angle, umeyama

ALIGNMENTS = ('sim3', 'se3', 'none')


@dataclasses.dataclass(frozen=True)
class TrajectoryMetrics:
  """``ate`` and ``rpe_t`` in units of the ground truth, ``rpe_r`` in degrees; ``scale`` is that of the alignment.

  ``ate_share`` is ATE over the extent of the true path, the largest distance of two of its centres; None where it does
  not move.
  """

  ate: float
  ate_share: float | None
  rpe_t: float
  rpe_r: float
  scale: float
  degenerate: bool  # the true camera stands still: ate and rpe_t have no scale, leave them out of means
  errors: tuple[float, ...] = dataclasses.field(default=(), repr=False)  # of each frame's centre; ate is their RMS


def trajectory_metrics(
  pred: Float[np.ndarray, 'F 4 4'],
  gt: Float[np.ndarray, 'F 4 4'],
  *,
  align: str = 'sim3',
  still: float = 1e-4,
) -> TrajectoryMetrics:
  """Compares two paths of world-from-camera poses, frame by frame.

  Args:
    align: ``sim3`` (rotation, shift, scale), ``se3`` (no scale) or ``none``.
    still: a path whose centres stay within this RMS distance of their mean, in units of ``gt``, does not move.

  Raises:
    ConfigError: unknown ``align``.
    DataError: poses that are not finite.
    ShapeError: paths of different length or fewer than 2 poses.
  """
  if align not in ALIGNMENTS:
    raise ConfigError(f'unknown alignment {align!r}; choose from {", ".join(ALIGNMENTS)}')
  if pred.shape != gt.shape or pred.shape[1:] != (4, 4) or len(pred) < 2:
    raise ShapeError(f'trajectory: expected two arrays [F 4 4] with F >= 2, got {pred.shape} and {gt.shape}')
  pred, gt = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
  if not (np.isfinite(pred).all() and np.isfinite(gt).all()):
    raise DataError('trajectory: a pose is not finite')
  degenerate = _spread(gt) <= still
  similarity = _alignment(pred, gt, align, degenerate)
  aligned = similarity.pose(pred)
  error = np.linalg.inv(_steps(gt)) @ _steps(aligned)
  off = np.linalg.norm(aligned[:, :3, 3] - gt[:, :3, 3], axis=-1)
  centres = gt[:, :3, 3]
  extent = np.linalg.norm(centres[:, None] - centres, axis=-1).max()
  return TrajectoryMetrics(
    ate=_rms(off),
    ate_share=None if degenerate else float(_rms(off) / extent),
    rpe_t=_rms(np.linalg.norm(error[:, :3, 3], axis=-1)),
    rpe_r=_rms(np.degrees(angle(error[:, :3, :3]))),
    scale=similarity.scale,
    degenerate=bool(degenerate),
    errors=tuple(off.tolist()),
  )


def _alignment(pred: np.ndarray, gt: np.ndarray, align: str, degenerate: bool) -> Similarity:
  """What takes ``pred`` to ``gt``."""
  if align == 'none':
    return Similarity(1.0, np.eye(3), np.zeros(3))
  source, target = pred[:, :3, 3], gt[:, :3, 3]
  if degenerate:
    rotation = gt[0, :3, :3] @ pred[0, :3, :3].T
    return Similarity(1.0, rotation, target[0] - rotation @ source[0])
  if _spread(pred) <= 1e-9 * _spread(gt):  # a prediction that stands still has no scale and sits best at the mean
    return Similarity(1.0, np.eye(3), target.mean(axis=0) - source.mean(axis=0))
  return umeyama(source, target, with_scale=align == 'sim3')


def _spread(poses: np.ndarray) -> float:
  centres = poses[:, :3, 3]
  return _rms(np.linalg.norm(centres - centres.mean(axis=0), axis=-1))


def _steps(poses: np.ndarray) -> np.ndarray:
  return np.linalg.inv(poses[:-1]) @ poses[1:]


def _rms(x: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.square(x))))
