"""A video around a scene: a camera swings about the median point while time plays. NumPy only: splats, z-buffer."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from one4d_jax.viewer.filters import depth_edges, spacing
from one4d_jax.viewer.scene import Scene
from one4d_jax.viewer.static import usable_points

_SHORTEST = 96  # frames: shorter clips play several times
_SWING = 0.42  # radians to either side
_NOD = 0.10  # up and down, twice as often
_BACK = 1.12  # distance to the median point, relative to that of the clip's cameras
_OVERLAP = 1.45  # size of a point over the distance to its neighbours
_LARGEST = 41  # pixels, odd: of a point right before the camera
_NEAR = 0.05  # of the distance to the median point: nothing nearer is drawn
_BACKGROUND = (24, 26, 31)


def orbit_frames(
  scene: Scene,
  *,
  height: int = 480,
  width: int | None = None,
  count: int | None = None,
  background: tuple[int, int, int] = _BACKGROUND,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> UInt8[np.ndarray, 'N h w 3']:
  """``count`` pictures: one swing to both sides, so that the video repeats without a jump.

  Time plays from the first frame to the last, and from the first again where ``count`` exceeds the frames (default:
  as often as it takes to 96 pictures). ``width`` follows from the scene's by default, within 3:4 and 2:1. Pixels on
  depth edges are left out. ``progress(done, total)`` follows.
  """
  if width is None:
    width = 2 * round(height * float(np.clip(scene.size[1] / scene.size[0], 0.75, 2.0)) / 2)
  count = scene.frames * -(-_SHORTEST // scene.frames) if count is None else count
  usable = usable_points(scene)
  pivot, pose, K = _base(scene, usable, height, width)
  pictures = np.empty((count, height, width, 3), np.uint8)
  for n in range(count):
    i = n % scene.frames
    keep = usable[i] & ~depth_edges(scene.depth[i : i + 1], usable[i : i + 1])[0]
    spread = _OVERLAP * spacing(scene, i, usable[i])[keep]
    camera = _swung(pose, pivot, 2 * np.pi * n / count)
    pictures[n] = _splat(scene.pointmap[i][keep], scene.rgb[i][keep], spread, camera, K, height, width, background)
    progress(n + 1, count)
  return pictures


def _base(scene: Scene, usable: np.ndarray, height: int, width: int):
  """The median point, the pose to swing from (that of the clip's middle camera, farther back), and K of the video."""
  points = scene.pointmap[usable]
  pose = scene.world_from_cam[scene.frames // 2].astype(np.float64)
  pose[:3, 3] = np.median(scene.world_from_cam[:, :3, 3], axis=0)
  step = max(len(points) // 200_000, 1)
  pivot = np.median(points[::step], axis=0).astype(np.float64) if len(points) else pose[:3, 3] + pose[:3, 2]
  pose[:3, 3] = pivot + _BACK * (pose[:3, 3] - pivot)
  own_height, own_width = scene.size
  K = scene.K[scene.frames // 2].astype(np.float64)
  focal = min(K[0, 0] * width / own_width, K[1, 1] * height / own_height)  # all that the clip's camera saw
  return pivot, pose, np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def _swung(pose: Float[np.ndarray, '4 4'], pivot: Float[np.ndarray, '3'], phase: float) -> Float[np.ndarray, '4 4']:
  """The pose turned about the pivot, around its own vertical and horizontal axes."""
  a, b = _SWING * np.sin(phase), _NOD * np.sin(2 * phase) - _NOD
  turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
  nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
  rotation = pose[:3, :3] @ turn @ nod @ pose[:3, :3].T
  out = np.eye(4)
  out[:3, :3], out[:3, 3] = rotation @ pose[:3, :3], pivot + rotation @ (pose[:3, 3] - pivot)
  return out


def _splat(points, colours, spread, camera, K, height: int, width: int, background) -> UInt8[np.ndarray, 'h w 3']:
  """Points as discs of world diameter ``spread``, the nearest in front; then pinholes are closed."""
  picture = np.tile(np.uint8(background), (height * width, 1))
  buffer = np.full(height * width, np.inf, np.float32)
  matrix = (K @ np.linalg.inv(camera)[:3]).astype(np.float32)
  x, y, z = matrix[:, :3] @ points.T + matrix[:, 3:]
  near = _NEAR * np.median(z[z > 0]) if (z > 0).any() else 1.0
  size = np.clip(spread * K[0, 0] / np.maximum(z, near), 1, _LARGEST)
  column, row = (np.clip(np.floor(a / np.maximum(z, near)), -1e6, 1e6).astype(np.int32) for a in (x, y))
  margin = size / 2
  shown = (z > near) & (column > -margin) & (column < width + margin) & (row > -margin) & (row < height + margin)
  order = np.flatnonzero(shown)
  order = order[np.argsort(-z[order])]  # far to near: of equal pixels in one assignment, the last stays
  column, row, z, size, colours = column[order], row[order], z[order], size[order], colours[order]
  reach = int(size.max() // 2) + 1 if len(size) else 0
  for dy in range(-reach, reach + 1):
    for dx in range(-reach, reach + 1):
      covers = np.flatnonzero(np.hypot(dx, dy) <= size / 2 + 0.4)  # its own pixel is rounded
      if not len(covers):
        continue
      u, v = column[covers] + dx, row[covers] + dy
      inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
      pixel, covers = (v * width + u)[inside], covers[inside]
      nearer = z[covers] < buffer[pixel]
      pixel, covers = pixel[nearer], covers[nearer]
      buffer[pixel], picture[pixel] = z[covers], colours[covers]
  return _closed(picture.reshape(height, width, 3), np.isfinite(buffer).reshape(height, width))


def _closed(picture: UInt8[np.ndarray, 'h w 3'], filled: np.ndarray, passes: int = 2) -> UInt8[np.ndarray, 'h w 3']:
  """Empty pixels among at least five filled neighbours take their mean."""
  for _ in range(passes):
    values = np.pad(np.where(filled[..., None], picture, 0).astype(np.uint16), ((1, 1), (1, 1), (0, 0)))
    known = np.pad(filled, 1).astype(np.uint16)
    h, w = filled.shape
    windows = [np.s_[i : i + h, j : j + w] for i in range(3) for j in range(3)]
    around = sum(known[window] for window in windows)
    holes = ~filled & (around >= 5)
    if not holes.any():
      break
    picture[holes] = sum(values[window][holes] for window in windows) // around[holes][:, None]
    filled = filled | holes
  return picture
