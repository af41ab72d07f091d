"""Every file of a scene folder, read back; and the folder is whole or not there."""

import dataclasses
import json
import re

import av
import numpy as np
import pytest
from PIL import Image

from one4d_jax import cli
from one4d_jax import export as command
from one4d_jax.errors import DataError
from one4d_jax.viewer import export, formats, html, orbit, pictures
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


def test_orbit_video(tmp_path, monkeypatch):
  seen = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), np.uint8)
  monkeypatch.setattr(orbit, 'orbit_frames', lambda scene, progress: progress(12, 12) or seen)
  calls = []
  (path,) = export.write_exports(small_scene(), tmp_path, ['orbit'], fps=8, progress=lambda *c: calls.append(c))
  with av.open(str(path)) as container:
    assert container.streams.video[0].average_rate == 8 and len(list(container.decode(video=0))) == 12
  assert path.name == 'orbit.mp4' and calls == [('export orbit', 0, 1), ('export orbit', 12, 12)]


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


def test_cameras_are_metric_where_the_scale_is_known(tmp_path, monkeypatch):
  monkeypatch.setattr(html, 'scene_html', lambda *args, **kwargs: '')
  scene = dataclasses.replace(small_scene(), scale=2.5)
  export.write_scene(scene, tmp_path / 'out', run={}, fps=8)
  centres = 2.5 * scene.world_from_cam[:, :3, 3]
  np.testing.assert_allclose(np.loadtxt(tmp_path / 'out' / 'trajectory.tum')[:, 1:4], centres, rtol=1e-6)
  cameras = json.loads((tmp_path / 'out' / 'cameras.json').read_text())
  np.testing.assert_allclose([np.array(f['transform_matrix'])[:3, 3] for f in cameras['frames']], centres, rtol=1e-6)
  assert 'unit of length: 1 metre' in cameras['description']
  stored = scenes.load(tmp_path / 'out')
  assert stored.scale == 2.5 and np.array_equal(stored.depth, scene.depth)


def test_quaternions_of_all_rotations():
  rng = np.random.default_rng(0)
  for q in [*rng.normal(size=(50, 4)), *np.eye(4)]:
    x, y, z, w = q / np.linalg.norm(q)
    rotation = np.array([
      [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
      [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
      [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    assert abs(formats.quaternion_xyzw(rotation) @ [x, y, z, w]) == pytest.approx(1, abs=1e-12)


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


@pytest.mark.parametrize('step', ['write_video', 'write_json', 'tum', '_replace'])
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


@pytest.fixture
def folder(tmp_path):
  small_scene().save(tmp_path)
  return tmp_path


def inside(folder):
  return sorted(p.name for p in folder.iterdir())


def run(*argv):
  return cli.run(command.main, command.parser(), [str(a) for a in argv])


def test_names_of_exports():
  assert export.check_exports(None) == export.check_exports('') == ()
  assert export.check_exports('ply, glb,ply,') == ('ply', 'glb')
  with pytest.raises(DataError, match=r'there is no obj, PLY; choose from ply, cloud, glb, colmap,'):
    export.check_exports('ply,obj,PLY')


def test_exports_with_the_scene(tmp_path, monkeypatch):
  monkeypatch.setattr(html, 'scene_html', lambda *args, **kwargs: '')
  out, calls = tmp_path / 'out', []
  paths = export.write_scene(
    small_scene(), out, run={}, fps=8, exports=('frames', 'cloud'), progress=lambda *call: calls.append(call)
  )
  assert [p.name for p in paths] == [*export.FILES, 'frames', 'cloud.ply'] and all(p.exists() for p in paths)
  assert inside(out) == sorted([*export.FILES, 'frames', 'cloud.ply'])
  steps = [call[1:] for call in calls if call[0] == 'export frames']
  assert steps == [(0, 1), (1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
  assert calls[-1] == ('export cloud', 1, 1) and ('write', len(export.FILES), len(export.FILES)) in calls
  export.write_scene(small_scene(), out, run={}, fps=8, overwrite=True)
  assert inside(out) == sorted(export.FILES)  # exports of the old scene are gone


def test_a_failed_export_leaves_the_scene_and_what_was_there(tmp_path, monkeypatch):
  monkeypatch.setattr(html, 'scene_html', lambda *args, **kwargs: '')
  out = tmp_path / 'out'

  def fails(work, path, report):
    path.mkdir()
    (path / 'half').write_text('')
    raise OSError(28, 'No space left on device')

  monkeypatch.setitem(export.EXPORTS, 'exr', export.EXPORTS['exr']._replace(write=fails))
  with pytest.raises(OSError, match='No space'):
    export.write_scene(small_scene(), out, run={}, fps=8, exports=('frames', 'exr', 'ply'))
  assert inside(out) == sorted([*export.FILES, 'frames'])
  (out / 'exr').mkdir()
  (out / 'exr' / 'old').write_text('')
  with pytest.raises(OSError, match='No space'):
    export.write_exports(small_scene(), out, ['exr'], fps=8, overwrite=True)
  assert inside(out / 'exr') == ['old'] and inside(out) == sorted([*export.FILES, 'frames', 'exr'])


def test_an_export_is_replaced_as_a_whole_and_only_when_asked(folder):
  (folder / 'depth').mkdir()
  (folder / 'depth' / 'old').write_text('')
  with pytest.raises(DataError, match=r'already holds depth16; add --overwrite'):
    export.write_exports(small_scene(), folder, ['frames', 'depth16'], fps=8)
  assert inside(folder) == ['depth', 'scene.npz']
  export.write_exports(small_scene(), folder, ['depth16'], fps=8, overwrite=True)
  assert inside(folder / 'depth') == ['depth.json', *(f'frame_000{i}.png' for i in range(5))]
  assert inside(folder) == ['depth', 'scene.npz']


def test_a_rename_that_fails_puts_the_old_export_back(folder, monkeypatch):
  (folder / 'cloud.ply').write_text('old')
  rename = export.pathlib.Path.rename

  def fails(self, target):
    if self.parent.name.startswith('.export-') and self.name == 'cloud.ply':
      raise OSError(5, 'Input/output error')
    return rename(self, target)

  monkeypatch.setattr(export.pathlib.Path, 'rename', fails)
  with pytest.raises(OSError, match='Input/output'):
    export.write_exports(small_scene(), folder, ['cloud'], fps=8, overwrite=True)
  assert (folder / 'cloud.ply').read_text() == 'old' and inside(folder) == ['cloud.ply', 'scene.npz']


def test_command(folder, capsys):
  (folder / 'run.json').write_text(json.dumps({'fps': {'playback': 16}}))
  assert run(folder, '--export', 'cloud,glb') == 0
  assert capsys.readouterr().out.split() == [str(folder / 'cloud.ply'), str(folder / 'scene.glb')]
  assert b'"max":[0.3125]' in (folder / 'scene.glb').read_bytes()  # 5 frames at 16 a second
  assert run(folder / 'scene.npz', '--export', 'cloud') == 2
  assert 'already holds cloud; add --overwrite' in capsys.readouterr().err
  assert run(folder / 'scene.npz', '--export', 'cloud', '--overwrite') == 0


def test_command_names_mistakes_in_one_line(folder, tmp_path, capsys):
  cases = {
    (folder, '--export', 'obj'): 'there is no obj; choose from ply',
    (folder / 'nowhere', '--export', 'ply'): 'does not exist',
    (folder,): '--export',
  }
  for argv, words in cases.items():
    assert run(*argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
  (folder / 'scene.npz').write_bytes(b'')
  assert run(folder, '--export', 'ply') == 2 and 'cannot be read' in capsys.readouterr().err
  assert inside(folder) == ['scene.npz']


def test_help_lists_every_export():
  text = command.parser().format_help()
  assert all(name in text and export.EXPORTS[name].target in text for name in export.EXPORTS)


def test_a_scene_that_is_there_comes_to_metres(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(html, 'scene_html', lambda *args, **kwargs: '')
  out, scene = tmp_path / 'out', small_scene()
  made = {'seed': 5, 'fps': {'playback': 4}, 'depth_mp4': pictures.depth_legend(scene)}
  export.write_scene(scene, out, run=made, fps=4, exports=('frames', 'ply'))
  moved = np.linalg.norm(scene.world_from_cam[4, :3, 3] - scene.world_from_cam[0, :3, 3])
  assert run(out, '--metric', f'baseline=0,4:{2 * moved}', '--export', 'ply') == 0
  assert scenes.load(out).scale == pytest.approx(2, rel=1e-4)
  np.testing.assert_allclose(scenes.load(out).depth, scene.depth)
  path = np.loadtxt(out / 'trajectory.tum')
  np.testing.assert_allclose(path[:, 1:4], 2 * scene.world_from_cam[:, :3, 3], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(path[:, 0], np.arange(5) / 4)
  record = json.loads((out / 'run.json').read_text())
  assert record['seed'] == 5 and record['metric']['scale'] == pytest.approx(2, rel=1e-4)
  assert (out / 'points').exists() and not (out / 'frames').exists(), 'exports in the old unit are gone'

  near, far = pictures.depth_range(scene)
  assert record['depth_mp4']['near_far'] == pytest.approx([2 * near, 2 * far], rel=1e-4)

  before = sorted(p.stat().st_mtime_ns for p in out.iterdir())
  mistakes = {
    'depth=0:0,0:1': 'shows no surface',
    'baseline=0,9:1': 'out of range',
    'focal=3': 'give it to python',
    'x': "--metric 'x'",
  }
  for text, words in mistakes.items():
    assert run(out, '--metric', text) == 2 and words in capsys.readouterr().err
  assert run(out) == 2 and 'name something' in capsys.readouterr().err
  assert before == sorted(p.stat().st_mtime_ns for p in out.iterdir())
  for text, words in (('{', 'cannot be read'), ('[1]', 'not the record of a run')):
    (out / 'run.json').write_text(text)
    assert run(out, '--metric', 'baseline=0,4:1') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'run.json' in line and words in line and 'delete it' in line
