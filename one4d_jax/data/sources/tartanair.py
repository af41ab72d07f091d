"""TartanAir, version 1 and 2: flights through rendered worlds, mostly static, with depth in metres.

  V1  ENV/{Easy,Hard}/P000/pose_left.txt  image_left/000000_left.png  depth_left/000000_left_depth.npy
  V2  ENV/{Data_easy,Data_hard}/P000/pose_lcam_front.txt  image_lcam_front/000000_lcam_front.png
      depth_lcam_front/000000_lcam_front_depth.png

Of each pair or ring of cameras the left one that looks ahead is read. All of them see 90 degrees across and have the
principal point in the middle. Wang et al., TartanAir, arXiv 2003.14338; V2 as its toolkit's documents describe it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np

from one4d_jax.data.images import decoding, try_open
from one4d_jax.data.sources import annotations, files
from one4d_jax.data.sources.recording import Listed, Pixels, Recording
from one4d_jax.errors import DataError

SKY = 1000.0  # metres: the engine draws its sky on a sphere some 10 km away
FPS = 10.0
# The set's axes are x forward, y right, z down: of the world and, for a camera, of its own.
_AXES = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def find(root: str | pathlib.Path) -> list[Listed]:
  """The trajectories under a folder of environments, of one environment, of one difficulty, or that folder itself.

  Archives of V1 hold ENV/ENV/Easy: a second level of environments is looked into. Raises DataError if there is none.
  """
  root = pathlib.Path(root).resolve()
  listed = []
  for difficulty, version in _DIFFICULTIES.items():
    folders = [folder for prefix in ('', '*/', '*/*/') for folder in root.glob(f'{prefix}{difficulty}/P[0-9]*')]
    folders += root.glob('P[0-9]*') if root.name == difficulty else []
    folders += [root] if root.parent.name == difficulty else []
    for folder in filter(pathlib.Path.is_dir, folders):
      environment = folder.parent.parent.name
      name = f'{environment}/{difficulty}/{folder.name}'
      listed.append(Listed(name, functools.partial(_open, folder, name, version)))
  if not listed:
    layouts = [str(version.poses(pathlib.Path('ENV', name, 'P000'))) for name, version in _DIFFICULTIES.items()]
    raise DataError(f'{root} holds no TartanAir trajectory; expected {" or ".join(layouts)}')
  return sorted(listed, key=lambda found: found.name)


def _scene(environment: str) -> str:
  """One name for an environment that both versions have: what is held out of one is held out of the other."""
  return environment.lower()


def _open(folder: pathlib.Path, name: str, version: '_Version') -> Recording:
  poses = annotations.rows(version.poses(folder), 7)
  height, width = files.image_size(version.image(folder, i) for i in range(len(poses)))
  focal = width / 2
  return Recording(
    source='tartanair',
    scene=_scene(folder.parent.parent.name),
    name=name,
    fps=FPS,
    size=(height, width),
    K=np.tile(np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]), (len(poses), 1, 1)),
    world_from_cam=_AXES @ annotations.rigid(poses[:, 3:], poses[:, :3]) @ _AXES.T,
    pixels=functools.partial(_pixels, folder, version),
    numbers=tuple(range(len(poses))),
    licence=version.licence,
    unverified=version.unverified,
  )


def _pixels(folder: pathlib.Path, version: '_Version', i: int) -> Pixels:
  depth = version.read_depth(version.depth(folder, i))
  sky = depth >= SKY
  return Pixels(rgb=files.colour(version.image(folder, i)), depth=depth, valid=~sky, sky=sky)


def _depth_npy(path: pathlib.Path) -> np.ndarray:
  """float32 [H W] of an array of floats, however many bits they have."""
  depth = files.array(path)
  if depth.ndim != 2 or depth.dtype.kind != 'f':
    raise DataError(f'{path} is no depth map: expected [height, width] floats in metres')
  return depth.astype(np.float32)


def _depth_png(path: pathlib.Path) -> np.ndarray:
  """float32 [H W] whose four bytes are a PNG's channels, blue first: OpenCV's order."""
  image = try_open(path)
  if image is None:
    raise DataError(f'{path} is not an image that can be read')
  with image, decoding(path):
    if image.mode != 'RGBA':
      raise DataError(f'{path} is an image of mode {image.mode}; expected four 8-bit channels, the bytes of a float')
    bgra = np.asarray(image)[..., [2, 1, 0, 3]]
  return np.ascontiguousarray(bgra).view('<f4')[..., 0].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Version:
  camera: str
  kind: str  # of the files with depth
  read_depth: Callable[[pathlib.Path], np.ndarray]
  licence: str
  unverified: tuple[str, ...]

  def poses(self, folder: pathlib.Path) -> pathlib.Path:
    """Rows of x y z qx qy qz qw, camera to world."""
    return folder / f'pose_{self.camera}.txt'

  def image(self, folder: pathlib.Path, i: int) -> pathlib.Path:
    return folder / f'image_{self.camera}/{i:06d}_{self.camera}.png'

  def depth(self, folder: pathlib.Path, i: int) -> pathlib.Path:
    return folder / f'depth_{self.camera}/{i:06d}_{self.camera}_depth.{self.kind}'


_V1 = _Version(
  camera='left',
  kind='npy',
  read_depth=_depth_npy,
  licence='not stated with the data (its tools are BSD-3-Clause)',
  unverified=(
    f'TartanAir V1: taken for {FPS:g} frames a second, as V2 has; no rate is documented.',
    'TartanAir V1: the principal point is taken to be the middle of the image, with pixel centres at one half.',
    f'TartanAir V1: all from {SKY:g} m on is taken for sky.',
  ),
)
_V2 = _Version(
  camera='lcam_front',
  kind='png',
  read_depth=_depth_png,
  licence='CC BY 4.0',
  unverified=(f'TartanAir V2: all from {SKY:g} m on is taken for sky.',),
)
_DIFFICULTIES = {'Easy': _V1, 'Hard': _V1, 'Data_easy': _V2, 'Data_hard': _V2}
