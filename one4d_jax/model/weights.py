"""Converted weights, the reading side: one folder a part, as ``weight_conversion/wan_to_flax.py`` writes it.

  base/
    manifest.json                     sizes and SHA-256 of every file, the leaves, the network's config
    _METADATA                         what makes it a folder that Orbax restores
    blocks.ffn_in.kernel/             one zarr3 array a leaf; stacked leaves have one file a layer
    blocks.self_q.kernel.int8/, blocks.self_q.kernel.scale/             a quantised kernel

Orbax restores such a folder as well. Here TensorStore reads it, so that a process reads the slices its devices hold,
each once, one leaf after the other: a layer's file is made of inner chunks.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import tensorstore
from flax import traverse_util

from one4d_jax.errors import CheckpointError
from one4d_jax.model.files import DESCRIPTION, MANIFEST, find_parts, read_references
from one4d_jax.nn.quantize import Int8Weight

FORMAT = 1
_AGAIN = 'convert again with weight_conversion/wan_to_flax.py'
_NAMED = 12  # at most so many names in a message


def locate(path: str | os.PathLike, part: str) -> pathlib.Path:
  """The converted folder of ``part``: ``path`` itself or, where ``path`` is a bundle, the one it holds or refers to.

  Raises:
    CheckpointError: there is none, its conversion is unfinished, or the bundle was made with other weights.
  """
  path = pathlib.Path(path)
  if (path / MANIFEST).is_file():
    return path
  place, reference = path / part, None
  if (path / DESCRIPTION).is_file():
    place, reference = find_parts(path).get(part, place), read_references(path).get(part)
  if (place / MANIFEST).is_file():
    if reference and reference['sha256'] != identity(read_manifest(place)):
      raise CheckpointError(f'{str(path)!r} was made with other {part} weights than are now at {str(place)!r}')
    return place
  if place.is_file():
    raise CheckpointError(f'{str(place)!r} is no converted folder; one4d_jax.model.bundle.load reads what was trained')
  for folder in (place, path):
    if folder.with_name(folder.name + '.partial').is_dir():
      raise CheckpointError(f'the conversion into {str(folder)!r} is unfinished; run its command again to continue it')
  raise CheckpointError(
    f'no converted weights at {str(path)!r}: expected {part}/{MANIFEST}, as weight_conversion/wan_to_flax.py writes it'
  )


def identity(manifest: dict[str, Any]) -> str:
  """16 hex digits by which bundles and checkpoints refer to these weights."""
  return manifest['sha256'][:16]


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
  """The manifest of one part's folder.

  Raises:
    CheckpointError: it is absent, unreadable, of another format, or its files do not add up to its own checksum.
  """
  path = pathlib.Path(folder) / MANIFEST
  if not path.is_file():
    raise CheckpointError(f'no {MANIFEST} in {str(folder)!r}: these are no converted weights, or not all; {_AGAIN}')
  try:
    manifest = json.loads(path.read_text())
    found = manifest['format']
    if found == FORMAT:
      _ = [manifest[key] for key in ('part', 'config', 'dtype', 'int8', 'leaves')]
      lines = ''.join(f'{entry["sha256"]}  {name}\n' for name, entry in sorted(manifest['files'].items()))
      intact = hashlib.sha256(lines.encode()).hexdigest() == manifest['sha256']
  except (ValueError, KeyError, TypeError) as error:
    raise CheckpointError(f'{str(path)!r} cannot be read ({error!r}); {_AGAIN}') from error
  if found != FORMAT:
    raise CheckpointError(f'{str(path)!r} has format {found!r}, this version reads {FORMAT}; {_AGAIN}')
  if not intact:
    raise CheckpointError(f'{str(path)!r} was changed: its files do not add up to its sha256; {_AGAIN}')
  return manifest


def check(folder: str | os.PathLike, part: str | None = None) -> dict[str, Any]:
  """The manifest, once every file is there with the size it names. Reads no weights: ``verify_hashes`` does.

  Raises:
    CheckpointError: as ``read_manifest``; weights of another part; a file that is missing, truncated or too long.
  """
  manifest = read_manifest(folder)
  if part not in (None, manifest['part']):
    raise CheckpointError(f'{str(folder)!r} holds the part {manifest["part"]!r}, expected {part!r}')
  for name, entry in manifest['files'].items():
    path = pathlib.Path(folder) / name
    size = path.stat().st_size if path.is_file() else None
    if size != entry['bytes']:
      got = 'is missing' if size is None else f'has {size} bytes'
      raise CheckpointError(f'{str(path)!r} {got}, the manifest says {entry["bytes"]} bytes; copy it whole or {_AGAIN}')
  return manifest


def verify_hashes(folder: str | os.PathLike, progress: Callable[[int], None] = lambda count: None) -> None:
  """Reads every file and compares its SHA-256 with the manifest's. ``progress`` is told the bytes of each.

  Raises:
    CheckpointError: as ``check``; files whose contents changed, all of them.
  """
  changed = []
  for name, entry in check(folder)['files'].items():
    with (pathlib.Path(folder) / name).open('rb') as file:
      if hashlib.file_digest(file, 'sha256').hexdigest() != entry['sha256']:
        changed.append(name)
    progress(entry['bytes'])
  if changed:
    raise CheckpointError(f'{str(folder)!r}: contents differ from the manifest: {_some(changed)}; {_AGAIN}')


def open_leaf(folder: str | os.PathLike, name: str) -> tensorstore.TensorStore:
  """One array of the tree, read only where it is indexed; ``name`` as in 'blocks/ffn_in/kernel'.

  Raises:
    CheckpointError: there is no such array.
  """
  path = pathlib.Path(folder).resolve() / name.replace('/', '.')  # TensorStore takes no '..'
  spec = {'driver': 'zarr3', 'kvstore': {'driver': 'file', 'path': str(path)}, 'fill_missing_data_reads': False}
  try:
    return tensorstore.open(spec, open=True, read=True).result()
  except ValueError as error:
    raise CheckpointError(f'{name!r} cannot be read from {str(folder)!r} ({error}); {_AGAIN}') from error


def tree(leaves: dict[str, Any]) -> dict:
  """Nested dicts from names as in a manifest; what was stored as ``…/int8`` and ``…/scale`` is an ``Int8Weight``."""
  leaves = dict(leaves)
  for kernel in [name.removesuffix('/int8') for name in leaves if name.endswith('/int8')]:
    leaves[kernel] = Int8Weight(leaves.pop(f'{kernel}/int8'), leaves.pop(f'{kernel}/scale'))
  return traverse_util.unflatten_dict(leaves, sep='/')


def restore(folder: str | os.PathLike, abstract: dict) -> dict:
  """The tree of one part, in the shape of ``abstract``, each process reading what its devices hold.

  Leaf by leaf: beyond the result, host memory holds the process's share of one leaf.

  Args:
    abstract: tree of ``jax.ShapeDtypeStruct``, ``Int8Weight`` included. Weights are cast to its dtypes and lie where
      its shardings say; without a sharding, on this process's first device.

  Raises:
    CheckpointError: as ``check``; leaves that are missing, unexpected or of another shape, all of them; contents that
      cannot be decoded.
  """
  manifest = check(folder)
  paths, treedef = jax.tree.flatten_with_path(abstract)
  wanted = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}
  _compare(folder, manifest['leaves'], wanted)
  stores = [open_leaf(folder, name) for name in wanted]
  try:
    return jax.tree.unflatten(treedef, map(_read, stores, wanted.values()))
  except (ValueError, OSError) as error:  # TensorStore's
    raise CheckpointError(f'the weights at {str(folder)!r} are damaged ({error}); {_AGAIN}') from error


def _read(store: tensorstore.TensorStore, leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """One leaf. What the devices of this process hold is read at once if it is a box: then no chunk is read twice."""
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  span = lambda index: tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True))
  volume = lambda span: math.prod(stop - start for start, stop in span)
  read = lambda span: store[tuple(slice(*ends) for ends in span)].read().result().astype(leaf.dtype, copy=False)

  spans = {span(index) for index in sharding.addressable_devices_indices_map(leaf.shape).values()}
  hull = tuple((min(a for a, _ in ends), max(b for _, b in ends)) for ends in zip(*spans, strict=True))
  if volume(hull) == sum(map(volume, spans)):
    box = read(hull)
    within = lambda span: tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(span, hull, strict=True))
    slices = {span: box[within(span)] for span in spans}
  else:
    slices = {span: read(span) for span in spans}
  return jax.make_array_from_callback(leaf.shape, sharding, lambda index: slices[span(index)])


def load(folder: str | os.PathLike) -> dict:
  """The tree of one part as it is stored, on this process's first device; raises CheckpointError as ``check``."""
  leaves = read_manifest(folder)['leaves'].items()  # ``restore`` checks the files
  return restore(folder, tree({name: jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype']) for name, leaf in leaves}))


def _compare(folder, leaves: dict[str, dict], wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
  problems = []
  if missing := sorted(wanted.keys() - leaves.keys()):
    problems.append(f'{len(missing)} missing ({_some(missing)})')
  if unexpected := sorted(leaves.keys() - wanted.keys()):
    problems.append(f'{len(unexpected)} unexpected ({_some(unexpected)})')
  shapes = {name: (tuple(leaves[name]['shape']), wanted[name].shape) for name in sorted(leaves.keys() & wanted.keys())}
  if other := [f'{name} {got}, expected {expected}' for name, (got, expected) in shapes.items() if got != expected]:
    problems.append(f'{len(other)} of another shape ({_some(other)})')
  if problems:
    raise CheckpointError(f'the weights at {str(folder)!r} are not of this network: {"; ".join(problems)}; {_AGAIN}')


def _some(names: list[str]) -> str:
  return ', '.join(names[:_NAMED]) + (', …' if len(names) > _NAMED else '')
