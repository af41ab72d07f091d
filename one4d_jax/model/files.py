"""What a bundle's folder holds, for those who look without loading: no JAX here. ``bundle.py`` reads and writes it.

A part is a safetensors file (what training exports), a folder (what ``weight_conversion/`` writes), or a reference
in ``bundle.json`` to a folder elsewhere: large frozen weights are shared by many bundles and never copied.
"""

import json
import os
import pathlib
import shutil

from one4d_jax.errors import CheckpointError

PARTS = ('vae', 'base', 'text', 'image', 'adapters')
EMBEDDED = pathlib.Path(__file__).parent.parent / 'assets' / 'tiny'
DESCRIPTION = 'bundle.json'
MANIFEST = 'manifest.json'  # in the folder of a converted part, written last


def read_references(folder: pathlib.Path) -> dict[str, dict[str, str]]:
  """The parts that lie elsewhere: ``path``, relative to ``folder``, and ``sha256`` of each.

  Raises:
    CheckpointError: ``bundle.json`` cannot be read.
  """
  try:
    found = json.loads((folder / DESCRIPTION).read_text()).get('references', {})
    return {part: {name: str(entry[name]) for name in ('path', 'sha256')} for part, entry in found.items()}
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise CheckpointError(
      f'weights at {str(folder)!r} cannot be read ({error}); export or convert them again'
    ) from error


def find_parts(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The file or folder of each part that is there, in the order of ``PARTS``.

  Raises:
    CheckpointError: ``bundle.json`` cannot be read.
  """
  references, found = read_references(folder), {}
  for part in PARTS:
    places = [folder / f'{part}.safetensors', folder / part]
    places += [(folder / references[part]['path']).resolve()] if part in references else []
    found[part] = next((p for p in places if p.is_file() or (p / MANIFEST).is_file()), None)
  return {part: place for part, place in found.items() if place is not None}


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
  """Replaces a small file at once. Machines may write the same one at the same time."""
  temporary = path.with_name(f'{path.name}.{os.uname().nodename}-{os.getpid()}.partial')
  temporary.write_bytes(content.encode() if isinstance(content, str) else content)
  os.replace(temporary, path)


def link_or_copy(file: pathlib.Path, target: pathlib.Path) -> None:
  """A second name for the file where the disk allows that, else a copy."""
  try:
    os.link(file, target)
  except OSError:
    shutil.copyfile(file, target)


def replace_folder(new: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames ``new`` to ``folder``. What was there before is gone only once the new one is in place."""
  old = folder.with_name(folder.name + '.old')
  shutil.rmtree(old, ignore_errors=True)
  if folder.exists():
    folder.rename(old)
  new.rename(folder)
  shutil.rmtree(old, ignore_errors=True)
