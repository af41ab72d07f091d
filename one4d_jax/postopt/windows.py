"""Windows of a long clip to one scene: similarities between neighbours, one blended pointmap, cameras of all frames.

Every window is a pointmap in the world of its own first frame, at a scale of its own.

  1. Cameras are fitted to each window alone. A clip has one lens: a window whose focal length differs from the median
     by more than its standard error has its points moved onto the rays of the common one, at the depths they have.
  2. Neighbours show the same frames, so the pixels they share are the same points, moving or not: a robust similarity
     (scale, rotation, shift) takes each window to the one before, and thus to the first.
  3. Where windows overlap their points are cross-faded, and cameras are fitted to all frames at once.

A seam without enough shared points falls back to the cameras of the shared frames, and where nothing is shared to the
last camera before it, both with a warning.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.errors import DataError, ShapeError
from one4d_jax.geometry.align import Similarity, angle, nearest_rotation, umeyama
from one4d_jax.model.windows import check_spans
from one4d_jax.postopt.decode import Geometry, camera_z, decode, read
from one4d_jax.postopt.fit import MIN_PIXELS, Cameras, fit_cameras
from one4d_jax.postopt.options import FitOptions

SAMPLES = 50_000  # shared pixels that a similarity is fitted to, at most
ROUNDS = 20  # of reweighting
STILL = 0.02  # cameras that move less than this, in median depths, say nothing of the scale


_FALLBACKS = {
  'cameras': 'windows that meet at frame {} share too few points: joined by their cameras, their scales may differ',
  'held': 'what comes before frame {} shows nothing: the camera is taken to stand still there, scales may differ',
}


class Seam(NamedTuple):
  """How well two neighbouring windows agree on the frames they share."""

  frames: range
  method: str  # 'points', or the fallbacks 'cameras' and 'held'
  pixels: int  # points that both windows show
  scale: float  # of the later window's units, in those of the earlier one
  point_median: float  # distance of the same point in both windows over its distance from the camera; NaN: no points
  point_p90: float
  rotation: float  # RMS angle between the two windows' cameras of a shared frame, degrees
  translation: float  # RMS distance between them, over the median depth
  residual_before: float  # RMS miss of points and rays in the shared frames over the median depth: each window's fit
  residual_after: float  # the same of the whole clip's fit

  def describe(self) -> str:
    """One line for a log."""
    parts = [f'seam at frame {self.frames.start}, {len(self.frames)} shared, by {self.method}: scale x{self.scale:.4f}']
    if self.pixels:
      parts.append(f'points {self.point_median:.2%} (90%: {self.point_p90:.2%}) of their distance apart')
    if len(self.frames):
      parts.append(f'cameras {self.rotation:.2f} degrees and {self.translation:.2%} of the depth')
    return ', '.join(parts)


class Seams(NamedTuple):
  """The seams of a clip, and the sums of their camera jumps: an upper estimate of how far the far end has wandered."""

  seams: tuple[Seam, ...]
  drift_rotation: float  # degrees
  drift_translation: float  # median depths
  chained: Float[np.ndarray, 'F 4 4']  # world_from_cam as the windows' own fits give it, for comparison

  def record(self) -> dict:
    """Plain values for ``run.json``; None where not known."""
    plain = lambda v: [v.start, v.stop] if isinstance(v, range) else _rounded(v)
    return {
      'seams': [{name: plain(value) for name, value in seam._asdict().items()} for seam in self.seams],
      'drift': {'rotation': _rounded(self.drift_rotation), 'translation': _rounded(self.drift_translation)},
    }


def _rounded(value):
  if not isinstance(value, float):
    return value
  return round(value, 6) if np.isfinite(value) else None


@dataclasses.dataclass
class _Window:
  """One window in its own world, and the similarity that takes it to the clip's."""

  span: range
  points: Float[np.ndarray, 'f H W 3']
  valid: Bool[np.ndarray, 'f H W']
  observed: Bool[np.ndarray, 'f H W']  # fit for measuring
  cameras: Cameras | None  # None: no frame has enough points
  place: Similarity = dataclasses.field(default_factory=lambda: Similarity(1.0, np.eye(3), np.zeros(3)))

  def at(self, frames: range) -> slice:
    """Where some of the clip's frames are in this window."""
    return slice(frames.start - self.span.start, frames.stop - self.span.start)

  def poses(self) -> np.ndarray:
    """World-from-camera in the clip's world, float64."""
    return self.place.pose(self.cameras.world_from_cam.astype(np.float64))

  def depth(self, frames: slice) -> float:
    """Median fitted depth, in the clip's units; of the whole window if these frames show nothing."""
    depth = self.cameras.depth[frames]
    depth = depth if (depth > 0).any() else self.cameras.depth
    return float(np.median(depth[depth > 0])) * self.place.scale


def decode_windows(
  codes: Sequence[Float[np.ndarray, 'f H W 3']], spans: Sequence[range], *, options: FitOptions = FitOptions()
) -> tuple[Geometry, Seams]:
  """Geometry of a clip whose normalised XYZ video was made in windows; up to scale, in the first camera's world.

  Args:
    codes: one XYZ video for each of ``spans``, which cover the clip in order, neighbours sharing frames.

  One window is exactly ``decode``.

  Raises:
    DataError: too few usable pixels in the whole clip.
    ShapeError: codes and spans that do not belong together.
  """
  check_spans(spans, spans[-1].stop if len(spans) else 0)
  shapes = [code.shape for code in codes]
  if [shape[:1] for shape in shapes] != [(len(span),) for span in spans] or len({s[1:] for s in shapes}) != 1:
    raise ShapeError(f'windows of {[len(span) for span in spans]} frames have codes of {shapes}; expected [f H W 3]')
  if len(codes) == 1:
    alone = decode(codes[0], options=options)
    return alone, Seams((), 0.0, 0.0, alone.cameras.world_from_cam)
  windows = [_read(code, span, options) for code, span in zip(codes, spans, strict=True)]
  known = [window for window in windows if window.cameras is not None]
  if not known:
    raise DataError(f'decode_windows: no frame of any window has {MIN_PIXELS} usable pixels; nothing to fit')
  if options.focal == 'shared':
    _refocus(known)
  pairs = list(itertools.pairwise(known))
  joints = [_join(earlier, later) for earlier, later in pairs]
  points, valid, observed = _merge(known, spans[-1].stop)
  for window in windows:
    del window.points  # now in the clip's
  chained = _chained(known, spans[-1].stop, options)
  cameras = fit_cameras(points, observed, options=options, init=chained)
  seams = tuple(_seam(*pair, *joint, cameras) for pair, joint in zip(pairs, joints, strict=True))
  doubts = [_FALLBACKS[seam.method].format(seam.frames.start) for seam in seams if seam.method in _FALLBACKS]
  cameras = dataclasses.replace(cameras, warnings=(*cameras.warnings, *doubts))
  drift = (float(np.nansum([getattr(seam, name) for seam in seams])) for name in ('rotation', 'translation'))
  return Geometry(points, valid, camera_z(points, cameras), cameras), Seams(seams, *drift, chained.world_from_cam)


def blend(pieces: Sequence[np.ndarray], spans: Sequence[range]) -> np.ndarray:
  """One video ``[F H W c]`` of the windows' ``[f H W c]``, float32: cross-faded where they overlap."""
  made = np.zeros((spans[-1].stop, *pieces[0].shape[1:]), np.float32)
  for piece, span, weight in zip(pieces, spans, _fades(spans), strict=True):
    made[span.start : span.stop] += piece * weight[:, None, None, None]
  return made


def _fades(spans: Sequence[range]) -> list[np.ndarray]:
  """The share of each window in its frames: rising and falling along what it shares with others, summing to 1."""
  ramps = []
  for span in spans:
    to_end = np.arange(1, len(span) + 1)
    ramps.append(np.minimum(to_end, to_end[::-1]).astype(np.float32))
  total = np.zeros(spans[-1].stop, np.float32)
  for span, ramp in zip(spans, ramps, strict=True):
    total[span.start : span.stop] += ramp
  return [ramp / total[span.start : span.stop] for span, ramp in zip(spans, ramps, strict=True)]


def _read(code: np.ndarray, span: range, options: FitOptions) -> _Window:
  """A window with its own cameras, if it shows enough for any."""
  points, valid, observed = read(code)
  enough = (observed.sum(axis=(1, 2)) >= MIN_PIXELS).any()
  return _Window(span, points, valid, observed, fit_cameras(points, observed, options=options) if enough else None)


def _refocus(windows: Sequence[_Window]) -> None:
  """Moves the points of each window onto the rays of the clip's focal length, as far as it is known to have another."""
  focals = np.array([float(np.median(window.cameras.K[:, 0, 0])) for window in windows])
  common = np.median(focals)
  for window, focal in zip(windows, focals, strict=True):
    off, std = np.log(focal / common), window.cameras.focal_std / focal
    if abs(off) <= std:
      continue
    zoom = np.exp(off * (1 - (std / off) ** 2))
    for points, pose in zip(window.points, window.cameras.world_from_cam, strict=True):
      rotation, centre = pose[:3, :3], pose[:3, 3]
      points[:] = ((points - centre) @ rotation * np.float32([zoom, zoom, 1])) @ rotation.T + centre
    K = window.cameras.K.copy()
    K[:, 0, 0] /= zoom
    K[:, 1, 1] /= zoom
    window.cameras = dataclasses.replace(window.cameras, K=K)


def _join(earlier: _Window, later: _Window) -> tuple[str, range, np.ndarray]:
  """Places ``later`` by what it shares with ``earlier``: (method, shared frames, errors of shared points)."""
  shared = range(later.span.start, earlier.span.stop)
  if not len(shared):  # a window between them shows nothing: the camera stands still over the gap
    _join_cameras(earlier, later, slice(-1, None), slice(0, 1))
    return 'held', range(later.span.start, later.span.start), np.zeros(0)
  a, b = earlier.at(shared), later.at(shared)
  both = earlier.observed[a] & later.observed[b]
  if both.sum() < MIN_PIXELS * len(shared):
    _join_cameras(earlier, later, a, b)
    return 'cameras', shared, np.zeros(0)
  index = np.flatnonzero(both)
  if len(index) > SAMPLES:
    index = np.sort(np.random.default_rng(0).choice(index, SAMPLES, replace=False))
  target = earlier.place(earlier.points[a].reshape(-1, 3)[index].astype(np.float64))
  source = later.points[b].reshape(-1, 3)[index].astype(np.float64)
  centre = earlier.poses()[a][index // both[0].size, :3, 3]
  later.place = similarity(source, target)
  error = np.linalg.norm(later.place(source) - target, axis=1) / np.linalg.norm(target - centre, axis=1)
  return 'points', shared, error


def similarity(source: Float[np.ndarray, 'n 3'], target: Float[np.ndarray, 'n 3']) -> Similarity:
  """What brings ``source`` to ``target``, both of them measured; by reweighting, first Huber's, then Tukey's weights.

  The scale is the ratio of the two spreads. That of least squares shrinks with noise in the source, by 1.4% a seam at
  noise of 5%, and a chain of seams shrinks with its length. Tukey's weights keep outliers out of the spreads.
  """
  robust = np.ones(len(source))
  for round in range(ROUNDS):
    rotation = umeyama(source, target, weight=robust).rotation
    middle = [np.average(x, axis=0, weights=robust) for x in (source, target)]
    spread = [robust @ np.square(x - m).sum(axis=1) for x, m in zip((source, target), middle, strict=True)]
    scale = float(np.sqrt(spread[1] / spread[0])) if min(spread) > 0 else 1.0
    found = Similarity(scale, rotation, middle[1] - scale * rotation @ middle[0])
    miss = np.linalg.norm(found(source) - target, axis=1)
    size = miss / max(np.median(miss), 1e-12 * np.sqrt(spread[1]), 1e-30)
    robust = 2 / np.maximum(size, 2) if round < ROUNDS // 2 else np.maximum(1 - (size / 3) ** 2, 0) ** 2
  return found


def _join_cameras(earlier: _Window, later: _Window, a: slice, b: slice) -> None:
  """Places ``later`` so that its cameras ``b`` fall on the earlier one's ``a``.

  The scale is that of their paths, or where they stand still that of the median depths.
  """
  target, source = earlier.poses()[a], later.cameras.world_from_cam[b].astype(np.float64)
  rotation = nearest_rotation(np.einsum('fij,fkj->ik', target[:, :3, :3], source[:, :3, :3]))
  path = [np.sqrt(np.square(p[:, :3, 3] - p[:, :3, 3].mean(0)).sum(-1).mean()) for p in (target, source)]
  depth = earlier.depth(a), later.depth(b)
  moving = path[0] > STILL * depth[0] and path[1] > STILL * depth[1]
  scale = path[0] / path[1] if moving else depth[0] / depth[1]
  shift = (target[:, :3, 3] - scale * source[:, :3, 3] @ rotation.T).mean(axis=0)
  later.place = Similarity(float(scale), rotation, shift)


def _merge(windows: Sequence[_Window], frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(points, valid, observed) of the clip. A pixel fades between the windows that know it best."""
  shape = (frames, *windows[0].valid.shape[1:])
  points, valid, observed = np.zeros((*shape, 3), np.float32), np.zeros(shape, bool), np.zeros(shape, bool)
  fades = _fades([window.span for window in windows])
  for frame in sorted({frame for window in windows for frame in window.span}):
    here = [(w, frame - w.span.start, fade) for w, fade in zip(windows, fades, strict=True) if frame in w.span]
    knows = np.stack([w.valid[i].astype(int) + w.observed[i] for w, i, _ in here])  # 2 observed, 1 valid, 0 neither
    fade = np.stack([fade[i] for _, i, fade in here])[:, None, None]
    weight = np.where(knows == knows.max(axis=0), fade, 0)
    weight = weight / weight.sum(axis=0)
    points[frame] = sum(w.place(w.points[i]) * share[..., None] for (w, i, _), share in zip(here, weight, strict=True))
    valid[frame] = (fade * (knows > 0)).sum(axis=0) >= 0.5
    observed[frame] = valid[frame] & (knows == 2).any(axis=0)
  return points, valid, observed


def _chained(windows: Sequence[_Window], frames: int, options: FitOptions) -> Cameras:
  """Where to start from: each frame's camera in the window that knows it best, frames of no window like the nearest."""
  share, K, pose = np.zeros(frames), np.zeros((frames, 3, 3)), np.zeros((frames, 4, 4))
  for window, fade in zip(windows, _fades([window.span for window in windows]), strict=True):
    better = fade > share[window.span.start : window.span.stop]
    index = window.span.start + np.flatnonzero(better)
    share[index], K[index], pose[index] = fade[better], window.cameras.K[better], window.poses()[better]
  known = np.flatnonzero(share)
  nearest = known[np.abs(np.arange(frames)[:, None] - known).argmin(axis=1)]
  K, pose = K[nearest], pose[nearest]
  if options.focal == 'shared':
    K[:] = np.median(K, axis=0)
  return dataclasses.replace(windows[0].cameras, K=K.astype(np.float32), world_from_cam=pose.astype(np.float32))


def _seam(earlier: _Window, later: _Window, method: str, shared: range, error: np.ndarray, cameras: Cameras) -> Seam:
  """The report on a seam, both windows placed and the clip's cameras fitted."""
  a, b = earlier.at(shared), later.at(shared)
  depth = earlier.depth(a)
  rotation = translation = before = after = float('nan')
  if len(shared):
    one, other = earlier.poses()[a], later.poses()[b]
    turn = np.einsum('fji,fjk->fik', one[:, :3, :3], other[:, :3, :3])
    rotation = float(np.degrees(_rms(angle(turn))))
    translation = _rms(np.linalg.norm(one[:, :3, 3] - other[:, :3, 3], axis=1)) / depth
    own = [w.cameras.residual[at] * w.place.scale for w, at in ((earlier, a), (later, b))]
    before, after = _rms(np.concatenate(own)) / depth, _rms(cameras.residual[shared.start : shared.stop]) / depth
  return Seam(
    frames=shared,
    method=method,
    pixels=len(error),
    scale=later.place.scale / earlier.place.scale,
    point_median=float(np.median(error)) if len(error) else float('nan'),
    point_p90=float(np.quantile(error, 0.9)) if len(error) else float('nan'),
    rotation=rotation,
    translation=translation,
    residual_before=before,
    residual_after=after,
  )


def _rms(x: np.ndarray) -> float:
  """Of the values that are known; NaN where none is."""
  known = x[np.isfinite(x)]
  return float(np.sqrt(np.square(known).mean())) if len(known) else float('nan')
