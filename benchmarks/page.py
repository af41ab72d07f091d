"""Measured tables in the documentation: between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""

import pathlib
import re


def publish(page: pathlib.Path, name: str, text: str) -> None:
  """Replaces the block ``name`` of a page; raises ValueError where the page has none."""
  block = re.compile(rf'(?<=<!-- {name}:begin -->\n).*?(?=<!-- {name}:end -->)', re.DOTALL)
  content, found = block.subn(lambda _: text.rstrip('\n') + '\n', page.read_text())
  if not found:
    raise ValueError(f'{page} has no block {name!r}')
  page.write_text(content)
