"""Many scenes by one command: what becomes of each line, of mistakes, of a killed run, and of several processes."""

import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from PIL import Image

from one4d_jax import batch, cli, request, sample
from one4d_jax.data import render
from one4d_jax.model import generate
from one4d_jax.viewer import export
from one4d_jax.viewer import scene as scenes

ROOT = pathlib.Path(__file__).parent.parent
FRAMES, STEPS = 5, 1
LINES = [
  {'name': 'red ball', 'prompt': 'a red ball rolls', 'seed': 1, 'export': 'cloud'},
  {'input': 'photo.png', 'prompt': 'a room', 'seed': 2},
  {'name': 'clip', 'input': 'clip.mp4', 'observed': [0, 4]},
]
NAMES = ['red ball', '00003', 'clip']  # the second scene is in line 3


def write_list(place: pathlib.Path, lines=LINES, blank: int | None = 1) -> pathlib.Path:
  texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
  path = place / 'list.jsonl'
  path.write_text(
    '\n'.join(texts[:blank] + [''] * (blank is not None) + texts[len(texts) if blank is None else blank :])
  )
  return path


def run(path, out, *flags) -> int:
  """The exit status."""
  argv = ['--input', path, '--out', out, '--frames', FRAMES, '--steps', STEPS, *flags]
  try:
    return cli.run(sample.main, sample.parser(), list(map(str, argv)))
  except SystemExit as end:
    return end.code


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a clip, an image and the list of three scenes."""
  place = tmp_path_factory.mktemp('batch')
  rgb = render.clip(3, level='easy', split='test', frames=FRAMES, height=64, width=64, supersample=1).rgb
  Image.fromarray(rgb[0]).save(place / 'photo.png')
  with av.open(str(place / 'clip.mp4'), 'w') as container:
    stream = container.add_stream('libx264', rate=8)
    stream.width, stream.height, stream.pix_fmt = 64, 64, 'yuv420p'
    for frame in rgb:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
    container.mux(stream.encode(None))
  write_list(place)
  return place


@pytest.fixture(scope='module')
def whole(place):
  """The scenes of an uninterrupted run, and how many programs it compiled. What was sampled is kept in a file."""
  kept, real = {}, sample.sample

  def keep(bundle, request, *rest):
    kept[request.out.name] = real(bundle, request, *rest)
    return kept[request.out.name]

  generate.compiled.cache_clear()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sample, 'sample', keep)
    assert run(place / 'list.jsonl', place / 'whole') == 0
  (place / 'sampled').write_bytes(pickle.dumps(kept))
  return place / 'whole', generate.compiled.cache_info().misses


@pytest.fixture
def copied(whole, monkeypatch):
  """Scenes come from the uninterrupted run, by name, once their request is read. The names made so far."""
  made = []

  def produce(args, *, report, load, tell):
    asked = request.read(args)
    source = whole[0] / pathlib.Path(args.out).name
    shutil.copytree(source if source.is_dir() else whole[0] / 'clip', asked.out, dirs_exist_ok=True)
    run = json.loads((asked.out / 'run.json').read_text())
    run |= {'command': cli.command(sample.parser(), args), 'prompt': asked.prompt}
    (asked.out / 'run.json').write_text(json.dumps(run))
    made.append(asked.out.name)

  monkeypatch.setattr(sample, 'produce', produce)
  monkeypatch.setattr(sample, 'load_bundle', lambda path: None)
  return made


def summary(out) -> dict[str, str]:
  return {name: about['state'] for name, about in json.loads((out / batch.SUMMARY).read_text())['scenes'].items()}


def same(a: pathlib.Path, b: pathlib.Path) -> None:
  for name in NAMES:
    one, other = (dict(np.load(folder / name / scenes.FILE)) for folder in (a, b))
    assert one.keys() == other.keys() and len(one) > 5
    for key in one:
      np.testing.assert_array_equal(one[key], other[key], err_msg=f'{name} {key}')
  assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())


def test_every_line_becomes_a_scene_by_one_compiled_program(place, whole, capsys):
  out, compiled = whole
  assert sorted(p.name for p in out.iterdir()) == sorted([*NAMES, batch.SUMMARY])
  records = [json.loads((out / name / 'run.json').read_text()) for name in NAMES]
  assert [record['task'] for record in records] == ['text', 'image', 'sparse']
  assert [record['seed'] for record in records] == [1, 2, 0] and records[2]['observed'] == [0, 4]
  assert all(record['sampling']['steps'] == STEPS for record in records)
  assert (out / 'red ball' / 'cloud.ply').is_file() and summary(out) == dict.fromkeys(NAMES, 'done')
  assert compiled == 1
  before = {path: path.stat().st_mtime_ns for path in out.rglob('*') if path.name != batch.SUMMARY}
  assert run(place / 'list.jsonl', out) == 0
  assert '3 scenes, 3 for this process, 3 of them done before' in capsys.readouterr().out
  assert before == {path: path.stat().st_mtime_ns for path in out.rglob('*') if path.name != batch.SUMMARY}


def test_the_recorded_command_makes_the_scene_alone(place, whole):
  record = json.loads((whole[0] / 'clip' / 'run.json').read_text())
  assert f'--input {place / "clip.mp4"}' in record['command'] and f'--out {whole[0] / "clip"}' in record['command']


KILLED = """
import pathlib, pickle, sys
import tests.conftest
from one4d_jax import cli, sample
kept = pickle.loads(pathlib.Path('sampled').read_bytes())
sample.sample = lambda bundle, request, *rest: kept[request.out.name]
cli.run(sample.main, sample.parser(), sys.argv[1:])
"""


def test_a_killed_run_goes_on_where_it_was(place, whole):
  out = place / 'killed'  # its first scene is of what was sampled before, which spares a compilation
  argv = ['--input', 'list.jsonl', '--out', 'killed', '--frames', str(FRAMES), '--steps', str(STEPS)]
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  process = subprocess.Popen([sys.executable, '-c', KILLED, *argv], cwd=place, env=environment)
  while process.poll() is None and not any(out.glob('*/run.json')):
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  made = {path.parent.name for path in out.glob('*/run.json')}
  assert len(made) == 1 and all((out / made_ / name).is_file() for made_ in made for name in export.FILES)
  before = {path: path.stat().st_mtime_ns for path in out.glob('*/scene.npz')}
  for name in NAMES:
    (out / f'.{name}.new-kkkkkkkk').mkdir()  # as a process leaves that was killed while it wrote
  assert run(place / 'list.jsonl', out) == 0
  assert all(path.stat().st_mtime_ns == written for path, written in before.items())
  shutil.rmtree(out / f'.{made.pop()}.new-kkkkkkkk')  # nobody's any more
  same(whole[0], out)


def test_two_processes_make_the_same_set_as_one(place, whole, copied, capsys):
  out = place / 'shared'
  assert run(place / 'list.jsonl', out, '--process', '3/4') == 0 and not copied  # more processes than scenes
  assert run(place / 'list.jsonl', out, '--process', '1/2') == 0
  assert copied == ['00003'] and summary(out) == {'red ball': 'to do', '00003': 'done', 'clip': 'to do'}
  assert f'{out}: 2 to do' in capsys.readouterr().out
  assert run(place / 'list.jsonl', out, '--process', '0/2') == 0
  assert sorted(copied) == sorted(NAMES)
  same(whole[0], out)
  assert summary(out) == summary(whole[0])


def test_scenes_of_one_program_follow_each_other(place, copied, tmp_path):
  guidance = [1, 2, 1, 2]
  lines = [{'name': f's{i}', 'prompt': 'a', 'guidance': value} for i, value in enumerate(guidance)]
  assert run(write_list(tmp_path, lines), tmp_path / 'out') == 0
  assert copied == ['s0', 's2', 's1', 's3']


def test_a_scene_that_cannot_be_made_fails_alone(place, copied, tmp_path, capsys):
  (tmp_path / 'broken.mp4').write_bytes((place / 'clip.mp4').read_bytes()[:200])
  lines = [{'name': 'broken', 'input': 'broken.mp4'}, {'name': 'fine', 'input': str(place / 'clip.mp4')}]
  path, out = write_list(tmp_path, lines), tmp_path / 'out'
  assert run(path, out) == 1
  assert copied == ['fine'] and summary(out) == {'broken': 'failed', 'fine': 'done'}
  printed = capsys.readouterr()
  assert 'failed: broken: ' in printed.err and 'FFmpeg cannot read it' in (out / 'broken.failed').read_text()
  assert f'{out}: 1 done' in printed.out and f'{out}: 1 failed' in printed.out and 'Traceback' not in printed.err

  assert run(path, tmp_path / 'strict', '--strict') == 2 and copied == ['fine']
  assert 'error: scene broken: ' in capsys.readouterr().err
  shutil.copy(place / 'clip.mp4', tmp_path / 'broken.mp4')
  assert run(path, out) == 0 and copied == ['fine', 'broken']
  assert not (out / 'broken.failed').exists() and summary(out) == {'broken': 'done', 'fine': 'done'}


@pytest.mark.parametrize('end, flags', [(KeyboardInterrupt, []), (ValueError, ['--strict'])])
def test_a_run_that_ends_early_says_how_far_it_came(copied, tmp_path, monkeypatch, end, flags):
  path, out = write_list(tmp_path, [{'name': name, 'prompt': 'a'} for name in 'ab']), tmp_path / 'out'
  produce = sample.produce

  def stops(args, **others):
    if args.out.endswith('b'):
      raise end
    produce(args, **others)

  monkeypatch.setattr(sample, 'produce', stops)
  assert run(path, out, *flags) == 2
  assert summary(out) == {'a': 'done', 'b': 'to do'}


def test_a_failure_that_another_process_takes_away_is_none(tmp_path, monkeypatch):
  path = write_list(tmp_path, [{'prompt': 'a'}], None)
  args = cli.parse(sample.parser(), ['--input', str(path), '--out', str(tmp_path)])
  (line,) = batch.read(args)
  line.failure.write_text('reason')
  assert batch.summarise([line], args) == {'failed': 1}

  def gone(path, *args, **kwargs):
    raise FileNotFoundError(2, 'No such file or directory', str(path))

  monkeypatch.setattr(pathlib.Path, 'read_text', gone)
  assert batch.summarise([line], args) == {'to do': 1}


def test_a_fault_of_ours_keeps_its_traceback(place, tmp_path, monkeypatch):
  monkeypatch.setattr(sample, 'load_bundle', lambda path: None)
  monkeypatch.setattr(sample, 'produce', lambda *args, **kwargs: 1 / 0)
  assert run(write_list(tmp_path, [{'prompt': 'a'}], None), tmp_path / 'out') == 1
  text = (tmp_path / 'out' / '00001.failed').read_text()
  assert text.startswith('division by zero\nTraceback')


def test_a_scene_of_other_settings_is_replaced_only_on_request(place, copied, tmp_path, capsys):
  path, out = write_list(tmp_path, [{'name': 'a', 'prompt': '-one'}, {'name': 'b', 'prompt': 'one'}]), tmp_path / 'out'
  assert run(path, out) == 0 and copied == ['a', 'b']
  assert run(path, out) == 0 and copied == ['a', 'b'], 'nothing is left to do'
  changed = [{'name': 'a', 'prompt': 'two', 'seed': 5}, {'name': 'b', 'prompt': 'one'}, {'name': 'c', 'prompt': 'one'}]
  write_list(tmp_path, changed)
  assert run(path, out) == 2 and copied == ['a', 'b']
  told = capsys.readouterr().err
  assert 'list.jsonl:1: ' in told and "seed 0, now 5; prompt '-one', now 'two'; add --overwrite" in told
  assert run(path, out, '--overwrite') == 0 and copied == ['a', 'b', 'a', 'c']
  assert run(path, out, '--overwrite') == 0 and len(copied) == 4  # nothing is left to do
  record = json.loads((out / 'b' / 'run.json').read_text())
  record['weights']['hash'] = 'f' * 16
  (out / 'b' / 'run.json').write_text(json.dumps(record))
  assert run(path, out) == 2 and "made with weights 'ffffffffffffffff', now" in capsys.readouterr().err
  (out / 'b' / 'run.json').unlink()
  assert run(path, out) == 2 and 'already holds a scene' in capsys.readouterr().err


def test_exports_are_added_to_scenes_that_are_there(place, copied, tmp_path):
  lines = [{'name': 'clip', 'input': str(place / 'clip.mp4')}]
  path, out = write_list(tmp_path, lines, None), tmp_path / 'out'
  assert run(path, out) == 0
  record = json.loads((out / 'clip' / 'run.json').read_text())
  del record['fps']
  (out / 'clip' / 'run.json').write_text(json.dumps(record))
  lines[0]['export'] = ['frames', 'cloud']
  write_list(tmp_path, lines, None)
  assert run(path, out) == 0 and copied == ['clip']
  assert (out / 'clip' / 'cloud.ply').is_file() and len(list((out / 'clip' / 'frames').iterdir())) == FRAMES


BAD = [
  ('{"prompt": "a"', 'not JSON'),
  ('["a"]', 'expected an object'),
  ({'promt': 'a'}, "unknown key 'promt'; choose from name, input, prompt"),
  ({'prompt': 3}, 'prompt 3: expected text'),
  ({'prompt': 'a', 'seed': '3'}, 'seed "3": expected a whole number'),
  ({'prompt': 'a', 'seed': True}, 'seed true: expected a whole number'),
  ({'prompt': 'a', 'steps': 2.5}, 'steps 2.5: expected a whole number'),
  ({'prompt': 'a', 'steps': 0}, '--steps 0 must be'),
  ({'prompt': 'a', 'guidance': float('nan')}, '--guidance nan must be'),
  ({'prompt': 'a', 'shift': None}, 'shift null: expected a number'),
  ({'prompt': 'a', 'solver': 'heun'}, 'solver "heun": expected one of euler'),
  ({'prompt': 'a', 'frames': 'most'}, "--frames 'most' must be"),
  ({'prompt': 'a', 'frames': 10**9}, 'too many for one scene'),
  ({'prompt': 'a', 'observed': [0]}, 'add --input'),
  ({'prompt': 'a', 'export': ['ply', 'step']}, 'there is no step'),
  ({'prompt': 'a', 'metric': 'focal=30'}, 'add --input'),
  ({'prompt': 'a', 'prompt_file': 'b'}, 'prompt and prompt_file exclude each other'),
  ({'prompt_file': 'nowhere.txt'}, 'nowhere.txt cannot be read'),
  ({'input': 'nowhere.mp4'}, 'nowhere.mp4 does not exist'),
  ({'input': 'clip.mp4', 'observed': 'all'}, "--observed 'all'"),
  ({'input': 'clip.mp4', 'observed': [0.5]}, 'observed [0.5]: expected a list of frame numbers'),
  ({'input': 'clip.mp4', 'sparsity': 2}, '--sparsity 2 must be'),
  ({'input': 'clip.mp4', 'overlap': 17}, '--overlap 17 must be'),
  ({'input': 'clip.mp4', 'metric': ['baseline=0,5:1']}, 'frame 5 is out of range'),
  ({'seed': 3}, 'neither input nor prompt'),
  ({'name': '../a', 'prompt': 'a'}, "name '../a': use up to"),
  ({'name': '..', 'prompt': 'a'}, "name '..'"),
  ({'name': '', 'prompt': 'a'}, "name ''"),
  ({'name': 'x' * 101, 'prompt': 'a'}, 'use up to 100'),
  ({'name': '00001', 'prompt': 'a'}, "name '00001' is taken by line 1"),
]


def test_all_mistakes_are_told_before_models_load(place, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sample, 'load_bundle', lambda path: pytest.fail('loaded the model first'))
  monkeypatch.setattr(batch, '_SHOWN', 100)
  shutil.copy(place / 'clip.mp4', tmp_path)
  path, out = write_list(tmp_path, [{'prompt': 'a'}, *(line for line, _ in BAD)], None), tmp_path / 'out'
  assert run(path, out) == 2 and not out.exists()
  *told, last = capsys.readouterr().err.splitlines()
  assert len(told) == len(BAD)
  for number, (line, (_, words)) in enumerate(zip(told, BAD, strict=True), 2):
    assert line.startswith(f'{path}:{number}: ') and words in line, line
  assert last == f'error: {path}: {len(BAD)} of {len(BAD) + 1} lines cannot be followed; nothing was made'


def test_many_mistakes_are_counted(tmp_path, capsys):
  path = write_list(tmp_path, [{'seed': i} for i in range(25)], None)
  assert run(path, tmp_path / 'out') == 2
  told = capsys.readouterr().err.splitlines()
  assert len(told) == 22 and told[20] == 'and 5 more'


@pytest.mark.parametrize('flags, words', [
  (['--steps', '0'], '--steps 0 must be'),
  (['--process', '2/2'], '--process 2/2: expected I/N'),
  (['--weights', 'nowhere'], "no weights at 'nowhere'"),
  (['--out', 'file'], '--out file is a file'),
  (['--out', 'scene'], '--out scene is a scene itself'),
  (['--input', 'empty.jsonl'], 'empty.jsonl holds no scenes'),
  (['--input', 'none.jsonl'], 'none.jsonl: No such file'),
  (['--input', 'bytes.jsonl'], 'bytes.jsonl is not UTF-8'),
  (['--input', 'clip.mp4', '--strict'], '--process and --strict are for a list'),
])  # fmt: skip
def test_a_mistake_of_the_command_is_one_line(tmp_path, monkeypatch, capsys, flags, words):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('')
  (tmp_path / 'empty.jsonl').write_text('\n \n')
  (tmp_path / 'bytes.jsonl').write_bytes(b'\xff\xfe')
  (tmp_path / 'scene').mkdir()
  (tmp_path / 'scene' / 'scene.npz').write_text('')
  assert run(write_list(tmp_path, [{'prompt': 'a'}], None), 'out', *flags) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ') and err.count('\n') == 1 and words in err, err


def test_a_line_overrides_the_flags(tmp_path):
  defaults = cli.parse(
    sample.parser(), ['--input', str(tmp_path / 'list.jsonl'), '--prompt', 'all', '--seed', '4', '--sparsity', '0.5']
  )
  (tmp_path / 'clip.mp4').write_text('')
  (tmp_path / 'words.txt').write_text('a room')
  line = batch.parse(7, json.dumps({'input': 'clip.mp4', 'prompt_file': 'words.txt', 'observed': [3, 0]}), defaults)
  assert line.name == '00007' and line.prompt == 'a room' and line.args.input == str(tmp_path / 'clip.mp4')
  assert (line.args.observed, line.args.sparsity, line.args.seed, line.args.prompt) == ('3,0', None, 4, None)
  assert batch.KEYS.keys() - {'name'} <= vars(defaults).keys()
