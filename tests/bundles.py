"""Folders that look like bundles to commands that only look."""

import json
import pathlib

from one4d_jax.model.files import PARTS


def looks_whole(folder: pathlib.Path, sizes: dict) -> None:
  """Makes a bundle of empty parts."""
  folder.mkdir()
  (folder / 'bundle.json').write_text(json.dumps({'sizes': sizes, 'record': {}}))
  for part in PARTS:
    (folder / f'{part}.safetensors').write_bytes(b'')
