"""Damaged and hostile inputs of every kind, thousands of each: is any of them more than one line of error?

  python benchmarks/fuzz.py
  python benchmarks/fuzz.py --targets pictures,films --trials 2000

A trial damages one file of a small valid input: bits, cuts, repeats, another file's bytes, and in text the numbers and
words. What reads it must return or raise what a command prints as one line (``UserError``, ``OSError``), in seconds.
Any other exception, a dead process and a hang are faults. Writes a table of docs/reliability.md; ends with status 1
where there was a fault, and says how to repeat it.
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from benchmarks import page
from one4d_jax import cli

LONGEST = 20  # seconds of a trial
_READY = 'ready'
SIZE = {'frames': 5, 'height': 32, 'width': 32}
HOSTILE = ('nan', 'inf', '-1', '0', '1e999', '9' * 30, '""', 'null', '[]', '{}', 'true', '\0', '\u202e', '𓀀', '../' * 9)
HOSTILE += ('/etc/passwd', 'a' * 100_000, '-' * 40, '%s%n', "'; --", '\r\n', '<script>', '1,2,3', '0:0', '=')


class Target(NamedTuple):
  """One kind of input."""

  what: str
  write: Callable[[pathlib.Path], object]  # a valid one, into an empty folder
  read: Callable[[pathlib.Path], object]  # all of it


def damaged(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
  """``data`` after one to three changes."""
  for _ in range(rng.choice((1, 1, 2, 3))):
    i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    match rng.randrange(10):
      case 0:
        data = data[:i]
      case 1:
        data = data[:i] + data[j:]
      case 2:
        data = data[:j] + data[i:]
      case 3:
        data = data[:i] + rng.randbytes(min(j - i, 64)) + data[i + min(j - i, 64) :]
      case 4:
        data = data[:i] + bytes(min(j - i, 4096)) + data[i + min(j - i, 4096) :]
      case 5:
        data = rng.choice(others) if rng.random() < 0.2 else data[:i] + rng.randbytes(rng.randrange(1, 9)) + data[i:]
      case 6 | 7 if data:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 4, 32))):
          flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        data = bytes(flipped)
      case _:
        words = list(re.finditer(rb'[-+.\w]+', data[:100_000]))
        if words:
          word = rng.choice(words)
          data = data[: word.start()] + rng.choice(HOSTILE).encode() + data[word.end() :]
  return data


# -- What is read -----------------------------------------------------------------------------------------------------


def _media(folder: pathlib.Path):
  from one4d_jax.data import media

  return [media.read(path, fps=16, **SIZE) for path in sorted(folder.iterdir())]


def _pictures(folder: pathlib.Path) -> None:
  import numpy as np
  from PIL import Image

  pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
  for suffix in ('png', 'jpg', 'webp', 'gif', 'tif', 'bmp', 'avif', 'ppm'):
    Image.fromarray(pixels).save(folder / f'a.{suffix}')


def _films(folder: pathlib.Path) -> None:
  import av
  import numpy as np

  frames = np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3), np.uint8)
  for name, codec in {'a.mp4': 'libx264', 'a.webm': 'libvpx-vp9', 'a.mov': 'mpeg4', 'a.avi': 'mjpeg'}.items():
    with av.open(str(folder / name), 'w') as container:
      stream = container.add_stream(codec, rate=10)
      stream.height, stream.width = frames.shape[1:3]
      stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
      for frame in frames:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
      container.mux(stream.encode(None))


def _source(name: str, **options) -> Target:
  """A reader of a public data set, on files that the tests write in its format."""

  def write(folder: pathlib.Path) -> None:
    import importlib

    importlib.import_module(f'tests.data.sources.formats.{name}').write(folder, frames=3, **options)

  def read(folder: pathlib.Path) -> None:
    from one4d_jax.data import sources

    for found in sources.load(name).find(folder):
      recording = found.open()
      for i in range(len(recording)):
        recording.frame(i)

  return Target(f'`{name}` recordings', write, read)


def _clip():
  from one4d_jax.data import render

  return render.clip(0, frames=5, height=32, width=48, supersample=1)


def _write_scene(folder: pathlib.Path) -> None:
  from one4d_jax.data.inspect import _scene

  _scene(_clip()).save(folder)


def _read_scene(folder: pathlib.Path):
  from one4d_jax.viewer import scene

  return scene.load(folder)


def _write_prediction(folder: pathlib.Path) -> None:
  from tests.evaluation import downloads

  clip = _clip()
  downloads.monst3r(folder / 'a', depth=clip.depth, poses=clip.world_from_cam, K=clip.K)


def _read_prediction(folder: pathlib.Path):
  from one4d_jax.evaluation import predictions

  return predictions.read(folder / 'a')


def _write_sets(folder: pathlib.Path) -> None:
  import numpy as np

  from one4d_jax.data import codec, prepared, shards

  clip = _clip()
  file = folder / 'train'
  shards.write_file(file, [prepared.serialise(codec.encode(clip, quality=92))])
  row = {'id': clip.meta['id'], 'split': 'train', 'scene': 'a', 'size': [5, 32, 48], 'caption': 'c'}
  row |= {'statistics': {'motion': 1.5}, 'reasons': {}}
  meta = {'source': 'proc', 'licence': ['free'], 'problems': [], 'curation': {}, 'unverified': []}
  prepared.finish(folder / 'proc' / '1.0.0', name='proc', shards={'train': [file]}, rows=[row], meta=meta)
  shards.write(folder / 'latents', [{'z': np.zeros((2, 2, 4), np.float16), 'id': 'x'}], meta={'kind': 'latents'})
  if file.exists():
    file.unlink()


def _read_sets(folder: pathlib.Path) -> None:
  from one4d_jax.data import prepared, shards

  list(prepared.open(folder / 'proc' / '1.0.0', 'train'))
  prepared.verify(folder / 'proc' / '1.0.0')
  source = shards.open(folder / 'latents')
  [source[i] for i in range(len(source))]


def _write_release(folder: pathlib.Path) -> None:
  from tests.weight_conversion import release

  release.write(folder, ('base', 'image'))


def _read_release(folder: pathlib.Path) -> None:
  from weight_conversion import reader

  for part in ('base', 'image'):
    source = reader.find(folder, part)
    if source is not None:
      source.check()
      for name in source.tensors:
        source.read(name)


def _write_bundle(folder: pathlib.Path) -> None:
  from tests import small

  small.bundle(folder)


def _read_bundle(folder: pathlib.Path):
  from one4d_jax.model import bundle

  return bundle.load(folder)


def _write_list(folder: pathlib.Path) -> None:
  shutil.copy(page.ROOT / 'one4d_jax/assets/examples/room.mp4', folder / 'a.mp4')
  rows = [{'name': 'room', 'input': 'a.mp4', 'observed': [0, 8, 16], 'metric': 'baseline=0,16:0.4'}]
  rows += [{'prompt': 'a red ball', 'seed': 7, 'export': 'ply,cloud', 'frames': 17, 'steps': 5, 'guidance': 2.5}]
  (folder / 'list.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (folder / 'prompt.txt').write_text('a red ball rolls over a stone floor')


def _read_list(folder: pathlib.Path):
  from one4d_jax import batch, request, sample

  request.read_text(folder / 'prompt.txt')
  argv = [
    '--input',
    str(folder / 'list.jsonl'),
    '--out',
    str(folder / 'out'),
    '--prompt-file',
    str(folder / 'prompt.txt'),
  ]
  return batch.read(cli.parse(sample.parser(), argv))


def _write_records(folder: pathlib.Path) -> None:
  from one4d_jax import encode
  from one4d_jax.evaluation import report, run

  for name in ('a', 'b'):
    row = {'name': 'x', 'skipped': [], 'error': {'abs_rel': 0.1}}
    content = {'config': {'benchmark': 'procedural'}, 'rows': {'model': [row]}, 'protocol': {'align': ['none']}}
    run.claim(folder / name, {'config': content['config']})
    report.write_json(folder / name / 'report.json', content)
  encode._claim(folder / 'latents', {'data': 'x', 'shards': 3})


def _read_records(folder: pathlib.Path) -> None:
  from one4d_jax import encode
  from one4d_jax.evaluation import compare, run

  for name in ('a', 'b'):
    run.claim(folder / name, {'config': {'benchmark': 'procedural'}})
  encode._claim(folder / 'latents', {'data': 'x', 'shards': 3})
  compare.read([folder / 'a', folder / 'b'])


def _write_words(folder: pathlib.Path) -> None:
  lines = ['--steps 5 --guidance 2 --seed 3 --solver unipc --sparsity 0.25 --input a.mp4 --cache 0.05']
  lines += [
    '--prompt "a red ball" --frames 17 --metric baseline=0,16:0.4 --export ply,colmap --guidance-interval 0.2,0.9'
  ]
  lines += ['--observed 0,8,16 --metric depth=3,10,12:1.5 --metric hfov=60 --frames all --overlap 4 --input a.mp4']
  (folder / 'flags').write_text('\n'.join(lines))


def _read_words(folder: pathlib.Path) -> None:
  from one4d_jax import request, sample
  from one4d_jax.errors import UserError
  from one4d_jax.viewer import export, metric

  for line in (folder / 'flags').read_bytes().decode(errors='surrogateescape').split('\n'):
    try:
      words = shlex.split(line.replace('\0', ''))  # a shell passes neither
    except ValueError:
      continue
    try:
      args = cli.parse(sample.parser(), words)
      export.check_exports(args.export)
      metric.parse(args.metric or ())
      request.check(args)
    except UserError as error:
      cli.one_line(error)
    except SystemExit:  # --help
      continue


def _write_overrides(folder: pathlib.Path) -> None:
  lines = ['train.steps=10', 'model.adapters.link_layers=[0, 2]', 'data.fps=12', 'train.tasks=[0.5, 0.25, 0.25]']
  lines += [
    'model.dit.width=192',
    'parallel.mesh=fsdp',
    'data.source=a/b@3,c',
    'train.learning_rate=3e-4',
    'data.frames=17',
  ]
  lines += [
    'sample.guidance_interval=[0.1, 0.9]',
    'model.adapters.kind=shared_lora',
    'train.shift_max=40',
    'model.remat=none',
  ]
  (folder / 'overrides').write_text('\n'.join(lines))


def _read_overrides(folder: pathlib.Path) -> None:
  from one4d_jax import config
  from one4d_jax.errors import UserError

  for line in (folder / 'overrides').read_bytes().decode(errors='surrogateescape').split('\n'):
    try:
      config.load(str(page.ROOT / 'configs/one4d.py:tiny'), [line])
    except UserError as error:
      cli.one_line(error)


TARGETS = {
  'pictures': Target('pictures: PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF, PPM', _pictures, _media),
  'films': Target('films: H.264, VP9, MPEG-4, Motion JPEG', _films, _media),
  **{name: _source(name) for name in ('omniworld', 'bedlam', 'pointodyssey', 'spatialvid')},
  'tartanair': _source('tartanair'),
  'tartanair2': _source('tartanair', version=2)._replace(what='`tartanair` recordings, version 2'),
  'generic': _source('generic', recordings=3),
  'scenes': Target('scene folders', _write_scene, _read_scene),
  'predictions': Target('predictions of other methods', _write_prediction, _read_prediction),
  'sets': Target('prepared sets and latents', _write_sets, _read_sets),
  'releases': Target("Wan's releases: safetensors, .pth, JSON", _write_release, _read_release),
  'bundles': Target('bundles', _write_bundle, _read_bundle),
  'records': Target('records of evaluations and encodings', _write_records, _read_records),
  'lists': Target('lists of scenes, prompt files', _write_list, _read_list),
  'flags': Target('flags of `sample`', _write_words, _read_words),
  'overrides': Target('changes of the configuration', _write_overrides, _read_overrides),
}


# -- Trials -----------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
  p = page.parser('fuzz', __doc__, page='docs/reliability.md')
  p.add_argument('--targets', default=','.join(TARGETS), metavar='A,B,...', help='(default: %(default)s)')
  p.add_argument('--trials', type=int, default=700, help='of each (default: %(default)s)')
  p.add_argument('--first', type=int, default=0, help='number of the first trial, to repeat one (default: %(default)s)')
  p.add_argument('--child', metavar='DIR', help=argparse.SUPPRESS)
  return p


def main(args: argparse.Namespace) -> None:
  from tqdm import tqdm

  if args.child:
    return trials(args.targets, range(args.first, args.first + args.trials), pathlib.Path(args.child))
  rows, faults = {}, []
  for name in args.targets.split(','):
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, tqdm(desc=name, total=args.trials, unit='trial') as bar:
      for i, outcome, text in outcomes(name, range(args.first, args.first + args.trials), folder):
        counts[outcome] += 1
        if outcome not in ('read', 'refused'):
          faults.append({'target': name, 'trial': i, 'outcome': outcome, 'text': text})
          bar.write(f'{name} {i}: {outcome}: {text}')
        bar.update()
    rows[name] = {'what': TARGETS[name].what, **counts}
  for fault in faults:
    print(f'python benchmarks/fuzz.py --targets {fault["target"]} --first {fault["trial"]} --trials 1: {fault["text"]}')
  if set(rows) == set(TARGETS):
    page.record(args, {'trials': args.trials, 'rows': rows, 'faults': faults}, tables)
  if faults:
    sys.exit(1)


def outcomes(name: str, numbers: range, folder: str):
  """``(number, outcome, text)`` of trials in a process of their own, which is started again where it dies."""
  first = numbers.start
  while first < numbers.stop:
    command = [sys.executable, __file__, '--child', tempfile.mkdtemp(dir=folder), '--targets', name]
    command += ['--first', str(first), '--trials', str(numbers.stop - first)]
    with (
      (pathlib.Path(folder) / 'stderr').open('w+') as errors,
      subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
      if process.stdout.readline().strip() != _READY:
        process.wait()
        errors.seek(0)
        raise RuntimeError(f'{name}: the valid input cannot be read: {errors.read()[-2000:]}')
      for line in process.stdout:
        if line.startswith('{'):
          found = json.loads(line)
          yield first, found['outcome'], found['text']
          first += 1
    if process.returncode:
      yield first, 'died', f'status {process.returncode}'
      first += 1


def trials(name: str, numbers: range, folder: pathlib.Path) -> None:
  """Prints a line of JSON for each."""
  os.environ |= {'JAX_PLATFORMS': 'cpu', 'AV_LOG_LEVEL': 'quiet'}
  warnings.simplefilter('ignore')
  valid = folder / 'valid'
  valid.mkdir()
  TARGETS[name].write(valid)
  files = sorted(path for path in valid.rglob('*') if path.is_file())
  contents = [path.read_bytes() for path in files]
  TARGETS[name].read(valid)  # or every refusal would mean nothing
  print(_READY, flush=True)
  signal.signal(signal.SIGALRM, _hang)
  tell = functools.partial(print, flush=True)
  for number in numbers:
    rng = random.Random(f'{name} {number}')
    which = rng.randrange(len(files))
    files[which].write_bytes(damaged(rng, contents[which], contents))
    signal.alarm(LONGEST)
    outcome, text = attempt(lambda: TARGETS[name].read(valid))
    signal.alarm(0)
    files[which].write_bytes(contents[which])
    tell(json.dumps({'outcome': outcome, 'text': text and f'{files[which].relative_to(valid)}: {text}'}))


class Hang(BaseException):
  """A trial that takes too long."""


def _hang(*_) -> None:
  raise Hang


def attempt(read: Callable[[], object]) -> tuple[str, str]:
  """What became of it."""
  from one4d_jax.errors import UserError

  try:
    read()
  except (UserError, OSError) as error:
    return 'refused', '' if '\n' not in cli.one_line(error) else 'several lines'
  except Hang:
    return 'hung', f'more than {LONGEST} s'
  except BaseException as error:  # whatever a reader may raise
    place = error.__traceback__
    while place.tb_next is not None:
      place = place.tb_next
    return 'fault', f'{type(error).__name__}: {error} ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})'[:300]
  return 'read', ''


def tables(results: dict) -> dict[str, str]:
  from one4d_jax.evaluation import report

  kinds = ('read', 'refused', 'fault', 'hung', 'died')
  rows = list(results['rows'].values())
  total = {'what': 'all'} | {kind: sum(row.get(kind, 0) for row in rows) for kind in kinds}
  lines = [
    (row['what'], *(str(n) for n in (sum(row.get(kind, 0) for kind in kinds), *(row.get(kind, 0) for kind in kinds))))
    for row in (*rows, total)
  ]
  headings = (
    'input',
    'trials',
    'read all the same',
    'refused in one line',
    'other exceptions',
    'hangs',
    'dead processes',
  )
  return {'fuzz': report.table(lines, headings)}


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
