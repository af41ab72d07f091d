"""Chromium drives the live viewer, and scene.html from disk without a network."""

import dataclasses
import io
import re
import threading

import numpy as np
import pytest
from PIL import Image

from one4d_jax.viewer import html, serve, stage
from tests.browser import block_network, colours
from tests.viewer.scenes import small_scene

pytestmark = pytest.mark.slow

# What viser's own page says: on its graphics library, and on a machine that draws in software.
TOLERATED = ('THREE.Clock: This module has been deprecated', 'GPU stall due to ReadPixels')


@pytest.fixture(scope='module')
def scene():
  """Noise in one frame, so that confidence differs; cameras far enough apart to be told from each other."""
  scene = small_scene(frames=5, height=48, width=64)
  points, poses = scene.pointmap.copy(), scene.world_from_cam.copy()
  poses[:, 0, 3] = 1.2 * np.arange(5)
  points += (1.2 - 0.1) * np.arange(5, dtype=np.float32)[:, None, None, None] * np.float32([1, 0, 0])
  points[0] += np.random.default_rng(0).normal(0, 0.02, points[0].shape).astype(np.float32)
  return dataclasses.replace(scene, pointmap=points, world_from_cam=poses)


@pytest.fixture
def viewer(scene):
  with stage.serving(port=0) as server:
    viewer = serve.Viewer(server, scene, fps=8)
    viewer.play(False)
    thread = threading.Thread(target=viewer.run)
    thread.start()
    yield viewer
    viewer.stop()
    thread.join(10)


@pytest.fixture
def live(page, viewer):
  page.goto(f'http://127.0.0.1:{viewer._server.get_port()}')
  page.get_by_text('Points shown').wait_for()
  page.wait_for_function('document.querySelector("canvas") !== null')
  until(page, lambda: viewer._server.get_clients())
  return page


def until(page, condition, seconds=90):
  for _ in range(seconds * 20):
    if condition():
      return
    page.wait_for_timeout(50)
  raise AssertionError('waited in vain')


def control(page, label):
  """The input of the row that begins with this label."""
  named = page.locator('label').filter(has_text=re.compile(f'^{re.escape(label)}$'))
  row = named.locator('xpath=ancestor::p/parent::*/parent::*')
  return row.locator('input:not([type=hidden])').last


def number(page, label) -> int:
  """The number in a control; -1 while there is none."""
  text = control(page, label).input_value().replace(',', '')
  return int(text) if text.isdigit() else -1


def put(page, label, value) -> None:
  control(page, label).fill(str(value))
  control(page, label).press('Tab')


def canvas(page) -> np.ndarray:
  """What the page draws, without panels: the middle of the picture."""
  return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert('RGB'))[160:600, 330:860].astype(int)


def settled(page) -> np.ndarray:
  """The canvas once it no longer changes: pictures and points arrive, and viser draws coarsely while it is slow."""
  pictures = [canvas(page)]
  until(page, lambda: pictures.append(canvas(page)) or np.abs(pictures[-1] - pictures[-2]).mean() < 0.5)
  return pictures[-1]


def test_live_time_and_filters(live):
  assert colours(live.screenshot()) > 60
  # Play moves the slider, pause stops it, and so does the space bar.
  assert number(live, 'Frame') == 0
  live.get_by_role('button', name='Play').click()
  until(live, lambda: number(live, 'Frame') == 3)
  until(live, lambda: number(live, 'Frame') == 1)  # it begins again
  live.get_by_role('button', name='Pause').click()
  live.get_by_role('button', name='Play').wait_for()
  live.wait_for_timeout(300)
  stopped = number(live, 'Frame')
  live.wait_for_timeout(700)
  assert number(live, 'Frame') == stopped
  live.get_by_role('button', name='Next').click()
  until(live, lambda: number(live, 'Frame') == (stopped + 1) % 5)
  live.keyboard.press('p')
  until(live, lambda: number(live, 'Frame') == stopped)

  # The slider itself: another frame is another picture, and its points are counted.
  put(live, 'Frame', 0)
  until(live, lambda: number(live, 'Points shown') > 0)
  live.wait_for_timeout(500)
  first = canvas(live)
  put(live, 'Frame', 4)
  until(live, lambda: np.abs(canvas(live) - first).mean() > 2)
  put(live, 'Frame', 0)

  # Filters and stride change the number of points.
  every = number(live, 'Points shown')
  put(live, 'Hide unsure %', 15)
  until(live, lambda: number(live, 'Points shown') < 0.4 * every)
  put(live, 'Hide unsure %', 0)
  until(live, lambda: number(live, 'Points shown') == every)
  control(live, 'Hide sky').click()
  until(live, lambda: number(live, 'Points shown') == every + 3 * 64)
  control(live, 'Hide sky').click()
  until(live, lambda: number(live, 'Points shown') == every)
  control(live, 'Hide depth edges').click()
  until(live, lambda: number(live, 'Points shown') == 45 * 64)
  put(live, 'Stride', 2)
  until(live, lambda: number(live, 'Points shown') == 22 * 32)  # rows 4, 6 .. 46: the first three are sky
  put(live, 'Stride', 1)
  before = canvas(live)
  put(live, 'Size', 0.3)
  until(live, lambda: np.abs(canvas(live) - before).mean() > 2)
  put(live, 'Size', 1)
  control(live, 'Show').click()
  live.get_by_text('static points of all frames').last.click()
  until(live, lambda: number(live, 'Points shown') > 1.2 * 45 * 64)
  assert not live.messages.unexpected(*TOLERATED)


def test_live_cameras_and_screenshot(live, viewer):
  until(live, lambda: len(viewer._server.get_clients()) == 1)
  (client,) = viewer._server.get_clients().values()
  home = client.camera.position.copy()
  np.testing.assert_allclose(home, viewer._stage.home()['position'], atol=1e-3)

  # A click on a camera jumps to its frame and its place.
  control(live, 'Cameras').click()
  live.get_by_role('option', name='all').click()
  live.wait_for_timeout(1500)
  live.mouse.click(*place_on_screen(viewer, client, 2, live.viewport_size))
  until(live, lambda: number(live, 'Frame') == 2)
  until(live, lambda: np.allclose(client.camera.position, viewer._stage.poses[2, :3, 3], atol=1e-3))
  ahead = client.camera.look_at - client.camera.position
  np.testing.assert_allclose(ahead / np.linalg.norm(ahead), viewer._stage.poses[2, :3, 2], atol=1e-3)
  through = settled(live)
  control(live, 'Cameras').click()
  live.get_by_role('option', name='none').click()
  live.wait_for_timeout(500)
  differ = (np.abs(through - settled(live)).max(axis=-1) > 30).mean()
  assert differ < 0.2, "the camera's own picture hides the scene"

  # The button looks through the camera of the frame; reset comes back.
  put(live, 'Frame', 4)
  live.get_by_role('button', name='Look through camera').click()
  until(live, lambda: np.allclose(client.camera.position, viewer._stage.poses[4, :3, 3], atol=1e-3))
  live.get_by_role('button', name='Reset view').click()
  until(live, lambda: np.allclose(client.camera.position, home, atol=1e-3))

  # A screenshot is a file of what the page shows, as large as the page draws: less than its window where that is slow.
  with live.expect_download(timeout=30_000) as download:
    live.get_by_role('button', name='Screenshot').click()
  assert download.value.suggested_filename == 'frame_0004.png'
  picture = Image.open(download.value.path())
  window = live.viewport_size['width'], live.viewport_size['height']
  assert picture.width / picture.height == pytest.approx(window[0] / window[1], rel=0.01) and picture.height >= 400
  assert picture.mode == 'RGB' and len(picture.getcolors(1 << 24)) > 1000
  same = np.asarray(picture.resize(window))[160:600, 330:860]
  assert apart(same, settled(live)) < 10 < apart(same[:, ::-1], settled(live)), 'the download is another view'
  assert not live.messages.unexpected(*TOLERATED)


def apart(a, b) -> float:
  """Mean difference of two pictures by blocks of 10 pixels, above the panel: how finely each was drawn is ignored."""
  coarse = [np.asarray(Image.fromarray(x[:400].astype(np.uint8)).reduce(10), float) for x in (a, b)]
  return float(np.abs(coarse[0] - coarse[1]).mean())


def place_on_screen(viewer, client, i, size):
  """Pixel of the middle of a camera's picture in the client's view."""
  import viser.transforms as tf

  view = tf.SO3(client.camera.wxyz).as_matrix()
  pose = viewer._stage.poses[i]
  x, y, z = view.T @ (pose[:3, 3] + stage.CAMERA_REACH * pose[:3, 2] - client.camera.position)
  focal = size['height'] / 2 / np.tan(client.camera.fov / 2)
  return size['width'] / 2 + focal * x / z, size['height'] / 2 + focal * y / z


def test_two_pages_share_time_and_filters_but_not_the_view(browser, live, viewer):
  other = browser.new_page(viewport={'width': 900, 'height': 700})
  other.set_default_timeout(120_000)
  other.goto(live.url)
  other.get_by_text('Points shown').wait_for()
  put(live, 'Frame', 3)
  until(live, lambda: number(other, 'Frame') == 3)
  put(other, 'Stride', 3)
  until(live, lambda: number(live, 'Stride') == 3)
  until(live, lambda: len(viewer._server.get_clients()) == 2)
  first, second = viewer._server.get_clients().values()
  other.get_by_role('button', name='Look through camera').click()
  until(live, lambda: np.allclose(second.camera.position, viewer._stage.poses[3, :3, 3], atol=1e-3))
  assert np.linalg.norm(first.camera.position - second.camera.position) > 0.3
  other.close()


def test_page_from_disk_without_a_network(page, scene, tmp_path):
  path = tmp_path / 'scene.html'
  path.write_text(html.scene_html(scene, fps=4), encoding='utf-8')
  refused = block_network(page)
  page.goto(path.as_uri())
  bar = page.locator('[role=slider]')
  bar.wait_for(state='attached')
  assert page.title() == '4D scene'
  at = lambda: float(bar.get_attribute('aria-valuenow'))
  assert float(bar.get_attribute('aria-valuemax')) == pytest.approx(5 / 4)
  begin = at()
  until(page, lambda: abs(at() - begin) > 0.2)  # it plays from the start
  time = page.locator('input[inputmode]').first
  toggle = time.locator('xpath=preceding::button[1]')
  toggle.click()  # pause
  page.wait_for_timeout(300)
  stopped = at()
  page.wait_for_timeout(600)
  assert at() == stopped
  speed = page.locator('[role=combobox]')
  assert speed.input_value() == '1x'

  pictures = []
  for seconds in (0.1, 1.1):
    time.fill(str(seconds))
    time.press('Enter')
    page.wait_for_timeout(1200)
    pictures.append(canvas(page))
  assert np.abs(pictures[0] - pictures[1]).mean() > 2
  assert len(np.unique(pictures[0].reshape(-1, 3), axis=0)) > 300
  toggle.click()
  until(page, lambda: abs(at() - 1.1) > 0.2)
  assert not refused and not page.messages.unexpected(*TOLERATED)


def test_page_of_one_frame(page, tmp_path):
  path = tmp_path / 'scene.html'
  path.write_text(html.scene_html(small_scene(frames=1), fps=8), encoding='utf-8')
  block_network(page)
  page.goto(path.as_uri())
  page.wait_for_function('document.querySelector("canvas") !== null')
  until(page, lambda: colours(page.screenshot()) > 60)
  assert not page.messages.unexpected(*TOLERATED)
