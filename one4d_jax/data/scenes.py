"""Procedural scenes: a floor, perhaps walls, some moving spheres and boxes, a moving camera. NumPy only.

The world has y down and the floor at y = 0; the objects stand around the origin and the camera looks along +z at them.
A scene is a function of time t in [0, 1] over the clip, so it does not depend on the number of frames or on resolution.

Splits are disjoint ranges of seeds. Never in training: level 'hard', the speckled texture, and anything that bounces
while the camera orbits right; clips that have one of these say so in `Scene.held_out`.
"""

import dataclasses

import numpy as np

from one4d_jax.data import textures
from one4d_jax.data.textures import Texture
from one4d_jax.errors import DataError

GENERATOR_VERSION = 1  # part of every record; bump it when any pixel changes

SPLIT_SEEDS = {'train': 0, 'val': 10**8, 'test': 2 * 10**8}
SEEDS_PER_SPLIT = 10**8
STATIC = 'static'
MOTIONS = ('slides left', 'slides right', 'comes closer', 'moves away', 'bounces', 'circles', 'spins')
CAMERAS = (
  'stays still', 'dollies in', 'dollies out', 'trucks left', 'trucks right',
  'orbits left', 'orbits right', 'rises', 'pans left', 'pans right',
)  # fmt: skip
HELD_OUT_PAIR = ('orbits right', 'bounces')
CLEARANCE = 0.9  # camera to surface, scene units

_TAG = 0x4D
_CHECK_TIMES = np.linspace(0, 1, 9)
_DOWN = np.array([0.0, 1.0, 0.0])


@dataclasses.dataclass(frozen=True)
class Level:
  """How crowded and lively scenes are: object count, camera travel (1 = as in `Camera`), odds, view in degrees."""

  objects: tuple[int, int]
  travel: float
  p_dynamic: float
  p_walls: float
  fov: tuple[float, float] = (45, 70)


LEVELS = {
  'easy': Level(objects=(1, 2), travel=0.5, p_dynamic=0.6, p_walls=1.0),
  'medium': Level(objects=(2, 4), travel=1.0, p_dynamic=0.6, p_walls=0.5),
  'hard': Level(objects=(4, 6), travel=2.0, p_dynamic=0.9, p_walls=0.3, fov=(35, 85)),
}


@dataclasses.dataclass(frozen=True)
class Camera:
  """A camera that looks at, or starts towards, `focus`; it moves `travel` times the default of its motion."""

  motion: str
  focus: np.ndarray  # [3]
  distance: float  # from the focus, along the floor
  azimuth: float  # radians, 0 = looking along +z
  height: float  # above the floor
  travel: float
  fov: float  # horizontal, degrees

  def poses(self, t: np.ndarray) -> np.ndarray:
    """World-from-camera matrices [n 4 4] at times t [n]; moves ease in and out."""
    move = self.travel * (t * t * (3 - 2 * t) - 0.5)[:, None]  # -travel/2 .. travel/2
    sign = -1 if self.motion.endswith('left') else 1
    azimuth, distance, height = self.azimuth, self.distance, self.height
    match self.motion.split()[0]:
      case 'dollies':
        distance = distance + 1.6 * move * (-1 if self.motion.endswith('in') else 1)
      case 'orbits':
        azimuth = azimuth + sign * np.radians(40) * move
      case 'rises':
        height = height + 1.4 * (move + self.travel / 2)
    one = np.ones_like(move)
    offset = [distance * np.sin(azimuth) * one, -height * one - self.focus[1], -distance * np.cos(azimuth) * one]
    eye = self.focus + np.concatenate(offset, axis=1)
    forward = self.focus - eye
    right = np.cross(_DOWN, forward)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    match self.motion.split()[0]:
      case 'trucks':
        eye = eye + sign * 2.0 * move * right
      case 'pans':
        reach = np.radians(min(26 * self.travel, 0.45 * self.fov))  # further, and all would leave the view
        angle = sign * reach * move / self.travel
        level = np.cross(right, _DOWN)
        ahead = (forward * level).sum(axis=1, keepdims=True)
        forward = ahead * (np.cos(angle) * level + np.sin(angle) * right) + forward * _DOWN
    return look_along(eye, forward)


@dataclasses.dataclass(frozen=True)
class Body:
  """A sphere (radius `half[0]`) or box (half sizes `half`), turned by `heading` about the vertical."""

  shape: str
  half: np.ndarray  # [3]
  home: np.ndarray  # [3], its centre at rest
  heading: float
  texture: Texture
  motion: str
  amount: float  # distance, height, radius or angle of the motion
  phase: float
  right: np.ndarray  # [3] the first camera's right, on the floor; 'left', 'closer' are as seen from there

  @property
  def radius(self) -> float:
    """Of the bounding sphere."""
    return float(self.half[0] if self.shape == 'sphere' else np.linalg.norm(self.half))

  def poses(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre [n 3] and world-from-body rotation [n 3 3] at times t [n]."""
    along, heading = np.zeros((len(t), 3)), np.full(len(t), self.heading)
    away = np.array([-self.right[2], 0, self.right[0]])  # right x down
    swing = self.amount * (t - 0.5)[:, None]
    match self.motion:
      case 'slides left' | 'slides right':
        along = swing * self.right * (1 if self.motion == 'slides right' else -1)
      case 'moves away' | 'comes closer':
        along = swing * away * (1 if self.motion == 'moves away' else -1)
      case 'bounces':
        along = -_DOWN * self.amount * np.abs(np.sin(2 * np.pi * t + self.phase))[:, None]
      case 'circles':
        angle = (2 * np.pi * t + self.phase)[:, None]
        along = self.amount * (np.cos(angle) * self.right + np.sin(angle) * away)
      case 'spins':
        heading = heading + self.amount * t
    cos, sin, zero = np.cos(heading), np.sin(heading), np.zeros(len(t))
    rotation = np.stack([cos, zero, sin, zero, zero + 1, zero, -sin, zero, cos], axis=-1).reshape(-1, 3, 3)
    return self.home + along, rotation


@dataclasses.dataclass(frozen=True)
class Walls:
  """Three walls, at x = -half_width, x = half_width and z = depth, all `height` high; they cast no shadow."""

  half_width: float
  depth: float
  height: float
  textures: tuple[Texture, Texture, Texture]  # left, right, back


@dataclasses.dataclass(frozen=True)
class Scene:
  """Everything the renderer needs; `sun` points to the light."""

  floor: Texture
  walls: Walls | None
  bodies: tuple[Body, ...]
  camera: Camera
  sun: np.ndarray  # [3], unit
  sky: tuple[np.ndarray, np.ndarray]  # colours at the horizon and overhead
  seed: int
  level: str
  split: str

  @property
  def held_out(self) -> tuple[str, ...]:
    """What in this scene never occurs in training: any of 'level', 'texture', 'pair'."""
    used = [self.floor, *(self.walls.textures if self.walls else ()), *(body.texture for body in self.bodies)]
    camera, motion = HELD_OUT_PAIR
    found = {
      'level': self.level == 'hard',
      'texture': any(texture.kind == textures.HELD_OUT for texture in used),
      'pair': self.camera.motion == camera and any(body.motion == motion for body in self.bodies),
    }
    return tuple(name for name, is_in in found.items() if is_in)


def sample(seed: int, *, level: str = 'medium', split: str = 'train') -> Scene:
  """The scene number `seed` (0 .. 10^8 - 1) of a split and level.

  Raises:
    DataError: unknown level or split, a seed out of range, or level 'hard' asked of the training split.
  """
  _check(seed, level, split)
  rng = np.random.default_rng(np.random.SeedSequence([_TAG, list(LEVELS).index(level), SPLIT_SEEDS[split] + seed]))
  spec = LEVELS[level]
  kinds = [kind for kind in textures.KINDS if split != 'train' or kind != textures.HELD_OUT]
  in_room = rng.random() < spec.p_walls
  camera = _sample_camera(rng, spec)
  floor = Texture(
    _pick(rng, ['checkered', 'checkered', *kinds]),
    _pick(rng, list(textures.COLOURS)),
    scale=rng.uniform(0.9, 1.5),
    stripe=_pick(rng, _STRIPES),
    muted=0.25,
  )
  bodies = _sample_bodies(rng, spec, camera, kinds, avoid=floor.colour, training=split == 'train')
  towards = camera.azimuth + rng.uniform(-1.1, 1.1)  # the light comes from the viewer's side: what is seen is lit
  elevation = rng.uniform(0.75, 1.2)
  across = np.cos(elevation)
  sun = np.array([np.sin(towards) * across, -np.sin(elevation), -np.cos(towards) * across])
  return Scene(
    floor=floor,
    walls=_sample_walls(rng, camera, bodies, kinds, floor.colour) if in_room else None,
    bodies=bodies,
    camera=camera,
    sun=sun,
    sky=(np.float32([0.80, 0.88, 0.95]), np.float32([0.36, 0.58, 0.88])),
    seed=seed,
    level=level,
    split=split,
  )


_STRIPES = ((1, 0, 0), (0, 0, 1), (0.7071, 0, 0.7071))


def _pick(rng, options):
  return options[rng.integers(len(options))]


def _check(seed, level, split):
  if level not in LEVELS:
    raise DataError(f'unknown level {level!r}; choose one of {", ".join(LEVELS)}')
  if split not in SPLIT_SEEDS:
    raise DataError(f'unknown split {split!r}; choose one of {", ".join(SPLIT_SEEDS)}')
  if not 0 <= seed < SEEDS_PER_SPLIT:
    raise DataError(f'seed {seed} is outside split {split!r}; choose one in 0 .. {SEEDS_PER_SPLIT - 1}')
  if level == 'hard' and split == 'train':
    raise DataError("level 'hard' is held out from training; choose split val or test, or level easy or medium")


def _sample_camera(rng, spec: Level) -> Camera:
  return Camera(
    motion=_pick(rng, CAMERAS),
    focus=np.array([0.0, -0.6, 0.2]),
    distance=rng.uniform(4.8, 6.2),
    azimuth=rng.uniform(-0.35, 0.35),
    height=rng.uniform(1.5, 2.6),
    travel=spec.travel * rng.uniform(0.8, 1.2),
    fov=rng.uniform(*spec.fov),
  )


def _sample_bodies(rng, spec: Level, camera: Camera, kinds, avoid: str, training: bool) -> tuple[Body, ...]:
  """Bodies that never touch one another or the camera, are mostly in view and not hidden in the first frame."""
  views = camera.poses(_CHECK_TIMES)
  right = views[0, :3, 0]
  motions = [m for m in MOTIONS if not (training and (camera.motion, m) == HELD_OUT_PAIR)]
  wanted, bodies, paths = rng.integers(spec.objects[0], spec.objects[1] + 1), [], []
  colours = [colour for colour in rng.permutation(list(textures.COLOURS)) if colour != avoid]
  for attempt in range(60 * wanted):
    moves = rng.random() < spec.p_dynamic
    motion = _pick(rng, motions) if moves else STATIC
    body = _sample_body(rng, motion, kinds, str(colours[len(bodies)]), right, room=1 - 0.5 * attempt / (60 * wanted))
    path = body.poses(_CHECK_TIMES)[0]
    if _fits(body, path, bodies, paths, views, camera.fov):
      bodies.append(body)
      paths.append(path)
    if len(bodies) == wanted:
      break
  return tuple(bodies)


def _sample_body(rng, motion: str, kinds, colour: str, right, room: float) -> Body:
  """A body whose size and movement are `room` (0..1) times the usual ones."""
  shape = _pick(rng, ['sphere', 'box'])
  size = room * rng.uniform(0.45, 0.95)
  half = np.full(3, size) if shape == 'sphere' else size * rng.uniform([0.7, 0.6, 0.7], [1.0, 1.2, 1.0])
  kind = _pick(rng, kinds)
  if (shape, motion, kind) == ('sphere', 'spins', 'plain'):
    kind = 'striped'  # a plain ball that spins looks still
  amount = {
    'bounces': rng.uniform(0.5, 1.2),
    'circles': rng.uniform(0.4, 0.8),
    'spins': rng.uniform(2.0, 4.5) * _pick(rng, (-1, 1)),
  }.get(motion, room * rng.uniform(1.2, 2.4))
  return Body(
    shape=shape,
    half=half,
    home=np.array([rng.uniform(-2.3, 2.3), -half[1], rng.uniform(-1.8, 2.6)]),
    heading=rng.uniform(-np.pi, np.pi),
    texture=Texture(kind, colour, scale=size * rng.uniform(0.5, 0.75)),
    motion=motion,
    amount=float(amount),
    phase=rng.uniform(0, 2 * np.pi),
    right=right,
  )


def _fits(body: Body, path, bodies, paths, views, fov: float) -> bool:
  for other, other_path in zip(bodies, paths, strict=True):
    if (np.linalg.norm(path - other_path, axis=1) < body.radius + other.radius + 0.05).any():
      return False
  from_eye = path - views[:, :3, 3]
  if (np.linalg.norm(from_eye, axis=1) < body.radius + CLEARANCE + 0.6).any():
    return False
  x, y, z = np.einsum('nij,ni->jn', views[:, :3, :3], from_eye)
  edge = np.tan(np.radians(fov / 2))
  inside = (z > body.radius + CLEARANCE) & (np.maximum(abs(x), abs(y)) < 0.9 * edge * z)
  if not inside[0] or inside.mean() < 0.7:
    return False
  for other, other_path in zip(bodies, paths, strict=True):
    ox, oy, oz = views[0, :3, :3].T @ (other_path[0] - views[0, :3, 3])
    apart = np.hypot(x[0] / z[0] - ox / oz, y[0] / z[0] - oy / oz)
    if apart < 0.75 * max(body.radius / z[0], other.radius / oz):
      return False
  return True


def _sample_walls(rng, camera: Camera, bodies, kinds, avoid: str) -> Walls:
  """Walls outside of everything that moves, and higher than the camera."""
  eye = camera.poses(_CHECK_TIMES)[:, :3, 3]
  path = np.concatenate([np.zeros((1, 3))] + [abs(body.poses(_CHECK_TIMES)[0]) + body.radius for body in bodies])
  colours = [colour for colour in textures.COLOURS if colour != avoid]
  colour, kind, scale = _pick(rng, colours), _pick(rng, kinds), rng.uniform(0.8, 1.4)
  wall = lambda stripe: Texture(kind, colour, scale=scale, stripe=stripe, muted=0.6)
  return Walls(
    half_width=max(rng.uniform(3.6, 5.5), abs(eye[:, 0]).max() + 1.2, path[:, 0].max() + 0.2),
    depth=max(rng.uniform(3.2, 6.0), path[:, 2].max() + 0.2),
    height=max(rng.uniform(3.0, 4.5), -eye[:, 1].min() + 0.5),
    textures=(wall((0, 0, 1)), wall((0, 0, 1)), wall((1, 0, 0))),
  )


def look_along(eye: np.ndarray, forward: np.ndarray) -> np.ndarray:
  """World-from-camera [n 4 4] of level cameras at eye [n 3] that look along forward [n 3] (never straight down)."""
  unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
  forward = unit(forward)
  right = unit(np.cross(_DOWN, forward))
  pose = np.tile(np.eye(4), (len(eye), 1, 1))
  pose[:, :3] = np.stack([right, np.cross(forward, right), forward, eye], axis=-1)
  return pose
