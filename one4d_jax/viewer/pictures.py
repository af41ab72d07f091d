"""Scenes and videos as pictures: depth and points as colours, contact sheets, the camera path and its residuals."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from one4d_jax.viewer.scene import Scene

# 33 colours along the turbo map (A. Mikhailov, Google, 2019), far to near.
_TURBO = np.frombuffer(
  bytes.fromhex(
    '30123b392a734040a24456c7466be34680f64294ff37a8fa28bceb1ccdd818ddc21fe9af32f2984ef97d6dfe628bff4ba4fc3c'
    'b9f635cdec34dfdf37eecf3af8be39fdac34fe962bfb7e21f46617eb500edf3f08d02f05be2102a91601920b017a0403'
  ),
  np.uint8,
).reshape(-1, 3)
_TURBO_256 = np.uint8(
  np.stack([np.interp(np.linspace(0, 32, 256), np.arange(33), _TURBO[:, c]) for c in range(3)], axis=-1) + 0.5
)
_INK, _FAINT, _PAPER = (24, 26, 31), (120, 124, 132), (255, 255, 255)


def turbo(values: Float[np.ndarray, '*s']) -> UInt8[np.ndarray, '*s 3']:
  """Colours of values in [0, 1]."""
  return _TURBO_256[np.uint8(np.clip(values, 0, 1) * 255 + 0.5)]


def path_colours(frames: int) -> UInt8[np.ndarray, 'F 3']:
  """Colour of each frame on a path through time: blue first, red last."""
  return turbo(np.linspace(0.1, 0.9, frames))


def depth_range(scene: Scene) -> tuple[float, float]:
  """The depths (near, far) that ``depth_colours`` spans, in the scene's unit; zeros where none is valid."""
  low, high = _limits(*_inverse(scene.depth, scene.valid))
  return (1 / high, 1 / low) if low > 0 else (0.0, 0.0)


def depth_legend(scene: Scene) -> dict:
  """What ``run.json`` says of the colours of ``depth.mp4``; depths in metres where the scale is known."""
  return {'colours': 'turbo of inverse depth', 'near_far': [round(d, 6) for d in depth_range(scene.metric())]}


def depth_colours(
  depth: Float[np.ndarray, 'F H W'],
  valid: Bool[np.ndarray, 'F H W'],
  *,
  near_far: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, 'F H W 3']:
  """Inverse depth in the colours of turbo: red near, blue far, black invalid.

  The colours span ``near_far``, by default ``depth_range``: the 2% and 98% quantiles of inverse depth over the clip.
  """
  inverse, usable = _inverse(depth, valid)
  if near_far is None:
    low, high = _limits(inverse, usable)
  else:
    low, high = (1 / near_far[1], 1 / near_far[0]) if near_far[0] > 0 else (0.0, 0.0)
  return np.where(usable[..., None], turbo(_stretch(inverse, low, high)), np.uint8(0))


def xyz_range(scene: Scene) -> Float[np.ndarray, '2 3']:
  """The least and the greatest x, y, z that ``xyz_colours`` spans: their 2% and 98% quantiles over the clip."""
  usable = _known(scene.pointmap, scene.valid)
  return np.transpose([_limits(scene.pointmap[..., c], usable) for c in range(3)])


def xyz_colours(
  pointmap: Float[np.ndarray, 'F H W 3'],
  valid: Bool[np.ndarray, 'F H W'],
  *,
  limits: Float[np.ndarray, '2 3'] | None = None,
) -> UInt8[np.ndarray, 'F H W 3']:
  """x, y, z as red, green, blue, each over its ``limits`` (default: as ``xyz_range``); black invalid."""
  usable = _known(pointmap, valid)
  colours = np.zeros(pointmap.shape, np.uint8)
  for c in range(3):
    low, high = _limits(pointmap[..., c], usable) if limits is None else limits[:, c]
    colours[..., c] = np.where(usable, _stretch(pointmap[..., c], low, high) * 255 + 0.5, 0)
  return colours


def _known(pointmap: np.ndarray, valid: np.ndarray) -> np.ndarray:
  """Where there is a point."""
  return valid & np.isfinite(pointmap).all(axis=-1)


def _inverse(depth: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Inverse depth, and where there is one."""
  usable = valid & (depth > 0) & np.isfinite(depth)
  return np.divide(1, depth, out=np.zeros(depth.shape, np.float32), where=usable), usable


def _limits(values: np.ndarray, usable: np.ndarray) -> tuple[float, float]:
  """The 2% and 98% quantiles; zeros where nothing is usable."""
  known = values[usable]
  return tuple(float(q) for q in np.quantile(known, [0.02, 0.98])) if known.size else (0.0, 0.0)


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
  """``values`` with low and high moved to 0 and 1, limited to that range; NaN is 0."""
  return np.clip((np.nan_to_num(values) - np.float32(low)) / np.float32(max(high - low, 1e-9)), 0, 1)


class SideBySide:
  """RGB, depth and XYZ of a frame beside each other, as one picture of about ``height`` lines. Called with a frame."""

  def __init__(self, scene: Scene, *, height: int = 150, most: int = 620):
    self._scene, self._near_far, self._limits = scene, depth_range(scene), xyz_range(scene)
    aspect = scene.size[1] / scene.size[0]
    height = max(min(height, int(most / 3 / aspect)), 1)
    self._cell = max(round(height * aspect), 1), height

  def __call__(self, i: int) -> UInt8[np.ndarray, 'h w 3']:
    scene, one = self._scene, np.s_[i : i + 1]
    cells = (
      scene.rgb[i],
      depth_colours(scene.depth[one], scene.valid[one], near_far=self._near_far)[0],
      xyz_colours(scene.pointmap[one], scene.valid[one], limits=self._limits)[0],
    )
    return np.concatenate([np.asarray(_resized(cell, *self._cell)) for cell in cells], axis=1)


def _resized(picture: UInt8[np.ndarray, 'H W 3'], width: int, height: int) -> Image.Image:
  """Pixels stay pixels where they are enlarged; smaller pictures are averaged."""
  larger = width >= picture.shape[1]
  return Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST if larger else Image.Resampling.BOX)


def contact_sheet(scene: Scene, *, columns: int = 6, cell: int = 168) -> Image.Image:
  """Rows RGB, depth and XYZ of up to ``columns`` frames, what their colours mean, and the camera path from above."""
  unit, scene = length_unit(scene), scene.metric()
  shown = np.unique(np.linspace(0, scene.frames - 1, min(columns, scene.frames)).round().astype(int))
  near_far, limits = depth_range(scene), xyz_range(scene)
  height, width = scene.size
  w, h = (cell, max(round(cell * height / width), 1)) if width >= height else (round(cell * width / height), cell)
  w, h = max(w, 1), max(h, 24)
  pitch, left, top, gap, legend = max(w, 76) + 4, 52, 26, 4, 52
  side = max(3 * (h + gap) - gap, 160)
  right = left + max(len(shown) * pitch, 380) + 12
  sheet = Image.new('RGB', (right + side + 12, top + side + legend), _PAPER)
  draw, small = ImageDraw.Draw(sheet), ImageFont.load_default(12)
  rows = {
    'RGB': scene.rgb[shown],
    'depth': depth_colours(scene.depth[shown], scene.valid[shown], near_far=near_far),
    'XYZ': xyz_colours(scene.pointmap[shown], scene.valid[shown], limits=limits),
  }
  for r, (name, frames) in enumerate(rows.items()):
    y = top + r * (h + gap)
    draw.text((10, y + h / 2), name, _INK, font=small, anchor='lm')
    for c, frame in enumerate(frames):
      sheet.paste(_resized(frame, w, h), (left + c * pitch, y))
  for c, i in enumerate(shown):
    label = f'{i}  {"given" if scene.observed[i] else "generated"}'
    draw.text((left + c * pitch + w / 2, top - 6), label, _INK, font=small, anchor='ms')
  draw.text((right + side / 2, top - 6), 'from above, path by time', _INK, font=small, anchor='ms')
  sheet.paste(top_view(scene, side), (right, top))
  _draw_legend(draw, small, left, top + side + 10, near_far, limits, unit)
  return sheet


def length_unit(scene: Scene) -> str:
  """The unit of the lengths of ``scene.metric()``, in words."""
  return 'metres' if np.isfinite(scene.scale) else 'scene units'


def _draw_legend(draw, font, x: int, y: int, near_far, limits, unit: str) -> None:
  """A colour bar for depth, even in inverse depth as the colours are, and the ranges of x, y, z."""
  (near, far), width = near_far, 200
  for k, colour in enumerate(turbo(np.linspace(1, 0, width)).tolist()):
    draw.line([x + k, y, x + k, y + 9], fill=tuple(colour))
  for share, anchor in ((0.0, 'la'), (0.5, 'ma'), (1.0, 'ra')):
    depth = 1 / ((1 - share) / near + share / far) if near > 0 else 0.0
    draw.text((x + share * (width - 1), y + 13), f'{depth:.3g}', _INK, font=font, anchor=anchor)
  draw.text((x + width + 12, y + 4), f'depth in {unit}, even in 1 / depth; black: none', _INK, font=font, anchor='lm')
  text = ',  '.join(
    f'{axis} {colour} {low:.3g} .. {high:.3g}'
    for axis, colour, low, high in zip('xyz', ('red', 'green', 'blue'), *limits.tolist(), strict=True)
  )
  draw.text((x + width + 12, y + 21), f'XYZ: {text}', _INK, font=font, anchor='lm')


def trajectory_plot(scene: Scene) -> Image.Image:
  """The camera path from above and from the side, coloured by time, with axes of some cameras; below, the residuals.

  In metres where the scale is known. Frames without a residual, whose camera is interpolated, are marked.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  unit, scene = length_unit(scene), scene.metric()
  figure = Figure(figsize=(10, 7), dpi=100, layout='constrained')
  canvas = FigureCanvasAgg(figure)
  grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
  missing = ~np.isfinite(scene.residual)
  span = _path_span(scene)
  for axes, (name, across, up, flip) in zip(
    (figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])),
    (('from above; camera axes x red, y green, z blue', 0, 2, False), ('from the side', 2, 1, True)),
    strict=True,
  ):
    _plot_path(axes, scene, across, up, span, missing)
    axes.set(title=name, xlabel=f'{"xyz"[across]}, {unit}', ylabel=f'{"xyz"[up]}, {unit}')
    if flip:
      axes.invert_yaxis()  # y points down
  residual = figure.add_subplot(grid[1, :])
  frames = np.arange(scene.frames)
  residual.plot(frames, scene.residual, color='0.4', linewidth=1, zorder=1)
  residual.scatter(frames, scene.residual, c=path_colours(scene.frames) / 255, s=14, zorder=2)
  for k, i in enumerate(np.flatnonzero(missing)):
    residual.axvspan(i - 0.5, i + 0.5, color='0.88', linewidth=0, label='interpolated' if not k else None)
  if missing.any():
    residual.legend(loc='lower right')
  top = np.nanmax(scene.residual) if not missing.all() else 0.0
  residual.set(xlim=(-0.5, scene.frames - 0.5), ylim=(0, 1.15 * top or 1), xlabel='frame', ylabel=f'residual, {unit}')
  residual.xaxis.get_major_locator().set_params(integer=True)
  residual.grid(alpha=0.25)
  canvas.draw()
  return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _path_span(scene: Scene) -> float:
  """Half the width of a plot that holds the path; a path that hardly leaves its place is drawn as a point."""
  centres = scene.world_from_cam[:, :3, 3]
  extent = float((centres.max(axis=0) - centres.min(axis=0)).max())
  return 0.62 * max(extent, 0.02 * (scene.median_depth or 0.05))


def _plot_path(axes, scene: Scene, across: int, up: int, span: float, missing: np.ndarray) -> None:
  """One view of the path into matplotlib's axes; ``across`` and ``up`` are the world's axes of the plot."""
  from matplotlib.collections import LineCollection

  plane, tints = [across, up], path_colours(scene.frames) / 255
  centres = scene.world_from_cam[:, :3, 3]
  path = centres[:, plane]
  axes.add_collection(LineCollection(np.stack([path[:-1], path[1:]], axis=1), colors=tints[:-1], linewidths=2))
  axes.scatter(*path[~missing].T, c=tints[~missing], s=16, zorder=3)
  axes.scatter(*path[missing].T, facecolors='white', edgecolors=tints[missing], s=22, zorder=3)
  for i in np.unique(np.linspace(0, scene.frames - 1, min(scene.frames, 9)).round().astype(int)):
    for axis, colour in enumerate(('#d62728', '#2ca02c', '#1f77b4')):
      tip = path[i] + 0.16 * span * scene.world_from_cam[i, :3, axis][plane]
      axes.plot(*np.transpose([path[i], tip]), color=colour, linewidth=1.2, zorder=4)
  axes.annotate('first', path[0], xytext=(6, -12), textcoords='offset points', fontsize=8)
  middle = (centres.max(axis=0) + centres.min(axis=0))[plane] / 2
  axes.set(xlim=middle[0] + np.array([-span, span]), ylim=middle[1] + np.array([-span, span]))
  axes.set_aspect('equal', adjustable='box')
  axes.grid(alpha=0.25)


def top_view(scene: Scene, side: int) -> Image.Image:
  """The ground plan: points as dots, the camera path from blue to red with its view at both ends; z is up."""
  points, colours = _sample(scene, 40_000)
  centres = scene.world_from_cam[:, :3, 3]
  extent = np.concatenate([points, centres])[:, [0, 2]] if len(points) else centres[:, [0, 2]]
  low, high = np.quantile(extent, 0.02, axis=0), np.quantile(extent, 0.98, axis=0)
  low, high = np.minimum(low, centres[:, [0, 2]].min(axis=0)), np.maximum(high, centres[:, [0, 2]].max(axis=0))
  span = max(float((high - low).max()), 1e-6) * 1.1
  middle = (low + high) / 2

  def place(xyz):
    x, z = ((xyz[..., [0, 2]] - middle) / span).T
    return np.stack([(0.5 + x) * side, (0.5 - z) * side], axis=-1)

  canvas = np.full((side, side, 3), 244, np.uint8)
  spots = place(points).astype(int)
  inside = ((spots >= 0) & (spots < side)).all(axis=-1)
  canvas[spots[inside, 1], spots[inside, 0]] = colours[inside] // 2 + 122  # pale, under the path
  picture = Image.fromarray(canvas)
  draw = ImageDraw.Draw(picture)
  path, tint = place(centres), path_colours(scene.frames)
  for i in range(scene.frames - 1):
    draw.line([*path[i], *path[i + 1]], fill=tuple(tint[i].tolist()), width=3)
  for i in {0, scene.frames - 1}:
    half = scene.size[1] / 2 / scene.K[i, 0, 0]
    wings = np.array([[-half, 0, 1], [0, 0, 0], [half, 0, 1]]) * np.array(span * 0.1)
    seen = place(wings @ scene.world_from_cam[i, :3, :3].T + centres[i])
    draw.line([tuple(p) for p in seen.tolist()], fill=tuple(tint[i].tolist()), width=2)
  draw.rectangle([0, 0, side - 1, side - 1], outline=_FAINT)
  return picture


def _sample(scene: Scene, count: int) -> tuple[np.ndarray, np.ndarray]:
  """At most about ``count`` valid points of the whole clip with their colours."""
  usable = _known(scene.pointmap, scene.valid)
  step = max(int(usable.sum()) // count, 1)
  return scene.pointmap[usable][::step], scene.rgb[usable][::step]


def to_uint8(video: np.ndarray) -> np.ndarray:
  """Values in [-1, 1] as 0..255, rounded."""
  return np.round((np.clip(video, -1, 1) + 1) * 127.5).astype(np.uint8)


def video_sheet(videos: list[np.ndarray], *, columns: int = 6, zoom: int = 2) -> np.ndarray:
  """One row a video, ``columns`` frames of each spread over its length; uint8 ``[H W 3]``."""
  rows = []
  for video in videos:
    chosen = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    rows.append(np.concatenate([np.pad(to_uint8(video[i]), ((1, 1), (1, 1), (0, 0))) for i in chosen], axis=1))
  return np.kron(np.concatenate(rows), np.ones((zoom, zoom, 1), np.uint8))


def save_png(picture: np.ndarray, path) -> None:
  """Writes uint8 ``[H W 3]`` under a temporary name, then renames."""
  temporary = path.with_name(path.name + '.partial')
  Image.fromarray(picture).save(temporary, format='PNG')
  temporary.rename(path)
