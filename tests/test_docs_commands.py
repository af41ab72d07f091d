"""Every command in README and docs: its options exist, its configuration resolves, and it runs, unless ``NOT_RUN`` says
why it cannot here. They run in the order of the pages, in one folder, at one solver step."""

import argparse
import importlib
import pathlib
import re
import shlex
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from one4d_jax import cli, presets
from one4d_jax import config as configs
from one4d_jax.data import curate
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.postopt.options import FitOptions

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
OURS = re.compile(r'(python (-m one4d_jax|weight_conversion/|benchmarks/)|launch/|make )')

NOT_RUN = {  # what a command starts with: why
  'python benchmarks/': 'takes minutes to hours; its table is compared with its results',
  'python weight_conversion/wan_to_flax.py --src': "needs Wan's files; tests/e2e/test_convert.py runs it on small ones",
  'python weight_conversion/flax_to_wan.py --src': 'needs converted weights; tests/weight_conversion run it',
  'python weight_conversion/import_lora.py': 'needs converted weights; tests/weight_conversion run it',
  'python -m one4d_jax.sample --weights': 'needs converted weights',
  'python -m one4d_jax.prepare': 'needs a downloaded set; tests/data run it on files in its format',
  'python -m one4d_jax.encode': 'needs a prepared set; tests/test_encode.py runs it',
  'python -m one4d_jax.train': 'takes hours, or needs weights; tests/e2e/test_train.py runs every stage, small',
  'python -m one4d_jax.evaluate --config configs/eval.py:sintel': 'needs a downloaded benchmark',
  'python -m one4d_jax.evaluate --config configs/eval.py:bonn': 'needs a downloaded benchmark',
  'python -m one4d_jax.evaluate --config configs/eval.py:table': 'needs downloaded benchmarks',
  'python -m one4d_jax.evaluate --config configs/eval.py:procedural --weights': 'needs a trained baseline',
  'python -m one4d_jax.evaluate --compare': 'needs the runs before it; tests/evaluation/test_compare.py runs it',
  'python -m one4d_jax.view': 'serves until it is stopped; tests/viewer and tests/app drive it in a browser',
  'launch/': 'starts several processes; tests/launch and tests/e2e/test_processes.py run it',
  'make ': 'these are the commands that continuous integration runs, or they train',
}


def commands() -> list[tuple[str, str]]:
  """(page, command) of every fenced line that is ours, without its comment."""
  found = []
  for page in PAGES:
    for block in re.findall(r'^```\w*\n(.*?)^```', page.read_text(), re.M | re.S):
      lines = [re.sub(r'\s+#.*', '', line).strip() for line in block.replace('\\\n', ' ').splitlines()]
      found += [(page.stem, line) for line in lines if OURS.match(line)]
  return found


COMMANDS = commands()
NAMES = [f'{page}-{i}' for i, (page, _) in enumerate(COMMANDS)]


def script(command: str):
  """The module of a command, and its arguments."""
  words = shlex.split(command)
  if words[1] == '-m':
    return importlib.import_module(words[2]), words[3:]
  return importlib.import_module(words[1].removesuffix('.py').replace('/', '.')), words[2:]


def parsed(module, words: list[str]) -> argparse.Namespace:
  made = module.parser()
  made.add_argument('--debug', action='store_true')
  return cli.parse(made, words)


@pytest.mark.parametrize(('page', 'command'), COMMANDS, ids=NAMES)
def test_options_exist_and_configurations_resolve(page, command, monkeypatch):
  monkeypatch.chdir(ROOT)
  if command.startswith('make '):
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
    assert set(command.split()[1:]) <= set(targets)
    return
  if command.startswith('launch/'):
    file, *words = shlex.split(command)
    assert (ROOT / file).is_file()
    command = 'python -m one4d_jax.train ' + shlex.join(words[words.index('--config') :])
  module, words = script(command)
  if not hasattr(module, 'parser'):  # a benchmark without options of its own
    assert not words
    return
  args = parsed(module, words)
  kind = {'train': None, 'plan': None, 'evaluate': EvalConfig, 'prepare': curate.Curation, 'sample': FitOptions}
  name = module.__name__.rpartition('.')[2]
  if getattr(args, 'config', None) and name in kind:
    cls = kind[name]
    assert configs.load(args.config, args.overrides) if cls is None else presets.read(args.config, args.overrides, cls)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with the files that the pages speak of."""
  folder = tmp_path_factory.mktemp('pages')
  example = ROOT / 'one4d_jax/assets/examples/room.mp4'
  (folder / 'configs').symlink_to(ROOT / 'configs')
  for name in ('clips', 'photos'):
    (folder / name).mkdir()
  for copy in ('clip.mp4', 'clips/room.mp4'):
    shutil.copy(example, folder / copy)
  with av.open(str(example)) as container:
    frame = next(container.decode(video=0)).to_ndarray(format='rgb24')
  for photo in ('photo.jpg', 'photos/box.jpg'):
    Image.fromarray(np.asarray(frame)).save(folder / photo)
  (folder / 'photos/box.txt').write_text('a red box on a floor')
  lines = re.search(r'^```\n(\{"name".*?)^```', (ROOT / 'docs/sampling.md').read_text(), re.M | re.S)[1]
  (folder / 'list.jsonl').write_text(lines)
  return folder


def here(command: str) -> list[str]:
  """Its words, with what makes it short and lets it replace what an earlier page wrote."""
  module, words = script(command)
  name = module.__name__.rpartition('.')[2]
  if name == 'sample':
    once = re.sub(r' --mesh \S+| --steps \d+', '', command)
    return [*script(once)[1], '--steps', '1', *['--overwrite'] * ('list.jsonl' not in words)]
  if name == 'evaluate':
    return [*words, '--config.clips=1', '--config.steps=1']
  if name == 'plan' and '--topology' in words and '--no-compile' not in words:  # that needs a plugin
    return [*words, '--no-compile']
  return words


RUN = [
  pytest.param(page, command, id=name)
  for name, (page, command) in zip(NAMES, COMMANDS, strict=True)
  if not any(command.startswith(start) for start in NOT_RUN)
]


@pytest.mark.parametrize(('page', 'command'), RUN)
def test_it_runs(page, command, home, monkeypatch, capsys):
  monkeypatch.chdir(home)
  module, _ = script(command)
  status = cli.run(module.main, module.parser(), here(command))
  out = capsys.readouterr()
  assert status in (None, 0), out.err


PYTHON = [
  pytest.param(code, id=f'{page.stem}-{i}')
  for page in PAGES
  for i, code in enumerate(re.findall(r'^```python\n(.*?)^```', page.read_text(), re.M | re.S))
]


@pytest.mark.parametrize('code', PYTHON)
def test_python_runs(code, home, monkeypatch):
  program = compile(code, 'page', 'exec')
  if 'weights/wan14b' not in code and 'OUT/' not in code:  # what has to be converted, or prepared, first
    monkeypatch.chdir(home)
    exec(program, {})


@pytest.mark.parametrize('start', NOT_RUN)
def test_no_reason_without_a_command(start):
  assert any(command.startswith(start) for _, command in COMMANDS), f'{start!r} is in no page any more'
