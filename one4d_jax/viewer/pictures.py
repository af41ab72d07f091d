"""Scenes and videos as pictures: depth and points as colours, contact sheets, the camera path from above."""

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
_INK, _FAINT, _PAPER = (24, 26, 31), (120, 124, 132), (255, 255, 255)


def turbo(values: Float[np.ndarray, '*s']) -> UInt8[np.ndarray, '*s 3']:
  """Colours of values in [0, 1]."""
  stops = np.linspace(0, 1, len(_TURBO))
  channels = [np.interp(np.clip(values, 0, 1), stops, _TURBO[:, c]) for c in range(3)]
  return np.uint8(np.stack(channels, axis=-1) + 0.5)


def depth_colours(depth: Float[np.ndarray, 'F H W'], valid: Bool[np.ndarray, 'F H W']) -> UInt8[np.ndarray, 'F H W 3']:
  """Inverse depth between its 2% and 98% quantiles over the clip: red near, blue far, black invalid."""
  usable = valid & (depth > 0) & np.isfinite(depth)
  inverse = np.divide(1, depth, out=np.zeros(depth.shape, np.float32), where=usable)
  return np.where(usable[..., None], turbo(_stretch(inverse, usable)), 0).astype(np.uint8)


def xyz_colours(
  pointmap: Float[np.ndarray, 'F H W 3'], valid: Bool[np.ndarray, 'F H W']
) -> UInt8[np.ndarray, 'F H W 3']:
  """x, y, z as red, green, blue, each between its 2% and 98% quantiles over the clip; black invalid."""
  usable = valid & np.isfinite(pointmap).all(axis=-1)
  channels = [_stretch(pointmap[..., c], usable) for c in range(3)]
  return np.where(usable[..., None], np.stack(channels, axis=-1) * 255 + 0.5, 0).astype(np.uint8)


def _stretch(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
  """``values`` with their 2% and 98% quantiles moved to 0 and 1, limited to that range."""
  low, high = np.quantile(values[usable], [0.02, 0.98]) if usable.any() else (0.0, 1.0)
  return np.clip((np.where(usable, values, low) - low) / max(high - low, 1e-9), 0, 1)


def contact_sheet(scene: Scene, *, columns: int = 6, cell: int = 168) -> Image.Image:
  """Rows RGB, XYZ and depth of up to ``columns`` frames; beside them, the camera path from above."""
  shown = np.unique(np.linspace(0, scene.frames - 1, min(columns, scene.frames)).round().astype(int))
  height, width = scene.size
  w, h = (cell, max(round(cell * height / width), 1)) if width >= height else (round(cell * width / height), cell)
  w, left, top, gap = max(w, 72), 52, 26, 4
  side = 3 * (h + gap) - gap
  sheet = Image.new('RGB', (left + len(shown) * (w + gap) + 12 + side + 12, top + side + 14), _PAPER)
  draw, small = ImageDraw.Draw(sheet), ImageFont.load_default(12)
  rows = {
    'RGB': scene.rgb,
    'XYZ': xyz_colours(scene.pointmap, scene.valid),
    'depth': depth_colours(scene.depth, scene.valid),
  }
  for r, (name, frames) in enumerate(rows.items()):
    y = top + r * (h + gap)
    draw.text((10, y + h / 2), name, _INK, font=small, anchor='lm')
    for c, i in enumerate(shown):
      sheet.paste(Image.fromarray(frames[i]).resize((w, h), Image.Resampling.NEAREST), (left + c * (w + gap), y))
  for c, i in enumerate(shown):
    label = f'{i}  {"given" if scene.observed[i] else "generated"}'
    draw.text((left + c * (w + gap) + w / 2, top - 6), label, _INK, font=small, anchor='ms')
  corner = (left + len(shown) * (w + gap) + 12, top)
  draw.text((corner[0] + side / 2, top - 6), 'from above, path by time', _INK, font=small, anchor='ms')
  sheet.paste(top_view(scene, side), corner)
  return sheet


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
  path, tint = place(centres), turbo(np.linspace(0.1, 0.9, scene.frames))
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
  usable = scene.valid & np.isfinite(scene.pointmap).all(axis=-1)
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
