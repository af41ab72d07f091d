"""A prepared set: curated clips as a TFDS data set of ArrayRecord files, written and read without TensorFlow.

  OUT/NAME/1.0.0/NAME-train.array_record-00000-of-00012 ...   splits: train, test (held-out scenes), dropped
                 dataset_info.json features.json              for ``tfds.data_source(NAME, split=..., data_dir=OUT)``
                 clips.jsonl                                  a row a clip, split by split in the order of the records
                 checksums.json                               every file with its SHA-256, and where the set is from

A version is whole or not there: it is made under a hidden name and renamed. Its shards are second names (hard links)
of files that workers wrote, so nothing is copied and those workers' folder may go or stay.

Reading here does without TFDS too: parsing is as fast, and importing it takes as long as all that a worker loads else.
The caption in ``clips.jsonl`` counts; the one in the record is what the source said.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from one4d_jax.data import codec, example
from one4d_jax.data import shards as files
from one4d_jax.data.clip import Clip
from one4d_jax.errors import DataError
from one4d_jax.model.files import link_or_copy

FORMAT = 1
INDEX = 'checksums.json'  # written last
CLIPS = 'clips.jsonl'
VERSION = re.compile(r'\d+\.\d+\.\d+')  # the whole name of a version's folder

T = TypeVar('T')


def serialise(record: codec.Record) -> bytes:
  """A record of ``codec`` as the bytes that TFDS stores."""
  value = lambda name, kind: record[name].encode() if kind is str else np.asarray(record[name], kind).tobytes()
  return example.pack({name: value(name, kind) for name, (kind, _) in codec.FIELDS.items()})


def deserialise(data: bytes) -> dict[str, np.ndarray | str]:
  """Inverse of ``serialise``; arrays are read-only. Raises DataError where the bytes are no such record."""
  stored, record = example.unpack(data), {}
  for name, (kind, shape) in codec.FIELDS.items():
    try:
      if kind is str:
        record[name] = stored[name].decode()
      else:
        record[name] = np.frombuffer(stored[name], kind).reshape([-1 if n is None else n for n in shape])
    except KeyError as error:
      raise DataError(f'the record has no {name}; it is not one of a prepared set') from error
    except ValueError as error:
      raise DataError(f'{name} of the record is damaged: {error}') from error
  return record


def finish(
  folder: str | os.PathLike,
  *,
  name: str,
  shards: Mapping[str, Sequence[str | os.PathLike]],
  rows: Sequence[dict],
  meta: dict,
) -> pathlib.Path:
  """Makes the version ``folder``, OUT/NAME/VERSION, of ArrayRecord files that are there already; returns it.

  Args:
    shards: split -> files of ``serialise``d records, in order. Files without records, and splits without any, are left
      out.
    rows: facts of every clip, JSON-able: with 'id' and 'split', and within a split in the order of the records. Each
      gets 'index', its number there.
    meta: JSON-able facts about the set: source, licence, provenance, curation, ...

  Raises:
    DataError: the folder exists or is not named so; a file is damaged; rows and records do not agree in number.
  """
  folder = pathlib.Path(folder)
  if not VERSION.fullmatch(folder.name) or folder.absolute().parent.name != name:
    raise DataError(f'{folder}: a version of {name} is a folder like {name}/1.0.0')
  if folder.exists():
    raise DataError(f'{folder} already exists; make another version, or remove it')
  partial = folder.with_name(f'.{folder.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    partial.mkdir(parents=True)
    splits = {split: _link(partial, name, split, some) for split, some in shards.items()}
    splits = {split: some for split, some in splits.items() if some}
    counts = _counts(splits)
    if not counts:
      raise DataError(f'no clips to make {folder} of')
    _write_tfds(partial, name, folder.name, splits, meta)
    clips = _write_clips(partial / CLIPS, rows, counts)
    index = {'format': FORMAT, 'name': name, 'version': folder.name, 'splits': splits, 'clips': clips, 'meta': meta}
    (partial / INDEX).write_text(json.dumps(index, indent=1) + '\n')
    partial.rename(folder)
  except OSError as error:
    raise DataError(f'{folder} cannot be written: {error}') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return folder


def open(folder: str | os.PathLike, split: str = 'train') -> 'Source':
  """The clips of a split. Raises DataError where the set is missing, incomplete or without that split."""
  return Source(folder, split)


def read_meta(folder: str | os.PathLike) -> dict:
  """The ``meta`` a set was finished with. Raises DataError as ``open``."""
  return read_index(folder)['meta']


def splits(folder: str | os.PathLike) -> tuple[str, ...]:
  """Names of the splits that have clips. Raises DataError as ``open``."""
  return tuple(read_index(folder)['splits'])


def read_index(folder: str | os.PathLike) -> dict:
  """Content of ``checksums.json``. Raises DataError if it is missing or damaged, or a file is not of its size."""
  folder = pathlib.Path(folder)
  if not (folder / INDEX).is_file():
    versions = sorted(str(path.parent) for path in folder.glob(f'*/{INDEX}'))
    hint = f'give {" or ".join(versions)}' if versions else 'give the folder of a version, as ``prepare`` names it'
    raise DataError(f'{folder} is no prepared set ({INDEX} is not there); {hint}')
  try:
    index = json.loads((folder / INDEX).read_text())
    found = index['format']
    sizes = {file['file']: file['bytes'] for some in (*index['splits'].values(), [index['clips']]) for file in some}
    files.check_facts([*itertools.chain.from_iterable(index['splits'].values()), index['clips']])
    _ = index['meta']
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise DataError(f'{folder / INDEX} cannot be read ({error!r}); copy the set again') from error
  if found != FORMAT:
    raise DataError(f'{folder} has data format {found}, this version reads {FORMAT}; prepare it again')
  for file, size in sizes.items():
    path = folder / file
    if not path.is_file() or path.stat().st_size != size:
      raise DataError(f'{path} is missing or incomplete (expected {size} bytes); copy the set again')
  return index


def verify(folder: str | os.PathLike) -> None:
  """Reads everything: every file has its SHA-256, and every record the id of its row.

  Raises DataError at the first that differs, naming the file.
  """
  folder, index = pathlib.Path(folder), read_index(folder)
  if files.sha256(folder / CLIPS) != index['clips']['sha256']:
    raise DataError(f'{folder / CLIPS} does not match its checksum; copy the set again')
  for split, some in index['splits'].items():
    rows = iter(_read_clips(folder, split, _counts(index['splits'])[split]))
    for shard in some:
      path = folder / shard['file']
      if files.facts(path) != shard:
        raise DataError(f'{path} does not match its checksum; copy the set again')
      for i, payload in enumerate(files.read_file(path)):
        stored, listed = deserialise(payload)['id'], next(rows)['id']
        if stored != listed:
          raise DataError(f'{path}: record {i} is {stored}, its row in {CLIPS} {listed}; prepare the set again')


class Source:
  """Random access to the clips of a split: ``len(source)``, ``source[i] -> Clip``. Picklable; safe in several threads.

  Attributes:
    split: its name.
    rows: of ``clips.jsonl``, one a clip: id, size (frames, height, width), caption, statistics, ...
    meta: facts about the whole set.
    fingerprint: a hash of the split's content; keep it next to a reader's position, which means nothing in other data.
  """

  def __init__(self, folder: str | os.PathLike, split: str):
    folder, index = pathlib.Path(folder), read_index(folder)
    if split not in index['splits']:
      raise DataError(f'{folder} has no split {split!r}, only {", ".join(index["splits"])}')
    self.split, self.meta = split, index['meta']
    self.rows = _read_clips(folder, split, _counts(index['splits'])[split])
    self._folder, self._shards = str(folder), index['splits'][split]
    captions = json.dumps([row.get('caption') for row in self.rows])
    hashes = ''.join(shard['sha256'] for shard in self._shards)
    self.fingerprint = hashlib.sha256((hashes + captions).encode()).hexdigest()
    self._bytes = files.records(folder, self._shards)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, i: int) -> Clip:
    """Raises DataError naming the clip's file where that is damaged."""
    clip, row = self._read(i, lambda data: codec.decode(deserialise(data))), self.rows[i]
    return dataclasses.replace(clip, caption=row.get('caption', clip.caption))

  def record(self, i: int) -> dict[str, np.ndarray | str]:
    """The record as stored, for those who need but a part of it: see ``codec.frames``. Raises as ``source[i]``."""
    return self._read(i, deserialise)

  def _read(self, i: int, parse: Callable[[bytes], T]) -> T:
    if not -len(self) <= i < len(self):
      raise IndexError(f'clip {i} of {len(self)}')
    i = int(i) % len(self)
    try:
      return parse(self._bytes[i])
    except (DataError, RuntimeError, ValueError) as error:
      ends = np.cumsum([shard['count'] for shard in self._shards])
      file = self._shards[int(np.searchsorted(ends, i, side='right'))]['file']
      raise DataError(f'{self._folder}/{file}: clip {i} of {self.split} is damaged: {error}') from error

  def __repr__(self) -> str:
    return f'Source({self._folder!r}, {self.split!r}, {len(self)} clips)'


def _link(folder: pathlib.Path, name: str, split: str, paths: Sequence[str | os.PathLike]) -> list[dict]:
  """Puts the files with records into the folder under the names TFDS wants; their facts."""
  with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing a terabyte takes its time
    known = [(pathlib.Path(path), facts) for path, facts in zip(paths, pool.map(files.facts, paths), strict=True)]
  known = [(path, facts) for path, facts in known if facts['count']]
  for number, (path, facts) in enumerate(known):
    facts['file'] = f'{name}-{split}.array_record-{number:05d}-of-{len(known):05d}'
    link_or_copy(path, folder / facts['file'])
  return [facts for _, facts in known]


def _counts(splits: Mapping[str, Sequence[dict]]) -> dict[str, int]:
  return {split: sum(shard['count'] for shard in some) for split, some in splits.items()}


def _write_clips(path: pathlib.Path, rows: Sequence[dict], counts: Mapping[str, int]) -> dict:
  """Writes ``clips.jsonl``, split by split; its facts."""
  unknown = {row['split'] for row in rows} - set(counts)
  if unknown:
    raise DataError(f'clips are listed in {", ".join(sorted(unknown))}, where there are no records')
  lines = []
  for split, count in counts.items():
    some = [row for row in rows if row['split'] == split]
    if len(some) != count:
      raise DataError(f'{len(some)} clips are listed in {split}, its files hold {count}')
    lines += [json.dumps(row | {'index': i}) for i, row in enumerate(some)]
  path.write_text('\n'.join(lines) + '\n')
  return {'file': path.name, 'count': len(lines), 'bytes': path.stat().st_size, 'sha256': files.sha256(path)}


def _read_clips(folder: pathlib.Path, split: str, count: int) -> list[dict]:
  try:
    rows = [json.loads(line) for line in (folder / CLIPS).read_text().splitlines()]
    rows = [row for row in rows if row['split'] == split]
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise DataError(f'{folder / CLIPS} cannot be read ({error!r}); copy the set again') from error
  if len(rows) != count or any(row.get('index') != i for i, row in enumerate(rows)):
    raise DataError(f'{folder / CLIPS} lists {len(rows)} clips of {split}, its files hold {count}; copy the set again')
  return rows


def _write_tfds(
  folder: pathlib.Path, name: str, version: str, splits: Mapping[str, Sequence[dict]], meta: dict
) -> None:
  """Writes ``dataset_info.json`` and ``features.json``."""
  import tensorflow_datasets as tfds

  # Without encoding='bytes' integers are stored one by one as varints: larger, and slow to read.
  feature = lambda kind, shape: (
    tfds.features.Text() if kind is str else tfds.features.Tensor(shape=shape, dtype=kind, encoding='bytes')
  )
  template = tfds.core.ShardedFileTemplate(dataset_name=name, data_dir=folder, filetype_suffix='array_record')
  licence = meta.get('licence', '')
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features={field: feature(*kind) for field, kind in codec.FIELDS.items()},
    split_infos=[
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard['count'] for shard in some],
        num_bytes=sum(shard['bytes'] for shard in some),
        filename_template=template,
      )
      for split, some in splits.items()
    ],
    version=version,
    filename_template=template,
    check_data=False,
    description=f'{name}: clips with depth and cameras. Fields and their codes: one4d_jax/data/codec.py',
    license=licence if isinstance(licence, str) else '; '.join(licence),
  )
