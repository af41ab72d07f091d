"""Every file of a scene folder, read back; and the folder is whole or not there."""

import dataclasses
import json
import re

import av
import numpy as np
import pytest
from PIL import Image

from one4d_jax.errors import DataError
from one4d_jax.viewer import export, html, pictures
from one4d_jax.viewer import scene as scenes
from tests.viewer.scenes import small_scene


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  out = tmp_path_factory.mktemp('export') / 'deep' / 'out'
  paths = export.write_scene(small_scene(), out, run={'seed': 3, 'out': out}, fps=8)
  assert [p.name for p in paths] == list(export.FILES) and all(p.parent == out for p in paths)
  return out


def test_folder_holds_the_files_and_nothing_else(written):
  assert {p.name for p in written.iterdir()} == set(export.FILES)
  assert [p.name for p in written.parent.iterdir()] == ['out']
  assert json.loads((written / 'run.json').read_text()) == {'seed': 3, 'out': str(written)}
  assert scenes.load(written).frames == 5


@pytest.mark.parametrize('name', ['rgb', 'xyz', 'depth'])
def test_videos_play(written, name):
  with av.open(str(written / f'{name}.mp4')) as container:
    stream = container.streams.video[0]
    frames = [f.to_ndarray(format='rgb24') for f in container.decode(stream)]
    assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ('h264', 'yuv420p', 8)
  assert len(frames) == 5 and frames[0].shape == (264, 352, 3)
  scene = small_scene()
  want = {
    'rgb': scene.rgb,
    'xyz': pictures.xyz_colours(scene.pointmap, scene.valid),
    'depth': pictures.depth_colours(scene.depth, scene.valid),
  }[name]
  seen = np.stack(frames)[:, 5::11, 5::11].astype(int)  # centres of the enlarged pixels
  assert np.abs(seen - want).mean() < 12


@pytest.mark.parametrize('size, shown', [((33, 31), (264, 248)), ((301, 401), (302, 402)), ((256, 256), (256, 256))])
def test_video_sizes_are_even(tmp_path, size, shown):
  export.write_video(tmp_path / 'a.mp4', np.zeros((1, *size, 3), np.uint8), 29.97)
  with av.open(str(tmp_path / 'a.mp4')) as container:
    stream = container.streams.video[0]
    assert (stream.height, stream.width) == shown and len(list(container.decode(stream))) == 1


def test_preview_shows_frames_and_path(written):
  with Image.open(written / 'preview.png') as image:
    assert image.width > image.height > 300
    assert len(image.convert('RGB').getcolors(1 << 24)) > 500


def test_cameras_json_projects_points_to_their_pixels(written):
  scene, cameras = small_scene(), json.loads((written / 'cameras.json').read_text())
  assert cameras['camera_model'] == 'PINHOLE' and len(cameras['frames']) == scene.frames
  height, width = scene.size
  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  for frame, points in zip(cameras['frames'], scene.pointmap.astype(np.float64), strict=True):
    camera_from_world = np.linalg.inv(np.array(frame['transform_matrix']))
    x, y, z = np.moveaxis(points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3], -1, 0)
    assert (z < 0).all()  # OpenGL looks along -z
    np.testing.assert_allclose(frame['fl_x'] * x / -z + frame['cx'], u, atol=0.01)
    np.testing.assert_allclose(frame['cy'] - frame['fl_y'] * y / -z, v, atol=0.01)
    assert (frame['w'], frame['h']) == (width, height)


def test_trajectory_is_in_tum_order(written):
  scene = small_scene()
  rows = np.loadtxt(written / 'trajectory.tum')
  np.testing.assert_allclose(rows[:, 0], np.arange(5) / 8)
  np.testing.assert_allclose(rows[:, 1:4], scene.world_from_cam[:, :3, 3], atol=1e-7)
  angle = 0.07 * np.arange(5)  # about y: qy = sin(a / 2), qw = cos(a / 2)
  np.testing.assert_allclose(
    rows[:, 4:], np.stack([0 * angle, np.sin(angle / 2), 0 * angle, np.cos(angle / 2)], 1), atol=1e-6
  )


def test_quaternions_of_all_rotations():
  rng = np.random.default_rng(0)
  for q in [*rng.normal(size=(50, 4)), *np.eye(4)]:
    x, y, z, w = q / np.linalg.norm(q)
    rotation = np.array([
      [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
      [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
      [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    assert abs(export.quaternion_xyzw(rotation) @ [x, y, z, w]) == pytest.approx(1, abs=1e-12)


def test_html_is_self_contained(written):
  page = (written / 'scene.html').read_text()
  assert '__VISER_EMBED_DATA__=' in page
  assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=\s*["\']?(?:https?:)?//', page)
  assert not re.findall(r'url\(\s*["\']?https?://', page)


def test_viewer_prints_nothing_and_leaves_no_thread(capfd):
  import threading

  before = threading.active_count()
  html.scene_html(small_scene(frames=1), fps=8)
  assert capfd.readouterr() == ('', '') and threading.active_count() == before


def test_flying_pixels_are_found_and_slants_are_kept():
  row = np.full((1, 20, 40), 5.0, np.float32)
  row[..., 20:] = 2.0
  valid = np.ones(row.shape, bool)
  assert not html.depth_edges(row, valid).any()  # a clean step has no pixel between
  row[..., 20] = 3.0
  flying = html.depth_edges(row, valid)
  assert flying[..., 20].all() and flying.sum() == 20
  u, v = np.meshgrid(np.arange(40), np.arange(20))
  slanted = (1 / (0.02 + 0.03 * v + 0.001 * u))[None].astype(np.float32)
  assert not html.depth_edges(slanted, valid).any()


@pytest.mark.parametrize('step', ['write_video', 'nerfstudio', 'tum', '_replace'])
def test_failure_leaves_nothing(tmp_path, monkeypatch, step):
  def fail(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(export, step, fail)
  monkeypatch.setattr(html, 'scene_html', lambda *args, **kwargs: '')
  with pytest.raises(OSError, match='No space'):
    export.write_scene(small_scene(), tmp_path / 'out', run={}, fps=8)
  assert not list(tmp_path.iterdir())


def test_overwrite_replaces_a_scene_only_when_asked_and_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(html, 'scene_html', lambda *args, **kwargs: '')
  out, scene = tmp_path / 'out', small_scene()
  out.mkdir()  # an empty folder is free
  export.write_scene(scene, out, run={'n': 1}, fps=8)
  with pytest.raises(DataError, match='--overwrite'):
    export.write_scene(scene, out, run={'n': 2}, fps=8)
  (out / 'my_notes.txt').write_text('keep me')
  (out / 'scene.glb').write_text('of the old scene')

  with monkeypatch.context() as patch:
    patch.setattr(export, 'tum', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      export.write_scene(scene, out, run={'n': 2}, fps=8, overwrite=True)
  assert json.loads((out / 'run.json').read_text()) == {'n': 1} and (out / 'scene.glb').exists()

  export.write_scene(dataclasses.replace(scene, depth=scene.depth * 2), out, run={'n': 3}, fps=8, overwrite=True)
  assert json.loads((out / 'run.json').read_text()) == {'n': 3}
  assert (out / 'my_notes.txt').read_text() == 'keep me' and not (out / 'scene.glb').exists()
  assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_out_that_cannot_be_used(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'thesis.tex').write_text('')
  cases = {'file': 'is a file', 'full': 'other files', 'file/below': 'cannot be written'}
  for name, words in cases.items():
    with pytest.raises(DataError, match=words):
      export.check_out(tmp_path / name, overwrite=True)
  with pytest.raises(DataError, match='cannot be written'):
    export.check_out('/proc/out', overwrite=False)


def test_colours():
  colours = pytest.importorskip('matplotlib').colormaps['turbo'](np.linspace(0, 1, 256))[:, :3] * 255
  assert np.abs(pictures.turbo(np.linspace(0, 1, 256)) - colours).max() < 4
  scene = small_scene()
  nothing = np.zeros_like(scene.valid)
  assert (
    not pictures.depth_colours(scene.depth, nothing).any() and not pictures.xyz_colours(scene.pointmap, nothing).any()
  )
  empty = dataclasses.replace(scene, valid=nothing, depth=np.full_like(scene.depth, np.nan))
  assert pictures.contact_sheet(empty).width > 300 and html.view_unit(empty) == 1
