"""Writers of the formats that other programs read; docs/exports.md lists the conventions of each.

A writer takes a ``Work``, the path it makes, a file or a folder, and whom to tell (done, total) as it proceeds. Lengths
are metres where the scene knows its scale; the files say so where they can.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from one4d_jax.model.files import link_or_copy
from one4d_jax.viewer import cloud, filters, static
from one4d_jax.viewer.scene import Scene

_SHOWN_HEIGHT = 256  # smaller videos are enlarged by whole numbers for players
_GLB_POINTS = 2_000_000  # over all frames: 40 MB
_TRACKS = 50_000  # points of a COLMAP model, as many as a reconstruction from photographs has
_WORLD = 'the world is the first camera in OpenCV axes: x right, y down, z forward'
_FLIP = np.array([1.0, -1.0, -1.0])  # between the axes of OpenCV and OpenGL, either way
_UINT8, _UINT16, _FLOAT = 5121, 5123, 5126  # glTF's numbers of types
_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4)
_LINEAR = np.round(_LINEAR * 65535).astype(np.uint16)


Report = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Work:
  """What the writers of one call share.

  Attributes:
    scene: in metres where it can be.
    shared: an empty folder on the disk of the results; images are written there once and linked from each result.

  Raises DataError where a camera is not finite or has no focal length.
  """

  scene: Scene
  fps: float
  shared: pathlib.Path

  def __post_init__(self):
    self.scene.check_cameras()

  @functools.cached_property
  def static(self) -> Bool[np.ndarray, 'F H W']:
    return static.static_points(self.scene)

  @functools.cached_property
  def cloud(self) -> cloud.Cloud:
    return cloud.merge(self.scene, self.static & ~filters.depth_edges(self.scene.depth, self.scene.valid))

  def image(self, i: int, path: pathlib.Path) -> None:
    """Frame ``i`` as a PNG."""
    once = self.shared / path.name
    if not once.exists():
      Image.fromarray(self.scene.rgb[i]).save(once, compress_level=4)
    link_or_copy(once, path)


def frame_name(i: int, suffix: str) -> str:
  """The name of a frame's file, the same in every folder."""
  return f'frame_{i:04d}{suffix}'


def _folder(path: pathlib.Path) -> pathlib.Path:
  path.mkdir(parents=True)
  return path


def write_json(path: pathlib.Path, value: dict) -> None:
  path.write_text(json.dumps(value, indent=2, default=str) + '\n')


# Points


def ply(work: Work, path: pathlib.Path, report: Report) -> None:
  """A folder with the valid points of every frame."""
  _folder(path)
  scene = work.scene
  usable = static.usable_points(scene)
  for i in range(scene.frames):
    _write_ply(path / frame_name(i, '.ply'), scene.pointmap[i][usable[i]], scene.rgb[i][usable[i]], scene.unit)
    report(i + 1, work.scene.frames)


def static_ply(work: Work, path: pathlib.Path, report: Report) -> None:
  """The static points of all frames, each place once, without pixels on depth edges."""
  _write_ply(path, work.cloud.points, work.cloud.colours, work.scene.unit)
  report(1, 1)


def _write_ply(path: pathlib.Path, points, colours, unit: str) -> None:
  import trimesh

  data = trimesh.PointCloud(points, colours).export(file_type='ply')
  first, second, rest = data.split(b'\n', 2)  # 'ply', 'format ...'
  path.write_bytes(b'\n'.join([first, second, f'comment unit: {unit}; {_WORLD}'.encode(), rest]))


# Animation


def glb(work: Work, path: pathlib.Path, report: Report) -> None:
  """One node of points a frame and the camera, in OpenGL axes; an animation shows one frame after another.

  Every animation step scales one node to 1 and the others to 0, so that any player shows it. Without an animation the
  first frame is seen. Pixels on depth edges are left out.
  """
  import trimesh

  scene, model = work.scene, trimesh.Scene()
  stride = filters.stride_for(scene, _GLB_POINTS)
  usable = static.usable_points(scene) & ~filters.depth_edges(scene.depth, scene.valid)
  for i in range(scene.frames):
    grid = np.s_[i, ::stride, ::stride]
    points = scene.pointmap[grid][usable[grid]] * _FLIP
    if len(points):
      name = frame_name(i, '')
      model.add_geometry(trimesh.PointCloud(points, scene.rgb[grid][usable[grid]]), node_name=name, geom_name=name)
    report(i + 1, work.scene.frames)
  model.metadata = {'unit': scene.unit, 'axes': 'x right, y up, z backward of the first camera', 'stride': stride}
  path.write_bytes(
    trimesh.exchange.gltf.export_glb(
      model,
      buffer_postprocessor=lambda buffers, tree: _animate(scene, work.fps, buffers, tree),
      tree_postprocessor=_plain_materials,
    )
  )


def _animate(scene: Scene, fps: float, buffers, tree: dict) -> None:
  """Adds the camera and the animation to a glTF tree, and makes its colours linear as glTF wants them."""
  for accessor in tree['accessors'].values():
    if accessor['componentType'] == _UINT8:
      key = list(buffers)[accessor['bufferView']]
      colours = np.frombuffer(buffers[key], np.uint8)[: accessor['count'] * 4].reshape(-1, 4)
      colours = np.concatenate([_LINEAR[colours[:, :3]], np.full_like(colours[:, 3:], 65535, np.uint16)], axis=1)
      buffers[key] = colours.tobytes()
      accessor.update(componentType=_UINT16, min=colours.min(axis=0).tolist(), max=colours.max(axis=0).tolist())

  def accessor(name: str, kind: str, values) -> int:
    values = np.ascontiguousarray(values, np.float32)
    buffers[name] = values.tobytes()
    flat = values.reshape(len(values), -1)
    bounds = {'min': flat.min(axis=0).tolist(), 'max': flat.max(axis=0).tolist()}
    view = {'bufferView': len(buffers) - 1, 'componentType': _FLOAT, 'type': kind, 'count': len(values)}
    tree['accessors'][name] = view | bounds
    return len(tree['accessors']) - 1

  def animate(node: int, part: str, kind: str, values) -> None:
    """A value for every frame; the last one holds until the clip ends."""
    output = accessor(f'{part} of node {node}', kind, np.concatenate([values, values[-1:]]))
    animation['samplers'].append({'input': times, 'output': output, 'interpolation': 'STEP'})
    target = {'node': node, 'path': part}
    animation['channels'].append({'sampler': len(animation['samplers']) - 1, 'target': target})

  times = accessor('times', 'SCALAR', np.arange(scene.frames + 1) / fps)
  animation = {'name': 'frames', 'samplers': [], 'channels': []}
  for number, node in enumerate(tree['nodes']):
    if 'mesh' in node:
      shown = np.array([frame_name(i, '') == tree['meshes'][node['mesh']]['name'] for i in range(scene.frames)], float)
      node['scale'] = [float(shown[0])] * 3
      animate(number, 'scale', 'VEC3', np.repeat(shown[:, None], 3, axis=1))

  height, width = scene.size
  fy = float(np.median(scene.K[:, 1, 1]))
  lens = {'yfov': 2 * float(np.arctan(height / 2 / fy)), 'aspectRatio': width / height, 'znear': 1e-3}
  tree['cameras'] = [{'type': 'perspective', 'perspective': lens}]
  pose = scene.world_from_cam.astype(np.float64)
  rotation = _FLIP[:, None] * pose[:, :3, :3] * _FLIP
  turns = np.stack([quaternion_xyzw(r) for r in rotation])
  places = pose[:, :3, 3] * _FLIP
  node = {'name': 'camera', 'camera': 0, 'translation': places[0].tolist(), 'rotation': turns[0].tolist()}
  tree['nodes'].append(node)
  tree['scenes'][0]['nodes'].append(len(tree['nodes']) - 1)
  animate(len(tree['nodes']) - 1, 'translation', 'VEC3', places)
  animate(len(tree['nodes']) - 1, 'rotation', 'VEC4', turns)
  tree['animations'] = [animation]


def _plain_materials(tree: dict) -> None:
  """One material for all points: their own colours, without lamps."""
  if 'meshes' in tree:
    tree['materials'] = [{'extensions': {'KHR_materials_unlit': {}}, 'pbrMetallicRoughness': {'metallicFactor': 0}}]
    tree['extensionsUsed'] = ['KHR_materials_unlit']
    for mesh in tree['meshes']:
      mesh['primitives'][0]['material'] = 0


# Cameras with images


def colmap(work: Work, path: pathlib.Path, report: Report) -> None:
  """A COLMAP model as text, with the images: world to camera, and static points with the frames that see them."""
  scene = work.scene
  images, model = _folder(path / 'images'), _folder(path / 'sparse' / '0')
  height, width = scene.size
  lenses, lens = np.unique(scene.K[:, [0, 1, 0, 1], [0, 1, 2, 2]], axis=0, return_inverse=True)
  lines = [f'{c + 1} PINHOLE {width} {height} ' + ' '.join(map(_number, k)) for c, k in enumerate(lenses)]
  _write_lines(model / 'cameras.txt', 'CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy; pixel centres at +0.5', lines)

  first = work.cloud.first
  if len(first) > _TRACKS:
    first = np.sort(np.random.default_rng(0).choice(first, _TRACKS, replace=False))
  seen = list(static.tracks(scene, first))
  length = np.bincount(np.concatenate([ids for ids, _, _ in seen]), minlength=len(first))
  error = np.zeros(len(first))
  number = np.where(length >= min(2, scene.frames), np.cumsum(length >= min(2, scene.frames)), 0)  # 0: not written
  sightings = [[] for _ in first]  # 'IMAGE_ID POINT2D_IDX'
  lines, back = [], np.linalg.inv(scene.world_from_cam.astype(np.float64))
  for i, (ids, place, miss) in enumerate(seen):
    error[ids] += miss / length[ids]
    keep = number[ids] > 0
    ids, place = ids[keep], place[keep].tolist()
    x, y, z, w = quaternion_xyzw(back[i, :3, :3])
    pose = ' '.join(map(_number, [w, x, y, z, *back[i, :3, 3]]))
    lines.append(f'{i + 1} {pose} {lens.ravel()[i] + 1} {frame_name(i, ".png")}')
    lines.append(' '.join([f'{u:.3f} {v:.3f} {n}' for (u, v), n in zip(place, number[ids].tolist(), strict=True)]))
    for k, point in enumerate(ids.tolist()):
      sightings[point].append(f'{i + 1} {k}')
    work.image(i, images / frame_name(i, '.png'))
    report(i + 1, work.scene.frames)
  unit = f'unit: {scene.unit}; {_WORLD}'
  header = f'IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME (world to camera), then X Y POINT3D_ID ...; {unit}'
  _write_lines(model / 'images.txt', header, lines)
  points = scene.pointmap.reshape(-1, 3)[first].tolist()
  colours = scene.rgb.reshape(-1, 3)[first].tolist()
  lines = [
    f'{n} {" ".join(map(_number, xyz))} {" ".join(map(str, rgb))} {e:.4f} {" ".join(seen_in)}'
    for n, xyz, rgb, e, seen_in in zip(number.tolist(), points, colours, error.tolist(), sightings, strict=True)
    if n
  ]
  _write_lines(model / 'points3D.txt', f'POINT3D_ID X Y Z R G B ERROR (IMAGE_ID POINT2D_IDX) ...; {unit}', lines)


def _write_lines(path: pathlib.Path, header: str, lines: list[str]) -> None:
  path.write_text('\n'.join([f'# {header}', *lines]) + '\n')


def _number(value: float) -> str:
  return f'{value:.9g}'


def nerfstudio(work: Work, path: pathlib.Path, report: Report) -> None:
  """A data set of nerfstudio: transforms, images, depth, masks of what stands still, and the static cloud."""
  scene = work.scene
  images, _, masks = (_folder(path / name) for name in ('images', 'depths', 'masks'))
  cameras = transforms(scene, images='images')
  for i, frame in enumerate(cameras['frames']):
    name = frame_name(i, '.png')
    frame['depth_file_path'] = f'depths/{frame_name(i, ".npy")}'
    frame['mask_path'] = f'masks/{name}'
    work.image(i, images / name)
    np.save(path / frame['depth_file_path'], _depth(scene, i) * np.float32(1000))
    Image.fromarray(np.where(work.static[i] | ~scene.valid[i], np.uint8(255), np.uint8(0))).save(masks / name)
    report(i + 1, work.scene.frames)
  _write_ply(path / 'cloud.ply', work.cloud.points, work.cloud.colours, scene.unit)
  cameras['ply_file_path'] = 'cloud.ply'
  cameras['description'] += (
    ' Depth is planar z in thousandths of that unit, as nerfstudio expects, and 0 where unknown. Masks are 255 where '
    'the frame shows something that stands still, or the sky, and 0 on what moves.'
  )
  write_json(path / 'transforms.json', cameras)


def transforms(scene: Scene, *, images: str) -> dict:
  """The cameras as nerfstudio's transforms: camera to world, camera axes of OpenGL (x right, y up, z backward)."""
  height, width = scene.size
  opengl = scene.world_from_cam.astype(np.float64) * np.array([1, -1, -1, 1])  # negates the y and z columns
  frames = [
    {
      'file_path': f'{images}/{frame_name(i, ".png")}',
      'fl_x': float(K[0, 0]),
      'fl_y': float(K[1, 1]),
      'cx': float(K[0, 2]),
      'cy': float(K[1, 2]),
      'w': width,
      'h': height,
      'transform_matrix': opengl[i].tolist(),
    }
    for i, K in enumerate(scene.K)
  ]
  return {
    'camera_model': 'PINHOLE',
    'description': (
      'transform_matrix maps camera to world. Camera axes are those of OpenGL: x right, y up, z backward; '
      f'{_WORLD}. Pixel centres lie at (u + 0.5, v + 0.5). One unit of length: {scene.unit}.'
    ),
    'frames': frames,
  }


def tum(scene: Scene, fps: float) -> str:
  """The trajectory in TUM's order, ``t tx ty tz qx qy qz qw``, camera to world, OpenCV axes, seconds."""
  lines = [f'# t tx ty tz qx qy qz qw: camera to world, OpenCV axes, world = first camera; unit: {scene.unit}']
  for i, pose in enumerate(scene.world_from_cam.astype(np.float64)):
    lines.append(' '.join(map(_number, [i / fps, *pose[:3, 3], *quaternion_xyzw(pose[:3, :3])])))
  return '\n'.join(lines) + '\n'


def quaternion_xyzw(rotation: Float[np.ndarray, '3 3']) -> Float[np.ndarray, '4']:
  """Unit quaternion with w >= 0: the dominant eigenvector of Bar-Itzhack's matrix, stable for every rotation."""
  (a, b, c), (d, e, f), (g, h, i) = rotation
  K = np.array(
    [
      [a - e - i, b + d, c + g, h - f],
      [b + d, e - a - i, f + h, c - g],
      [c + g, f + h, i - a - e, d - b],
      [h - f, c - g, d - b, a + e + i],
    ]
  )
  q = np.linalg.eigh(K)[1][:, -1]
  return q if q[3] >= 0 else -q


# Pictures


def frames(work: Work, path: pathlib.Path, report: Report) -> None:
  """The frames as PNG."""
  _folder(path)
  for i in range(work.scene.frames):
    work.image(i, path / frame_name(i, '.png'))
    report(i + 1, work.scene.frames)


def depth16(work: Work, path: pathlib.Path, report: Report) -> None:
  """Planar depth as 16-bit PNG, 0 where unknown; ``depth.json`` says how long a step is.

  Millimetres where the scene is in metres and no farther than they reach; else the farthest depth is 65535. Depth
  beyond a hundred times the median counts as that far, so that a stray pixel does not cost the others their steps.
  """
  _folder(path)
  scene = work.scene
  known = np.concatenate([d[d > 0] for d in (_depth(scene, i) for i in range(scene.frames))])
  farthest = min(float(known.max()), 100 * float(np.median(known))) if known.size else 1.0
  step = 0.001 if np.isfinite(scene.scale) and farthest <= 65.535 else farthest / 65535
  for i in range(scene.frames):
    depth = _depth(scene, i)
    steps = np.where(depth > 0, np.clip(np.round(depth / step), 1, 65535), 0).astype(np.uint16)
    Image.fromarray(steps).save(path / frame_name(i, '.png'))
    report(i + 1, work.scene.frames)
  write_json(
    path / 'depth.json',
    {'depth': 'planar z = pixel * step', 'step': step, 'unit': scene.unit, '0': 'unknown', '65535': 'this or farther'},
  )


def exr(work: Work, path: pathlib.Path, report: Report) -> None:
  """Planar depth as float32 in the channel Z of OpenEXR files, 0 where unknown."""
  import OpenEXR

  _folder(path)
  about = f'planar z, 0 where unknown; unit: {work.scene.unit}'
  header = {'compression': OpenEXR.ZIP_COMPRESSION, 'type': OpenEXR.scanlineimage, 'comments': about}
  for i in range(work.scene.frames):
    OpenEXR.File(header, {'Z': _depth(work.scene, i)}).write(str(path / frame_name(i, '.exr')))
    report(i + 1, work.scene.frames)


def _depth(scene: Scene, i: int) -> Float[np.ndarray, 'H W']:
  """Depth of a frame, 0 where it is not known."""
  known = scene.valid[i] & np.isfinite(scene.depth[i]) & (scene.depth[i] > 0)
  return np.where(known, scene.depth[i], np.float32(0))


def orbit(work: Work, path: pathlib.Path, report: Report) -> None:
  """A video of the points with a viewpoint that moves around them."""
  from one4d_jax.viewer.orbit import orbit_frames

  write_video(path, orbit_frames(work.scene, progress=report), work.fps)


def write_video(path: pathlib.Path, frames: UInt8[np.ndarray, 'F H W 3'], fps: float) -> None:
  """H.264, yuv420p: enlarged by a whole number to at least 256 lines, edges repeated to even sizes."""
  factor = max(-(-_SHOWN_HEIGHT // frames.shape[1]), 1)
  height, width = frames.shape[1] * factor, frames.shape[2] * factor
  pad = ((0, height % 2), (0, width % 2), (0, 0))
  rate = Fraction(fps).limit_denominator(1001)
  with av.open(str(path), 'w', options={'movflags': 'faststart'}) as container:
    stream = container.add_stream('libx264', rate=rate, options={'crf': '16', 'preset': 'medium'})
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, 'yuv420p'
    for frame in frames:
      shown = np.pad(frame.repeat(factor, axis=0).repeat(factor, axis=1), pad, mode='edge')
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format='rgb24')))
    container.mux(stream.encode(None))
