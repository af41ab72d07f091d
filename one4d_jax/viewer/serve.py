"""The live viewer: a timeline, filters and cameras for a scene, in the browser.

What is shown is one state on the server: everybody who opens the page sees and moves the same frame, filters and
switches. The view (and what moves it: reset, a click on a camera, a screenshot) belongs to each page alone.

One thread owns the scene. Controls only change their own value and wake it; it compares what is wanted with what is
shown and sends the difference.
"""

import io
import threading
import time

import numpy as np
from PIL import Image

from one4d_jax.viewer import pictures
from one4d_jax.viewer.scene import Scene
from one4d_jax.viewer.stage import CAMERA_REACH, Look, Stage, default_stride

_STRIDES = 8
_CURRENT, _ALL, _NONE = 'current', 'all', 'none'
_ONE_FRAME, _STILL_TOO = 'current frame', 'static points of all frames'
_SCREENSHOT_SECONDS = 20.0


class Viewer:
  """The controls of a scene on a viser server. ``run`` plays it; ``stop`` ends that from another thread."""

  def __init__(self, server, scene: Scene, *, fps: float = 8.0):
    self._server, self._scene = server, scene
    self._stage = Stage(server, scene)
    self._pictures = pictures.SideBySide(scene)
    self._wake, self._stopped, self.playing = threading.Event(), threading.Event(), scene.frames > 1
    self._shown, self._look, self._frusta = None, None, None  # as sent to the clients
    self._stale: set[int] = set()  # frames whose points are not those of the look
    self._add_controls(fps)
    self._show()

  def run(self) -> None:
    """Shows what the controls say and moves time on while playing, until ``stop``."""
    due = time.monotonic()
    while not self._stopped.is_set():
      self._wake.clear()
      if self.playing and time.monotonic() >= due:
        self._frame.value = (self._frame.value + 1) % self._scene.frames
        due = max(due + 1 / self._fps.value, time.monotonic())
      self._show()
      if self._stale:
        self._refresh(self._next_stale())
      elif not self.playing:
        self._wake.wait(0.5)
        due = time.monotonic() + 1 / self._fps.value
      else:
        self._wake.wait(max(due - time.monotonic(), 0))

  def stop(self) -> None:
    self._stopped.set()
    self._wake.set()

  def play(self, on: bool) -> None:
    """Starts or pauses; a scene of one frame stays paused."""
    self.playing = on and self._scene.frames > 1
    self._button.label, self._button.icon = ('Pause', 'player-pause') if self.playing else ('Play', 'player-play')
    self._wake.set()

  def step(self, by: int) -> None:
    """Pauses, and goes on or back; the last frame is followed by the first."""
    self.play(False)
    self._frame.value = (self._frame.value + by) % self._scene.frames
    self._wake.set()

  def look_through(self, client, i: int) -> None:
    """Pauses at a frame and moves a client to where its camera was, with the whole of its picture in the window."""
    self.play(False)
    self._frame.value = i
    self._wake.set()
    pose = self._stage.poses[i]
    self._move(
      client,
      up=-pose[:3, 1],
      position=pose[:3, 3],
      look_at=pose[:3, 3] + pose[:3, 2],
      fov=self._stage.vertical_fov(i, aspect=client.camera.aspect),
      near=1.05 * CAMERA_REACH,  # past the camera's own picture, which would hide everything
    )

  def reset_view(self, client) -> None:
    self._move(client, **self._stage.home())

  def screenshot(self, client) -> None:
    """Sends a client what it sees as a PNG; a client that does not answer is told so."""
    try:
      size = client.camera.image_height, client.camera.image_width
      picture = client.get_render(*size, transport_format='png', timeout=_SCREENSHOT_SECONDS)
    except TimeoutError:
      client.add_notification('No screenshot', 'The page did not draw in time; bring it to the front and try again.')
      return
    data = io.BytesIO()
    Image.fromarray(picture[..., :3]).save(data, format='PNG')
    client.send_file_download(f'frame_{self._frame.value:04d}.png', data.getvalue(), save_immediately=True)

  def _add_controls(self, fps: float) -> None:
    gui, frames = self._server.gui, self._scene.frames
    gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, brand_color=(64, 132, 244))
    single = frames == 1
    with gui.add_folder('Time'):
      self._frame = gui.add_slider('Frame', 0, frames - 1, 1, 0, disabled=single)
      self._button = gui.add_button('Play', disabled=single, hint='Space')
      step = gui.add_button_group('Step', ('Previous', 'Next'), hint='P and N')
      self._fps = gui.add_slider('Frames / s', 1.0, 60.0, 0.5, round(2 * fps) / 2, disabled=single)
    with gui.add_folder('Points'):
      self._points = gui.add_dropdown('Show', (_ONE_FRAME, _STILL_TOO), initial_value=_ONE_FRAME, disabled=single)
      self._size = gui.add_slider('Size', 0.2, 3.0, 0.1, 1.0, hint='relative to the distance between neighbours')
      self._stride = gui.add_slider('Stride', 1, _STRIDES, 1, min(default_stride(self._scene), _STRIDES))
      self._unsure = gui.add_slider(
        'Hide unsure %', 0, 90, 5, 0, hint='points that agree least with the camera of their frame'
      )
      self._no_edges = gui.add_checkbox('Hide depth edges', True, hint='pixels that fly between two surfaces')
      self._no_sky = gui.add_checkbox('Hide sky', True)
      self._count = gui.add_text('Points shown', '', disabled=True)
    with gui.add_folder('Cameras'):
      self._cameras = gui.add_dropdown('Cameras', (_CURRENT, _ALL, _NONE), initial_value=_CURRENT)
      through = gui.add_button('Look through camera', icon='camera', color='gray', hint='C, or a click on a camera')
      home = gui.add_button('Reset view', icon='home', color='gray', hint='R')
      screenshot = gui.add_button('Screenshot', icon='photo-down', color='gray', hint='I')
    self._add_panel()

    values = self._frame, self._fps, self._points, self._size, self._stride, self._unsure, self._no_edges, self._no_sky
    for control in (*values, self._cameras):
      control.on_update(lambda _: self._wake.set())
    self._button.on_click(lambda _: self.play(not self.playing))
    step.on_click(lambda event: self.step(1 if event.target.value == 'Next' else -1))
    through.on_click(lambda event: self.look_through(event.client, self._frame.value))
    home.on_click(lambda event: self.reset_view(event.client))
    screenshot.on_click(lambda event: self.screenshot(event.client))
    for i, camera in enumerate(self._stage.cameras):
      camera.on_click(lambda event, i=i: self.look_through(event.client, i))
    for label, key, act in (
      ('Play or pause', 'space', lambda _: self.play(not self.playing)),
      ('Next frame', 'N', lambda _: self.step(1)),
      ('Previous frame', 'P', lambda _: self.step(-1)),
      ('Look through camera', 'C', lambda event: self.look_through(event.client, self._frame.value)),
      ('Reset view', 'R', lambda event: self.reset_view(event.client)),
      ('Screenshot', 'I', lambda event: self.screenshot(event.client)),
    ):
      gui.add_command(label, hotkey=key).on_trigger(act)
    self.play(self.playing)

  def _add_panel(self) -> None:
    """RGB, depth and XYZ of the frame, below on the left."""
    panel = self._server.gui.add_panel()
    with panel.add_tab('RGB, depth, XYZ'):
      self._picture = self._server.gui.add_image(self._pictures(0), format='jpeg', jpeg_quality=85)
    panel.float(x=15, y=-15, width=min(self._pictures(0).shape[1] + 24, 640))

  def _wanted(self) -> Look:
    return Look(
      stride=int(self._stride.value),
      unsure=float(self._unsure.value),
      edges=not self._no_edges.value,
      sky=not self._no_sky.value,
      accumulate=self._points.value == _STILL_TOO,
      size=float(self._size.value),
    )

  def _show(self) -> None:
    """Sends the difference between what the controls say and what was sent last."""
    look, i, frusta = self._wanted(), int(self._frame.value), self._cameras.value
    if (look, i, frusta) == (self._look, self._shown, self._frusta):
      return
    stage = self._stage
    if look != self._look:
      self._stale, self._look = set(range(self._scene.frames)), look
      if look.accumulate or look.unsure:
        self._count.value = 'working ...'  # seconds in a large scene, the first time
      if look.accumulate:
        stage.put_still(look)
    with self._server.atomic():
      stage.still.visible = look.accumulate
      self._refresh(i)
      for k in {i, self._shown} - {None}:
        stage.frames[k].visible = k == i
      if frusta != self._frusta or i != self._shown:
        self._show_cameras(frusta, i)
      if i != self._shown:
        self._picture.image = self._pictures(i)
      self._count.value = f'{stage.frames[i].count + look.accumulate * stage.still.count:,}'
      self._shown, self._frusta = i, frusta

  def _show_cameras(self, frusta: str, i: int) -> None:
    changed = range(self._scene.frames) if frusta != self._frusta else {i, self._shown} - {None}
    for k in changed:
      self._stage.cameras[k].visible = frusta == _ALL or (frusta == _CURRENT and k == i)

  def _refresh(self, i: int) -> None:
    if i in self._stale:
      self._stage.put_frame(i, self._look)
      self._stale.discard(i)

  def _next_stale(self) -> int:
    """The one that is shown soonest."""
    return min(self._stale, key=lambda i: (i - self._shown) % self._scene.frames)

  @staticmethod
  def _move(client, **view) -> None:
    """Sets a client's camera: ``up`` and ``position`` before ``look_at``, which they would move along."""
    camera = client.camera
    with client.atomic():
      camera.up_direction = np.asarray(view['up'])
      camera.position = np.asarray(view['position'])
      camera.look_at = np.asarray(view['look_at'])
      camera.fov, camera.near = view['fov'], view['near']
