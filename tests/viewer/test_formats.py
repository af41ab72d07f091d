"""Every export read back by another program's reader; points seen again through the cameras that its file states."""

import dataclasses
import json
import struct

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import KDTree

from one4d_jax.data import render
from one4d_jax.errors import DataError
from one4d_jax.viewer import cloud, export, formats
from one4d_jax.viewer.scene import Scene
from one4d_jax.viewer.static import static_points, tracks, usable_points
from tests.viewer.scenes import clip_scene, small_scene

NAMES = [name for name in export.EXPORTS if name != 'orbit']
SCALE = 2.5


def odd_scene(**changes) -> Scene:
  """Per-frame focal lengths, a principal point beside the middle, a turned first camera, a known scale."""
  scene = small_scene()
  K = scene.K.copy()
  K[:, 0, 0] += np.arange(5)
  K[:, 1, 1] += 0.5 * np.arange(5)
  K[:, :2, 2] += [1.5, -0.75]
  a, b = 0.4, -0.3
  turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
  turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
  pose = scene.world_from_cam.astype(np.float64)
  pose[:, :3, :3] = pose[:, :3, :3] @ turn
  points = np.einsum('fij,fhwj->fhwi', pose[:, :3, :3], scene.depth[..., None] * rays(K)) + pose[:, None, None, :3, 3]
  fields = {'K': K, 'world_from_cam': pose, 'pointmap': points, 'scale': SCALE}
  return dataclasses.replace(scene, **fields | changes)


def rays(K, height=24, width=32):
  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  return np.einsum('fij,hwj->fhwi', np.linalg.inv(K.astype(np.float64)), np.stack([u, v, np.ones_like(u)], -1))


def assert_at_their_pixels(points, valid, camera_from_world, K):
  """World points of a frame's valid pixels fall on the centres of those, by OpenCV's pinhole."""
  seen = np.asarray(points, np.float64) @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
  pixels = seen @ np.asarray(K, np.float64).T
  v, u = np.nonzero(valid)
  assert len(points) == len(u) > 0 and (seen[:, 2] > 0).all()
  assert np.abs(pixels[:, :2] / pixels[:, 2:] - np.stack([u + 0.5, v + 0.5], -1)).max() < 0.01


def metric_cameras(scene):
  """camera_from_world with translations in metres."""
  pose = scene.world_from_cam.astype(np.float64)
  pose[:, :3, 3] *= SCALE
  return np.linalg.inv(pose)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('exports')
  paths = export.write_exports(odd_scene(), folder, NAMES, fps=8)
  assert [p.name for p in paths] == [export.EXPORTS[name].target for name in NAMES]
  assert {p.name for p in folder.iterdir()} == {p.name for p in paths}
  return folder


def test_point_clouds_of_frames(written):
  import trimesh

  scene = odd_scene()
  for i, camera in enumerate(metric_cameras(scene)):
    read = trimesh.load(written / 'points' / f'frame_{i:04d}.ply')
    assert_at_their_pixels(read.vertices, scene.valid[i], camera, scene.K[i])
    assert np.array_equal(read.colors[:, :3], scene.rgb[i][scene.valid[i]])
  header = (written / 'points' / 'frame_0000.ply').read_bytes()[:200]
  assert header.startswith(b'ply\nformat binary_little_endian 1.0\ncomment unit: 1 metre; the world is')
  assert len(list((written / 'points').iterdir())) == 5


def test_static_cloud(written):
  import trimesh

  scene = odd_scene()
  read = trimesh.load(written / 'cloud.ply')
  static = static_points(scene)
  assert static.sum() / 5 < len(read.vertices) < static.sum() * 0.9
  far, _ = KDTree(SCALE * scene.pointmap[static]).query(read.vertices)
  assert far.max() < SCALE * scene.depth.max() / 30  # within a cell


def test_the_same_place_is_stored_once():
  clip = render.clip(1, level='easy', frames=1, height=48, width=64)
  one = clip_scene(clip)
  three = Scene(**{
    f.name: getattr(one, f.name) if f.name == 'scale' else np.repeat(getattr(one, f.name), 3, axis=0)
    for f in dataclasses.fields(one)
  })  # fmt: skip
  tinted = three.rgb.copy()
  tinted[0], tinted[1], tinted[2] = 10, 20, 62
  single, merged = (cloud.merge(s, s.valid) for s in (one, dataclasses.replace(three, rgb=tinted)))
  np.testing.assert_allclose(merged.points, single.points, atol=1e-5)
  assert np.array_equal(merged.first, single.first) and (merged.colours == 31).all()
  # Steep ground is finer than a pixel from one row to the next, and the front of a body is coarser.
  assert 0.4 * one.valid.sum() < len(single.points) < 0.95 * one.valid.sum()
  flat = dataclasses.replace(one, depth=np.full_like(one.depth, 4), valid=np.ones_like(one.valid))
  flat = dataclasses.replace(flat, pointmap=4 * rays(one.K, 48, 64))
  assert 0.5 * flat.valid.size < len(cloud.merge(flat, flat.valid).points)


def test_detail_of_near_things_stays():
  scene = small_scene(frames=1)
  depth = np.full_like(scene.depth, 100)
  depth[:, :, :16] = 0.5
  scene = dataclasses.replace(
    scene, depth=depth, valid=np.ones_like(scene.valid), pointmap=depth[..., None] * rays(scene.K)
  )
  merged = cloud.merge(scene, scene.valid)
  near = (merged.first % 32 < 16).sum()
  assert near > 0.5 * 24 * 16 and len(merged.first) - near > 0.5 * 24 * 16


def test_merged_points_are_near_their_first_pixel():
  scene = small_scene()
  merged = cloud.merge(scene, np.ones_like(scene.valid))
  assert set(merged.first // (24 * 32)) == set(range(5)) and scene.valid.ravel()[merged.first].all()
  far = np.linalg.norm(merged.points - scene.pointmap.reshape(-1, 3)[merged.first], axis=-1)
  assert far.max() < 2.5 * scene.depth.max() / 30


def test_places_on_one_ray_are_different_places():
  scene = small_scene(frames=2)
  depth = np.full_like(scene.depth, 4)
  depth[1] = 8  # cells here are twice as wide, so they have the same numbers
  pose = np.tile(np.eye(4), (2, 1, 1))
  scene = dataclasses.replace(scene, depth=depth, world_from_cam=pose, pointmap=depth[..., None] * rays(scene.K))
  alone = dataclasses.replace(scene, depth=depth[[0, 0]], pointmap=scene.pointmap[[0, 0]])
  assert len(cloud.merge(scene, scene.valid).points) == 2 * len(cloud.merge(alone, alone.valid).points)


def glb_parts(path):
  data = path.read_bytes()
  magic, version, length, size, kind = struct.unpack('<4sII I4s', data[:20])
  assert (magic, version, length, kind) == (b'glTF', 2, len(data), b'JSON')
  tree, start = json.loads(data[20 : 20 + size]), 20 + size + 8
  types = {5126: np.float32, 5123: np.uint16}
  widths = {'SCALAR': 1, 'VEC3': 3, 'VEC4': 4}

  def read(index):
    accessor = tree['accessors'][index]
    view = tree['bufferViews'][accessor['bufferView']]
    kind, width = types[accessor['componentType']], widths[accessor['type']]
    at = start + view['byteOffset'] + accessor.get('byteOffset', 0)
    values = np.frombuffer(data, kind, accessor['count'] * width, at).reshape(-1, width)
    assert values.nbytes <= view['byteLength'] and at % 4 == 0 and np.isfinite(values).all()
    np.testing.assert_array_equal(values.min(axis=0), np.array(accessor['min'], kind))
    np.testing.assert_array_equal(values.max(axis=0), np.array(accessor['max'], kind))
    return values

  return tree, [read(i) for i in range(len(tree['accessors']))]


def test_glb_shows_one_frame_at_a_time(written):
  tree, arrays = glb_parts(written / 'scene.glb')
  (animation,) = tree['animations']
  shown = {}
  for channel in animation['channels']:
    sampler = animation['samplers'][channel['sampler']]
    assert sampler['interpolation'] == 'STEP'
    np.testing.assert_allclose(arrays[sampler['input']][:, 0], np.arange(6) / 8)
    node = tree['nodes'][channel['target']['node']]
    assert 'matrix' not in node
    if channel['target']['path'] == 'scale':
      assert node['name'] == tree['meshes'][node['mesh']]['name']
      shown[node['name']] = arrays[sampler['output']]
      assert node['scale'] == arrays[sampler['output']][0].tolist()
  assert sorted(shown) == [f'frame_{i:04d}' for i in range(5)]
  for i in range(5):
    want = np.zeros((6, 3))
    want[i] = 1
    if i == 4:
      want[5] = 1  # until the clip ends
    assert np.array_equal(shown[f'frame_{i:04d}'], want)
  assert tree['scenes'][0]['extras']['unit'] == '1 metre'
  assert all(m['primitives'][0]['mode'] == m['primitives'][0]['material'] == 0 for m in tree['meshes'])
  assert tree['extensionsUsed'] == list(tree['materials'][0]['extensions']) == ['KHR_materials_unlit']


def test_glb_holds_the_points_and_the_camera(written):
  import trimesh
  from scipy.spatial.transform import Rotation

  scene, read = odd_scene(), trimesh.load(written / 'scene.glb')
  tree, arrays = glb_parts(written / 'scene.glb')
  (number,) = (n for n, node in enumerate(tree['nodes']) if 'camera' in node)
  animation = tree['animations'][0]
  path = {
    c['target']['path']: arrays[animation['samplers'][c['sampler']]['output']]
    for c in animation['channels']
    if c['target']['node'] == number
  }
  assert number in tree['scenes'][0]['nodes'] + [c for n in tree['nodes'] for c in n.get('children', [])]
  lens = tree['cameras'][0]['perspective']
  assert lens['aspectRatio'] == 32 / 24 and np.tan(lens['yfov'] / 2) == pytest.approx(12 / 32)  # median fy: 32
  flip = np.diag([1.0, -1, -1])
  for i in range(5):
    camera = np.eye(4)  # of the world, looking along -z with y up
    camera[:3, :3] = Rotation.from_quat(path['rotation'][i]).as_matrix().T
    camera[:3, 3] = -camera[:3, :3] @ path['translation'][i]
    camera[:3] = flip @ camera[:3]
    points = read.geometry[f'frame_{i:04d}'].vertices
    assert_at_their_pixels(points, scene.valid[i], camera, scene.K[i])
    (mesh,) = (m for m in tree['meshes'] if m['name'] == f'frame_{i:04d}')
    colour = arrays[mesh['primitives'][0]['attributes']['COLOR_0']] / 65535
    srgb = np.where(colour <= 0.0031308, 12.92 * colour, 1.055 * colour ** (1 / 2.4) - 0.055)
    assert np.array_equal(np.round(srgb[:, :3] * 255), scene.rgb[i][scene.valid[i]]) and (colour[:, 3] == 1).all()
  np.testing.assert_allclose(read.geometry['frame_0000'].vertices, SCALE * scene.pointmap[0][scene.valid[0]] @ flip)


def test_glb_of_a_large_scene_keeps_every_nth_pixel(tmp_path, monkeypatch):
  monkeypatch.setattr(formats, '_GLB_POINTS', 5 * 24 * 32 / 8)  # strides of 3 in both directions
  export.write_exports(small_scene(), tmp_path, ['glb'], fps=8)
  tree, arrays = glb_parts(tmp_path / 'scene.glb')
  assert tree['scenes'][0]['extras']['stride'] == 3
  assert (
    len(arrays[tree['meshes'][0]['primitives'][0]['attributes']['POSITION']]) == small_scene().valid[0, ::3, ::3].sum()
  )


def test_flying_pixels_stay_out_of_clouds_and_animations(tmp_path):
  import trimesh

  scene = small_scene(frames=1)
  depth = np.full_like(scene.depth, 5)
  depth[..., 16:] = 2
  depth[..., 15] = 3  # between the two surfaces
  scene = dataclasses.replace(scene, depth=depth, pointmap=depth[..., None] * rays(scene.K))
  export.write_exports(scene, tmp_path, ['glb', 'cloud', 'ply'], fps=8)
  for path, flips in (('cloud.ply', 1), ('scene.glb', -1), ('points/frame_0000.ply', 1)):
    read = trimesh.load(tmp_path / path)
    points = read.vertices if flips == 1 else read.geometry['frame_0000'].vertices
    flying = np.abs(flips * points[:, 2] - 3) < 0.2
    assert flying.sum() == (21 if 'points' in path else 0) and len(points) > 400


def test_colmap_model(written):
  pycolmap = pytest.importorskip('pycolmap')
  scene = odd_scene()
  model = pycolmap.Reconstruction(str(written / 'colmap' / 'sparse' / '0'))
  assert (model.num_images(), model.num_cameras()) == (5, 5)
  images = {image.name: image for image in model.images.values()}
  observed = 0
  for i in range(5):
    image = images[f'frame_{i:04d}.png']
    camera = model.cameras[image.camera_id]
    assert camera.model.name == 'PINHOLE' and (camera.width, camera.height) == (32, 24)
    camera_from_world = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
    points = SCALE * scene.pointmap[i][scene.valid[i]]
    assert_at_their_pixels(points, scene.valid[i], camera_from_world, camera.calibration_matrix())
    for k, spot in enumerate(image.points2D):
      assert spot.has_point3D()
      point = model.points3D[spot.point3D_id]
      assert np.abs(image.project_point(point.xyz) - spot.xy).max() < 0.01
      assert (image.image_id, k) in {(e.image_id, e.point2D_idx) for e in point.track.elements}
      observed += 1
    with Image.open(written / 'colmap' / 'images' / image.name) as picture:
      assert np.array_equal(np.asarray(picture), scene.rgb[i])
  lengths = [point.track.length() for point in model.points3D.values()]
  assert observed == sum(lengths) and min(lengths) >= 2 and max(lengths) == 5
  assert len(lengths) > 300 and max(p.error for p in model.points3D.values()) < 0.01
  first = cloud.merge(scene.metric(), static_points(scene)).first
  at = KDTree(SCALE * scene.pointmap.reshape(-1, 3)[first])
  for point in model.points3D.values():
    far, nearest = at.query(point.xyz)
    assert far < 1e-5 and np.array_equal(point.color, scene.rgb.reshape(-1, 3)[first[nearest]])


def test_colmap_shares_a_camera_and_says_how_far_points_miss(tmp_path):
  pycolmap = pytest.importorskip('pycolmap')
  scene = small_scene(frames=1)
  export.write_exports(scene, tmp_path / '.', ['colmap'], fps=8)
  model = pycolmap.Reconstruction(str(tmp_path / 'colmap' / 'sparse' / '0'))
  assert model.num_points3D() > 400 and {p.track.length() for p in model.points3D.values()} == {1}

  scene = small_scene()
  moved = scene.pointmap + scene.depth[..., None] * scene.world_from_cam[:, None, None, :3, 0] * np.float32(0.5 / 30)
  off = dataclasses.replace(scene, pointmap=moved)  # every pixel's point lies half a pixel to its right
  export.write_exports(off, tmp_path, ['colmap'], fps=8, overwrite=True)
  model = pycolmap.Reconstruction(str(tmp_path / 'colmap' / 'sparse' / '0'))
  assert model.num_cameras() == 1
  written = {n: p.error for n, p in model.points3D.items()}
  model.update_point_3d_errors()
  np.testing.assert_allclose([p.error for p in model.points3D.values()], list(written.values()), atol=2e-3)
  assert 0.05 < np.mean(list(written.values())) < 0.5


def test_tracks_end_where_a_point_is_hidden():
  scene = small_scene(frames=2)
  pose = np.tile(np.eye(4), (2, 1, 1))
  depth = np.full(scene.depth.shape, 5.0)
  depth[1, 8:16, 8:16] = 2
  scene = dataclasses.replace(
    scene, depth=depth, valid=depth > 0, world_from_cam=pose, pointmap=depth[..., None] * rays(scene.K)
  )
  (ids, place, miss), (later, there, _) = tracks(scene, np.arange(24 * 32))
  assert np.array_equal(ids, np.arange(24 * 32)) and miss.max() < 1e-5
  hidden = np.setdiff1d(ids, later)
  assert np.array_equal(hidden, np.flatnonzero(depth[1].ravel() == 2))
  np.testing.assert_allclose(there, place[later], atol=1e-4)


def test_a_frame_always_sees_its_own_points():
  scene = small_scene(frames=1)
  off = dataclasses.replace(scene, pointmap=1.5 * scene.pointmap)  # behind the surface that was fitted
  ((ids, place, miss),) = tracks(off, np.arange(24 * 32))
  assert len(ids) == 24 * 32 and miss.max() < 1e-4 and place[-1].tolist() == [31.5, 23.5]


def test_moving_things_stay_out_of_the_model(tmp_path):
  pycolmap = pytest.importorskip('pycolmap')
  clip = render.clip(1, level='easy', frames=9, height=48, width=64)
  export.write_exports(clip_scene(clip), tmp_path, ['colmap'], fps=8)
  model = pycolmap.Reconstruction(str(tmp_path / 'colmap' / 'sparse' / '0'))
  on_movers = total = 0
  for image in model.images.values():
    spots = np.array([s.xy for s in image.points2D]).astype(int)
    on_movers += clip.dynamic[image.image_id - 1, spots[:, 1], spots[:, 0]].sum()
    total += len(spots)
  assert clip.dynamic.mean() > 0.03 and on_movers / total < 0.005


def test_large_models_keep_so_many_points(tmp_path, monkeypatch):
  pycolmap = pytest.importorskip('pycolmap')
  monkeypatch.setattr(formats, '_TRACKS', 100)
  export.write_exports(small_scene(), tmp_path, ['colmap'], fps=8)
  model = pycolmap.Reconstruction(str(tmp_path / 'colmap' / 'sparse' / '0'))
  assert 60 < model.num_points3D() <= 100
  places = np.array([point.xyz for point in model.points3D.values()])
  assert len(np.unique(places, axis=0)) == len(places)
  spots = np.array([spot.xy for image in model.images.values() for spot in image.points2D])
  assert (spots.min(axis=0) < 6).all() and (spots.max(axis=0) > [26, 18]).all()  # from everywhere


def test_nerfstudio_data(written):
  import trimesh

  scene, folder = odd_scene(), written / 'nerfstudio'
  data = json.loads((folder / 'transforms.json').read_text())
  assert data['camera_model'] == 'PINHOLE' and 'unit of length: 1 metre' in data['description']
  static = static_points(scene)
  for i, frame in enumerate(data['frames']):
    world_from_camera = np.array(frame['transform_matrix'])
    camera = np.diag([1, -1, -1, 1]) @ np.linalg.inv(world_from_camera)  # OpenGL to OpenCV
    K = np.array([[frame['fl_x'], 0, frame['cx']], [0, frame['fl_y'], frame['cy']], [0, 0, 1]])
    assert_at_their_pixels(SCALE * scene.pointmap[i][scene.valid[i]], scene.valid[i], camera, K)
    with Image.open(folder / frame['file_path']) as image, Image.open(folder / frame['mask_path']) as mask:
      assert np.array_equal(np.asarray(image), scene.rgb[i]) and image.size == (frame['w'], frame['h'])
      assert np.array_equal(np.asarray(mask), np.where(static[i] | ~scene.valid[i], 255, 0))
    depth = np.load(folder / frame['depth_file_path']) / 1000
    np.testing.assert_allclose(depth, np.where(scene.valid[i], SCALE * scene.depth[i], 0), rtol=1e-6)
    lifted = depth[..., None] * rays(K[None])[0]
    world = (lifted @ np.linalg.inv(camera)[:3, :3].T + np.linalg.inv(camera)[:3, 3])[scene.valid[i]]
    assert_at_their_pixels(world, scene.valid[i], metric_cameras(scene)[i], scene.K[i])
  assert len(data['frames']) == 5
  points = trimesh.load(folder / data['ply_file_path']).vertices
  np.testing.assert_array_equal(points, trimesh.load(written / 'cloud.ply').vertices)


def test_depth_images(written):
  scene = odd_scene()
  stated = json.loads((written / 'depth' / 'depth.json').read_text())
  assert stated['step'] == 0.001 and stated['unit'] == '1 metre'
  for i in range(5):
    with Image.open(written / 'depth' / f'frame_{i:04d}.png') as image:
      assert image.mode.startswith('I;16') and image.size == (32, 24)
      depth = np.asarray(image).astype(np.float64)
    assert np.array_equal(depth == 0, ~scene.valid[i])
    assert np.abs(depth * 0.001 - SCALE * scene.depth[i])[scene.valid[i]].max() < 0.000501


@pytest.mark.parametrize('factor, scale, millimetres', [(0.1, np.nan, False), (1, 1, False), (0.1, 1, True)])
def test_depth_images_of_relative_and_far_scenes(tmp_path, factor, scale, millimetres):
  scene = small_scene()
  depth = scene.depth * np.float32(factor)
  depth[0, 5, 5] = 1e6 * factor  # a stray pixel
  depth[0, 6, 6:9] = np.nan, np.inf, -1
  export.write_exports(dataclasses.replace(scene, depth=depth, scale=scale), tmp_path, ['depth16'], fps=8)
  step = json.loads((tmp_path / 'depth' / 'depth.json').read_text())['step']
  median = np.median(depth[scene.valid & np.isfinite(depth) & (depth > 0)])
  assert step == (0.001 if millimetres else pytest.approx(100 * median / 65535, rel=1e-6))
  with Image.open(tmp_path / 'depth' / 'frame_0000.png') as image:
    steps = np.asarray(image)
  assert steps[5, 5] == 65535 and not steps[6, 6:9].any()
  usual = scene.valid[0].copy()
  usual[5, 5], usual[6, 6:9] = False, False
  assert (np.abs(steps * step - depth[0])[usual] <= 0.501 * step).all()


def test_exr_depth(written):
  import OpenEXR

  scene = odd_scene()
  for i in range(5):
    with OpenEXR.File(str(written / 'exr' / f'frame_{i:04d}.exr')) as file:
      depth = file.channels()['Z'].pixels
      assert 'unit: 1 metre' in file.header()['comments'] and list(file.channels()) == ['Z']
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, np.where(scene.valid[i], scene.depth[i] * np.float32(SCALE), 0))


def test_frames(written):
  for i, frame in enumerate(odd_scene().rgb):
    with Image.open(written / 'frames' / f'frame_{i:04d}.png') as image:
      assert image.format == 'PNG' and np.array_equal(np.asarray(image), frame)


def test_trajectory_for_evo(tmp_path):
  file_interface = pytest.importorskip('evo.tools.file_interface')
  scene = odd_scene()
  (tmp_path / 'trajectory.tum').write_text(formats.tum(scene.metric(), 8))
  read = file_interface.read_tum_trajectory_file(str(tmp_path / 'trajectory.tum'))
  assert read.check()[0]
  np.testing.assert_allclose(read.timestamps, np.arange(5) / 8)
  for i, pose in enumerate(read.poses_se3):
    points = SCALE * scene.pointmap[i][scene.valid[i]]
    assert_at_their_pixels(points, scene.valid[i], np.linalg.inv(pose), scene.K[i])


def test_images_are_stored_once_where_the_disk_can(written, tmp_path, monkeypatch):
  places = [written / place / 'frame_0003.png' for place in ('frames', 'colmap/images', 'nerfstudio/images')]
  assert len({p.stat().st_ino for p in places}) == 1

  def refuse(*args):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr('os.link', refuse)
  export.write_exports(small_scene(), tmp_path, ['frames', 'colmap'], fps=8)
  copies = [tmp_path / place / 'frame_0003.png' for place in ('frames', 'colmap/images')]
  assert copies[0].read_bytes() == copies[1].read_bytes() and copies[0].stat().st_ino != copies[1].stat().st_ino


def nothing_valid():
  return small_scene(), {'valid': np.zeros((5, 24, 32), bool)}


def one_frame():
  return small_scene(frames=1), {}


def empty_and_broken_frames():
  scene = small_scene()
  valid, points, depth = scene.valid.copy(), scene.pointmap.copy(), scene.depth.copy()
  valid[0] = False  # the frame that is shown first
  points[1, 10], points[2, 10] = np.nan, np.inf
  depth[3] = np.nan
  depth[4, 10] = -1
  return scene, {'valid': valid, 'pointmap': points, 'depth': depth}


@pytest.mark.parametrize('make', [nothing_valid, one_frame, empty_and_broken_frames], ids=lambda f: f.__name__)
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.filterwarnings('error')
def test_poor_scenes_give_whole_files(tmp_path, name, make):
  scene, changes = make()
  scene = dataclasses.replace(scene, **changes)
  (path,) = export.write_exports(scene, tmp_path, [name], fps=8)
  points = usable_points(scene)
  if name == 'ply':
    sizes = [len(p.read_bytes().split(b'end_header\n', 1)[1]) // 16 for p in sorted(path.iterdir())]
    assert sizes == points.sum((1, 2)).tolist()
  elif name == 'glb':
    tree, _ = glb_parts(path)
    assert len(tree.get('meshes', [])) == points.any((1, 2)).sum() and tree['cameras']
    if make is empty_and_broken_frames:
      assert all(node['scale'] == [0, 0, 0] for node in tree['nodes'] if 'mesh' in node)
  elif name == 'colmap':
    pycolmap = pytest.importorskip('pycolmap')
    assert pycolmap.Reconstruction(str(path / 'sparse' / '0')).num_images() == scene.frames
  elif name != 'cloud':
    depths = [np.load(p) for p in path.rglob('*.npy')]
    assert all((d >= 0).all() and np.isfinite(d).all() for d in depths)
    assert len([p for p in path.rglob('frame_*')]) == scene.frames * {'nerfstudio': 3}.get(name, 1)


@pytest.mark.parametrize('field', ['K', 'world_from_cam'])
def test_cameras_must_be_finite(tmp_path, field):
  scene = small_scene()
  broken = getattr(scene, field).copy()
  broken[2, 0, 0] = np.nan
  with pytest.raises(DataError, match=r'frame 2 .* not finite'):
    export.write_exports(dataclasses.replace(scene, **{field: broken}), tmp_path, ['colmap'], fps=8)
  assert not list(tmp_path.iterdir())
