"""A scene as one HTML file that plays from disk without a network: the timeline, the cameras and their path."""

from one4d_jax.viewer.scene import Scene
from one4d_jax.viewer.stage import Look, Stage, default_stride, serving


def scene_html(scene: Scene, *, fps: float) -> str:
  """A self-contained page that plays the scene at ``fps``. Raises DataError where viser cannot start.

  Pixels on a depth edge, and the sky, are left out; of large scenes every second or third row and column is shown, so
  that the page stays below 40 MB.
  """
  with serving(port=0) as server:
    stage, look = Stage(server, scene), Look(stride=default_stride(scene))
    for i in range(scene.frames):
      stage.put_frame(i, look)
    _show(stage, 0, True)
    recorder = server.get_scene_serializer()
    for i in range(1, scene.frames):
      recorder.insert_sleep(1 / fps)
      _show(stage, i - 1, False)
      _show(stage, i, True)
    if scene.frames > 1:
      recorder.insert_sleep(1 / fps)
    page = recorder.as_html(dark_mode=True)
  return page.replace('<title>Viser</title>', '<title>4D scene</title>', 1)


def _show(stage: Stage, i: int, visible: bool) -> None:
  stage.frames[i].visible = visible
  stage.cameras[i].visible = visible
