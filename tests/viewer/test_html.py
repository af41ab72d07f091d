"""scene.html: what is in it, how large it grows, and that nothing is left behind."""

import base64
import dataclasses
import re
import threading

import msgspec
import numpy as np
import pytest
import zstandard

from one4d_jax.viewer import html, stage
from tests.viewer.scenes import small_scene


def recording(page: str) -> dict:
  """What viser plays: ``messages`` (time, message) and ``durationSeconds``."""
  (data,) = re.findall(r'__VISER_EMBED_DATA__="([^"]*)"', page)
  inner = zstandard.ZstdDecompressor().decompress(base64.b64decode(data)[8:], max_output_size=1 << 28)
  length = int.from_bytes(inner[:8], 'little')
  return msgspec.msgpack.decode(inner[8 : 8 + length])


def test_timeline_cameras_and_path_are_in_the_page():
  scene = small_scene()
  played = recording(html.scene_html(scene, fps=10))
  assert played['durationSeconds'] == pytest.approx(0.5)
  names = {m.get('name') for _, m in played['messages']}
  assert {f'/cameras/{i:04d}' for i in range(5)} | {f'/frames/{i:04d}' for i in range(5)} | {'/path'} <= names
  visible, shown = {}, {}
  for time, message in played['messages']:
    if re.fullmatch(r'/(frames|cameras)/\d{4}', message.get('name', '')) and 'visible' in message:
      visible[message['name']] = message['visible']
      shown[round(time, 3)] = {name for name, on in visible.items() if on}
  for k in range(5):
    assert shown[round(k / 10, 3)] == {f'/frames/{k:04d}', f'/cameras/{k:04d}'}


def test_page_needs_no_other_file_and_says_nothing(capfd):
  before = threading.active_count()
  page = html.scene_html(small_scene(frames=2), fps=8)
  assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=\s*["\']?(?:https?:)?//', page)
  assert not re.findall(r'url\(\s*["\']?https?://', page)
  assert '<title>4D scene</title>' in page
  assert capfd.readouterr() == ('', '') and threading.active_count() == before


def test_incompressible_scenes_stay_in_bounds(monkeypatch):
  """Noise is the worst a page can hold: what it weighs per point says what the largest scene weighs."""
  rng = np.random.default_rng(0)
  small = small_scene(frames=8, height=96, width=128)
  noise = dataclasses.replace(
    small,
    rgb=rng.integers(0, 256, small.rgb.shape),
    pointmap=small.pointmap + rng.normal(0, 0.05, small.pointmap.shape),
    depth=np.full(small.depth.shape, 3.0),  # no depth edges: every pixel stays
    valid=np.ones_like(small.valid),
  )
  base = len(html.scene_html(small_scene(frames=1), fps=8))
  page = len(html.scene_html(noise, fps=8))
  assert base < 1.6e6 and page > base + 8 * noise.valid.size  # nothing was thinned
  per_point = (page - base) / noise.valid.size  # with its share of the frames' small pictures
  assert per_point < 15
  assert 81 * -(-352 // 3) * (624 // 3) * per_point + base < 40e6
  monkeypatch.setattr(html, 'default_stride', lambda scene: stage.default_stride(scene, scene.valid.size // 4))
  assert len(html.scene_html(noise, fps=8)) < base + 0.4 * (page - base)


def test_scene_without_a_point_has_a_page():
  scene = small_scene(frames=2)
  empty = dataclasses.replace(scene, valid=np.zeros_like(scene.valid), pointmap=np.full_like(scene.pointmap, np.nan))
  assert stage.view_unit(empty) == 1
  names = {m.get('name') for _, m in recording(html.scene_html(empty, fps=8))['messages']}
  assert '/cameras/0001' in names and '/frames/0001/0' not in names
