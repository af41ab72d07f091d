"""Where the measurements go: a JSON file, and a page of the documentation."""

import argparse
import importlib.metadata
import json
import pathlib
import re
from collections.abc import Callable, Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent


def parser(name: str, about: str, *, page: str) -> argparse.ArgumentParser:
  """The command line of a benchmark with its two files; ``about`` is the docstring of its script."""
  p = argparse.ArgumentParser(prog=f'python benchmarks/{name}.py', description=about.split('\n')[0])
  p.add_argument('--out', metavar='FILE', default=str(ROOT / f'benchmarks/results/{name}.json'))
  p.add_argument('--page', metavar='FILE', default=str(ROOT / page))
  return p


Tables = Callable[[dict], Mapping[str, str]]  # of results: {name of a block: table}


def record(args: argparse.Namespace, results: dict, tables: Tables, *, readme: Tables | None = None) -> None:
  """Writes the results, prints the tables made of them and puts each into its block of the page.

  Those of ``readme`` go into README, where the page is one of the documentation's.
  """
  out, page = pathlib.Path(args.out), pathlib.Path(args.page)
  out.write_text(json.dumps(results, indent=1) + '\n')
  for name, text in tables(results).items():
    print(text)
    publish(page, name, text)
  if readme is not None and page.parent == ROOT / 'docs':
    for name, text in readme(results).items():
      publish(ROOT / 'README.md', name, text)
  print(f'{out} and {page} written')


def versions(*names: str) -> dict[str, str]:
  """Of installed packages."""
  return {name: importlib.metadata.version(name) for name in names}


def kept(path: pathlib.Path, make: Callable[[], dict]) -> dict:
  """The row in ``path``; made now if an earlier run has not, so that an interrupted run goes on."""
  from one4d_jax.evaluation.report import write_json

  if not path.is_file():
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, make())
  return json.loads(path.read_text())


def publish(page: pathlib.Path, name: str, text: str) -> None:
  """Replaces what is between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; ValueError where the page has none."""
  block = re.compile(rf'(?<=<!-- {name}:begin -->\n).*?(?=<!-- {name}:end -->)', re.DOTALL)
  content, found = block.subn(lambda _: text.rstrip('\n') + '\n', page.read_text())
  if not found:
    raise ValueError(f'{page} has no block {name!r}')
  page.write_text(content)
