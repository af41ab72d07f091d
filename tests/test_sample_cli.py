"""The command ``sample`` without a model: tasks, policies, files, and every mistake a user can make."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import types

import av
import jax
import numpy as np
import pytest
from PIL import Image

from one4d_jax import cli, request, sample
from one4d_jax.data import render
from one4d_jax.flow import solvers
from one4d_jax.model import pointmap
from one4d_jax.postopt.options import FitOptions
from one4d_jax.viewer import export, pictures
from one4d_jax.viewer import scene as scenes
from tests.bundles import looks_whole

SIZES = {
  'frames': 9,
  'height': 32,
  'width': 32,
  'fps': 16.0,
  'steps': 4,
  'guidance': 2.0,
  'shift': 3.0,
  'solver': 'euler',
}


@dataclasses.dataclass(frozen=True)
class FakeSizes:
  frames: int = 9
  height: int = 32
  width: int = 32
  fps: float = 16.0


@pytest.fixture(scope='module')
def clip():
  return render.clip(3, level='easy', split='test', frames=9, height=32, width=32, supersample=1)


@pytest.fixture
def place(tmp_path, monkeypatch):
  """An empty working folder with a bundle that looks whole."""
  looks_whole(tmp_path / 'bundle', SIZES)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def model(monkeypatch, clip):
  """A model that always generates ``clip`` exactly, and the requests it was given."""
  asked = []
  points = pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam)
  normalised, unit = pointmap.normalise(points, clip.valid)
  made = types.SimpleNamespace(rgb=clip.rgb / 127.5 - 1, xyz=pointmap.encode_input(normalised, clip.valid))

  def fake_sample(bundle, request, args, report):
    asked.append(request)
    cut = [span if span.stop <= 9 else range(9) for span in request.spans]
    return [type(made)(rgb=made.rgb[s.start : s.stop], xyz=made.xyz[s.start : s.stop]) for s in cut], {'steps': 4}

  def fake_fit(points, valid, *, options=None, init=None):
    frames = len(points)
    asked.append(options)
    poses = np.linalg.inv(clip.world_from_cam[0]) @ clip.world_from_cam[:frames]
    poses[:, :3, 3] *= 2 / unit
    depth = np.where(valid, clip.depth[:frames] * 2 / unit, 0)
    return types.SimpleNamespace(
      K=clip.K[:frames], world_from_cam=poses, depth=depth, residual=np.zeros(frames), focal_std=0.1, warnings=()
    )

  bundle = types.SimpleNamespace(config=FakeSizes(), name='fake', hash='0' * 16)
  monkeypatch.setattr(sample, 'load_bundle', lambda path: bundle)
  monkeypatch.setattr(sample, 'sample', fake_sample)
  monkeypatch.setattr('one4d_jax.postopt.decode.fit_cameras', fake_fit)
  return asked


def run(*argv):
  return cli.run(sample.main, sample.parser(), ['--weights', 'bundle', *map(str, argv)])


def write_clip(path, clip, count=None, rate=8):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=rate)
    stream.width, stream.height, stream.pix_fmt = 32, 32, 'yuv420p'
    for frame in clip.rgb[:count]:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
    container.mux(stream.encode(None))
  return path


def test_a_whole_video(place, model, clip, capsys):
  write_clip(place / 'clip.mp4', clip)
  assert run('--input', 'clip.mp4', '--prompt', 'a room', '--out', 'made') == 0
  printed = capsys.readouterr().out.splitlines()
  assert [place / 'made' / name for name in export.FILES] == [
    type(place)(line) for line in printed[-len(export.FILES) :]
  ]
  asked, _ = model
  assert asked.task == 'video' and asked.observed.all() and asked.prompt == 'a room'
  record = json.loads((place / 'made' / 'run.json').read_text())
  assert record['observed'] == list(range(9)) and record['input']['source']['frames'] == 9
  assert record['depth_mp4'] == pictures.depth_legend(scenes.load(place / 'made'))
  assert record['weights']['hash'] == '0' * 16 and record['fps'] == {'in_time': 8.0, 'playback': 8.0}
  assert {'jax', 'python', 'one4d_jax'} <= set(record['versions']) and record['timings_s']
  scene = scenes.load(place / 'made')
  np.testing.assert_array_equal(scene.rgb, clip.rgb)
  ratio = scene.depth[scene.valid] / clip.depth[scene.valid]
  assert np.ptp(ratio) / ratio.mean() < 0.01 and (scene.valid == clip.valid).mean() > 0.99
  assert any('frame(s) of 32x32 at 8 fps' in line for line in printed)


def test_short_clip_is_padded_for_the_model_only(place, model, clip):
  write_clip(place / 'clip.mp4', clip, count=6)
  assert run('--input', 'clip.mp4') == 0
  asked, _ = model
  assert asked.video.shape[0] == 6 and asked.observed.all() and asked.spans == [range(6)]
  assert scenes.load(place / 'out').frames == 6
  with av.open(str(place / 'out' / 'rgb.mp4')) as container:
    assert len(list(container.decode(video=0))) == 6


@pytest.mark.parametrize(
  'flags, seen', [(['--observed', '0,4,8'], [0, 4, 8]), (['--sparsity', '0.3'], [0, 4, 8]), (['--observed', '7'], [7])]
)
def test_some_frames(place, model, clip, flags, seen):
  write_clip(place / 'clip.mp4', clip)
  assert run('--input', 'clip.mp4', *flags) == 0
  asked, _ = model
  assert asked.task == 'sparse' and asked.observed.nonzero()[0].tolist() == seen
  assert not asked.video[~asked.observed].any() and asked.video[asked.observed].any()
  assert scenes.load(place / 'out').observed.nonzero()[0].tolist() == seen


def test_an_image_and_a_video_of_one_frame(place, model, clip):
  Image.fromarray(clip.rgb[0]).save(place / 'photo.png')
  write_clip(place / 'one.mp4', clip, count=1)
  for name in ('photo.png', 'one.mp4'):
    assert run('--input', name, '--overwrite') == 0
    asked = model[-2]
    assert asked.task == 'image' and asked.observed.nonzero()[0].tolist() == [0] and asked.spans == [range(9)]
    assert scenes.load(place / 'out').frames == 9


def test_metres_are_recorded_and_exported(place, model, clip, capsys):
  write_clip(place / 'clip.mp4', clip)
  row, column = np.argwhere(clip.valid[0])[100]
  flags = ['--metric', f'depth=0:{column},{row}:{clip.depth[0, row, column]}', '--metric', 'focal=30']
  assert run('--input', 'clip.mp4', *flags, '--export', 'ply,frames', '--config.loss=l1') == 0
  _, options = model
  assert options.known_focal == pytest.approx(30) and options.loss == 'l1'  # the input is not resized
  scene = scenes.load(place / 'out')
  ratio = scene.metric().depth[scene.valid] / clip.depth[scene.valid]
  assert np.median(ratio) == pytest.approx(1, rel=0.05)
  record = json.loads((place / 'out' / 'run.json').read_text())
  assert record['metric']['scale'] == pytest.approx(float(scene.scale), rel=1e-4) and len(record['metric']['from']) == 2
  assert record['cameras']['fit']['loss'] == 'l1' and record['windows']['spans'] == [[0, 9]]
  assert len(list((place / 'out' / 'points').iterdir())) == len(list((place / 'out' / 'frames').iterdir())) == 9
  printed = capsys.readouterr().out.splitlines()
  assert str(place / 'out' / 'points') in printed and '--metric' in record['command'] and 'loss=l1' in record['command']


def test_a_measure_that_the_scene_lacks_costs_nothing_but_a_warning(place, model, clip, capsys):
  write_clip(place / 'clip.mp4', clip)
  row, column = np.argwhere(~clip.valid[0])[0]
  assert run('--input', 'clip.mp4', '--metric', f'depth=0:{column},{row}:2') == 0
  assert 'shows no surface' in capsys.readouterr().out
  record = json.loads((place / 'out' / 'run.json').read_text())
  assert record['metric'] == {'scale': None, 'from': {}} and 'no surface' in record['cameras']['warnings'][0]


def test_the_recorded_command_gives_the_same_arguments(place, model, clip):
  write_clip(place / 'clip.mp4', clip)
  argv = ['--input', 'clip.mp4', '--prompt', "a room's corner", '--metric', 'focal=30', '--metric', 'baseline=0,4:1',
          '--export', 'cloud', '--seed', '7', '--frames', '5', '--overwrite', '--config.tolerance=0.001']  # fmt: skip
  assert run(*argv) == 0
  command = json.loads((place / 'out' / 'run.json').read_text())['command']
  words = shlex.split(command)
  assert words[:3] == ['python', '-m', 'one4d_jax.sample'] and words.count('--metric') == 2
  shutil.rmtree(place / 'out')
  assert cli.run(sample.main, sample.parser(), words[3:]) == 0
  assert json.loads((place / 'out' / 'run.json').read_text())['command'] == command


def test_the_solvers_are_those_that_there_are():
  assert sample.SOLVERS == solvers.SOLVERS


def test_weights_lie_on_the_device():
  found = sample.load_bundle(None)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found.params))


def test_text_alone(place, model):
  (place / 'prompt.txt').write_text('a red ball rolls\n')
  assert run('--prompt-file', 'prompt.txt') == 0
  asked, _ = model
  assert asked.task == 'text' and not asked.observed.any() and not asked.video.any()
  assert asked.prompt == 'a red ball rolls' and asked.fps == 16.0


def test_the_bundled_example_is_the_default(place, model, clip, monkeypatch):
  monkeypatch.setattr(request, 'EXAMPLE', write_clip(place / 'room.mp4', clip))
  (place / 'room.txt').write_text('a room')
  assert run() == 0
  assert model[0].prompt == 'a room' and model[0].task == 'video'


def test_long_clip_plays_no_slower_than_can_be_watched(place, model, clip, capsys):
  write_clip(place / 'clip.mp4', clip, rate=1)
  assert run('--input', 'clip.mp4') == 0
  record = json.loads((place / 'out' / 'run.json').read_text())
  assert record['fps'] == {'in_time': 1.0, 'playback': 5.0}
  assert 'playback: 5 fps' in capsys.readouterr().out


@pytest.mark.slow
def test_scene_of_an_exact_pointmap_has_the_true_cameras(clip):
  points = pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam)
  normalised, unit = pointmap.normalise(points, clip.valid)
  made = types.SimpleNamespace(rgb=clip.rgb / 127.5 - 1, xyz=pointmap.encode_input(normalised, clip.valid))
  request = types.SimpleNamespace(spans=[range(9)], observed=np.ones(9, bool))
  scene, cameras, seams = sample.build_scene([made], request, FitOptions())
  assert not cameras.warnings and not seams.seams
  np.testing.assert_allclose(scene.K, clip.K, rtol=1e-4)
  truth = np.linalg.inv(clip.world_from_cam[0]) @ clip.world_from_cam
  np.testing.assert_allclose(scene.world_from_cam[:, :3, 3], truth[:, :3, 3] * 2 / unit, atol=1e-4)
  inside = scene.valid & (np.abs(normalised) < 1).all(axis=-1)
  np.testing.assert_allclose(scene.depth[inside], clip.depth[inside] * 2 / unit, rtol=1e-3)


def broken_place(place, clip):
  """Files for the bad inputs below."""
  write_clip(place / 'clip.mp4', clip)
  Image.fromarray(clip.rgb[0]).save(place / 'photo.png')
  (place / 'text.mp4').write_text('not a film\n' * 50)
  (place / 'cut.png').write_bytes((place / 'photo.png').read_bytes()[:300])
  Image.new('RGB', (9, 40)).save(place / 'thin.png')
  (place / 'empty').mkdir()
  (place / 'nan.txt').write_text('NaN\n')
  (place / 'blank.txt').write_text(' \n')
  (place / 'bytes.txt').write_bytes(b'\xff\xfe\x00\x80')
  (place / 'file').write_text('')
  (place / 'full').mkdir()
  (place / 'full' / 'thesis.tex').write_text('')
  (place / 'half').mkdir()
  (place / 'half' / 'bundle.json').write_text(json.dumps({'sizes': SIZES}))
  (place / 'scene').mkdir()
  np.savez(place / 'scene' / 'scene.npz')


BAD = [
  (['--input', 'nowhere.mp4'], 'nowhere.mp4 does not exist'),
  (['--input', 'text.mp4'], 'FFmpeg cannot read it'),
  (['--input', 'cut.png'], 'damaged'),
  (['--input', 'thin.png'], '9x40'),
  (['--input', 'empty'], 'holds no image'),
  (['--prompt', ' '], '--prompt is empty'),
  (['--prompt-file', 'nowhere.txt'], 'No such file'),
  (['--prompt-file', 'nan.txt'], "'NaN'"),
  (['--prompt-file', 'blank.txt'], 'not a description'),
  (['--prompt-file', 'bytes.txt'], 'not UTF-8'),
  (['--prompt', 'a', '--prompt-file', 'nan.txt'], 'not allowed with'),
  (['--input', 'clip.mp4', '--observed', '0,9'], '--observed 9 is out of range: the clip has frames 0 to 8'),
  (['--input', 'clip.mp4', '--observed=-1'], 'out of range'),
  (['--input', 'clip.mp4', '--observed', 'all'], "--observed 'all'"),
  (['--input', 'clip.mp4', '--observed', ''], 'give frame numbers'),
  (['--input', 'clip.mp4', '--observed', '0', '--sparsity', '0.5'], 'use one'),
  (['--input', 'photo.png', '--observed', '1'], 'one frame'),
  (['--input', 'photo.png', '--sparsity', '0.5'], 'one frame'),
  (['--prompt', 'a', '--sparsity', '0.5'], 'add --input'),
  (['--sparsity', '0'], '--sparsity 0.0 must be'),
  (['--guidance', 'nan'], '--guidance nan must be'),
  (['--steps', '0'], '--steps 0 must be'),
  (['--steps', 'many'], "invalid int value: 'many'"),
  (['--shift', '-1'], '--shift -1.0 must be'),
  (['--cache', '-1'], '--cache -1.0 must be'),
  (['--tile', '3'], '--tile 3 must be'),
  (['--guidance-interval', '0.9,0.2'], "--guidance-interval '0.9,0.2': give"),
  (['--guidance-interval', '0.9'], "--guidance-interval '0.9': give"),
  (['--seed', '-1'], '--seed -1 must be'),
  (['--solver', 'heun'], "invalid choice: 'heun'"),
  (['--inptu', 'clip.mp4'], 'unrecognized arguments'),
  (['--weights', 'nowhere'], "no weights at 'nowhere'"),
  (['--weights', 'half'], 'lack vae'),
  (['--input', 'clip.mp4', '--export', 'ply,step'], 'there is no step'),
  (['--input', 'clip.mp4', '--metric', 'baseline=0,9:1'], 'frame 9 is out of range'),
  (['--input', 'clip.mp4', '--metric', 'depth=0:32,0:1'], 'pixel 32,0 is out of range'),
  (['--input', 'clip.mp4', '--metric', 'width=3'], "--metric 'width=3'"),
  (['--prompt', 'a', '--metric', 'focal=30'], 'add --input'),
  (['--input', 'clip.mp4', '--config', 'nowhere.py'], "no config file 'nowhere.py'"),
  (['--input', 'clip.mp4', '--config.loss=l0'], "loss='l0'"),
  (['--input', 'clip.mp4', '--config.steps=3'], "unknown config key 'steps'"),
  (['--out', 'file'], '--out file is a file'),
  (['--out', 'full'], 'other files'),
  (['--out', '/proc/out'], 'cannot be written'),
  (['--out', 'scene'], 'add --overwrite'),
]


@pytest.mark.parametrize('flags, words', BAD, ids=[' '.join(flags) for flags, _ in BAD])
def test_bad_input_is_one_line_before_models_load(place, clip, monkeypatch, capsys, flags, words):
  broken_place(place, clip)
  before = sorted(place.rglob('*'))
  monkeypatch.setattr(sample, 'load_bundle', lambda path: pytest.fail('loaded the model first'))
  assert run(*flags) == 2
  out, err = capsys.readouterr()
  assert err.startswith('error: ') and err.count('\n') == 1 and words in err, err
  assert 'Traceback' not in out + err and sorted(place.rglob('*')) == before


def test_failure_while_sampling_leaves_nothing(place, model, clip, monkeypatch):
  write_clip(place / 'clip.mp4', clip)
  before = sorted(place.rglob('*'))
  monkeypatch.setattr(export, 'tum', lambda *args: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    run('--input', 'clip.mp4')
  assert sorted(place.rglob('*')) == before


def test_mistakes_and_help_do_not_load_jax(place):
  code = (
    'import sys\nfrom one4d_jax import cli, sample\n'
    "status = cli.run(sample.main, sample.parser(), ['--weights', 'bundle', '--input', 'nowhere.mp4'])\n"
    "sys.exit(3 if 'jax' in sys.modules or status != 2 else 0)"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0 and done.stderr == 'error: nowhere.mp4 does not exist\n', done
