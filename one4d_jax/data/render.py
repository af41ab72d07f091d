"""Ray-casts a procedural scene into a clip with exact depth. NumPy only, float32, one array per coordinate.

A ray is `origin + t * direction` with direction = R (x, y, 1), x = (u - cx) / fx: not normalised, so t is planar z.
Depth takes one ray through the centre of each pixel; colour averages `supersample`^2 rays. Light is one sun with hard
shadows: colour * (0.35 + 0.65 max(n.l, 0)). Bodies are tested only inside the rectangle they project to.
"""

import numpy as np

from one4d_jax.data import scenes, textures
from one4d_jax.data.captions import caption
from one4d_jax.data.clip import Clip
from one4d_jax.data.scenes import GENERATOR_VERSION, STATIC, Body, Scene
from one4d_jax.errors import DataError

FAR = 40.0
FPS = 16
AMBIENT = 0.35

SKY, FLOOR, LEFT, RIGHT, BACK, BODY = -1, 0, 1, 2, 3, 4  # what a ray hit; bodies count up from BODY
_INF = np.float32(np.inf)


def clip(
  seed: int,
  *,
  level: str = 'medium',
  split: str = 'train',
  frames: int = 17,
  height: int = 64,
  width: int = 64,
  supersample: int = 2,
) -> Clip:
  """Clip number `seed` of a split and level. The same arguments give the same bytes.

  Raises:
    DataError: see `scenes.sample`; or a size below 1.
  """
  if min(frames, height, width, supersample) < 1:
    raise DataError(
      f'frames, height, width and supersample must be 1 or more; got {frames}, {height}, {width}, {supersample}'
    )
  scene = scenes.sample(seed, level=level, split=split)
  return render(scene, frames=frames, height=height, width=width, supersample=supersample)


def render(scene: Scene, *, frames: int, height: int, width: int, supersample: int = 2) -> Clip:
  """A clip of `scene` at `frames` times evenly spread over [0, 1]."""
  times = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
  K = intrinsics(scene.camera.fov, frames, height, width)
  pose = scene.camera.poses(times).astype(np.float32)
  bodies = [_Posed(body, times) for body in scene.bodies]
  centre = _Rays(K, pose, height, width, 1)
  depth, hit = trace(scene, bodies, centre)
  if supersample == 1:
    colour = shade(scene, bodies, centre, depth, hit)
  else:
    fine = _Rays(K, pose, height, width, supersample)
    colour = shade(scene, bodies, fine, *trace(scene, bodies, fine))
    colour = colour.reshape(3, frames, height, supersample, width, supersample).mean(axis=(3, 5))
  moving = np.array([False] * BODY + [body.motion != STATIC for body in scene.bodies] + [False])  # [-1] is the sky
  return Clip(
    rgb=np.ascontiguousarray(np.moveaxis((colour * 255 + np.float32(0.5)).astype(np.uint8), 0, -1)),
    depth=np.where(hit == SKY, np.float32(0), depth),
    valid=hit != SKY,
    sky=hit == SKY,
    dynamic=moving[hit],
    K=K,
    world_from_cam=pose,
    caption=caption(scene),
    meta=_meta(scene),
  )


def intrinsics(fov: float, frames: int, height: int, width: int) -> np.ndarray:
  """float32 [frames 3 3] for a horizontal field of view in degrees, square pixels, centred."""
  focal = 0.5 * width / np.tan(np.radians(fov / 2))
  K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)
  return np.tile(K, (frames, 1, 1))


def _meta(scene: Scene) -> dict:
  return {
    'id': f'proc4d-{scene.split}-{scene.level}-{scene.seed:08d}',
    'dataset': 'proc4d',
    'generator_version': GENERATOR_VERSION,
    'level': scene.level,
    'split': scene.split,
    'seed': scene.seed,
    'fps': FPS,
    'far': FAR,
    'depth': 'z',
    'camera': scene.camera.motion,
    'motions': [body.motion for body in scene.bodies],
    'held_out': list(scene.held_out),
  }


class _Rays:
  """Origins [F 1 1] and directions [F h w] in the world, one array per axis; h = height * per_side."""

  def __init__(self, K, pose, height: int, width: int, per_side: int):
    step = np.float32(1 / per_side)
    focal, cx, cy = K[0, 0, 0], K[0, 0, 2], K[0, 1, 2]
    x = ((np.arange(width * per_side, dtype=np.float32) + np.float32(0.5)) * step - cx) / focal
    y = ((np.arange(height * per_side, dtype=np.float32) + np.float32(0.5)) * step - cy) / focal
    self.pose, self.x, self.y = pose, x, y
    self.pixel = step / focal  # a ray's share of the image plane at z = 1
    self.origin = [pose[:, i, 3, None, None] for i in range(3)]
    rows = [[pose[:, i, j, None, None] for j in range(3)] for i in range(3)]
    self.direction = [r[0] * x + (r[1] * y[:, None] + r[2]) for r in rows]


class _Posed:
  """A body with its float32 centres [F 3] and rotations [F 3 3]."""

  def __init__(self, body: Body, times):
    self.body, self.half = body, body.half.astype(np.float32)
    self.centre, self.rotation = (a.astype(np.float32) for a in body.poses(times))


def trace(scene: Scene, bodies: list[_Posed], rays: _Rays) -> tuple[np.ndarray, np.ndarray]:
  """Planar depth (float32 [F h w], inf for the sky) and what was hit (int8 [F h w])."""
  depth, hit = _trace_floor(rays)
  if scene.walls:
    _trace_walls(scene.walls, rays, depth, hit)
  for k, posed in enumerate(bodies):
    intersect = _sphere if posed.body.shape == 'sphere' else _box
    for frame in range(len(posed.centre)):
      window = _window(posed, rays, frame)
      if window is None:
        continue
      origin = [o[frame] for o in rays.origin]
      t = intersect(posed, frame, origin, [d[frame][window] for d in rays.direction])
      nearer = t < depth[frame][window]
      np.copyto(depth[frame][window], t, where=nearer)
      np.copyto(hit[frame][window], np.int8(BODY + k), where=nearer)
  hit[depth > FAR] = SKY
  depth[hit == SKY] = _INF
  return depth, hit


def _trace_floor(rays: _Rays):
  down = rays.direction[1]
  seen = down > 1e-6
  depth = np.full(down.shape, _INF)
  np.divide(-rays.origin[1], down, out=depth, where=seen)
  return depth, np.where(seen, np.int8(FLOOR), np.int8(SKY))


def _trace_walls(walls: scenes.Walls, rays: _Rays, depth, hit):
  planes = ((LEFT, 0, -walls.half_width), (RIGHT, 0, walls.half_width), (BACK, 2, walls.depth))
  top = np.float32(-walls.height)
  for name, axis, at in planes:
    along = rays.direction[axis]
    t = np.full(along.shape, _INF)
    np.divide(np.float32(at) - rays.origin[axis], along, out=t, where=along * np.float32(np.sign(at)) > 1e-6)
    nearer = t < depth
    nearer &= rays.origin[1] + np.where(nearer, t, 0) * rays.direction[1] > top
    np.copyto(depth, t, where=nearer)
    np.copyto(hit, np.int8(name), where=nearer)


def _window(posed: _Posed, rays: _Rays, frame: int):
  """The pixels a bounding sphere covers, as two slices; None if there are none."""
  pose, radius = rays.pose[frame].astype(np.float64), posed.body.radius * 1.001
  cx, cy, cz = pose[:3, :3].T @ (posed.centre[frame] - pose[:3, 3])
  if cz <= -radius:
    return None
  if cz <= 1.01 * radius:
    return slice(None), slice(None)
  slices = []
  for c, grid in ((cy, rays.y), (cx, rays.x)):
    spread = radius * np.sqrt(c * c + cz * cz - radius * radius)
    low, high = ((c * cz + s * spread) / (cz * cz - radius * radius) for s in (-1, 1))
    start, stop = np.searchsorted(grid, (low, high))
    if start >= stop:
      return None
    slices.append(slice(max(start - 1, 0), stop + 1))
  return tuple(slices)


def _sphere(posed: _Posed, frame: int, origin, direction):
  """Ray parameter of the first hit, inf for a miss; by the ray's closest point, which float32 can resolve."""
  dx, dy, dz = direction
  ox, oy, oz = (posed.centre[frame][i] - origin[i] for i in range(3))
  square = dx * dx + dy * dy + dz * dz
  nearest = (dx * ox + dy * oy + dz * oz) / square
  px, py, pz = dx * nearest - ox, dy * nearest - oy, dz * nearest - oz
  inside = posed.half[0] ** 2 - (px * px + py * py + pz * pz)
  t = nearest - np.sqrt(np.maximum(inside, 0) / square)
  return np.where((inside > 0) & (t > 1e-4), t, _INF)


def _box(posed: _Posed, frame: int, origin, direction):
  """Ray parameter where the ray enters the box, inf for a miss (slab test in the box's axes)."""
  enter, leave = None, None
  for axis in range(3):
    r = posed.rotation[frame][:, axis]
    o = sum(r[i] * (origin[i] - posed.centre[frame][i]) for i in range(3))
    d = r[0] * direction[0] + r[1] * direction[1] + r[2] * direction[2]
    inverse = 1 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
    reach = posed.half[axis] * np.abs(inverse)
    middle = -o * inverse
    near, far = middle - reach, middle + reach
    enter = near if enter is None else np.maximum(enter, near)
    leave = far if leave is None else np.minimum(leave, far)
  return np.where((enter < leave) & (enter > 1e-4), enter, _INF)


def shade(scene: Scene, bodies: list[_Posed], rays: _Rays, depth, hit) -> np.ndarray:
  """Colours, float32 [3 F h w] in [0, 1]."""
  frames, pixels = len(depth), depth[0].size
  depth, hit = depth.reshape(-1), hit.reshape(-1)
  direction = [d.reshape(-1) for d in rays.direction]
  colour = np.empty((3, depth.size), np.float32)
  for name in range(SKY, BODY + len(bodies)):
    index = np.flatnonzero(hit == name)
    if not index.size:
      continue
    frame = index // pixels
    view = [d[index] for d in direction]
    if name == SKY:
      colour[:, index] = _sky(scene, view)
      continue
    t = depth[index]
    point = [o.reshape(-1)[frame] + t * d for o, d in zip(rays.origin, view, strict=True)]
    if name < BODY:
      texture, local, normal = _plane_surface(scene, name, point)
    else:
      texture, local, normal = _body_surface(bodies[name - BODY], frame, point)
    facing = np.abs(view[0] * normal[0] + view[1] * normal[1] + view[2] * normal[2])
    footprint = rays.pixel * t / np.maximum(np.sqrt(facing), 0.1)  # between along and across a slanted surface
    first, second = texture.colours()
    mix = textures.weight(texture, *local, footprint)
    light = AMBIENT + (1 - AMBIENT) * _sunlight(scene, bodies, frames, frame, point, normal, name)
    for i in range(3):
      colour[i, index] = (first[i] + (second[i] - first[i]) * mix) * light
  return colour.reshape(3, frames, *rays.direction[0].shape[1:])


def _sky(scene: Scene, view):
  """From the horizon's colour to the one overhead."""
  x, y, z = view
  rise = np.clip(-1.6 * y / np.sqrt(x * x + y * y + z * z), 0, 1)
  horizon, overhead = scene.sky
  return horizon[:, None] + (overhead - horizon)[:, None] * rise


def _plane_surface(scene: Scene, name: int, point):
  """(texture, pattern coordinates, normal) on the floor or a wall; None replaces the coordinate that is constant."""
  x, y, z = point
  if name == FLOOR:
    return scene.floor, (x, None, z), np.float32([0, -1, 0])
  texture = scene.walls.textures[name - LEFT]
  if name == BACK:
    return texture, (x, None, y), np.float32([0, 0, -1])
  return texture, (y, None, z), np.float32([1 if name == LEFT else -1, 0, 0])


def _body_surface(posed: _Posed, frame, point):
  """(texture, pattern coordinates, normal) on a body; coordinates are in its own axes."""
  offset = [p - posed.centre[:, i][frame] for i, p in enumerate(point)]
  rotation = posed.rotation
  local = [sum(rotation[:, i, axis][frame] * offset[i] for i in range(3)) for axis in range(3)]
  if posed.body.shape == 'sphere':
    return posed.body.texture, local, [o / posed.half[0] for o in offset]
  share = [np.abs(l) / h for l, h in zip(local, posed.half, strict=True)]
  on_x = (share[0] >= share[1]) & (share[0] >= share[2])
  on_y = ~on_x & (share[1] >= share[2])
  face = [np.where(on, np.sign(l), 0) for on, l in zip((on_x, on_y, ~on_x & ~on_y), local, strict=True)]
  normal = [sum(rotation[:, i, axis][frame] * face[axis] for axis in range(3)) for i in range(3)]
  return posed.body.texture, local, normal


def _sunlight(scene: Scene, bodies: list[_Posed], frames: int, frame, point, normal, name: int):
  """max(n.l, 0), and 0 where a body is between the point and the sun."""
  sun = scene.sun.astype(np.float32)
  light = np.maximum(normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2], np.float32(0))
  light = np.broadcast_to(light, point[0].shape).copy()
  for k, posed in enumerate(bodies):
    if name == BODY + k:  # convex: its own shadow is n.l < 0
      continue
    ox, oy, oz = (posed.centre[:, i][frame] - p for i, p in enumerate(point))
    along = ox * sun[0] + oy * sun[1] + oz * sun[2]
    outside = ox * ox + oy * oy + oz * oz - along * along
    blocked = (outside < np.float32(posed.body.radius**2)) & (along > 0)
    if posed.body.shape == 'box':
      near = np.flatnonzero(blocked)
      blocked[near] = _blocks(posed, frame[near], (-ox[near], -oy[near], -oz[near]), sun)
    light[blocked] = 0
  return light


def _blocks(posed: _Posed, frame, offset, sun):
  """Whether rays from the box's centre + offset towards the sun meet the box."""
  enter, leave = np.float32(0), _INF
  for axis in range(3):
    r = [posed.rotation[:, i, axis] for i in range(3)]
    o = sum(r[i][frame] * offset[i] for i in range(3))
    d = sum(r[i] * sun[i] for i in range(3))
    inverse = (1 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d))[frame]
    reach = posed.half[axis] * np.abs(inverse)
    enter = np.maximum(enter, -o * inverse - reach)
    leave = np.minimum(leave, -o * inverse + reach)
  return enter < leave
