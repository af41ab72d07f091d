"""The lock file holds what is pinned, with a hash for every file; the licence of every package is stated."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
LOCK = (ROOT / 'requirements.lock').read_text()


def plain(name: str) -> str:
  return re.sub(r'[-_.]+', '-', name.lower())


def pins(text: str) -> dict[str, set[str]]:
  """Versions by name; one package may have several, for different systems."""
  found = {}
  for name, version in re.findall(r'^([\w.-]+)==([^\s;]+)', text, re.M):
    found.setdefault(plain(name), set()).add(version)
  return found


def test_the_lock_holds_the_pins():
  locked = pins(LOCK)
  for name, versions in pins((ROOT / 'requirements.txt').read_text()).items():
    assert locked[name] == versions, f'{name}: make requirements.lock again, see docs/security.md'


def test_everything_locked_has_hashes():
  blocks = re.split(r'^(?=[\w.-]+==)', LOCK, flags=re.M)[1:]
  assert len(blocks) > 80 and all('--hash=sha256:' in block for block in blocks)


def test_every_licence_is_stated():
  page = (ROOT / 'docs/security.md').read_text().partition('## Licences')[2]
  stated = {plain(name) for name in re.findall(r'[\w.-]+', page)}
  assert not pins(LOCK).keys() - stated
