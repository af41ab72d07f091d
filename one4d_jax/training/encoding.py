"""An encoded set in the making: its shards, each whole or absent; its index; how well it decodes.

A shard is one file and a small JSON beside it, which says that it is finished. ``dataset.json`` is written once all
are, so a set that can be opened is complete.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import safetensors.numpy
from PIL import Image
from tqdm import tqdm

from one4d_jax.data import shards as files
from one4d_jax.data.clip import signed
from one4d_jax.data.procedural import to_record
from one4d_jax.errors import DataError
from one4d_jax.model import pointmap
from one4d_jax.model.files import write_whole
from one4d_jax.training import latents
from one4d_jax.training.sets import CONSTANTS
from one4d_jax.viewer.pictures import video_sheet
from one4d_jax.wan.vae import latent_grid

REPORT = 'report.json'
PSNR = 30.0  # dB that decoded frames of a VAE that fits the data reach
_SHARD_BYTES, _SHARD_RECORDS = 2**29, 512  # of a shard, about and at most
_READERS = 4  # threads that decode clips


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of the result and the clips that go into it."""

  folder: pathlib.Path
  number: int
  split: str
  rows: tuple[int, ...]  # of the split

  @property
  def path(self) -> pathlib.Path:
    return self.folder / f'data-{self.number:05d}.array_record'

  @functools.cached_property
  def done(self) -> dict | None:
    """What is said of it, once it is finished."""
    about = self.path.with_suffix('.json')
    if not about.is_file():
      return None
    try:
      said = json.loads(about.read_text())
      whole = self.path.is_file() and self.path.stat().st_size == said['bytes']
    except (ValueError, LookupError, TypeError):  # damaged: it is encoded again
      return None
    return said if whole else None


def plan(
  sources: Mapping[str, Sequence], out: pathlib.Path, *, shard_records: int | None, conditions: int
) -> list[Shard]:
  """All shards of the result: the same on every machine."""
  shards = []
  for split, source in sources.items():
    sizes = [tuple(row['size']) for row in source.rows]
    for size in sorted(set(sizes)):
      rows = [i for i, found in enumerate(sizes) if found == size]
      bytes_each = math.prod(latent_grid(*size)) * 16 * 2 * (2 + conditions)
      count = shard_records or max(1, min(_SHARD_RECORDS, _SHARD_BYTES // bytes_each))
      folder = out / f'{split}-{"x".join(map(str, size))}'
      starts = range(0, len(rows), count)
      shards += [Shard(folder, n, split, tuple(rows[start : start + count])) for n, start in enumerate(starts)]
  return shards


def write_json(path: pathlib.Path, value: dict) -> None:
  """Writes a small file whole."""
  write_whole(path, json.dumps(value, indent=1) + '\n')


# -- Shards --------------------------------------------------------------------------------------------------------


def write(own: Sequence[Shard], sources, encoder: Callable, *, strict: bool) -> None:
  """Encodes shards. A clip that cannot be is noted in the JSON of its shard or, if ``strict``, ends it: DataError."""
  total = sum(len(shard.rows) for shard in own)
  with (
    tqdm(total=total, desc='encode', unit='clip', disable=not own) as bar,
    concurrent.futures.ThreadPoolExecutor(_READERS) as pool,
  ):
    for shard in own:
      shard.folder.mkdir(exist_ok=True)
      source, failed, schema = sources[shard.split], {}, {}

      def note(i: int, error: DataError, rows=source.rows, failed=failed) -> None:
        if strict:
          raise DataError(f'{rows[i]["id"]}: {error}') from error
        failed[rows[i]['id']] = str(error)
        bar.set_postfix(failed=len(failed))

      def payloads(shard=shard, source=source, note=note, schema=schema) -> Iterator[bytes]:
        for record in _records(shard, source, encoder(), pool, bar, note):
          schema |= {} if schema else _schema(record)
          yield files.encode(record)

      found = files.write_file(shard.path, payloads())
      write_json(shard.path.with_suffix('.json'), found | {'failed': failed, 'schema': schema})


def _records(shard: Shard, source, encoder, pool, bar, note: Callable) -> Iterator[dict]:
  """Encoded clips of a shard in order; the next are decoded meanwhile. Clips that cannot be go to ``note``."""

  def read(i: int) -> dict:
    stored = source.record(i) if encoder.frames else {}
    return to_record(source[i]) | {name: stored[name] for name in latents.STORED if encoder.frames}

  size = encoder.batch(tuple(source.rows[shard.rows[0]]['size']))
  ask = lambda start: {i: pool.submit(read, i) for i in shard.rows[start : start + size]}
  ahead = ask(0)
  for start in range(0, len(shard.rows), size):
    asked, ahead = ahead, ask(start + size)
    clips = {}
    for i, future in asked.items():
      try:
        clips[i] = future.result()
      except DataError as error:
        note(i, error)
    yield from _encoded(clips, encoder, note)
    bar.update(len(asked))


def _encoded(clips: dict[int, dict], encoder, note: Callable) -> list[dict]:
  """Records of a group; if one of it cannot be encoded, of the others."""
  if not clips:
    return []
  try:
    return encoder(list(clips.values()), list(clips))
  except DataError as error:
    if len(clips) > 1:
      return [record for i, clip in clips.items() for record in _encoded({i: clip}, encoder, note)]
    note(*clips, error)
    return []


def _schema(record: dict) -> dict:
  """For ``dataset.json``; text and JPEGs are as long as they are."""
  free = lambda name, shape: [None, *shape[1:]] if name in ('text', 'jpeg') else list(shape)
  shape = lambda name, value: {'dtype': value.dtype.name, 'shape': free(name, value.shape)}
  return {k: {'dtype': 'str', 'shape': []} if isinstance(v, str) else shape(k, v) for k, v in record.items()}


def _by_folder(shards: Sequence[Shard]) -> dict[pathlib.Path, list[Shard]]:
  folders = {}
  for shard in shards:
    folders.setdefault(shard.folder, []).append(shard)
  return folders


# -- Index and report ----------------------------------------------------------------------------------------------


def finish(shards: Sequence[Shard], sources, encoder, settings: dict) -> None:
  """Writes constants and ``dataset.json`` of every folder that holds clips.

  Raises:
    DataError: not one clip could be encoded.
  """
  if not any(shard.done['count'] for shard in shards):
    raise DataError(f'no clip could be encoded, the first because: {_failed(shards)[0]["why"]}')
  null = encoder.text([''])[0]['text']
  constants = safetensors.numpy.save({'null': null.astype('float16')})
  for folder, parts in _by_folder(shards).items():
    kept = [shard.done for shard in parts if shard.done['count']]
    if not kept:
      continue
    write_whole(folder / CONSTANTS, constants)
    meta = settings | {
      'kind': 'latents',
      'value': 'posterior mean, normalised per channel',
      'split': parts[0].split,
      'size': list(sources[parts[0].split].rows[parts[0].rows[0]]['size']),
      'constants': hashlib.sha256(constants).hexdigest(),
    }
    index = {
      'format': files.FORMAT,
      'count': sum(found['count'] for found in kept),
      'schema': kept[0]['schema'],
      'shards': [{name: found[name] for name in ('file', 'count', 'bytes', 'sha256')} for found in kept],
      'meta': meta,
    }
    write_json(folder / files.INDEX, index)


def _failed(shards: Sequence[Shard]) -> list[dict]:
  return [{'id': name, 'why': why} for shard in shards for name, why in shard.done['failed'].items()]


def check(out: pathlib.Path, shards: Sequence[Shard], sources, encoder, tell: Callable[[str], None]) -> None:
  """Decodes about 1% of each folder, compares with the clips and writes report and pictures."""
  report = {}
  for folder, parts in _by_folder(shards).items():
    found = {'clips': sum(shard.done['count'] for shard in parts), 'failed': _failed(parts)}
    if found['clips']:
      checked, pictures = _sample(files.open(folder), sources[parts[0].split], encoder)
      mean = {name: round(float(np.mean([c[name] for c in checked])), 4) for name in ('psnr', 'pointmap_error')}
      found |= mean | {'checked': checked}
      png = io.BytesIO()
      Image.fromarray(video_sheet(pictures, zoom=1)).save(png, 'PNG')
      write_whole(out / f'{folder.name}.png', png.getvalue())
      tell(f'{folder.name}: {found["clips"]} clips; {len(checked)} decoded again: RGB {mean["psnr"]:.1f} dB, '
           f'points off by {mean["pointmap_error"]:.1%} of their distance')  # fmt: skip
      if not mean['psnr'] >= PSNR:
        tell(f'WARNING: {folder.name}: decoded frames reach {mean["psnr"]:.1f} dB PSNR, under the {PSNR:g} dB of a '
             'VAE that fits its data; look at the pictures before training on this')  # fmt: skip
    if found['failed']:
      named = [f'{clip["id"]} ({clip["why"]})' for clip in found['failed']]
      tell(f'WARNING: {folder.name} lacks {len(named)} clips that could not be encoded: '
           + '; '.join(named[:5] + ['…'] * (len(named) > 5)))  # fmt: skip
    report[folder.name] = found
  write_json(out / REPORT, report)


def _sample(records: files.Source, source, encoder) -> tuple[list[dict], list[np.ndarray]]:
  """``_round_trip`` of clips spread over a folder, and the pictures of four."""
  rows = {row['id']: i for i, row in enumerate(source.rows)}
  count = min(len(records), max(4, len(records) // 100))
  checked, pictures = [], []
  for i in np.linspace(0, len(records) - 1, count).round().astype(int):
    record = records[i]
    numbers, videos = _round_trip(record, source[rows[record['id']]], encoder)
    checked.append({'id': record['id'], **numbers})
    pictures += videos if len(checked) <= 4 else []
  return checked, pictures


def _round_trip(record: dict, clip, encoder) -> tuple[dict, list]:
  """PSNR of decoded frames, median relative error of decoded points, and rows of pictures: each video, decoded."""
  rgb, xyz = latents.decode(encoder.bundle, encoder.params['vae'], record['z'])
  truth = pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam)[clip.valid]
  found = pointmap.denormalise(pointmap.undo_soft_limit(xyz), float(record['scale']))[clip.valid]
  distance = np.maximum(np.linalg.norm(truth, axis=-1), 1e-6)
  numbers = {
    'psnr': round(float(10 * np.log10(4 / np.mean(np.square(np.clip(rgb, -1, 1) - signed(clip.rgb))))), 2),
    'pointmap_error': round(float(np.median(np.linalg.norm(found - truth, axis=-1) / distance)), 5),
  }
  return numbers, [signed(clip.rgb), rgb, to_record(clip)['xyz'].astype(np.float32), xyz]
