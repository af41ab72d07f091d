"""A folder of records on disk: ArrayRecord shards of safetensors bytes, and `dataset.json` that says what they hold.

A record is a dict of arrays and strings. Shards have one record a group, so any record is read alone. A folder is
written as `<name>.partial` and renamed when whole: one with the right name is complete, and a killed write starts anew.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import safetensors.numpy
import tqdm
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from one4d_jax.errors import DataError

FORMAT = 1
INDEX = 'dataset.json'
_OPTIONS = 'group_size:1,zstd:1'
_STRING = 'str'

Record = Mapping[str, np.ndarray | bytes | str]


def write(
  folder: str | os.PathLike,
  records: Iterable[Record],
  *,
  meta: dict | None = None,
  shard_records: int = 512,
  total: int | None = None,
  desc: str | None = None,
) -> dict:
  """Writes `records` to the new folder `folder`; returns the content of its `dataset.json`.

  Args:
    folder: must not exist yet.
    records: all with the same names and dtypes; lengths may differ. `bytes` are stored, and come back, as uint8 [n].
    meta: JSON-able facts about the whole set (generator, configuration, hashes).
    shard_records: records per file.
    total: how many records will come, for the progress bar.
    desc: label of the progress bar; no bar without it.

  Raises:
    DataError: the folder exists, there are no records, or one cannot be stored or differs from the first.
  """
  folder = pathlib.Path(folder)
  if folder.exists():
    raise DataError(f'{folder} already exists; remove it or write to another folder')
  if shard_records < 1:
    raise DataError(f'shard_records must be 1 or more; got {shard_records}')
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    index = _write_shards(
      partial, tqdm.tqdm(records, desc=desc, total=total, unit='record', disable=desc is None), shard_records
    )
    index['meta'] = meta or {}
    (partial / INDEX).write_text(json.dumps(index, indent=1) + '\n')
    partial.rename(folder)
  except BaseException:  # also ctrl-C: nothing half-written stays
    shutil.rmtree(partial, ignore_errors=True)
    raise
  return index


def write_file(path: str | os.PathLike, payloads: Iterable[bytes]) -> dict:
  """Writes one ArrayRecord file with a record for each payload, maybe none; returns its `facts`.

  It takes its name, and the place of an older file, only once it is whole.

  Raises:
    DataError: it cannot be written: no such folder, no permission, no space left.
  """
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.partial')
  try:
    writer = ArrayRecordWriter(str(partial), _OPTIONS)
    for payload in payloads:
      with _writing(path):
        writer.write(payload)
    with _writing(path):
      writer.close()  # a full disk is often not told before
      about = facts(partial) | {'file': path.name}
      partial.rename(path)
  except BaseException:  # also ctrl-C, and what `payloads` raises
    partial.unlink(missing_ok=True)
    raise
  return about


def read_file(path: str | os.PathLike, indices: Iterable[int] | None = None) -> Iterator[bytes]:
  """The payloads of one ArrayRecord file, all in order or some. Raises DataError where it is missing or damaged."""
  reader = _reader(path)
  for i in range(reader.num_records()) if indices is None else indices:
    try:
      payload = reader.read([i])[0]
    except RuntimeError as error:
      raise DataError(f'{path}: record {i} is damaged: {error}') from error
    yield payload


def facts(path: str | os.PathLike) -> dict:
  """{'file': name, 'count': records, 'bytes': size, 'sha256': hexadecimal} of an ArrayRecord file.

  Raises DataError where it is missing, none, or cut short.
  """
  path = pathlib.Path(path)
  count = _reader(path).num_records()
  return {'file': path.name, 'count': count, 'bytes': path.stat().st_size, 'sha256': sha256(path)}


def open(folder: str | os.PathLike) -> 'Source':
  """The records of a folder, by number. Raises DataError if the folder is missing, incomplete or damaged."""
  return Source(folder)


def read_index(folder: str | os.PathLike) -> dict:
  """Content of `dataset.json`: format, count, schema, shards, meta. Raises DataError if it or a shard is missing."""
  folder = pathlib.Path(folder)
  partial = folder.with_name(folder.name + '.partial')
  if not folder.is_dir():
    why = ' (its writing was interrupted)' if partial.is_dir() else ''
    raise DataError(f'no data set at {folder}{why}; build it, or give the folder that holds {INDEX}')
  if not (folder / INDEX).is_file():
    raise DataError(f'{folder} has no {INDEX}, so it is no complete data set; build it again')
  try:
    index = json.loads((folder / INDEX).read_text())
    found = index['format']
    files = [(folder / shard['file'], shard['bytes']) for shard in index['shards']]
    check_facts(index['shards'])
    if not isinstance(index['count'], int) or not isinstance(index['meta'], dict):
      raise TypeError('count or meta')
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise DataError(f'{folder / INDEX} cannot be read ({error!r}); build the data set again') from error
  if found != FORMAT:
    raise DataError(f'{folder} has data format {found}, this version reads {FORMAT}; build the data set again')
  for path, size in files:
    if not path.is_file() or path.stat().st_size != size:
      raise DataError(f'{path} is missing or incomplete (expected {size} bytes); copy it again or rebuild the data set')
  return index


def check_facts(some: Iterable[dict]) -> None:
  """Raises LookupError or TypeError where these are not what `facts` gives."""
  for file in some:
    kinds = {'file': str, 'count': int, 'bytes': int, 'sha256': str}
    if wrong := [name for name, kind in kinds.items() if not isinstance(file[name], kind)]:
      raise TypeError(f'{wrong[0]} of a file')


def verify(folder: str | os.PathLike) -> None:
  """Compares every shard with its SHA-256. Raises DataError at the first that differs."""
  for shard in read_index(folder)['shards']:
    path = pathlib.Path(folder) / shard['file']
    if sha256(path) != shard['sha256']:
      raise DataError(f'{path} does not match its checksum; copy it again or rebuild the data set')


class Source:
  """Random access to records: `len(source)`, `source[i] -> dict`. Can be pickled; safe to read from several threads.

  Attributes:
    index: content of `dataset.json`.
    meta: its `meta`.
    fingerprint: a hash of the content; keep it next to a reader's position, which means nothing in another data set.
  """

  def __init__(self, folder: str | os.PathLike):
    self.index = read_index(folder)
    self.meta = self.index['meta']
    hashes = ''.join(shard['sha256'] for shard in self.index['shards'])
    self.fingerprint = hashlib.sha256(hashes.encode()).hexdigest()
    self._folder = str(folder)
    self._bytes = records(folder, self.index['shards'])

  def __len__(self) -> int:
    return self.index['count']

  def __getitem__(self, i: int) -> dict[str, np.ndarray | str]:
    if not -len(self) <= i < len(self):
      raise IndexError(f'record {i} of {len(self)}')
    try:
      return decode(self._bytes[int(i) % len(self)])
    except (RuntimeError, ValueError, IndexError) as error:
      raise DataError(f'{self._folder}: record {i} is damaged: {error}; copy it again') from error

  def __repr__(self) -> str:
    return f'Source({self._folder!r}, {len(self)} records)'


def encode(record: Record) -> bytes:
  """A record as safetensors bytes, the same for the same record; strings go to its metadata.

  Raises DataError for a dtype it has no name for.
  """
  strings = {name: value for name, value in record.items() if isinstance(value, str)}
  arrays = {name: _array(name, value) for name, value in record.items() if name not in strings}
  data = safetensors.numpy.save(arrays, metadata=strings or None)
  end = 8 + int.from_bytes(data[:8], 'little')  # of a header whose strings are in no particular order
  header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(',', ':')).encode()
  header += b' ' * (-len(header) % 8)
  return len(header).to_bytes(8, 'little') + header + data[end:]


def decode(data: bytes) -> dict[str, np.ndarray | str]:
  """Inverse of `encode`; the arrays may be written to. Raises DataError where the bytes are no such record."""
  try:
    arrays = safetensors.numpy.load(data)  # before the strings, as it checks the header
  except (safetensors.SafetensorError, KeyError) as error:  # KeyError for a dtype that NumPy lacks
    raise DataError(f'it is no safetensors of NumPy arrays: {error}') from error
  header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
  return {**arrays, **(header.get('__metadata__') or {})}


def _array(name: str, value) -> np.ndarray:
  if isinstance(value, bytes):
    value = np.frombuffer(value, np.uint8)
  value = np.asarray(value)
  if value.dtype.kind not in 'biuf' or not value.dtype.isnative:
    raise DataError(f'cannot store {name!r} of dtype {value.dtype}; use bool, integers, float16, float32 or float64')
  return value if value.flags.c_contiguous else value.copy(order='C')  # safetensors writes the raw buffer


def _write_shards(folder: pathlib.Path, records: Iterable[Record], shard_records: int) -> dict:
  shards, schema = [], None

  def payloads():
    nonlocal schema
    for number, record in enumerate(records):
      schema = _merge_schema(schema, _schema(record), number)
      yield encode(record)

  stream = payloads()
  for first in stream:
    group = itertools.chain([first], itertools.islice(stream, shard_records - 1))
    shards.append(write_file(folder / f'data-{len(shards):05d}.array_record', group))
  if not shards:
    raise DataError(f'no records to write to {folder.with_suffix("")}')
  return {'format': FORMAT, 'count': sum(shard['count'] for shard in shards), 'schema': schema, 'shards': shards}


def _schema(record: Record) -> dict:
  """name -> {dtype, shape}; strings have dtype 'str'."""
  fields = {}
  for name, value in record.items():
    if isinstance(value, str):
      fields[name] = {'dtype': _STRING, 'shape': []}
    else:
      array = _array(name, value)
      fields[name] = {'dtype': array.dtype.name, 'shape': list(array.shape)}
  return fields


def _merge_schema(known: dict | None, new: dict, number: int) -> dict:
  """The schema that covers both, with None where sizes differ."""
  if known is None:
    return new
  kind = lambda fields: {name: (field['dtype'], len(field['shape'])) for name, field in fields.items()}
  if kind(known) != kind(new):
    raise DataError(f'record {number} holds {kind(new)}, the ones before {kind(known)}; give all the same fields')
  for name, field in known.items():
    pairs = zip(field['shape'], new[name]['shape'], strict=True)
    field['shape'] = [a if a == b else None for a, b in pairs]
  return known


@contextlib.contextmanager
def _writing(path: pathlib.Path):
  """Whatever the writer raises -> DataError."""
  try:
    yield
  except (OSError, RuntimeError) as error:
    raise DataError(f'{path} cannot be written ({error}); free space, or write to another folder') from error


def records(folder: str | os.PathLike, some: Sequence[dict]) -> ArrayRecordDataSource:
  """The payloads of these files (their `facts`), by number over all. Raises DataError where they cannot be read."""
  try:
    return ArrayRecordDataSource([str(pathlib.Path(folder) / file['file']) for file in some])
  except (RuntimeError, ValueError) as error:
    raise DataError(f'{folder} cannot be read as ArrayRecord files: {error}') from error


def _reader(path: str | os.PathLike) -> ArrayRecordReader:
  reader = ArrayRecordReader(str(path), 'readahead_buffer_size:0')
  if not reader.ok():  # it raises nothing of its own, and a damaged file seems to have no records
    try:
      reader.close()
    except RuntimeError as error:
      raise DataError(f'{path} cannot be read as ArrayRecord: {error}') from error
  return reader


def sha256(path: pathlib.Path) -> str:
  """Of a file, in hexadecimal."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
