"""A small prepared set for what encodes it."""

import pathlib

from one4d_jax.data import codec, prepared, render, shards
from one4d_jax.data.clip import Clip

SIZE = (5, 32, 32)


def clip(i: int, size: tuple[int, int, int] = SIZE, split: str = 'train') -> Clip:
  return render.clip(i, level='easy', split=split, **dict(zip(('frames', 'height', 'width'), size, strict=True)))


def prepare(home: pathlib.Path, *, train: int = 3, test: int = 1, sizes=(SIZE,)) -> pathlib.Path:
  """A version of a prepared set: ``train`` and ``test`` clips, their sizes in turn."""
  files, rows = {}, []
  for split, count in {'train': train, 'test': test}.items():
    clips = [clip(i, sizes[i % len(sizes)], split) for i in range(count)]
    records = [codec.encode(one, quality=92) for one in clips]
    files[split] = [home / f'{split}.array_record']
    shards.write_file(files[split][0], [prepared.serialise(record) for record in records])
    rows += [
      {'id': one.meta['id'], 'split': split, 'size': list(one.rgb.shape[:3]), 'caption': one.caption} for one in clips
    ]
  return prepared.finish(home / 'rooms' / '1.0.0', name='rooms', shards=files, rows=rows, meta={})
