"""Do depth, cameras and colours of a clip tell of one world? Points of one frame are looked for in others. NumPy only.

What is measured, over pairs of frames and points that are not marked as moving:

- `consistency`: the share of points that the other frame shows within 5 % of the depth they must have there.
- Alternatives: the same under usual mistakes of readers and data. At how many points is an alternative closer to depth
  and colour than what the clip says, at how many is it farther? Where the camera hardly moves neither is decided,
  and what moves unmarked is wrong under all of them: so a wrong focal length, say, is told from a lively scene.
- The principal point, by Gauss-Newton: half a pixel is too little for a vote.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int
from scipy import ndimage

from one4d_jax.data.clip import Clip

AGREE = 0.05  # relative difference of depths that are the same
KEYFRAMES = 9
GAPS = (1, 2, 4)  # between the key frames of a pair
POINTS = 1500  # of a pair
FOCALS = (0.9, 0.95, 1.05, 1.1)
ALTERNATIVES = {
  'inverted': 'inverted poses',
  'transposed': 'transposed rotations',
  'still': 'a camera that stands still',
  'focal_0.9': '0.9 times the focal length',
  'focal_1.1': '1.1 times the focal length',
  'lag_-1': "each depth map with the previous frame's colours",
  'lag_+1': "each depth map with the next frame's colours",
}

_DEPTH, _COLOUR = 0.1, 0.1  # differences (log, of 1) at which a point is simply wrong
_CLEAR = 0.1  # difference of two costs, which go from 0 to 1, that counts
_LAG_FRAMES = 24  # whose depth edges are compared with colours
_JUMP = 1.2  # ratio of depths across an edge
_CONTRAST = 12  # difference of two contrasts, of 255, that counts
_FEWEST = 50  # points or edges of a frame; with fewer it has no say


def measure(clip: Clip) -> dict[str, float | None]:
  """The statistics of a clip; None for what it cannot tell, all None under 5 frames.

  Returns:
    consistency, consistency_long: share of agreeing points between frames an eighth and half of the clip apart. Points
      behind a surface that is itself confirmed by the first frame are hidden and not counted.
    consistency_seen: share of points that the nearer frame has in view at all.
    NAME_margin, NAME_told: for every alternative. Of all points, `told` decide between it and the clip; of these the
      alternative wins `margin` more than it loses, in -1..1, a lower bound (three standard errors over the pairs).
    focal_best: the factor, of 0.9 .. 1.1, under which the focal length fits best.
    principal_x, principal_y: what the principal point seems to be off by, in pixels (to be added), and
    principal_x_error, principal_x_told, ..: its standard error and the pixels that one pixel of it moves a point.
  """
  if clip.frames < 5:
    return dict.fromkeys(_names())
  view = _View.of(clip)
  K, poses = clip.K[view.frames].astype(np.float64), clip.world_from_cam[view.frames].astype(np.float64)
  given = view.compare(K, poses)
  stats = dict.fromkeys(_names()) | _scores(view, given, K, poses)
  costs = {1.0: given}
  for name, other in _alternatives(K, poses).items():
    found = view.compare(*other)
    both = given.known & found.known
    gain = np.where(both, given.cost - found.cost, 0)
    stats |= _verdict(name, (gain > _CLEAR).sum(1), (gain < -_CLEAR).sum(1), both.sum(1))
    if name.startswith('focal'):
      costs[float(name.removeprefix('focal_'))] = found
  shared = np.logical_and.reduce([found.known for found in costs.values()])
  if shared.any():
    stats['focal_best'] = min(costs, key=lambda factor: costs[factor].cost[shared].mean())
  return stats | _lags(clip) | _principal(view, K, poses)


def _names() -> list[str]:
  names = ['consistency', 'consistency_long', 'consistency_seen', 'focal_best']
  names += [f'{name}_{what}' for name in (*ALTERNATIVES, 'focal_0.95', 'focal_1.05') for what in ('margin', 'told')]
  return names + [f'principal_{axis}{what}' for axis in 'xy' for what in ('', '_error', '_told')]


def _alternatives(K, poses) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  transposed = poses.copy()
  transposed[:, :3, :3] = np.swapaxes(poses[:, :3, :3], 1, 2)
  others = {
    'inverted': (K, np.linalg.inv(poses)),
    'transposed': (K, transposed),
    'still': (K, np.broadcast_to(poses[0], poses.shape)),
  }
  return others | {f'focal_{factor}': (_zoomed(K, factor), poses) for factor in FOCALS}


def _zoomed(K, factor: float):
  return np.where(np.eye(3) * [1, 1, 0], factor * K, K)


def _shifted(K, change):
  K = K.copy()
  K[:, :2, 2] += change
  return K


@dataclasses.dataclass(frozen=True)
class _Found:
  """What points look like where a hypothesis puts them; arrays [pairs points]."""

  x: np.ndarray
  y: np.ndarray
  inside: np.ndarray
  known: Bool[np.ndarray, 'P N']  # in view and neither unknown nor moving there
  depth: Float64[np.ndarray, 'P N']  # log of seen / expected
  colour: Float[np.ndarray, 'P N 3']  # seen - expected, of 1
  cost: Float64[np.ndarray, 'P N']  # 0 (as expected) .. 1


@dataclasses.dataclass(frozen=True)
class _View:
  """Key frames, pairs of them, and random points of the first of each pair."""

  frames: Int[np.ndarray, 'k']  # in the clip
  inverse: np.ndarray  # [k H W] 1 / depth: 0 for sky, NaN for unknown or moving
  colours: np.ndarray  # [k H W 3] of 1, slightly blurred: sampling between pixels blurs too
  first: Int[np.ndarray, 'P']
  second: Int[np.ndarray, 'P']
  gap: Int[np.ndarray, 'P']
  u: Int[np.ndarray, 'P N']
  v: Int[np.ndarray, 'P N']

  @classmethod
  def of(cls, clip: Clip) -> '_View':
    frames = np.unique(np.linspace(0, clip.frames - 1, KEYFRAMES).round().astype(int))
    inverse = _inverse_depth(clip, frames)
    inverse[clip.dynamic[frames]] = np.nan
    colours = ndimage.gaussian_filter(clip.rgb[frames].astype(np.float32) / 255, (0, 0.7, 0.7, 0), truncate=2)
    pairs = [(a, a + gap) for gap in GAPS for a in range(len(frames) - gap)]
    rng = np.random.default_rng(0)
    places = [np.flatnonzero(frame > 0) for frame in inverse]
    pairs = [(a, b) for pair in pairs for a, b in (pair, pair[::-1]) if len(places[a]) >= _FEWEST]
    flat = [places[a][rng.integers(len(places[a]), size=POINTS)] for a, _ in pairs]
    first, second = np.array(pairs, int).reshape(-1, 2).T
    v, u = np.divmod(np.array(flat, int).reshape(-1, POINTS), clip.size[1])
    return cls(frames, inverse, colours, first, second, np.abs(second - first), u, v)

  def compare(self, K, poses) -> _Found:
    """The points under the hypothesis of cameras ``K`` [k 3 3], ``poses`` [k 4 4] (world from camera)."""
    first, second = self.first, self.second
    depth = 1 / self.inverse[first[:, None], self.v, self.u].astype(np.float64)
    x, y, z = _project(K, poses, first, second, self.u + 0.5, self.v + 0.5, depth)
    height, width = self.inverse.shape[1:]
    inside = (x >= 0.5) & (x <= width - 0.5) & (y >= 0.5) & (y <= height - 0.5) & (z > 0)
    corner_x, corner_y = (np.where(inside, a - 0.5, 0) for a in (x, y))
    left, top = (np.minimum(a.astype(int), n - 2) for a, n in ((corner_x, width), (corner_y, height)))
    share_x, share_y = corner_x - left, corner_y - top
    frame = second[:, None]
    corners = [(frame, top + i, left + j) for i in (0, 1) for j in (0, 1)]
    weights = np.stack(
      [(share_y if i else 1 - share_y) * (share_x if j else 1 - share_x) for i in (0, 1) for j in (0, 1)]
    )
    inverse = np.stack([self.inverse[corner] for corner in corners])  # is linear in pixels on a plane
    nearest = np.take_along_axis(inverse, weights.argmax(0)[None], axis=0)[0]
    smooth = inverse.max(0) < _JUMP * inverse.min(0)
    seen = np.where(smooth, (inverse * weights).sum(0), nearest)
    known = inside & np.isfinite(inverse).all(0)
    ratio = -np.log(np.where(known, np.maximum(seen, 1e-9) * np.where(z > 0, z, 1), 1))
    shares = weights.astype(np.float32)[..., None]
    colour = sum(share * self.colours[corner] for share, corner in zip(shares, corners, strict=True))
    colour = colour - self.colours[first[:, None], self.v, self.u]
    cost = np.minimum(np.abs(ratio) / _DEPTH, 1) / 2 + np.minimum(np.abs(colour).mean(-1) / _COLOUR, 1) / 2
    return _Found(x, y, inside, known, ratio, colour, cost)


def _inverse_depth(clip: Clip, frames) -> Float32[np.ndarray, '*k H W']:
  """1 / depth of a frame or of several: 0 for sky, NaN where unknown."""
  inverse = np.where(clip.sky[frames], np.float32(0), np.float32(np.nan))
  np.divide(1, clip.depth[frames], out=inverse, where=clip.valid[frames])
  return inverse


def _project(K, poses, first, second, x, y, z):
  """Where points (x, y) of depth z of frames ``first`` [P] lie in frames ``second``; all [P N]."""
  rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.swapaxes(np.linalg.inv(K), 1, 2)[first]
  motion = np.linalg.inv(poses)[second] @ poses[first]
  points = (rays * z[..., None]) @ np.swapaxes(motion[:, :3, :3], 1, 2) + motion[:, None, :3, 3]
  points = points @ np.swapaxes(K, 1, 2)[second]
  depth = points[..., 2]
  divisor = np.where(depth > 0, depth, 1)
  return points[..., 0] / divisor, points[..., 1] / divisor, depth


def _scores(view: _View, found: _Found, K, poses) -> dict[str, float]:
  """Agreement at the shortest and the longest gap. Something is hidden only by what both frames agree on."""
  agree = found.known & (np.abs(found.depth) < np.log1p(AGREE))
  behind = found.known & (found.depth <= -np.log1p(AGREE))
  height, width = view.inverse.shape[1:]
  column, row = (np.clip(a, 0, n - 1).astype(int) for a, n in ((found.x, width), (found.y, height)))
  depth = 1 / np.maximum(np.nan_to_num(view.inverse[view.second[:, None], row, column]), 1e-9)
  x, y, z = _project(K, poses, view.second, view.first, column + 0.5, row + 0.5, depth)
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z > 0)
  column, row = (np.where(inside, a, 0).astype(int) for a in (x, y))
  with np.errstate(invalid='ignore'):
    confirmed = np.abs(view.inverse[view.first[:, None], row, column] * z - 1) < AGREE
  counted = found.known & ~(behind & (confirmed | ~inside))
  stats = {}
  for name, gap in (('consistency', GAPS[0]), ('consistency_long', GAPS[-1])):
    rows = view.gap == gap
    if counted[rows].sum() >= _FEWEST:
      stats[name] = float(agree[rows].sum() / counted[rows].sum())
    if gap == GAPS[0] and rows.any():
      stats['consistency_seen'] = float(found.inside[rows].mean())
  return stats


def _verdict(name: str, better, worse, counted) -> dict[str, float]:
  """The vote of points for an alternative: numbers of each pair (or frame) [n]."""
  has = counted >= _FEWEST
  if not has.any():
    return {}
  told = float((better + worse).sum() / counted.sum())
  net = ((better - worse) / np.maximum(counted, 1))[has]
  bound = net.mean() - 3 * net.std() / np.sqrt(len(net))
  return {f'{name}_told': told, f'{name}_margin': float(np.clip(bound / told, -1, 1)) if told else 0.0}


def _lags(clip: Clip) -> dict[str, float]:
  """Whether colours change where depth jumps: more so in the frame itself than in its neighbours."""
  frames = np.unique(np.linspace(1, clip.frames - 2, _LAG_FRAMES).round().astype(int))
  votes = {lag: [] for lag in (-1, 1)}
  for frame in frames:
    inverse = _inverse_depth(clip, frame)
    nearby = {lag: clip.rgb[frame + lag] for lag in (-1, 0, 1)}
    contrast = {lag: [] for lag in nearby}
    for axis in (0, 1):
      along = np.moveaxis(inverse, axis, 0)
      a, b, c, d = (along[i : len(along) - 3 + i] for i in range(4))
      step = np.abs(b - c)
      edge = (np.maximum(b, c) > _JUMP * np.minimum(b, c)) & (np.maximum(np.abs(a - b), np.abs(c - d)) < step / 4)
      place, other = np.nonzero(edge)
      for lag, rgb in nearby.items():
        across = np.moveaxis(rgb, axis, 0)
        sides = (across[place + i, other].astype(np.int16) for i in (1, 2))
        contrast[lag].append(np.abs(np.subtract(*sides)).mean(-1))
    at = {lag: np.concatenate(values) for lag, values in contrast.items()}
    for lag, vote in votes.items():
      gain = at[lag] - at[0]
      vote.append(((gain > _CONTRAST).sum(), (gain < -_CONTRAST).sum(), len(gain)))
  stats = {}
  for lag, vote in votes.items():
    stats |= _verdict(f'lag_{lag:+d}', *np.array(vote).T)
  return stats


def _principal(view: _View, K, poses) -> dict[str, float]:
  """How far off the principal point seems, by Gauss-Newton with Cauchy's weights, at first on a fifth of the points."""
  offset, some = np.zeros(2), dataclasses.replace(view, u=view.u[:, ::5], v=view.v[:, ::5])
  for points in (some, some, view):
    compare = lambda change, points=points, at=offset: points.compare(_shifted(K, at + change), poses)
    here = compare(0)
    sides = [(compare(-half), compare(half)) for half in np.eye(2) / 2]
    every = [here, *sides[0], *sides[1]]
    use = np.logical_and.reduce([found.known & (np.abs(found.depth) < AGREE) for found in every])
    normal, slope = 0, 0
    for values, spread in ((lambda found: found.depth[..., None], 0.02), (lambda found: found.colour, 0.05)):
      residual = values(here) / spread
      change = np.stack([(values(right) - values(left)) / spread for left, right in sides])
      weighted = change * (use[..., None] / (1 + residual**2))
      normal = normal + np.einsum('apnc,bpnc->pab', weighted, change)
      slope = slope + np.einsum('apnc,pnc->pa', weighted, residual)
    solve = lambda normal, slope: -np.linalg.solve(normal + 1e-6 * np.eye(2), slope[..., None])[..., 0]
    step = solve(normal.sum(0), slope.sum(0))
    offset = np.clip(offset + step, -2, 2)
  if not use.any():
    return {}
  without = solve(normal.sum(0) - normal, slope.sum(0) - slope)  # jackknife over the pairs
  error = np.sqrt((len(without) - 1) * without.var(0))
  stats = {}
  for i, axis in enumerate('xy'):
    left, right = sides[i]
    shift = np.hypot(right.x - left.x, right.y - left.y)[use]
    stats[f'principal_{axis}'] = float(offset[i])
    stats[f'principal_{axis}_error'] = float(min(error[i], 1e3))
    stats[f'principal_{axis}_told'] = float(np.sqrt(np.mean(shift**2)))
  return stats
