"""Pictures state what their colours mean, and mean what they state."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from one4d_jax.viewer import pictures
from tests.viewer.scenes import small_scene


def test_turbo_is_that_of_matplotlib():
  colours = pytest.importorskip('matplotlib').colormaps['turbo'](np.linspace(0, 1, 256))[:, :3] * 255
  assert np.abs(pictures.turbo(np.linspace(0, 1, 256)) - colours).max() < 4
  assert np.array_equal(pictures.turbo(np.array([-1.0, 2.0])), pictures.turbo(np.array([0.0, 1.0])))


def test_depth_range_is_that_of_the_colours():
  scene = small_scene()
  near, far = pictures.depth_range(scene)
  inverse = 1 / scene.depth[scene.valid]
  assert near == pytest.approx(1 / np.quantile(inverse, 0.98), rel=1e-5)
  assert far == pytest.approx(1 / np.quantile(inverse, 0.02), rel=1e-5) and near < far
  ramp = np.array([[[near, 2 / (1 / near + 1 / far), far, near / 9, far * 9, np.nan, 0, -1]]], np.float32)
  colours = pictures.depth_colours(ramp, np.ones(ramp.shape, bool), near_far=(near, far))[0, 0]
  want = pictures.turbo(np.array([1, 0.5, 0, 1, 0]))
  assert np.abs(colours[:5].astype(int) - want).max() < 8 and not colours[5:].any()
  assert colours[0, 0] > colours[0, 2] and colours[2, 2] > colours[2, 0]  # red near, blue far
  same = pictures.depth_colours(scene.depth, scene.valid)
  assert np.array_equal(same, pictures.depth_colours(scene.depth, scene.valid, near_far=(near, far)))


def test_xyz_colours_span_their_range():
  scene = small_scene()
  low, high = pictures.xyz_range(scene)
  np.testing.assert_allclose([low, high], np.quantile(scene.pointmap[scene.valid], [0.02, 0.98], axis=0), rtol=1e-4)
  points = np.stack([low, (low + high) / 2, high, low - 9, high + 9]).astype(np.float32)[None, None]
  colours = pictures.xyz_colours(points, np.ones((1, 1, 5), bool), limits=np.stack([low, high]))[0, 0]
  assert np.abs(colours.astype(int) - np.array([0, 127, 255, 0, 255])[:, None]).max() <= 1
  broken = scene.pointmap.copy()
  broken[0, 5, 5, 1] = np.nan
  assert not pictures.xyz_colours(broken, scene.valid)[0, 5, 5].any()


@pytest.mark.parametrize('size', [(24, 32), (48, 20), (8, 90), (352, 96)])
def test_contact_sheet_shows_what_it_says(size):
  scene = small_scene(frames=9, height=size[0], width=size[1])
  sheet = np.asarray(pictures.contact_sheet(scene))
  assert sheet.shape[0] < 900 and sheet.shape[1] < 2000
  red, green, blue = sheet.reshape(-1, 3).T.astype(int)
  assert ((red > 240) & (green > 240) & (blue > 240)).mean() < 0.8  # not a blank page
  lines = [y for y in range(len(sheet)) if np.array_equal(sheet[y, 52], pictures.turbo(np.array(1.0)))]
  assert len(lines) >= 9  # the colour bar starts red: near
  assert np.array_equal(sheet[lines[-1], 52:252], pictures.turbo(np.linspace(1, 0, 200)))


def test_legend_states_the_ranges(monkeypatch):
  words = []
  monkeypatch.setattr(pictures.ImageDraw.ImageDraw, 'text', lambda self, at, text, *a, **k: words.append(text))
  scene = dataclasses.replace(small_scene(), scale=10)
  pictures.contact_sheet(scene)
  near, far = (10 * d for d in pictures.depth_range(scene))
  assert {f'{near:.3g}', f'{2 / (1 / near + 1 / far):.3g}', f'{far:.3g}'} <= set(words)
  (low, *_), (high, *_) = 10 * pictures.xyz_range(scene)
  assert any('metres' in w for w in words) and any(f'x red {low:.3g} .. {high:.3g}' in w for w in words)
  assert {'0  given', '1  generated', 'RGB', 'depth', 'XYZ'} <= set(words)


def test_words_of_lengths():
  scene = small_scene()
  assert pictures.length_unit(scene) == 'scene units'
  known = dataclasses.replace(scene, scale=2.5)
  assert pictures.length_unit(known) == 'metres' and pictures.length_unit(known.metric()) == 'metres'
  plain, metric = pictures.contact_sheet(scene), pictures.contact_sheet(known)
  assert plain.size == metric.size and plain.tobytes() != metric.tobytes()


def test_side_by_side_is_rgb_depth_xyz_of_the_frame():
  scene = small_scene(height=40, width=60)
  show = pictures.SideBySide(scene, height=80)
  picture = show(3)
  assert picture.shape == (80, 360, 3)
  cells = picture[1::2, 1::2].reshape(40, 3, 60, 3).swapaxes(0, 1)  # every pixel doubled
  np.testing.assert_array_equal(cells[0], scene.rgb[3])
  np.testing.assert_array_equal(cells[1], pictures.depth_colours(scene.depth, scene.valid)[3])
  np.testing.assert_array_equal(cells[2], pictures.xyz_colours(scene.pointmap, scene.valid)[3])
  assert pictures.SideBySide(small_scene(height=4, width=400))(0).shape[1] <= 640


def _tinted(picture: Image.Image, colour, tolerance=12) -> int:
  return int((np.abs(np.asarray(picture).astype(int) - colour).max(axis=-1) < tolerance).sum())


def test_trajectory_plot_marks_frames_without_residual():
  scene = small_scene(frames=7)
  whole = pictures.trajectory_plot(scene)
  assert whole.size == (1000, 700)
  residual = scene.residual.copy()
  residual[2:4] = np.nan
  holed = pictures.trajectory_plot(dataclasses.replace(scene, residual=residual))
  grey = (224, 224, 224)
  assert _tinted(holed, grey, 2) - _tinted(whole, grey, 2) > 10_000
  for tint in pictures.path_colours(7):  # every camera is there, in its colour
    assert _tinted(whole, tint) > 20, tint


@pytest.mark.parametrize('case', ['one frame', 'no motion', 'no residual', 'nothing valid', 'metric', 'far away'])
def test_pictures_of_odd_scenes(case):
  scene = small_scene(frames=1 if case == 'one frame' else 4)
  if case == 'no motion':
    scene = dataclasses.replace(scene, world_from_cam=np.tile(np.eye(4), (4, 1, 1)))
  if case == 'no residual':
    scene = dataclasses.replace(scene, residual=np.full(4, np.nan))
  if case == 'nothing valid':
    nothing = np.zeros_like(scene.valid)
    scene = dataclasses.replace(scene, valid=nothing, depth=np.full_like(scene.depth, np.nan))
    assert pictures.depth_range(scene) == (0.0, 0.0) and not pictures.xyz_range(scene).any()
    assert not pictures.depth_colours(scene.depth, nothing).any()
    assert not pictures.xyz_colours(scene.pointmap, nothing).any()
  if case == 'metric':
    scene = dataclasses.replace(scene, scale=0.01)
  if case == 'far away':
    scene = dataclasses.replace(scene, pointmap=1e6 * scene.pointmap, depth=1e6 * scene.depth)
  for picture in (pictures.trajectory_plot(scene), pictures.contact_sheet(scene)):
    assert len(picture.getcolors(1 << 24)) > 20
  assert pictures.SideBySide(scene)(0).dtype == np.uint8


def test_plots_leave_no_figure_behind():
  import matplotlib

  backend = matplotlib.get_backend()
  pictures.trajectory_plot(small_scene())
  assert matplotlib.get_backend() == backend
  import sys

  if 'matplotlib.pyplot' in sys.modules:
    assert not sys.modules['matplotlib.pyplot'].get_fignums()
