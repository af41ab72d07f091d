"""What a reader hands over: recordings, uncut shots whose pixels are read frame by frame. NumPy only."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from one4d_jax.data.clip import Clip
from one4d_jax.errors import DataError

FRAMES = 81  # of a clip, unless a user wants another number
FPS = 16.0  # rate that the base model was trained at


@dataclasses.dataclass(frozen=True)
class Pixels:
  """One frame as its files tell; what is left out is nowhere true. Conventions as in ``Clip``.

  Attributes:
    depth: planar z; any value where neither valid nor sky.
    dynamic: pixels on something that moves; None where the set does not say.
  """

  rgb: UInt8[np.ndarray, 'H W 3']
  depth: Float32[np.ndarray, 'H W']
  valid: Bool[np.ndarray, 'H W']
  sky: Bool[np.ndarray, 'H W'] | None = None
  dynamic: Bool[np.ndarray, 'H W'] | None = None


@dataclasses.dataclass(frozen=True)
class Frame:
  """One frame with its camera; as ``Clip``, without the frame axis."""

  rgb: UInt8[np.ndarray, 'H W 3']
  depth: Float32[np.ndarray, 'H W']
  valid: Bool[np.ndarray, 'H W']
  sky: Bool[np.ndarray, 'H W']
  dynamic: Bool[np.ndarray, 'H W']
  K: Float64[np.ndarray, '3 3']
  world_from_cam: Float64[np.ndarray, '4 4']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
  """One shot. Small and picklable: worker processes get it and read what they need.

  Attributes:
    source: name of the reader.
    scene: what is held out as a whole: an environment, a game, a film. Unique within the source.
    name: unique within the source; with the frames of a clip it makes the clip's id.
    fps: of the frames listed here.
    size: (height, width) of every frame.
    K: of each frame, in pixels of ``size``.
    world_from_cam: of each frame; NaN where the annotation is missing, which spoils the clips around it and no others.
    pixels: reads frame i (an index into ``K``). Raises DataError naming the file.
    numbers: of the frames in the source's own count.
    captions: (first, past the last, text) in indices of frames.
    licence: of the data, as the set's own documents state it.
    provenance: 'exact' for rendered geometry, 'pseudo:NAME' for that of a reconstructor.
    metric: depth is in metres.
    unverified: what the reader takes for granted though no public document says it, in sentences for the report.
  """

  source: str
  scene: str
  name: str
  fps: float
  size: tuple[int, int]
  K: Float64[np.ndarray, 'N 3 3']
  world_from_cam: Float64[np.ndarray, 'N 4 4']
  pixels: Callable[[int], Pixels]
  numbers: tuple[int, ...]
  captions: tuple[tuple[int, int, str], ...] = ()
  licence: str
  provenance: str = 'exact'
  metric: bool = True
  unverified: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.K)

  def frame(self, i: int) -> Frame:
    """Frame ``i``, checked. Raises DataError naming the recording and the frame in the source's count."""
    place = f'{self.source} {self.name}, frame {self.numbers[i]}'
    K, pose = self.K[i], self.world_from_cam[i]
    if not np.isfinite(K).all() or min(K[0, 0], K[1, 1]) <= 0:
      raise DataError(f'{place}: intrinsics are not positive numbers: {K.tolist()}')
    if not np.isfinite(pose).all():
      raise DataError(f'{place}: the camera pose is missing or not finite')
    if np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() > 1e-3 or np.linalg.det(pose[:3, :3]) < 0:
      raise DataError(f'{place}: the camera pose is no rotation: {pose[:3, :3].round(4).tolist()}')
    read = self.pixels(i)
    for name in ('rgb', 'depth', 'valid', 'sky', 'dynamic'):
      value = getattr(read, name)
      if value is not None and value.shape[:2] != tuple(self.size):
        found, expected = ('x'.join(map(str, size)) for size in (value.shape[:2], self.size))
        raise DataError(f'{place}: {name} is {found} (height x width), the recording {expected}')
    nowhere = np.zeros(self.size, bool)
    sky = nowhere if read.sky is None else read.sky
    valid = read.valid & ~sky & np.isfinite(read.depth) & (read.depth > 0)
    return Frame(
      rgb=read.rgb,
      depth=np.where(valid, read.depth, 0).astype(np.float32),
      valid=valid,
      sky=sky,
      dynamic=nowhere if read.dynamic is None else read.dynamic,
      K=K,
      world_from_cam=pose,
    )

  def caption(self, indices: Sequence[int]) -> str:
    """The text that covers most of the frames; of two, the one that says it of fewer others."""
    first, last = indices[0], indices[-1] + 1
    shared = lambda c: min(last, c[1]) - max(first, c[0])
    known = [c for c in self.captions if shared(c) > 0]
    return max(known, key=lambda c: (shared(c), c[0] - c[1]))[2] if known else ''

  def read(self, indices: Sequence[int], view: Callable[[Frame], Frame] = lambda frame: frame) -> Clip:
    """The frames ``indices``, each passed through ``view`` (a resize, say) as it is read.

    World coordinates become those of the first frame's camera. Raises DataError as ``frame`` does.
    """
    frames = [view(self.frame(i)) for i in indices]
    stack = lambda name: np.stack([getattr(frame, name) for frame in frames])
    poses = stack('world_from_cam')
    return Clip(
      **{name: stack(name) for name in ('rgb', 'depth', 'valid', 'sky', 'dynamic')},
      K=stack('K').astype(np.float32),
      world_from_cam=(np.linalg.inv(poses[0]) @ poses).astype(np.float32),  # small numbers keep their digits
      caption=self.caption(indices),
      meta=self.about(indices),
    )

  def about(self, indices: Sequence[int]) -> dict:
    """Where a clip comes from: plain values for ``Clip.meta``."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    numbers = [self.numbers[i] for i in indices]
    return {
      'id': f'{self.source}/{self.name}/{numbers[0]:06d}-{numbers[-1]:06d}-{step}',
      'source': self.source,
      'scene': self.scene,
      'recording': self.name,
      'numbers': numbers,
      'fps': self.fps / step,
      'licence': self.licence,
      'provenance': self.provenance,
      'metric': self.metric,
    }


@dataclasses.dataclass(frozen=True)
class Listed:
  """A recording that was found and not yet opened.

  Attributes:
    name: as in ``Recording``.
    open: reads its annotation. Raises DataError naming the file that is missing or damaged.
  """

  name: str
  open: Callable[[], Recording]


def cuts(count: int, fps: float, *, frames: int = FRAMES, target: float = FPS, shortest: int = 33) -> list[range]:
  """The clips of a recording of ``count`` frames: indices that follow each other by a whole step, none shared.

  The step brings the rate nearest to ``target``; it shrinks where the recording would be too short for it. What is
  too short even then gives one clip of the largest 4n + 1 frames, or none if that is under ``shortest``.
  """
  low = max(1, int(fps // target))
  step = min((low, low + 1), key=lambda step: abs(fps / step - target))
  while step > 1 and (frames - 1) * step + 1 > count:
    step -= 1
  span = (frames - 1) * step + 1
  if count >= span:
    return [range(start, start + span, step) for start in range(0, count - span + 1, span)]
  rest = (count - 1) // 4 * 4 + 1 if count else 0
  return [range(rest)] if rest >= shortest else []
