"""Write one part of a model as a folder that Orbax restores, tensor by tensor, atomically and resumably.

  base.partial/                       until everything is there, then renamed to base/
    _METADATA                         Orbax's description of the tree
    blocks.ffn_in.kernel/zarr.json    one zarr3 array a leaf; a stacked leaf has one file a layer,
    blocks.ffn_in.kernel/c/7/0/0      made of inner chunks, so that a sharded reader takes only its slices
    manifest.json                     sizes and SHA-256 of every file, and the tensors each was made from
    progress.jsonl                    what is written already; only while partial

Two threads each hold one tensor, or one block of rows of a large one; that bounds the memory.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore

from one4d_jax.errors import CheckpointError
from one4d_jax.model.files import MANIFEST, replace_folder, write_whole
from one4d_jax.model.weights import FORMAT
from one4d_jax.nn import quantize
from weight_conversion.reader import Source, sha256
from weight_conversion.rules import KEEP, Leaf

WORKERS = 2
BLOCK_BYTES = 256 << 20  # of one file; unstacked leaves above it are cut along their rows
INNER = 640  # longest side of an inner chunk: an eighth of Wan's width. Half of it takes three times as long to write
JOURNAL = 'progress.jsonl'


@dataclasses.dataclass(frozen=True)
class Stored:
  """One array on disk: a leaf of our tree, or the values or the scale of a quantised one."""

  name: str  # 'blocks/ffn_in/kernel' or 'blocks/ffn_in/kernel/int8'
  shape: tuple[int, ...]
  dtype: str
  rows: int  # of the leading axis in one file; 1 for stacked leaves

  @property
  def folder(self) -> str:
    return self.name.replace('/', '.')

  @property
  def bytes(self) -> int:
    """Of the values in one file."""
    return math.prod((self.rows, *self.shape[1:])) * np.dtype(self.dtype).itemsize

  def file(self, index: int) -> str:
    """Of the block that starts at ``index * rows``, relative to the part's folder."""
    return '/'.join([self.folder, 'c', *[str(index), *['0'] * (len(self.shape) - 1)][: len(self.shape)]])

  def create(self, root: pathlib.Path, context: tensorstore.Context) -> tensorstore.TensorStore:
    block = (self.rows, *self.shape[1:]) if self.shape else ()
    inner = tuple(_inner(n) for n in block)
    endian = {'name': 'bytes', 'configuration': {'endian': 'little'}}
    sharding = {'chunk_shape': inner, 'codecs': [endian], 'index_codecs': [endian, {'name': 'crc32c'}]}
    metadata = {
      'shape': self.shape,
      'data_type': self.dtype,
      'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': block}},
      'codecs': [{'name': 'sharding_indexed', 'configuration': sharding}],
    }
    kvstore = {'driver': 'file', 'path': str(root.resolve() / self.folder)}
    spec = {'driver': 'zarr3', 'kvstore': kvstore, 'metadata': metadata, 'store_data_equal_to_fill_value': True}
    return tensorstore.open(spec, open=True, create=True, context=context).result()


@dataclasses.dataclass(frozen=True)
class Job:
  """One file per array of ``stores``, from the tensors of one layer or some rows of a large one."""

  leaf: Leaf
  stores: tuple[Stored, ...]
  index: int

  @property
  def sources(self) -> tuple[str, ...]:
    return self.leaf.layers[self.index if self.leaf.stacked else 0]

  @property
  def files(self) -> list[str]:
    return [store.file(self.index) for store in self.stores]

  @property
  def rows(self) -> slice | None:
    """Of the leading axis of a large leaf, which is stored as it is read and in several files; None for all."""
    rows = self.stores[0].rows
    if self.leaf.stacked or not self.leaf.shape or self.leaf.shape[0] == rows:
      return None
    return slice(self.index * rows, (self.index + 1) * rows)

  @property
  def place(self) -> slice:
    """Where the values lie in the stored arrays."""
    return slice(self.index * self.stores[0].rows, (self.index + 1) * self.stores[0].rows)

  def read(self, source: Source) -> list[np.ndarray]:
    """The source tensors, or rows of one."""
    return [source.read(name, self.rows) for name in self.sources]

  def values(self, source: Source, dtype: str) -> list[np.ndarray]:
    """What each file holds."""
    read = self.read(source)
    for name, tensor in zip(self.sources, read, strict=True):
      if not finite(tensor):
        raise CheckpointError(f'{name} holds NaN or infinite values: the source is damaged')
    value = read[0] if self.rows is not None else self.leaf.transform.forward(*read)
    value = value[None] if self.leaf.stacked else value
    if len(self.stores) == 2:
      # Some output channels at a time: float32 temporaries of a whole matrix cost more than the arithmetic.
      pieces = [quantize.quantize(piece) for piece in np.array_split(value, -(-value.shape[-1] // 256), axis=-1)]
      return [np.concatenate([getattr(piece, name) for piece in pieces], axis=-1) for name in ('int8', 'scale')]
    cast = value.astype(dtype, copy=False)
    if dtype == 'float16' and not finite(cast):
      raise CheckpointError(f'{self.sources[0]} exceeds the range of float16; use --dtype bfloat16 or float32')
    return [cast]


def _inner(n: int) -> int:
  """The largest divisor of ``n`` that is at most INNER; ``n`` itself if that would be a sliver."""
  best = next(d for d in range(min(n, INNER), 0, -1) if n % d == 0)
  return best if best * 8 >= min(n, INNER) else n


def finite(value: np.ndarray) -> bool:
  """True if no value is NaN or infinite. Piece by piece: the temporary of a whole tensor costs more than the test."""
  pieces = np.array_split(value.reshape(-1), value.size // (1 << 20) + 1)
  if value.dtype == ml_dtypes.bfloat16:  # by its bits, since NumPy is slow at it
    return not any(((piece.view(np.uint16) & 0x7F80) == 0x7F80).any() for piece in pieces)
  return all(np.isfinite(piece).all() for piece in pieces)


def stored(leaf: Leaf, dtype: str, *, int8: bool) -> tuple[Stored, ...]:
  """The arrays that a leaf of our tree becomes."""
  rows = 1
  if not leaf.stacked and leaf.shape:
    size = int(np.prod(leaf.shape)) * np.dtype(dtype).itemsize
    rows = leaf.shape[0]
    if size > BLOCK_BYTES and leaf.transform is KEEP:
      at_most = rows * BLOCK_BYTES // size
      rows = next(n for n in range(at_most, 0, -1) if rows % n == 0)
  if int8 and quantize.eligible(leaf.target):
    scale = (*leaf.shape[:-2], leaf.shape[-1])
    return Stored(leaf.target + '/int8', leaf.shape, 'int8', rows), Stored(leaf.target + '/scale', scale, 'float32', 1)
  return (Stored(leaf.target, leaf.shape, dtype, rows),)


def total_bytes(leaves: tuple[Leaf, ...], dtypes: Mapping[str, str], *, int8: bool) -> int:
  arrays = [array for leaf in leaves for array in stored(leaf, dtypes[leaf.target], int8=int8)]
  return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)


def write(
  source: Source,
  leaves: tuple[Leaf, ...],
  dtypes: Mapping[str, str],
  folder: pathlib.Path,
  *,
  about: dict[str, Any],
  int8: bool = False,
  progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
  """Converts ``leaves`` into ``folder`` and returns the manifest. Continues what a killed run left.

  Args:
    dtypes: the stored dtype of each leaf (of those that ``int8`` does not quantise).
    about: what the manifest says besides: part, config, dtype, source.
    progress: told the bytes of each tensor when it is stored.

  Raises:
    CheckpointError: values that are not finite, or a tensor that cannot be read. ``folder`` is untouched then.
  """
  partial = folder.with_name(folder.name + '.partial')
  done = _resume(partial, {'about': about, 'int8': int8, 'source': source.fingerprint()})
  context = tensorstore.Context({'file_io_sync': False})  # one sync at the end instead of one a file
  arrays = {leaf.target: stored(leaf, dtypes[leaf.target], int8=int8) for leaf in leaves}
  stores = {array.name: array.create(partial, context) for group in arrays.values() for array in group}
  lock = threading.Lock()

  with (partial / JOURNAL).open('a') as journal:

    def run(job: Job) -> None:
      entries = {}
      if not all(file in done for file in job.files):
        values = job.values(source, dtypes[job.leaf.target])
        for array, file, value in zip(job.stores, job.files, values, strict=True):
          try:
            stores[array.name][job.place if array.shape else ()].write(value).result()
          except ValueError as error:  # TensorStore's, whatever the cause
            raise CheckpointError(f'{partial / file} cannot be written ({error}); run again to continue') from error
          made = {'from': {name: source.tensors[name].dtype for name in job.sources}}
          entries[file] = measure(partial / file) | made
      with lock:
        done.update(entries)
        journal.writelines(json.dumps([file, entry]) + '\n' for file, entry in entries.items())
        journal.flush()
        progress(sum(array.bytes for array in job.stores))

    _run_all(run, jobs(leaves, arrays))

  names = {array.name: array for group in arrays.values() for array in group}
  (partial / '_METADATA').write_text(json.dumps(_orbax_metadata(names)))
  described = ['_METADATA', *(f'{array.folder}/zarr.json' for array in names.values())]
  files = done | {name: measure(partial / name) for name in described}
  lines = ''.join(f'{files[name]["sha256"]}  {name}\n' for name in sorted(files))
  manifest = {
    'format': FORMAT,
    **about,
    'int8': int8,
    'leaves': {name: {'shape': array.shape, 'dtype': array.dtype} for name, array in names.items()},
    'files': dict(sorted(files.items())),
    'sha256': hashlib.sha256(lines.encode()).hexdigest(),
  }
  write_whole(partial / MANIFEST, json.dumps(manifest, indent=1))
  os.sync()  # everything at once: a sync of each of some thousand files takes minutes on a busy disk
  replace_folder(partial, folder)
  (folder / JOURNAL).unlink()  # last: killed before, the next run still finds everything done
  return manifest


def measure(path: pathlib.Path) -> dict[str, Any]:
  return {'bytes': path.stat().st_size, 'sha256': sha256(path)}


def jobs(leaves: tuple[Leaf, ...], arrays: Mapping[str, tuple[Stored, ...]]) -> Iterator[Job]:
  """Layer by layer, as the sources are laid out. ``arrays``: of each leaf, by its target."""
  for leaf in leaves:
    if not leaf.stacked:
      array = arrays[leaf.target][0]
      blocks = array.shape[0] // array.rows if array.shape else 1
      yield from (Job(leaf, arrays[leaf.target], i) for i in range(blocks))
  stacked = [leaf for leaf in leaves if leaf.stacked]
  for layer in range(max((len(leaf.layers) for leaf in stacked), default=0)):
    yield from (Job(leaf, arrays[leaf.target], layer) for leaf in stacked)


def _run_all(run: Callable[[Job], None], todo: Iterable[Job]) -> None:
  """In ``WORKERS`` threads; the first failure stops the rest."""
  with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
    futures = [pool.submit(run, job) for job in todo]
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _resume(partial: pathlib.Path, key: dict[str, Any]) -> dict[str, Any]:
  """Files of an earlier run with the same ``key``, as far as their contents still are what was written."""
  journal, key = partial / JOURNAL, json.dumps(key, sort_keys=True)
  lines = journal.read_text().splitlines(keepends=True) if journal.is_file() else []
  done = {}
  if lines and lines[0] == key + '\n':
    for line in lines[1:]:
      if line.endswith('\n'):  # the last one may be half a line
        file, entry = json.loads(line)
        path = partial / file
        if path.is_file() and path.stat().st_size == entry['bytes'] and sha256(path) == entry['sha256']:
          done[file] = entry
  else:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
  write_whole(journal, key + '\n' + ''.join(json.dumps([file, entry]) + '\n' for file, entry in done.items()))
  return done


def _orbax_metadata(names: Mapping[str, Stored]) -> dict[str, Any]:
  """Orbax's description of the tree, as it writes it for dicts of arrays without OCDBT."""
  tree = {}
  for name, array in names.items():
    path = tuple(name.split('/'))
    value = {'value_type': 'jax.Array', 'skip_deserialize': False, 'write_shape': array.shape}
    tree[str(path)] = {'key_metadata': [{'key': key, 'key_type': 2} for key in path], 'value_metadata': value}
  return {
    'tree_metadata': tree,
    'use_ocdbt': False,
    'use_zarr3': True,
    'store_array_data_equal_to_fill_value': True,
    'custom_metadata': None,
  }
