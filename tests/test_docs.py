"""Pages say what is true: their tables come from committed results, their links lead somewhere."""

import importlib
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CHANGELOG.md', *sorted((ROOT / 'docs').glob('*.md'))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RESULTS = sorted(path.stem for path in (ROOT / 'benchmarks/results').glob('*.json') if path.stem != 'curves')


def blocks(text: str) -> dict[str, str]:
  """What stands between ``<!-- NAME:begin -->`` and its end, by name."""
  return dict(re.findall(r'<!-- ([\w-]+):begin -->\n(.*?)<!-- \1:end -->', text, re.S))


@pytest.mark.parametrize('name', RESULTS)
def test_tables_are_those_of_the_results(name):
  script = importlib.import_module(f'benchmarks.{name}')
  results = json.loads((ROOT / f'benchmarks/results/{name}.json').read_text())
  shown = {}
  for page in PAGES:
    shown |= blocks(page.read_text())
  made = script.tables(results)
  if hasattr(script, 'readme'):
    made |= script.readme(results)
  assert made
  for block, table in made.items():
    assert shown[block].strip() == table.strip(), f'{block}: run benchmarks/{name}.py again, or undo the edit'


def prose(text: str) -> str:
  """Without what stands in fences."""
  return re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
  """Of the headings, as web pages of repositories name them."""
  heads = re.findall(r'^#+ (.*)$', prose(text), re.M)
  return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', prose(page.read_text())):
    if re.match(r'https?:|mailto:', target):
      continue
    path, _, anchor = target.partition('#')
    file = (page.parent / path).resolve() if path else page
    assert file.exists() and file.is_relative_to(ROOT), f'{target} is not there'
    assert not anchor or anchor in anchors(file.read_text()), f'{target}: no such heading'


def test_tests_that_pages_name_are_there():
  sources = '\n'.join(path.read_text() for path in (ROOT / 'tests').rglob('test_*.py'))
  named = {name for page in PAGES for name in re.findall(r'`(?:[\w/]+\.py::)?(test_\w+)`', page.read_text())}
  assert len(named) > 25 and not {name for name in named if f'def {name}(' not in sources}
