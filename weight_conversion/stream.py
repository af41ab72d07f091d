"""Safetensors files written tensor by tensor.

``safetensors.save_file`` needs every tensor in memory at once: 33 GB for the 14B network, whose release is a single
file. The container is small enough to be written here: the length of the header (8 bytes, little-endian), a JSON
header ``{name: {dtype, shape, data_offsets}}`` padded with spaces to a multiple of 8, then the tensors without gaps.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

DTYPES = {'float64': 'F64', 'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}
SHARD_BYTES = 5 * 10**9


class Lazy(NamedTuple):
  """A tensor that is made when it is written."""

  shape: tuple[int, ...]
  dtype: str  # NumPy's name, 'bfloat16' included
  read: Callable[[], np.ndarray]

  @property
  def bytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def write_safetensors(
  path: str | os.PathLike,
  tensors: Mapping[str, Lazy],
  *,
  metadata: Mapping[str, str] | None = None,
  progress: Callable[[int], None] = lambda count: None,
) -> None:
  """Writes ``tensors`` under a temporary name, one in memory at a time, and renames.

  Args:
    metadata: text for the header, beside ``format: pt`` that PyTorch's readers ask for.
    progress: told the bytes of each tensor once it is written.

  Raises:
    ValueError: a tensor differs from its announced shape or dtype. Nothing is left on disk then.
  """
  path = pathlib.Path(path)
  # Wide dtypes first, as the library does it: then every tensor is aligned to its own width.
  order = sorted(tensors, key=lambda name: -np.dtype(tensors[name].dtype).itemsize)
  header, end = {'__metadata__': {'format': 'pt', **(metadata or {})}}, 0
  for name in order:
    tensor, start = tensors[name], end
    end += tensor.bytes
    header[name] = {'dtype': DTYPES[tensor.dtype], 'shape': tensor.shape, 'data_offsets': (start, end)}
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  partial = path.with_name(path.name + '.partial')
  try:
    with partial.open('wb') as file:
      file.write(len(text).to_bytes(8, 'little') + text)
      for name in order:
        value = tensors[name].read()
        if (value.shape, value.dtype.name) != (tensors[name].shape, tensors[name].dtype):
          raise ValueError(f'{name} is {value.dtype.name} {value.shape}, announced was {tensors[name][:2]}')
        file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        progress(tensors[name].bytes)
      file.flush()
      os.fsync(file.fileno())
    partial.rename(path)
  finally:
    partial.unlink(missing_ok=True)


def write_shards(
  folder: pathlib.Path,
  stem: str,
  tensors: Mapping[str, Lazy],
  *,
  limit: int = SHARD_BYTES,
  progress: Callable[[int], None] = lambda count: None,
) -> None:
  """``<stem>.safetensors``, or shards of at most ``limit`` bytes with ``<stem>.safetensors.index.json``, as diffusers
  and transformers read them. A tensor above the limit gets a shard of its own."""
  shards, size = [{}], 0
  for name, tensor in tensors.items():
    if shards[-1] and size + tensor.bytes > limit:
      shards.append({})
      size = 0
    shards[-1][name] = tensor
    size += tensor.bytes
  if len(shards) == 1:
    write_safetensors(folder / f'{stem}.safetensors', tensors, progress=progress)
    return
  files = [f'{stem}-{i:05}-of-{len(shards):05}.safetensors' for i in range(1, len(shards) + 1)]
  for file, shard in zip(files, shards, strict=True):
    write_safetensors(folder / file, shard, progress=progress)
  index = {
    'metadata': {'total_size': sum(tensor.bytes for tensor in tensors.values())},
    'weight_map': {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
  }
  (folder / f'{stem}.safetensors.index.json').write_text(json.dumps(index, indent=2))
