"""A scene as nodes of viser: clouds of points, cameras, their path. What plays them is ``serve`` or ``html``.

The view is in units of the clip's median depth, so that viser's defaults and half-precision points suit any scene.
"""

import contextlib
import dataclasses
import functools
import io
import socket

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from one4d_jax.errors import DataError
from one4d_jax.viewer import cloud, filters
from one4d_jax.viewer.pictures import path_colours
from one4d_jax.viewer.scene import Scene
from one4d_jax.viewer.static import static_points, usable_points

PORT = 8080
MOST_POINTS = 2_500_000  # over all frames; a point takes nine bytes, a third more in a page
CAMERA_REACH = 0.1  # from a camera to its picture
_BANDS = 8  # of distance between neighbouring points, each drawn in its own size
_OVERLAP = 1.2  # size of a point over the distance to its neighbours
_THUMBNAIL = 192
_TOP, _BOTTOM = (46, 50, 60), (17, 18, 21)


@dataclasses.dataclass(frozen=True)
class Look:
  """Which points are shown, and how large.

  Attributes:
    stride: every so many rows and columns.
    unsure: percent of all points that is hidden, those with the least confidence.
    edges: with the pixels that fly between two surfaces.
    sky: with the sky, far behind everything.
    accumulate: what stands still, of all frames at once.
    size: of a point, relative to the distance between neighbours.
  """

  stride: int
  unsure: float = 0
  edges: bool = False
  sky: bool = False
  accumulate: bool = False
  size: float = 1.0


@contextlib.contextmanager
def serving(*, host: str = '127.0.0.1', port: int | None = None):
  """A viser server that prints nothing and is stopped at the end.

  ``port`` 0 takes any free one, None 8080 or the next free one. Raises DataError where it cannot listen.
  """
  import viser

  _check_listening(host, port or 0)
  with contextlib.redirect_stdout(io.StringIO()):
    server = viser.ViserServer(host=host, port=PORT if port is None else port, verbose=False, label='4D scene')
  try:
    yield server
  finally:
    with contextlib.redirect_stdout(io.StringIO()):
      server.stop()


def _check_listening(host: str, port: int) -> None:
  """viser takes the next port where one is taken, and waits for ever where there is no such host."""
  if not 0 <= port < 65536:
    raise DataError(f'--port must be 0 to 65535, got {port}')
  try:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(address)
      probe.listen()
  except OSError as error:
    raise DataError(
      f'the viewer cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host'
    ) from error


class Stage:
  """Puts a scene on a viser server. Clouds and cameras of all frames are there and hidden until they are shown."""

  def __init__(self, server, scene: Scene):
    self.server, self.scene = server, scene
    self._edges, self._spacing = functools.cache(self._find_edges), functools.cache(self._find_spacing)
    self.unit = view_unit(scene)
    self.poses = scene.world_from_cam.astype(np.float64)
    self.poses[:, :3, 3] /= self.unit
    depth = scene.depth[usable_points(scene)] / self.unit
    near, far = np.quantile(depth[:: max(depth.size // 500_000, 1)], [0.02, 0.98]) if depth.size else (1.0, 1.0)
    self.sky_depth = 1.5 * float(far)
    pixel = 1 / float(np.median(scene.K[:, 0, 0]))  # as wide as it is at depth 1
    limits = pixel * np.geomspace(near, max(self.sky_depth, 1.1 * near), _BANDS + 1)[1:]
    server.scene.set_up_direction('-y')
    server.scene.set_background_image(_gradient(), format='png')
    for name, value in self.home().items():
      setattr(server.initial_camera, name, value)
    if scene.frames > 1:
      _add_path(server, self.poses)
    self.frames = [_Cloud(server, f'/frames/{i:04d}', limits) for i in range(scene.frames)]
    self.still = _Cloud(server, '/still', limits)
    self.cameras = [self._add_camera(i) for i in range(scene.frames)]

  def put_frame(self, i: int, look: Look) -> None:
    """Sends the points of a frame: all, or what moves where the rest is accumulated."""
    keep = self._keep(i, look)
    if look.accumulate:
      keep &= ~self._static[i]
    grid = np.s_[:: look.stride, :: look.stride]
    keep = keep[grid]
    points, colours = self.scene.pointmap[i][grid][keep] / self.unit, self.scene.rgb[i][grid][keep]
    spacing = self._spacing(i, look.stride)[keep]
    if look.sky:
      far, tints = self._sky(i, look.stride)
      points, colours = np.concatenate([points, far]), np.concatenate([colours, tints])
      spacing = np.concatenate([spacing, np.full(len(far), self.sky_depth / self.scene.K[i, 0, 0])])
    self.frames[i].put(points, colours, spacing, _OVERLAP * look.size * look.stride)

  def put_still(self, look: Look) -> None:
    """Sends the points that stand still, of all frames, each place once."""
    chosen = np.zeros(self.scene.valid.shape, bool)
    grid = np.s_[:: look.stride, :: look.stride]
    for i in range(self.scene.frames):
      chosen[i][grid] = (self._keep(i, look) & self._static[i])[grid]
    step = max(-(-int(chosen.sum()) // (4 * MOST_POINTS)), 1)  # a bound on memory
    chosen.ravel()[np.flatnonzero(chosen)[np.arange(int(chosen.sum())) % step > 0]] = False
    if not chosen.any():
      return self.still.put(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), np.zeros(0), 1.0)
    found = cloud.merge(self.scene, chosen)
    part = np.s_[:: max(-(-len(found.points) // MOST_POINTS), 1)]
    frame, pixel = np.divmod(found.first[part], chosen[0].size)
    row, column = np.divmod(pixel, self.scene.size[1])
    spacing = np.stack([self._spacing(i, look.stride) for i in range(self.scene.frames)])
    spacing = spacing[frame, row // look.stride, column // look.stride]
    self.still.put(found.points[part] / self.unit, found.colours[part], spacing, _OVERLAP * look.size * look.stride)

  def home(self) -> dict:
    """The view to begin with, as attributes of a camera: behind the first one, above and to the right."""
    first = self.poses[0]
    place = lambda *xyz: first[:3, 3] + first[:3, :3] @ np.asarray(xyz)
    return {
      'position': place(0.35, -0.42, -0.85),
      'look_at': place(0, 0, 1),
      'fov': max(self.vertical_fov(0), np.radians(40)),
      'up': -first[:3, 1],
      'near': 0.01,
    }

  def vertical_fov(self, i: int, *, aspect: float = np.inf) -> float:
    """Radians; the angle in which a window of that aspect (width / height) holds the whole frame."""
    height, width = self.scene.size
    fx, fy = self.scene.K[i, 0, 0], self.scene.K[i, 1, 1]
    return float(2 * np.arctan(max(height / 2 / fy, width / 2 / fx / aspect)))

  def _keep(self, i: int, look: Look) -> Bool[np.ndarray, 'H W']:
    keep = self._usable[i].copy()
    if not look.edges:
      keep &= ~self._edges(i)
    if look.unsure:
      keep &= self._confidence[i] >= look.unsure / 100
    return keep

  @functools.cached_property
  def _usable(self) -> Bool[np.ndarray, 'F H W']:
    return usable_points(self.scene)

  @functools.cached_property
  def _static(self) -> Bool[np.ndarray, 'F H W']:
    return static_points(self.scene)

  @functools.cached_property
  def _confidence(self) -> Float[np.ndarray, 'F H W']:
    return filters.confidence(self.scene)

  def _find_edges(self, i: int) -> Bool[np.ndarray, 'H W']:
    return filters.depth_edges(self.scene.depth[i : i + 1], self._usable[i : i + 1])[0]

  def _find_spacing(self, i: int, stride: int) -> Float[np.ndarray, 'h w']:
    """In the unit of the view, of one pixel: a stride makes it that much larger."""
    return filters.spacing(self.scene, i, self._usable[i], stride=stride) / (stride * self.unit)

  def _sky(self, i: int, stride: int) -> tuple[Float[np.ndarray, 'n 3'], UInt8[np.ndarray, 'n 3']]:
    """Points of the sky of a frame, as far away as the view holds, and their colours."""
    row, column = np.nonzero(~self._usable[i][::stride, ::stride])
    pixels = np.stack([column * stride + 0.5, row * stride + 0.5, np.ones(len(row))], axis=-1)
    rays = pixels @ np.linalg.inv(self.scene.K[i].astype(np.float64)).T
    points = self.sky_depth * rays @ self.poses[i, :3, :3].T + self.poses[i, :3, 3]
    return points.astype(np.float32), self.scene.rgb[i, ::stride, ::stride][row, column]

  def _add_camera(self, i: int):
    import viser.transforms as tf

    height, width = self.scene.size
    picture = Image.fromarray(self.scene.rgb[i])
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    camera = self.server.scene.add_camera_frustum(
      f'/cameras/{i:04d}',
      fov=self.vertical_fov(i),
      aspect=width / height,
      thickness=0.003,
      color=tuple(path_colours(self.scene.frames)[i].tolist()),
      image=np.asarray(picture),
      format='jpeg',
      wxyz=tf.SO3.from_matrix(self.poses[i, :3, :3]).wxyz,
      position=self.poses[i, :3, 3],
      visible=False,
    )
    camera.scale = CAMERA_REACH / camera.compute_canonical_frustum_size()[2]
    return camera


class _Cloud:
  """Points under one name, in nodes of points that lie equally far apart and are drawn as large as that."""

  def __init__(self, server, name: str, limits: Float[np.ndarray, 'n']):
    self._server, self._name, self._limits = server, name, limits
    self._root = server.scene.add_frame(name, show_axes=False, visible=False)
    self._nodes = {}
    self.count = 0

  @property
  def visible(self) -> bool:
    return self._root.visible

  @visible.setter
  def visible(self, value: bool) -> None:
    self._root.visible = value

  def put(self, points, colours, spacing, size: float) -> None:
    """Replaces the points, all at once; each is drawn ``size`` times as large as its ``spacing``."""
    self.count = len(points)
    band = np.searchsorted(self._limits[:-1], spacing)
    with self._server.atomic():
      for k, limit in enumerate(self._limits.tolist()):
        here, width = band == k, size * limit
        node = self._nodes.get(k)
        if node is not None and here.any():
          node.points, node.colors, node.point_size = points[here].astype(np.float16), colours[here], width
        elif node is not None:
          self._nodes.pop(k).remove()  # a page cannot draw a cloud without points
        elif here.any():
          self._nodes[k] = self._server.scene.add_point_cloud(
            f'{self._name}/{k}',
            points[here],
            colours[here],
            point_size=width,
            point_shape='circle',
            point_shading='flat',
          )


def default_stride(scene: Scene, most: int = MOST_POINTS) -> int:
  """The least stride that leaves at most so many points over all frames."""
  return filters.stride_for(scene, most)


def view_unit(scene: Scene) -> float:
  """Median depth of the valid pixels, the unit of length in the view; 1 where there are none."""
  return scene.median_depth or 1.0


def _gradient() -> UInt8[np.ndarray, '256 2 3']:
  """The background, lighter at the top."""
  share = np.linspace(0, 1, 256)[:, None, None]
  return np.uint8(np.tile((1 - share) * np.array(_TOP) + share * np.array(_BOTTOM), (1, 2, 1)) + 0.5)


def _add_path(server, poses: np.ndarray) -> None:
  centres = poses[:, :3, 3].astype(np.float32)
  tints = path_colours(len(poses))
  server.scene.add_line_segments(
    '/path',
    np.stack([centres[:-1], centres[1:]], axis=1),
    np.stack([tints[:-1], tints[1:]], axis=1),
    thickness=0.004,
  )
