"""A 4D scene: what was seen, where every pixel is, and how the camera moved. NumPy only.

World = the first camera, OpenCV axes (x right, y down, z forward). The centre of pixel (u, v) is (u + 0.5, v + 0.5).
``K`` is in pixels, depth is planar z, ``world_from_cam`` maps camera to world. Lengths are in one unknown unit
unless ``scale`` is set: multiplied by ``scale`` they are metres.
"""

import dataclasses
import json
import math
import pathlib

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from one4d_jax.errors import DataError, ShapeError

FILE = 'scene.npz'
_LAYOUT = {
  'rgb': ('u1', 'FHW3'),
  'pointmap': ('f4', 'FHW3'),
  'depth': ('f4', 'FHW'),
  'valid': ('b1', 'FHW'),
  'K': ('f4', 'F33'),
  'world_from_cam': ('f4', 'F44'),
  'observed': ('b1', 'F'),
  'residual': ('f4', 'F'),
  'scale': ('f4', ''),
}


@dataclasses.dataclass(frozen=True)
class Scene:
  """One scene; arrays are cast to the types below, and must agree in shape.

  Attributes:
    pointmap: points in world coordinates, as the model saw them; meaningless where not ``valid``.
    depth: planar z along each pixel's ray, fitted with the cameras.
    valid: pixels that show a surface (not sky).
    observed: frames that were given to the model and not generated.
    residual: per frame, root mean square distance between pointmap and fitted geometry.
    scale: metres per unit; NaN where unknown.

  Raises ShapeError.
  """

  rgb: UInt8[np.ndarray, 'F H W 3']
  pointmap: Float32[np.ndarray, 'F H W 3']
  depth: Float32[np.ndarray, 'F H W']
  valid: Bool[np.ndarray, 'F H W']
  K: Float32[np.ndarray, 'F 3 3']
  world_from_cam: Float32[np.ndarray, 'F 4 4']
  observed: Bool[np.ndarray, 'F']
  residual: Float32[np.ndarray, 'F']
  scale: Float32[np.ndarray, ''] = float('nan')

  def __post_init__(self):
    for name, (dtype, _) in _LAYOUT.items():
      object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
    if self.rgb.ndim != 4 or not self.rgb.size:
      raise ShapeError(f'rgb: expected [F H W 3] with at least one pixel, got {list(self.rgb.shape)}')
    sizes = dict(zip('FHW', self.rgb.shape[:3], strict=True))
    for name, (_, axes) in _LAYOUT.items():
      want = tuple(sizes[a] if a in sizes else int(a) for a in axes)
      if getattr(self, name).shape != want:
        raise ShapeError(f'{name}: expected shape {list(want)} beside rgb, got {list(getattr(self, name).shape)}')

  @staticmethod
  def load(folder: str | pathlib.Path) -> 'Scene':
    """See ``load``."""
    return load(folder)

  @property
  def frames(self) -> int:
    return len(self.rgb)

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) in pixels."""
    return self.rgb.shape[1:3]

  @property
  def unit(self) -> str:
    """What one unit of length is, in words for files that state it."""
    return f'{self.scale:g} metre' if np.isfinite(self.scale) else 'unknown (lengths are relative)'

  @property
  def median_depth(self) -> float | None:
    """Of the valid pixels whose depth is a number; None where there is none."""
    known = self.depth[self.valid & (self.depth > 0) & np.isfinite(self.depth)]
    return float(np.median(known)) if known.size else None

  def check_cameras(self) -> None:
    """Raises DataError where a camera is not finite or has no focal length."""
    fine = np.isfinite(self.K).all((1, 2)) & np.isfinite(self.world_from_cam).all((1, 2))
    fine &= (self.K[:, 0, 0] > 0) & (self.K[:, 1, 1] > 0)
    if not fine.all():
      raise DataError(f'frame {fine.argmin()} of the scene has a camera that is not finite or has no focal length')

  def metric(self) -> 'Scene':
    """The scene in metres, with scale 1, where its scale is known; else the scene as it is."""
    if not np.isfinite(self.scale) or self.scale == 1:
      return self
    pose = self.world_from_cam.copy()
    pose[:, :3, 3] *= self.scale
    lengths = {name: getattr(self, name) * self.scale for name in ('pointmap', 'depth', 'residual')}
    return dataclasses.replace(self, **lengths, world_from_cam=pose, scale=1)

  def save(self, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes ``scene.npz`` into an existing folder; the other files of a scene come from ``export.write_scene``."""
    path = pathlib.Path(folder) / FILE
    np.savez_compressed(path, **{name: getattr(self, name) for name in _LAYOUT})
    return path


def load(folder: str | pathlib.Path) -> Scene:
  """The scene of a folder (or of a ``scene.npz``). Raises DataError: none there, damaged, or a camera that is none."""
  path = pathlib.Path(folder)
  path = path / FILE if path.is_dir() else path
  try:
    with np.load(path, allow_pickle=False) as stored:
      missing = [name for name in _LAYOUT if name not in stored.files]
      if missing:
        raise DataError(f'it lacks {", ".join(missing)} and is not a scene of this program')
      scene = Scene(**{name: _typed(stored[name], name) for name in _LAYOUT})
    scene.check_cameras()
    return scene
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist; give a folder written by `python -m one4d_jax.sample`') from error
  except ShapeError as error:
    raise DataError(f'{path} is inconsistent: {error}') from error
  except DataError as error:
    raise DataError(f'{path}: {error}') from error
  except Exception as error:  # zipfile, zlib and NumPy between them raise nearly every kind on damaged bytes
    raise DataError(f'{path} cannot be read as a scene: {error}') from error


def playback_rate(folder: str | pathlib.Path) -> float:
  """Frames a second, 1 to 60, that the scene of a folder (or of a ``scene.npz``) was written for; 8 if unknown."""
  path = pathlib.Path(folder)
  path = path.parent if path.is_file() else path
  try:
    rate = float(json.loads((path / 'run.json').read_text())['fps']['playback'])
  except (OSError, ValueError, KeyError, TypeError):
    return 8.0
  return min(max(rate, 1.0), 60.0) if math.isfinite(rate) else 8.0


def _typed(array: np.ndarray, name: str) -> np.ndarray:
  """The array, if its type is that of the format or another floating one: a cast of any other would change it."""
  want = np.dtype(_LAYOUT[name][0])
  if array.dtype != want and not (array.dtype.kind == want.kind == 'f'):
    raise DataError(f'{name} holds {array.dtype} where a scene has {want}')
  return array
