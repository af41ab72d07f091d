"""One sequence, one prediction, one row. Whoever made the prediction, it is scored here and nowhere else.

A row has a section for each part of the score, or the reason why that part is skipped:

  name, group, length, size    the sequence: its name, level or nothing, frames, [height, width] of the ground truth
  depth        {alignment: DepthMetrics}             trajectory   TrajectoryMetrics
  video        psnr (dB), ssim, lpips                geometry     focal_error, valid_iou, point_rel, edges,
                                                                  reprojection, consistency, residual
  frames       {'abs_rel', 'delta1', 'ate', 'psnr': [a number or None for each frame]}
  skipped      {part: reason}, parts that the protocol scores and that are not scored here
  notes        how the prediction came about
"""

import dataclasses
from typing import Any

import numpy as np

from one4d_jax.data.clip import signed
from one4d_jax.errors import DataError, ShapeError
from one4d_jax.evaluation import resize, video
from one4d_jax.evaluation.depth import depth_metrics, frame_errors
from one4d_jax.evaluation.edges import edge_agreement
from one4d_jax.evaluation.points import point_error
from one4d_jax.evaluation.protocol import Protocol
from one4d_jax.evaluation.reprojection import reprojection
from one4d_jax.evaluation.sequence import Prediction, Truth
from one4d_jax.evaluation.trajectory import trajectory_metrics
from one4d_jax.model import pointmap

Row = dict[str, Any]
# A prediction's aspect may differ from the truth's by this factor: patches round it, a crop changes it more.
SKEW = 1.25


def score(truth: Truth, found: Prediction, protocol: Protocol, *, lpips: bool = False) -> Row:
  """The row of a prediction: JSON-able numbers, ``None`` where one does not apply."""
  row = _head(truth.name, truth.group) | {'length': truth.frames, 'size': _size(truth), 'notes': list(found.notes)}
  for part, measure in (('depth', _depth), ('trajectory', _trajectory), ('video', _video), ('geometry', _geometry)):
    reason = truth.lacks.get(part) or found.lacks.get(part)
    if part in ('depth', 'trajectory') and not protocol.scores(part, truth.name):
      continue
    try:
      if reason:
        raise DataError(reason)
      values, curves = measure(truth, found, protocol, lpips)
    except (DataError, ShapeError, np.linalg.LinAlgError) as error:  # the last: a camera that is no matrix to invert
      row['skipped'][part] = str(error)
      continue
    if values:
      row[part] = values
      row['frames'] |= curves
  return row


def absent(name: str, group: str, protocol: Protocol, reason: str) -> Row:
  """The row of a sequence of which nothing can be scored. What is not of the protocol nobody asked for."""
  asked = [part for part in ('depth', 'trajectory') if protocol.scores(part, name)]
  return _head(name, group) | {'length': None, 'size': None, 'notes': [], 'skipped': dict.fromkeys(asked, reason)}


def _head(name: str, group: str) -> Row:
  return {'name': name, 'group': group, 'skipped': {}, 'frames': {}}


def _size(truth: Truth) -> list[int]:
  return list((truth.rgb if truth.depth is None else truth.depth).shape[1:3])


def _depth(truth: Truth, found: Prediction, protocol: Protocol, _) -> tuple[dict, dict]:
  if found.depth is None:
    raise DataError('the method has no depth')
  _same_length('depth maps', found.depth, truth)
  _same_view(found.depth, truth.depth)
  valid = (truth.depth > 0) & np.isfinite(truth.depth) & (truth.depth < (protocol.far or np.inf))
  pred = resize.bicubic(shown_depth(found), *truth.depth.shape[1:])
  bad = ~np.isfinite(pred) & valid
  if bad.any():
    frames = np.flatnonzero(bad.any(axis=(1, 2)))
    raise DataError(
      f'depth is not finite at {bad.sum()} of {valid.sum()} valid pixels, in {len(frames)} frames from {frames[0]} on'
    )
  cut = protocol.cut or None
  made = {align: depth_metrics(pred, truth.depth, valid, align=align, max_depth=cut) for align in protocol.align}
  curves = frame_errors(pred, truth.depth, valid, made[protocol.align[0]], max_depth=cut)
  return {align: dataclasses.asdict(metrics) for align, metrics in made.items()}, curves


def shown_depth(found: Prediction) -> np.ndarray:
  """Every pixel whose depth is true is scored: where a method shows no surface, with the largest depth it shows."""
  if found.valid is None or not found.valid.any():
    return found.depth
  return np.where(found.valid, found.depth, found.depth[found.valid].max())


def _trajectory(truth: Truth, found: Prediction, protocol: Protocol, _) -> tuple[dict, dict]:
  if found.world_from_cam is None:
    raise DataError('the method has no cameras')
  _same_length('poses', found.world_from_cam, truth)
  metrics = trajectory_metrics(found.world_from_cam, truth.world_from_cam, align=protocol.trajectory_align)
  values = dataclasses.asdict(metrics)
  return {name: value for name, value in values.items() if name != 'errors'}, {'ate': list(metrics.errors)}


def _video(truth: Truth, found: Prediction, _, lpips: bool) -> tuple[dict, dict]:
  if found.rgb is None:
    return {}, {}
  _same_length('images', found.rgb, truth)
  _same_view(found.rgb, truth.rgb)
  gt = signed(resize.pictures(truth.rgb, *found.rgb.shape[1:3]))
  values = {'psnr': video.psnr(found.rgb, gt)}
  values['ssim'] = video.ssim(found.rgb, gt) if min(gt.shape[1:3]) >= video.WINDOW else None
  values['lpips'] = video.lpips(found.rgb, gt) if lpips else None
  return values, {'psnr': [video.psnr(a, b) for a, b in zip(found.rgb, gt, strict=True)]}


def _geometry(truth: Truth, found: Prediction, protocol: Protocol, _) -> tuple[dict, dict]:
  """What no published table has; each figure where both sides know what it needs."""
  values: dict[str, float | None] = {}
  if found.residual is not None and np.isfinite(found.residual).any():
    values['residual'] = float(np.nanmean(found.residual))
  if truth.valid is not None and found.valid is not None:
    _same_length('masks', found.valid, truth)
    known = resize.nearest(truth.valid, *found.valid.shape[1:])
    values['valid_iou'] = float((found.valid & known).sum() / max((found.valid | known).sum(), 1))
  if found.K is None or found.depth is None:
    return values, {}
  _same_length('intrinsics', found.K, truth)
  _same_length('depth maps', found.depth, truth)
  height, width = found.depth.shape[1:]
  if truth.K is not None:
    values['focal_error'] = _focal_error(truth, found)
  shown = np.isfinite(found.depth) & (found.depth > 0)
  shown &= True if found.valid is None else found.valid
  colours = resize.pictures(truth.rgb, height, width) if found.rgb is None else found.rgb
  values['edges'] = edge_agreement(found.depth, shown, found.K, colours)
  if found.world_from_cam is not None and len(found.world_from_cam) == truth.frames:
    still = shown if truth.dynamic is None else shown & ~resize.nearest(truth.dynamic, height, width)
    values |= reprojection(found.depth, still, found.K, found.world_from_cam)
  if found.points is not None and not any(a is None for a in (truth.depth, truth.K, truth.world_from_cam)):
    true = pointmap.from_depth(truth.depth, truth.K, truth.world_from_cam)
    depth = resize.nearest(truth.depth, height, width)
    valid = (depth > 0) & np.isfinite(depth) & (depth < (protocol.far or np.inf)) & shown
    values['point_rel'] = point_error(found.points, resize.nearest(true, height, width), depth, valid)
  return values, {}


def _focal_error(truth: Truth, found: Prediction) -> float:
  """Relative error of the mean focal length, in pixels of the truth's grid."""
  (height, width), (own_height, own_width) = _size(truth), found.depth.shape[1:]
  scale = np.array([width / own_width, height / own_height])
  focal, true = (np.mean(K[:, [0, 1], [0, 1]] * s) for K, s in ((found.K, scale), (truth.K, 1)))
  return float(abs(focal - true) / true)


def _same_length(what: str, array: np.ndarray, truth: Truth) -> None:
  if len(array) != truth.frames:
    raise ShapeError(f'the prediction has {len(array)} {what}, the sequence {truth.frames} frames')


def _same_view(found: np.ndarray, true: np.ndarray) -> None:
  (h, w), (height, width) = found.shape[1:3], true.shape[1:3]
  if not 1 / SKEW < (w / h) / (width / height) < SKEW:
    raise ShapeError(
      f'the prediction is {h}x{w} (height x width), the sequence {height}x{width}: it is turned or cropped'
    )
