"""The embedded model on the bundled example: what a newcomer sees first."""

import json
import pathlib

import numpy as np
import pytest

import one4d_jax
from one4d_jax.data import media
from one4d_jax.data.clip import signed
from one4d_jax.evaluation.video import psnr
from one4d_jax.viewer.scene import load
from tests.e2e import command, run

ASSETS = pathlib.Path(one4d_jax.__file__).parent / 'assets'


def test_assets_fit_their_budget_and_carry_their_record():
  size = sum(path.stat().st_size for path in ASSETS.rglob('*') if path.is_file())
  assert size < 24_000_000
  bundle = json.loads((ASSETS / 'tiny' / 'bundle.json').read_text())
  assert set(bundle['record']) == {'vae', 'base', 'one4d'}
  for stage in bundle['record'].values():
    assert stage['steps'] > 100 and stage['metrics'] and len(stage['commit']) == 40 and stage['config']['train']


@pytest.mark.slow
def test_without_arguments_it_makes_a_scene_of_the_example(tmp_path):
  done = run(command('one4d_jax.sample', '--out', str(tmp_path / 'out'), '--steps', '8'))
  printed = [line for line in done.stdout.splitlines() if line.startswith(str(tmp_path))]
  assert {pathlib.Path(line).name for line in printed} == {path.name for path in (tmp_path / 'out').iterdir()}
  scene = load(tmp_path / 'out')
  assert scene.rgb.shape == (17, 64, 64, 3) and scene.observed.all() and np.isfinite(scene.world_from_cam).all()
  given = media.read(ASSETS / 'examples' / 'room.mp4', frames=17, height=64, width=64, fps=8.0)
  shown = scene.rgb.astype(np.float32) / 127.5 - 1
  video = signed(given.video)
  constant = np.broadcast_to(video.mean(axis=(0, 1, 2)), shown.shape)
  assert psnr(shown, video) > psnr(constant, video) + 2, 'RGB follows the clip'
  assert scene.valid.mean() > 0.5 and np.all(scene.depth[scene.valid] > 0)
  record = json.loads((tmp_path / 'out' / 'run.json').read_text())
  assert record['task'] == 'video' and record['weights']['hash'] and record['sampling']['steps'] == 8
