"""Find the files of a Wan release and read single tensors out of them.

A release is a folder in the native layout or in that of diffusers, or one safetensors file. What a file holds is told
by the names of its tensors (``tables.detect``), never by the folder's name. Nothing is read whole: files are opened for
a few tensors and closed again, so that no more of their mapped pages stay resident.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from one4d_jax.errors import CheckpointError
from weight_conversion import tables
from weight_conversion.rules import Tensor

# Where each part may lie in a release, without the suffix: the native layout, its folders, diffusers' folders.
PLACES = {
  'base': ('diffusion_pytorch_model', 'transformer/diffusion_pytorch_model'),
  'vae': ('Wan2.1_VAE', 'vae/diffusion_pytorch_model', 'diffusion_pytorch_model'),
  'text': ('models_t5_umt5-xxl-enc-bf16', 'text_encoder/model', 'text_encoder/pytorch_model', 'model'),
  'image': (
    'models_clip_open-clip-xlm-roberta-large-vit-huge-14',
    'image_encoder/model',
    'image_encoder/pytorch_model',
    'model',
  ),
}
TOKENIZERS = ('google/umt5-xxl', 'tokenizer', '')  # folders with spiece.model

# Whole files are wrapped in these by ComfyUI, VideoX-Fun and transformers; inside they are all the same names.
PREFIXES = ('model.diffusion_model.', 'diffusion_model.', 'model.', 'vision_model.')
TORCH = ('.pth', '.pt', '.bin')
MAPPED_BYTES = 512 << 20  # read from one mapping of a torch file
DTYPES = {
  'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16', 'F8_E4M3': 'float8_e4m3fn',
  'F8_E5M2': 'float8_e5m2', 'I64': 'int64', 'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U64': 'uint64',
  'U32': 'uint32', 'U16': 'uint16', 'U8': 'uint8', 'BOOL': 'bool',
}  # fmt: skip


class Safetensors:
  """One ``.safetensors`` file. The library checks it and tells what it holds; bytes are read where they lie.

  The library's own ``get_tensor`` copies out of a mapping, which takes three times as long, and keeps the file in the
  page cache, where 33 GB that are read once push out everything else.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path

  def tensors(self) -> dict[str, Tensor]:
    return {name: tensor for name, (_, tensor) in self._places.items()}

  def read(self, name: str, rows: slice | None) -> np.ndarray:
    offset, (shape, dtype) = self._places[name]
    dtype = np.dtype(dtype)
    if rows is not None:
      start, stop, _ = rows.indices(shape[0])
      offset += start * math.prod(shape[1:]) * dtype.itemsize
      shape = (stop - start, *shape[1:])
    with self.path.open('rb') as file:
      value = np.fromfile(file, f'u{dtype.itemsize}', math.prod(shape), offset=offset)
      if value.size != math.prod(shape):
        raise CheckpointError(f'{self.path} ends inside {name}: it was changed while it was read; start again')
      if hasattr(os, 'posix_fadvise'):
        os.posix_fadvise(file.fileno(), offset, value.nbytes, os.POSIX_FADV_DONTNEED)
    return value.view(dtype).reshape(shape)

  def check(self, seen: Callable[[int], None]) -> None:
    """The header was checked on opening; the format has no sums of its own."""

  @functools.cached_property
  def _places(self) -> dict[str, tuple[int, Tensor]]:
    """``name -> (byte in the file, shape and dtype)``: after the header, tensors follow each other without gaps."""
    try:
      with safetensors.safe_open(self.path, 'numpy') as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        known = {n: Tensor(tuple(s.get_shape()), DTYPES[s.get_dtype()]) for n, s in slices.items()}
    except KeyError as error:
      raise CheckpointError(f'{self.path} holds tensors of the dtype {error}; take a release of bfloat16') from error
    except safetensors.SafetensorError as error:
      raise CheckpointError(f'{self.path} is not a whole safetensors file ({error}); download it again') from error
    with self.path.open('rb') as file:
      offset = 8 + int.from_bytes(file.read(8), 'little')
    found = {}
    for name, tensor in known.items():
      found[name] = offset, tensor
      offset += math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
    return found


class Torch:
  """One ``.pth`` or ``.bin`` file, a flat dict of tensors, opened by torch without running any code in it."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._mapped, self._touched = None, 0
    if importlib.util.find_spec('torch') is None:
      raise CheckpointError(f"{path.name} needs torch to be read: pip install -e '.[convert]'")

  def tensors(self) -> dict[str, Tensor]:
    found = self._load()
    wrong = [name for name, value in found.items() if not hasattr(value, 'untyped_storage')]
    if wrong:
      raise CheckpointError(f'{self.path} must be a flat dict of tensors; {wrong[:5]} are none')
    return {n: Tensor(tuple(t.shape), str(t.dtype).removeprefix('torch.')) for n, t in found.items()}

  def read(self, name: str, rows: slice | None) -> np.ndarray:
    import torch

    mapped = self._mapped or self._load()
    value = (mapped[name] if rows is None else mapped[name][rows]).contiguous()
    # Opening costs as much as reading a large tensor, but the pages of one mapping stay resident: reopen now and then.
    self._touched += value.nbytes
    self._mapped, self._touched = (mapped, self._touched) if self._touched < MAPPED_BYTES else (None, 0)
    if value.dtype == torch.bfloat16:
      return value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()

  def check(self, seen: Callable[[int], None]) -> None:
    """Every entry of the zip archive against its CRC-32, which torch does not look at."""
    with zipfile.ZipFile(self.path) as archive:
      for entry in archive.infolist():
        try:
          with archive.open(entry) as stream:
            while block := stream.read(1 << 22):
              seen(len(block))
        except zipfile.BadZipFile as error:
          raise CheckpointError(f'{self.path} is damaged ({error}); download it again') from error

  def _load(self) -> Mapping[str, Any]:
    import torch

    try:
      found = torch.load(self.path, map_location='cpu', weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError) as error:
      reason = str(error).split('. ')[0]
      raise CheckpointError(f'{self.path} is not a whole torch file ({reason}); download it again') from error
    except Exception as error:  # pickle.UnpicklingError: anything but tensors
      refused = re.search(r'(?:GLOBAL|class|function) (\S+)', str(error))
      what = f' ({refused[1]})' if refused else ''
      raise CheckpointError(
        f'{self.path} holds pickled code{what}, not just tensors, and was not opened; use the original release'
      ) from error
    if not isinstance(found, Mapping):
      raise CheckpointError(f'{self.path} must be a flat dict of tensors, got {type(found).__name__}')
    return found


@dataclasses.dataclass(frozen=True)
class Source:
  """One part of a release. ``tensors`` and ``read`` use the layout's plain names, without wrapping prefixes."""

  part: str  # of the bundle: 'base', 'vae', 'text', 'image'
  layout: str  # 'native' or 'diffusers'
  tensors: dict[str, Tensor]
  described: dict[str, Any]  # config.json, {} where there is none
  files: tuple[Safetensors | Torch, ...]
  places: dict[str, tuple[Safetensors | Torch, str]] = dataclasses.field(repr=False)  # name -> file, name in it

  def read(self, name: str, rows: slice | None = None) -> np.ndarray:
    """One tensor, or those of its rows, in its stored dtype."""
    file, stored = self.places[name]
    return file.read(stored, rows)

  @property
  def bytes_to_check(self) -> int:
    """What ``check`` will read."""
    sums = lambda file: isinstance(file, Torch) + bool(published_sha256(file.path))
    return sum(sums(file) * file.path.stat().st_size for file in self.files)

  def fingerprint(self) -> list:
    """Changes when a file does: names, sizes, times."""
    return [[f.path.name, f.path.stat().st_size, f.path.stat().st_mtime_ns] for f in self.files]

  def check(self, seen: Callable[[int], None] = lambda count: None) -> dict[str, str | None]:
    """SHA-256 of each file whose publisher states one, None for the others; ``seen`` is told of bytes as they pass.

    Raises:
      CheckpointError: a file differs from what its publisher states, or fails its own sums.
    """
    hashes = {}
    for file in self.files:
      file.check(seen)
      expected = published_sha256(file.path)
      if expected and (got := sha256(file.path, seen)) != expected:
        raise CheckpointError(f'{file.path} has SHA-256 {got}, published is {expected}: damaged; download it again')
      hashes[file.path.name] = expected
    return hashes


def sha256(path: pathlib.Path, seen: Callable[[int], None] = lambda count: None) -> str:
  digest = hashlib.sha256()
  with path.open('rb', buffering=0) as stream:
    while block := stream.read(1 << 22):
      digest.update(block)
      seen(len(block))
  return digest.hexdigest()


def published_sha256(path: pathlib.Path) -> str | None:
  """What the publisher says the SHA-256 of a file is, where the download left a record of it.

  Read from, in this order: the hub's cache (a link to ``blobs/<sha256>``), its notes beside a plain download
  (``.cache/huggingface/download/<file>.metadata``, second line), a ``SHA256SUMS`` file in the same folder.
  """
  is_hash = re.compile('[0-9a-f]{64}').fullmatch
  target = path.resolve()
  if target.parent.name == 'blobs' and is_hash(target.name):
    return target.name
  for folder in (path.parent, path.parent.parent):
    note = folder / '.cache/huggingface/download' / f'{path.relative_to(folder)}.metadata'
    lines = note.read_text().split('\n') if note.is_file() else []
    if len(lines) > 1 and is_hash(lines[1].strip()):
      return lines[1].strip()
  sums = path.parent / 'SHA256SUMS'
  for line in sums.read_text().splitlines() if sums.is_file() else ():
    value, _, name = line.partition(' ')
    if name.strip().lstrip('*') == path.name and is_hash(value):
      return value
  return None


def find(src: pathlib.Path, part: str) -> Source | None:
  """One part of the release at ``src`` (a folder or a file), None if it is not there.

  Raises:
    CheckpointError: a file of it that is missing, damaged or not what an index says.
  """
  if src.is_file():
    source = _open((_file(src),), src.parent)
    return source if source.part == part else None
  for place in PLACES[part]:
    files = _resolve(src / place)
    if files:
      source = _open(files, (src / place).parent)
      if source.part == part:
        return source
  return None


def find_tokenizer(src: pathlib.Path) -> pathlib.Path:
  """The ``spiece.model`` of a release; raises CheckpointError if it has none."""
  folder = src if src.is_dir() else src.parent
  for place in TOKENIZERS:
    if (folder / place / 'spiece.model').is_file():
      return folder / place / 'spiece.model'
  raise CheckpointError(f'{src} has no google/umt5-xxl/spiece.model (or tokenizer/spiece.model), which umt5 needs')


def expected(part: str) -> str:
  """For messages: where a part is looked for."""
  suffix = 'safetensors' if part == 'base' else '(pth|safetensors)'
  return ' or '.join(f'{place}.{suffix}' for place in PLACES[part][:2])


def _file(path: pathlib.Path) -> Safetensors | Torch:
  if path.suffix not in ('.safetensors', *TORCH):
    raise CheckpointError(f'{path} is neither a safetensors nor a torch file; other formats are not read')
  return Safetensors(path) if path.suffix == '.safetensors' else Torch(path)


def _resolve(stem: pathlib.Path) -> tuple[Safetensors | Torch, ...]:
  """The file, or all shards, with this stem; empty if there is neither."""
  for suffix in ('.safetensors', *TORCH):
    path = stem.with_name(stem.name + suffix)
    if path.is_file():
      return (_file(path),)
    index = path.with_name(path.name + '.index.json')
    if index.is_file():
      return _shards(index)
  orphans = sorted(stem.parent.glob(f'{stem.name}-*-of-*'))
  if orphans:
    raise CheckpointError(f'{orphans[0].parent} has shards but no {stem.name}.safetensors.index.json; download it too')
  return ()


def _shards(index: pathlib.Path) -> tuple[Safetensors | Torch, ...]:
  try:
    listed = json.loads(index.read_text())['weight_map']
  except (ValueError, KeyError) as error:
    raise CheckpointError(f'{index} is not a shard index ({error}); download it again') from error
  names = sorted(set(listed.values()))
  absent = [name for name in names if not (index.parent / name).is_file()]
  if absent:
    raise CheckpointError(f'{index.parent} lacks {len(absent)} of {len(names)} shards: {absent[:8]}; download them')
  files = tuple(_file(index.parent / name) for name in names)
  for file in files:
    due = {name for name, where in listed.items() if where == file.path.name}
    if wrong := due ^ set(file.tensors()):
      raise CheckpointError(f'{file.path} and {index.name} disagree on {sorted(wrong)[:5]}; download both again')
  return files


def _open(files: tuple[Safetensors | Torch, ...], folder: pathlib.Path) -> Source:
  tensors, places = {}, {}
  for file in files:
    for name, tensor in file.tensors().items():
      if name in tensors:
        raise CheckpointError(f'{name} is in {file.path.name} and in {places[name][0].path.name}')
      tensors[name], places[name] = tensor, (file, name)
  for prefix in PREFIXES:
    wrapped = [name.startswith(prefix) for name in tensors]
    if all(wrapped) or (prefix == 'vision_model.' and any(wrapped)):
      plain = {name: name.removeprefix(prefix) for name in tensors}
      tensors = {plain[name]: tensor for name, tensor in tensors.items()}
      places = {plain[name]: place for name, place in places.items()}
  try:
    part, layout = tables.detect(tensors)
  except CheckpointError as error:
    raise CheckpointError(f'{files[0].path}: {error}') from error
  config = folder / 'config.json'
  try:
    described = json.loads(config.read_text()) if config.is_file() else {}
  except ValueError as error:
    raise CheckpointError(f'{config} is not JSON ({error}); download it again') from error
  return Source(part, layout, tensors, described, files, places)
