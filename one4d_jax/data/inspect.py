"""What a data set or one file of it holds, in words, and a clip of it as a scene for the viewer."""

import collections
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from one4d_jax.data import codec, example, prepared, shards
from one4d_jax.data.clip import Clip
from one4d_jax.errors import DataError
from one4d_jax.model import pointmap

_LISTED = 8  # things of a kind that are named before the rest is counted
_LONGEST = 160  # characters of a value that is shown


def describe(path: str | os.PathLike) -> str:
  """Several lines about a prepared set, a set of ``shards``, a folder of such sets, or one ArrayRecord file.

  Raises DataError where there is nothing of the kind, or it is incomplete.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return '\n'.join(_about_file(path))
  kinds = {prepared.INDEX: _about_prepared, shards.INDEX: _about_shards}
  for index, about in kinds.items():
    if (path / index).is_file():
      return '\n'.join(about(path))
  inside = sorted(found for index in kinds for depth in ('*', '*/*') for found in path.glob(f'{depth}/{index}'))
  sets = [found for found in inside if not any(part.startswith('.') for part in found.relative_to(path).parts)]
  if not sets:
    raise DataError(f'{path} holds no data set; give what `prepare` or `encode` wrote, or one .array_record file')
  return '\n\n'.join('\n'.join(kinds[found.name](found.parent)) for found in sets)


def clip_of(path: str | os.PathLike, index: int, split: str = 'train') -> Clip:
  """Clip ``index`` of a prepared set's split, or of one of its files, where ``split`` means nothing.

  Raises DataError where there is no such clip.
  """
  path = pathlib.Path(path)
  if (path / shards.INDEX).is_file():
    raise DataError(f'{path} holds no clips but what networks made of them; give the prepared set')
  if path.is_file():
    count, where = shards.facts(path)['count'], f'{path}'
    read = lambda: codec.decode(prepared.deserialise(next(shards.read_file(path, [index]))))
  else:
    source = prepared.open(path, split)
    count, where, read = len(source), f'{split} of {path}', lambda: source[index]
  if not 0 <= index < count:
    raise DataError(f'{where} has no clip {index}; choose from 0 to {count - 1}')
  return read()


def write_scene(
  path: str | os.PathLike, index: int, out: str | os.PathLike, *, split: str = 'train', overwrite: bool = False
) -> list[pathlib.Path]:
  """Writes a clip as a scene folder, ready for ``view``; the paths of its files.

  Raises DataError as ``clip_of`` and where ``out`` is taken.
  """
  from one4d_jax.viewer import export

  export.check_out(out, overwrite=overwrite)
  clip = clip_of(path, index, split)
  run = {'data': str(path), 'index': index, 'split': split, 'caption': clip.caption, 'clip': clip.meta}
  return export.write_scene(scene_of(clip), out, run=run, fps=clip.meta.get('fps', 16), overwrite=overwrite)


def scene_of(clip: Clip):
  """A clip as ``viewer.scene.Scene``, with all frames observed; in metres where the set says so."""
  from one4d_jax.viewer.scene import Scene

  return Scene(
    rgb=clip.rgb,
    pointmap=pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam),
    depth=clip.depth,
    valid=clip.valid,
    K=clip.K,
    world_from_cam=np.linalg.inv(clip.world_from_cam[0].astype(np.float64)) @ clip.world_from_cam,
    observed=np.ones(clip.frames, bool),
    residual=np.zeros(clip.frames),
    scale=1 if clip.meta.get('metric') else np.nan,
  )


def _about_prepared(folder: pathlib.Path) -> list[str]:
  index = prepared.read_index(folder)
  rows = {split: prepared.open(folder, split).rows for split in index['splits']}
  lines = [f'{folder}: prepared clips, {index["name"]} {index["version"]}']
  for split, some in index['splits'].items():
    lines.append(f'  {split}: {len(rows[split]):,} clips, {_files(some)}')
  every = [row for some in rows.values() for row in some]
  lines += _section('sizes', _counted('x'.join(map(str, row['size'])) for row in every if 'size' in row))
  lines += _section('scenes', _counted(row['scene'] for row in every if 'scene' in row))
  lines += _section('dropped for', _counted(reason for row in every for reason in row.get('reasons', ())))
  lines += _section('statistics (lowest, 5%, median, 95%, highest)', _statistics(every))
  lines += _section('record', [f'{name}: {_kind(*field)}' for name, field in codec.FIELDS.items()])
  return lines + _section('about', _facts(index['meta']))


def _about_shards(folder: pathlib.Path) -> list[str]:
  index = shards.read_index(folder)
  lines = [f'{folder}: {index["count"]:,} records, {_files(index["shards"])}']
  schema = index['schema'].items()
  lines += _section('record', [f'{name}: {_kind(field["dtype"], field["shape"])}' for name, field in schema])
  return lines + _section('about', _facts(index['meta']))


def _about_file(path: pathlib.Path) -> list[str]:
  facts = shards.facts(path)
  lines = [f'{path}: {facts["count"]:,} records, {facts["bytes"] / 1e6:,.1f} MB, sha256 {facts["sha256"]}']
  if not facts['count']:
    return lines
  record = _any_record(next(shards.read_file(path, [0])))
  show = lambda value: value if isinstance(value, str) else _kind(value.dtype, value.shape)
  return lines + _section('first record', [f'{name}: {_short(show(value))}' for name, value in record.items()])


def _any_record(payload: bytes) -> Mapping[str, np.ndarray | str]:
  """Of a prepared set, of ``shards``, or of another's TFDS set, as bytes."""
  try:
    return prepared.deserialise(payload)
  except DataError:
    pass
  try:
    return shards.decode(payload)
  except DataError:
    pass
  try:
    return {name: np.frombuffer(value, np.uint8) for name, value in example.unpack(payload).items()}
  except DataError:
    return {'payload': np.frombuffer(payload, np.uint8)}


def _section(title: str, lines: Sequence[str]) -> list[str]:
  return [title, *(f'  {line}' for line in lines)] if lines else []


def _files(some: Sequence[dict]) -> str:
  return f'{len(some)} file{"s" * (len(some) != 1)}, {sum(file["bytes"] for file in some) / 1e6:,.1f} MB'


def _counted(names: Iterable[str]) -> list[str]:
  """How often each occurs, the most frequent first."""
  counts = collections.Counter(names).most_common()
  lines = [f'{name}: {count:,}' for name, count in counts[:_LISTED]]
  rest = [count for _, count in counts[_LISTED:]]
  return [*lines, f'{len(rest):,} others: {sum(rest):,}'] if rest else lines


def _statistics(rows: Sequence[dict]) -> list[str]:
  """The spread of every number; what is text or missing is left out."""
  values = collections.defaultdict(list)
  for row in rows:
    for name, value in row.get('statistics', {}).items():
      if isinstance(value, int | float) and np.isfinite(value):
        values[name].append(value)
  spread = lambda some: ' '.join(f'{q:.4g}' for q in np.quantile(some, [0, 0.05, 0.5, 0.95, 1]))
  return [f'{name}: {spread(some)}' for name, some in values.items()]


def _facts(meta: Mapping) -> list[str]:
  """Facts about the set, nested ones below their name; long lists and texts are cut."""
  lines = []
  for name, value in meta.items():
    if isinstance(value, Mapping):
      lines += _section(name, _facts(value))
    elif isinstance(value, list) and len(value) > _LISTED:
      lines.append(f'{name}: {_short(value[:_LISTED])} and {len(value) - _LISTED:,} more')
    else:
      lines.append(f'{name}: {_short(value)}')
  return lines


def _kind(dtype, shape: Sequence[int | None]) -> str:
  if dtype in (str, 'str'):
    return 'text'
  return f'{np.dtype(dtype).name} [{" ".join("n" if size is None else str(size) for size in shape)}]'


def _short(value) -> str:
  text = ' '.join(str(value).split())
  return text if len(text) <= _LONGEST else f'{text[:_LONGEST]} …'
