"""A scene in viser: live, or as one HTML file that plays from disk without a network.

The view is in units of the clip's median depth, so that viser's defaults and half-precision points suit any scene.
It leaves out what would only blur it: invalid pixels, and pixels on a depth edge, which fly between two surfaces.
"""

import contextlib
import dataclasses
import io

import numpy as np
from jaxtyping import Bool, Float

from one4d_jax.errors import DataError
from one4d_jax.viewer.pictures import turbo
from one4d_jax.viewer.scene import Scene

_MOST_POINTS = 1_200_000  # over all frames: about 11 MB of HTML


@dataclasses.dataclass(frozen=True)
class FrameNodes:
  """What one frame adds to a viser scene."""

  points: object
  frustum: object

  def show(self, visible: bool) -> None:
    self.points.visible = visible
    self.frustum.visible = visible


def scene_html(scene: Scene, *, fps: float) -> str:
  """A self-contained page that plays the scene at ``fps``. Raises DataError where viser cannot start."""
  with serving(port=0) as server:
    nodes = populate(server, scene)
    recorder = server.get_scene_serializer()
    for i in range(1, len(nodes)):
      recorder.insert_sleep(1 / fps)
      nodes[i - 1].show(False)
      nodes[i].show(True)
    if len(nodes) > 1:
      recorder.insert_sleep(1 / fps)
    return recorder.as_html(dark_mode=True)


@contextlib.contextmanager
def serving(*, host: str = '127.0.0.1', port: int):
  """A viser server that prints nothing and is stopped at the end; port 0 takes any free one."""
  import viser

  with contextlib.redirect_stdout(io.StringIO()):
    try:
      server = viser.ViserServer(host=host, port=port, verbose=False)
    except OSError as error:
      raise DataError(f'the viewer cannot listen on {host}:{port} ({error}); choose another --port') from error
  try:
    yield server
  finally:
    with contextlib.redirect_stdout(io.StringIO()):
      server.stop()


def populate(server, scene: Scene) -> list[FrameNodes]:
  """Adds points, camera and path to a viser server; frame 0 is shown. Returns the nodes of each frame."""
  unit = view_unit(scene)
  poses = scene.world_from_cam.astype(np.float64)
  poses[:, :3, 3] /= unit
  stride = max(int(np.ceil(np.sqrt(scene.valid.size / _MOST_POINTS))), 1)
  seen = scene.valid & np.isfinite(scene.pointmap).all(axis=-1) & ~depth_edges(scene.depth, scene.valid)
  server.scene.set_up_direction('-y')
  _initial_camera(server, scene, poses)
  if scene.frames > 1:
    _add_path(server, poses)
  # A pixel at the median depth is as wide as 1 / f; a little more closes the gaps between neighbours.
  point_size = 1.25 * stride / float(np.median(scene.K[:, 0, 0]))
  nodes = []
  for i in range(scene.frames):
    grid = np.s_[i, ::stride, ::stride]
    keep = seen[grid]
    points = server.scene.add_point_cloud(
      f'/points/{i:04d}',
      scene.pointmap[grid][keep] / unit,
      scene.rgb[grid][keep],
      point_size=point_size,
      point_shape='circle',
      point_shading='flat',
      visible=i == 0,
    )
    nodes.append(FrameNodes(points, _add_camera(server, scene, poses[i], i)))
  return nodes


def view_unit(scene: Scene) -> float:
  """Median depth of the valid pixels, the unit of length in the view; 1 where there are none."""
  usable = scene.depth[scene.valid & (scene.depth > 0) & np.isfinite(scene.depth)]
  return float(np.median(usable)) if usable.size else 1.0


def depth_edges(
  depth: Float[np.ndarray, 'F H W'], valid: Bool[np.ndarray, 'F H W'], *, jump: float = 0.03, steep: float = 3.0
) -> Bool[np.ndarray, 'F H W']:
  """Pixels that fly between two surfaces, along rows or columns.

  Inverse depth is linear across any plane, however slanted. A pixel flies where it rises (or falls) on both sides by
  more than ``jump`` of itself and ``steep`` times more than is usual (median) within four pixels.
  """
  inverse = np.divide(1, depth, out=np.zeros(depth.shape, np.float32), where=valid & (depth > 0))
  along_columns = _ramps(np.swapaxes(inverse, 1, 2), jump, steep)
  return valid & (_ramps(inverse, jump, steep) | np.swapaxes(along_columns, 1, 2))


def _ramps(values: np.ndarray, jump: float, steep: float, reach: int = 4) -> np.ndarray:
  rise = np.diff(values, axis=-1)
  before, after = rise[..., :-1], rise[..., 1:]
  least = np.where(before * after > 0, np.minimum(np.abs(before), np.abs(after)), 0)
  flying = np.zeros(values.shape, bool)
  flying[..., 1:-1] = least > jump * values[..., 1:-1]
  *where, column = np.nonzero(flying)
  around = np.clip(column[:, None] + np.arange(-reach, reach), 0, rise.shape[-1] - 1)
  usual = np.median(np.abs(rise[(*(axis[:, None] for axis in where), around)]), axis=-1)
  flying[(*where, column)] = least[(*where, column - 1)] > steep * usual
  return flying


def _initial_camera(server, scene: Scene, poses: np.ndarray) -> None:
  """Half a unit behind the first camera, above and to the right, so that it stays clear of what it sees."""
  first = poses[0]
  right_down_forward = first[:3, :3]
  place = lambda *xyz: first[:3, 3] + right_down_forward @ np.asarray(xyz)
  server.initial_camera.position = place(0.3, -0.35, -0.55)
  server.initial_camera.look_at = place(0, 0, 1)
  server.initial_camera.up = -right_down_forward[:, 1]
  server.initial_camera.fov = _vertical_fov(scene, 0)


def _vertical_fov(scene: Scene, i: int) -> float:
  """Radians."""
  return float(2 * np.arctan(scene.size[0] / 2 / scene.K[i, 1, 1]))


def _add_camera(server, scene: Scene, pose: np.ndarray, i: int):
  import viser.transforms as tf

  height, width = scene.size
  return server.scene.add_camera_frustum(
    f'/camera/{i:04d}',
    fov=_vertical_fov(scene, i),
    aspect=width / height,
    scale=0.055,
    thickness=0.003,
    color=tuple(turbo(np.float64(_time(scene.frames)[i])).tolist()),
    image=scene.rgb[i],
    format='jpeg',
    wxyz=tf.SO3.from_matrix(pose[:3, :3]).wxyz,
    position=pose[:3, 3],
    visible=i == 0,
  )


def _add_path(server, poses: np.ndarray) -> None:
  centres = poses[:, :3, 3].astype(np.float32)
  tints = turbo(_time(len(poses)))
  server.scene.add_line_segments(
    '/path',
    np.stack([centres[:-1], centres[1:]], axis=1),
    np.stack([tints[:-1], tints[1:]], axis=1),
    thickness=0.003,
  )


def _time(frames: int) -> np.ndarray:
  """Place of each frame on the colour map, blue to red."""
  return np.linspace(0.1, 0.9, frames)
