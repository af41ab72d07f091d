"""The live viewer without a browser: what it sends, and what it does with bad input. See also test_browser."""

import contextlib
import dataclasses
import socket
import threading
import time

import numpy as np
import pytest

from one4d_jax import view
from one4d_jax.errors import DataError
from one4d_jax.viewer import scene as scenes
from one4d_jax.viewer import serve, stage
from tests.viewer.scenes import small_scene


@contextlib.contextmanager
def viewing(scene, **kwargs):
  """A viewer that runs in a thread, paused."""
  with stage.serving(port=0) as server:
    viewer = serve.Viewer(server, scene, **kwargs)
    viewer.play(False)
    thread = threading.Thread(target=viewer.run)
    thread.start()
    try:
      yield viewer
    finally:
      viewer.stop()
      thread.join(10)
      assert not thread.is_alive()


def until(condition, seconds=10.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.01)


def shown_points(viewer, name):
  """The points of a cloud on the server, in the unit of the view."""
  clouds = [cloud for cloud in (*viewer._stage.frames, viewer._stage.still) if cloud._name == name]
  nodes = list(clouds[0]._nodes.values())
  return np.concatenate([node.points for node in nodes]) if nodes else np.zeros((0, 3))


def change(viewer, **values):
  """Sets controls as a page would and waits until they have taken effect everywhere."""
  for name, value in values.items():
    getattr(viewer, f'_{name}').value = value
  viewer._wake.set()
  until(lambda: viewer._look == viewer._wanted() and viewer._shown == viewer._frame.value and not viewer._stale)
  until(lambda: viewer._count.value[:1].isdigit())
  stage = viewer._stage
  assert [i for i, frame in enumerate(stage.frames) if frame.visible] == [viewer._frame.value]
  clouds = [stage.frames[viewer._frame.value]] + [stage.still] * stage.still.visible
  count = sum(len(node.points) for cloud in clouds for node in cloud._nodes.values())
  assert int(viewer._count.value.replace(',', '')) == count
  return count


def test_points_are_those_of_the_scene_in_the_unit_of_the_view():
  scene = small_scene()
  with viewing(scene) as viewer:
    count = change(viewer, no_edges=False)
    assert count == scene.valid[0].sum()
    unit = np.median(scene.depth[scene.valid])
    got = shown_points(viewer, '/frames/0000').astype(np.float64) * unit
    want = scene.pointmap[0][scene.valid[0]]
    order = lambda points: points[np.lexsort(np.round(points, 1).T)]
    assert got.shape == want.shape and np.abs(order(got).sum(0) - order(want).sum(0)).max() < 1
    assert [frame.visible for frame in viewer._stage.frames] == [True] + 4 * [False]
    sizes = [node.point_size for node in viewer._stage.frames[0]._nodes.values()]
    assert all(0.5 < size * unit / (depth / 30) < 4 for size, depth in zip(sizes, [2, 4, 4, 5, 5], strict=False))


def test_filters_hide_and_show():
  scene = small_scene()
  points = scene.pointmap.copy()
  points[0] += np.random.default_rng(0).normal(0, 0.01, points[0].shape).astype(np.float32)
  depth = scene.depth.copy()
  depth[0, 8:16, 14] = 3  # flies between the square and the wall
  scene = dataclasses.replace(scene, pointmap=points, depth=depth)
  with viewing(scene) as viewer:
    everything = change(viewer, no_edges=False)
    assert everything == scene.valid[0].sum()
    assert everything - 12 <= change(viewer, no_edges=True) <= everything - 6
    with_sky = change(viewer, no_edges=False, no_sky=False)
    assert with_sky == scene.valid[0].size
    far = np.linalg.norm(shown_points(viewer, '/frames/0000').astype(np.float64), axis=1)
    depth = 1.5 * np.quantile(scene.depth[scene.valid], 0.98) / viewer._stage.unit
    assert ((far > 0.99 * depth) & (far < 1.3 * depth)).sum() == 3 * 32  # along rays of up to 1.2
    change(viewer, no_sky=True)
    few = change(viewer, unsure=20)
    assert abs(few - 0.2 * everything) > 0 and few < 0.1 * everything  # the one noisy frame of five is the least sure
    assert change(viewer, frame=1) == scene.valid[1].sum()
    assert change(viewer, frame=0, unsure=0, stride=4) == scene.valid[0, ::4, ::4].sum()


def test_size_changes_points_only_in_size():
  with viewing(small_scene()) as viewer:
    change(viewer)
    nodes = viewer._stage.frames[2]._nodes
    before = {k: (node.point_size, node.points.copy()) for k, node in nodes.items()}
    change(viewer, size=2.0)
    assert nodes.keys() == before.keys()
    for k, node in nodes.items():
      assert node.point_size == pytest.approx(2 * before[k][0]) and np.array_equal(node.points, before[k][1])


def test_static_points_of_all_frames_stay_and_the_moving_ones_play():
  scene = small_scene()
  with viewing(scene) as viewer:
    one = change(viewer)
    both = change(viewer, points=serve._STILL_TOO)
    assert both > 1.1 * one and viewer._stage.still.visible
    still = shown_points(viewer, '/still')
    # The square stands at depth 2 in every frame, wherever the camera is: it moves. The wall stays.
    assert len(still) > 500 and (still[:, 2] * viewer._stage.unit > 3).mean() > 0.95
    moving = shown_points(viewer, '/frames/0000')
    assert 64 <= len(moving) < 150 and (moving[:, 2] * viewer._stage.unit < 3).sum() == 64
    change(viewer, frame=3)
    np.testing.assert_array_equal(shown_points(viewer, '/still'), still)
    assert change(viewer, points=serve._ONE_FRAME, frame=0) == one and not viewer._stage.still.visible


def test_cameras_current_all_none():
  with viewing(small_scene()) as viewer:
    seen = lambda: [camera.visible for camera in viewer._stage.cameras]
    for kind, want in (('current', [2]), ('all', [0, 1, 2, 3, 4]), ('none', []), ('current', [2])):
      change(viewer, frame=2, cameras=kind)
      until(lambda want=want: [i for i, v in enumerate(seen()) if v] == want)
    change(viewer, frame=4)
    until(lambda: [i for i, v in enumerate(seen()) if v] == [4])


def test_time_plays_at_its_rate_and_pauses():
  with viewing(small_scene(), fps=10) as viewer:
    assert viewer._fps.value == 10
    change(viewer)
    begin, changes, last = time.monotonic(), 0, viewer._frame.value
    viewer.play(True)
    assert viewer._button.label == 'Pause'
    while changes < 10:
      if viewer._frame.value != last:
        changes, last = changes + 1, viewer._frame.value
      time.sleep(0.005)
      assert time.monotonic() < begin + 20
    assert time.monotonic() - begin > 0.8  # ten frames at ten a second, not at once
    viewer.play(False)
    assert viewer._button.label == 'Play'
    time.sleep(0.15)
    stopped = viewer._frame.value
    time.sleep(0.4)
    assert viewer._frame.value == stopped
    viewer.step(-1)
    assert viewer._frame.value == (stopped - 1) % 5


def test_the_picture_follows_the_frame():
  with viewing(small_scene()) as viewer:
    for i in (3, 1):
      change(viewer, frame=i)
      until(lambda i=i: np.array_equal(viewer._picture.image, viewer._pictures(i)))


@pytest.mark.parametrize('case', ['one frame', 'nothing valid', 'not numbers', 'no motion', 'one empty frame'])
def test_odd_scenes(case):
  scene = small_scene(frames=1 if case == 'one frame' else 3)
  valid, points, depth = scene.valid.copy(), scene.pointmap.copy(), scene.depth.copy()
  if case == 'nothing valid':
    valid[:] = False
  if case == 'one empty frame':
    valid[1] = False
  if case == 'not numbers':
    points[0, ::2], depth[1, ::3], points[2] = np.nan, np.inf, np.nan
  poses = np.tile(np.eye(4), (3, 1, 1)) if case == 'no motion' else scene.world_from_cam
  scene = dataclasses.replace(scene, valid=valid, pointmap=points, depth=depth, world_from_cam=poses)
  with viewing(scene) as viewer:
    viewer.play(True)
    assert viewer.playing == (case != 'one frame')
    viewer.play(False)
    viewer.step(1)
    for values in ({'unsure': 30}, {'points': serve._STILL_TOO, 'no_sky': False}, {'stride': 8, 'cameras': 'all'}):
      for i in range(scene.frames):
        count = change(viewer, frame=i, **values)
        assert 0 <= count <= 2 * valid.size
      for cloud in (*viewer._stage.frames, viewer._stage.still):
        for node in cloud._nodes.values():
          assert len(node.points) and np.isfinite(node.points).all() and np.isfinite(node.point_size)


def test_large_scenes_are_thinned():
  scene = small_scene()
  assert stage.default_stride(scene) == 1
  for most, want in ((scene.valid.size, 1), (scene.valid.size - 1, 2), (scene.valid.size // 4, 2), (5, 28)):
    assert stage.default_stride(scene, most) == want
  # 81 frames of 352 x 624: what a page holds at nine bytes a point, as base64
  assert 81 * -(-352 // 3) * (624 // 3) * 9 * 4 / 3 < 38e6 and stage.MOST_POINTS * 12 < 38e6


def test_taken_ports(monkeypatch):
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]
    with (
      pytest.raises(DataError, match=f'cannot listen on 127.0.0.1:{port}.*--port'),
      stage.serving(port=port),
    ):
      pass
    monkeypatch.setattr(stage, 'PORT', port)  # nobody asked for it: the next free one
    with stage.serving() as server:
      assert server.get_port() > port
  monkeypatch.setattr(stage, 'PORT', port)  # free by now, and yet not the one that 0 means
  with stage.serving(port=0) as server:
    assert server.get_port() != port
  cases = {'cannot listen': ('no.such.host.invalid', 0), '70000': ('127.0.0.1', 70_000), 'got -1': ('127.0.0.1', -1)}
  for words, (host, wrong) in cases.items():
    with pytest.raises(DataError, match=words), stage.serving(host=host, port=wrong):
      pass


def test_command_line(tmp_path, capsys):
  from one4d_jax import cli

  assert cli.run(view.main, view.parser(), [str(tmp_path / 'nowhere')]) == 2
  error = capsys.readouterr().err
  assert 'does not exist' in error and error.count('\n') == 1
  (tmp_path / 'scene.npz').write_bytes(b'PK not a scene')
  assert cli.run(view.main, view.parser(), [str(tmp_path)]) == 2
  assert 'cannot be read' in capsys.readouterr().err
  small_scene().save(tmp_path)
  with socket.create_server(('127.0.0.1', 0)) as other:
    assert cli.run(view.main, view.parser(), [str(tmp_path), '--port', str(other.getsockname()[1])]) == 2
  assert 'choose another --port' in capsys.readouterr().err


@pytest.mark.parametrize(
  'text, want',
  [
    ('{"fps": {"playback": 12}}', 12),
    ('{"fps": {"playback": 900}}', 60),
    ('{"fps": {"playback": NaN}}', 8),
    ('{', 8),
    ('[]', 8),
  ],
)
def test_rate_of_playback(tmp_path, text, want):
  (tmp_path / 'run.json').write_text(text)
  (tmp_path / 'scene.npz').touch()
  assert scenes.playback_rate(tmp_path) == scenes.playback_rate(tmp_path / 'scene.npz') == want
  assert scenes.playback_rate(tmp_path / 'nowhere') == 8
