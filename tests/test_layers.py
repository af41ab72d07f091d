"""The layers of the package: which part may import which, and what stays out of it. Read from the sources."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

import one4d_jax

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'one4d_jax').rglob('*.py'))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# A part imports itself and anything lower. Parts of equal height are independent at the bottom, neighbours above.
HEIGHT = {
  **dict.fromkeys(('errors', 'checks'), 0),
  **dict.fromkeys(('geometry', 'nn', 'flow'), 1),
  **dict.fromkeys(('structs', 'compiler', 'locks'), 0.5),
  'presets': 0.7,
  'wan': 2,
  'model': 3,
  **dict.fromkeys(('training', 'data', 'parallel', 'postopt', 'evaluation', 'viewer'), 4),
}
TOP = 5  # config, the commands and what they share
NEIGHBOURS = 4

# Loaded in data workers, which must start fast and hold no accelerator.
WITHOUT_JAX = [f'data/{name}.py' for name in ('clip', 'scenes', 'render', 'captions', 'media', 'shards')]
WITHOUT_JAX += [f'data/{name}.py' for name in ('example', 'codec', 'prepared', 'inspect')]
WITHOUT_JAX += [f'data/{name}.py' for name in ('curate', 'consistency', 'preparation', 'captioners', 'captioning')]
WITHOUT_JAX += sorted(f'data/sources/{path.name}' for path in (ROOT / 'one4d_jax/data/sources').glob('*.py'))
WITHOUT_JAX += ['model/pointmap.py']


def module(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module(path): path for path in FILES}


def absolute(path: pathlib.Path, node: ast.ImportFrom) -> str:
  if not node.level:
    return node.module
  package = path.relative_to(ROOT).parent.parts
  return '.'.join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def imported(path: pathlib.Path, *, run_at_import: bool = False) -> set[str]:
  """Modules that a file imports anywhere, or only those outside of functions."""
  found, nodes = set(), [ast.parse(path.read_text())]
  while nodes:
    node = nodes.pop()
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      source = absolute(path, node)
      found |= {source} | {f'{source}.{a.name}' for a in node.names if f'{source}.{a.name}' in MODULES}
    function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    if not (function and run_at_import):
      nodes += ast.iter_child_nodes(node)
  return found


@functools.cache
def loaded(name: str) -> frozenset[str]:
  """Everything that importing a module of ours loads, as far as our own sources tell."""
  seen, todo = set(), [name]
  while todo:
    current = todo.pop()
    if current in seen:
      continue
    seen.add(current)
    if current in MODULES:
      todo += [current.rpartition('.')[0], *imported(MODULES[current], run_at_import=True)]
  return frozenset(seen)


def part(name: str) -> str:
  return name.split('.')[1] if '.' in name else ''


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_imports_point_down(path):
  own = part(module(path))
  height = HEIGHT.get(own, TOP)
  for name in imported(path):
    root = name.split('.')[0]
    assert root not in ('weight_conversion', 'tests', 'benchmarks'), f'{name} is not part of the package'
    if root != 'one4d_jax' or part(name) in ('', own):
      continue
    other = HEIGHT.get(part(name), TOP)
    assert other < height or (other == height >= NEIGHBOURS), (
      f'{own} (height {height}) must not import {name} ({other})'
    )


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_no_other_framework(path):
  roots = {name.split('.')[0] for name in imported(path)}
  assert not roots & {'torch', 'torchvision', 'tensorflow', 'keras'}
  # Slow to import, or optional: only where needed.
  roots = {name.split('.')[0] for name in imported(path, run_at_import=True)}
  assert not roots & {'tensorflow_datasets', 'apache_beam', 'transformers'}


@pytest.mark.parametrize('name', WITHOUT_JAX)
def test_data_workers_load_no_jax(name):
  path = ROOT / 'one4d_jax' / name
  if not path.exists():
    pytest.skip(f'no {name}')
  heavy = {other for other in loaded(module(path)) if other.split('.')[0] in ('jax', 'flax', 'optax', 'orbax')}
  assert not heavy, f'{name} loads {sorted(heavy)}'


def test_data_workers_load_no_jax_through_others():
  names = [module(ROOT / 'one4d_jax' / name) for name in WITHOUT_JAX if (ROOT / 'one4d_jax' / name).exists()]
  code = f"import {', '.join(names)}, sys; print([m for m in ('jax', 'flax', 'optax') if m in sys.modules])"
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'


def test_no_file_is_called_utils():
  assert not [name for name in NAMES if pathlib.Path(name).stem in ('utils', 'util', 'helpers', 'misc')]


def test_the_package_itself_is_light():
  code = "import one4d_jax, sys; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'


@pytest.mark.parametrize('name', one4d_jax._PUBLIC)
def test_public_names_exist(name):
  assert callable(getattr(one4d_jax, name))


def test_unknown_names():
  assert {'Scene', '__version__', 'generate'} <= set(dir(one4d_jax))
  with pytest.raises(AttributeError, match='public names'):
    _ = one4d_jax.nothing_like_it


def test_these_checks_see_a_violation(tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules[__name__], 'ROOT', tmp_path)
  bad = tmp_path / 'one4d_jax' / 'nn' / 'bad.py'
  bad.parent.mkdir(parents=True)
  bad.write_text('def f():\n  from ..wan import vae\n  import torch.nn\n')
  assert imported(bad) == {'one4d_jax.wan', 'one4d_jax.wan.vae', 'torch.nn'}
  assert imported(bad, run_at_import=True) == set()
  with pytest.raises(AssertionError, match='must not import'):
    test_imports_point_down(bad)
  with pytest.raises(AssertionError):
    test_no_other_framework(bad)
  bad.write_text('def f():\n  import tensorflow_datasets\n')
  test_no_other_framework(bad)
  bad.write_text('import tensorflow_datasets\n')
  with pytest.raises(AssertionError):
    test_no_other_framework(bad)
