"""Stands in for ``sample`` in the tests of the app: does at once what the prompt says."""

import json
import os
import pathlib
import signal
import time

from PIL import Image

from one4d_jax.errors import UserError

# Red, so that a screenshot tells it from an empty frame; the script must run, and must not reach the page around it.
_PAGE = """<!doctype html><body style="margin:0"><script>
let reached = false;
try { reached = Boolean(parent.document.body); } catch (error) {}
document.body.style.background = reached ? 'lime' : 'rgb(220, 40, 40)';
</script></body>"""


def produce(folder: str, arguments: list[str], *, report) -> None:
  """The prompt is a word: wait PATH, steps N, exit, segfault, killed, refuse, bug, memory, disk; or any text."""
  given = dict(word.removeprefix('--').partition('=')[::2] for word in arguments)
  prompt = given.get('prompt', '')
  word, _, rest = prompt.partition(' ')
  report('load', 0, 1)
  if word == 'wait':
    report('sample', 1, 4)
    report('sample', 2, 4)
    while not pathlib.Path(rest).exists():
      time.sleep(0.02)
  elif word == 'steps':
    for i in range(int(rest)):
      report('sample', i + 1, int(rest))
  elif word == 'exit':
    os._exit(3)
  elif word == 'segfault':
    os.kill(os.getpid(), signal.SIGSEGV)
  elif word == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
  elif word == 'refuse':
    raise UserError('the input is\nno <b>good</b>')
  elif word == 'bug':
    raise RuntimeError('first line\nsecond line')
  elif word == 'quit':
    raise SystemExit(5)
  elif word == 'memory':
    raise RuntimeError('RESOURCE_EXHAUSTED: 40 GB wanted')
  elif word == 'disk':
    raise OSError(28, 'No space left on device', '/secret/place')
  write(pathlib.Path(folder) / 'scene', prompt)


def write(scene: pathlib.Path, prompt: str) -> None:
  """What the page shows of a scene."""
  scene.mkdir()
  run = {
    'prompt': prompt,
    'input': {'source': None, 'size': [64, 48], 'notes': ['a <b>note</b>']},
    'cameras': {'focal': 50.0, 'focal_std': 0.5, 'residual': [0.1, None, 0.3], 'valid': 0.9, 'warnings': ['doubt']},
    'metric': {'scale': None},
    'seed': 7,
    'timings_s': {'sample': 1.5},
    'pid': os.getpid(),
    'stage': os.listdir(scene.parent),
  }
  (scene / 'run.json').write_text(json.dumps(run))
  (scene / 'scene.html').write_text(_PAGE)
  Image.new('RGB', (64, 32), (40, 40, 220)).save(scene / 'preview.png')
  (scene / 'points').mkdir()
  (scene / 'points' / 'frame_000.ply').write_text('ply')


def echo(value, *, report):
  """A plain function for the worker: reports twice, returns what it got."""
  report('a', 1)
  report('b', 2)
  return value


def sleep(seconds: float, *, report) -> None:
  time.sleep(seconds)


def crash_on_sight(path: str, *, report) -> dict:
  """An inspection that dies of the file."""
  os.kill(os.getpid(), signal.SIGSEGV)
