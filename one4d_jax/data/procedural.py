"""Clips as records to train on, of any set; those of the procedural world are rendered once into shards. NumPy only."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from one4d_jax.data import render, shards
from one4d_jax.data.clip import Clip, signed
from one4d_jax.model import pointmap

VAE_MASKED = 0.15  # share of RGB crops with frames set to 0: the VAE must also encode conditions


def to_record(clip: Clip) -> dict:
  """A clip as the arrays that are stored: frames, XYZ video, what is known of each pixel, caption."""
  points = pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam)
  normalised, scale = pointmap.normalise(points, clip.valid)
  return {
    'rgb': clip.rgb,
    'xyz': pointmap.encode_input(normalised, clip.valid).astype(np.float16),
    'known': clip.valid | clip.sky,  # the sky's code is a target too; only the unknown is not
    'scale': np.float32(scale),
    'caption': clip.caption,
    'id': clip.meta['id'],
  }


def build(
  folder: pathlib.Path, *, split: str, clips: int, levels: tuple[str, ...], frames: int, height: int, width: int
) -> Sequence[dict]:
  """The first ``clips`` records of a split, levels in turn; rendered now if no set of that many is there yet."""
  kind = f'{split}-{"-".join(levels)}-{frames}x{height}x{width}-v{render.GENERATOR_VERSION}'
  sets = {int(path.name.rpartition('-')[2]): path for path in pathlib.Path(folder).glob(f'{kind}-*[0-9]')}
  count = min((n for n in sets if n >= clips), default=None)
  if count is not None:
    return First(shards.open(sets[count]), clips)

  def record(i: int) -> dict:
    level = levels[i % len(levels)]
    size = {'frames': frames, 'height': height, 'width': width}
    return to_record(render.clip(i // len(levels), level=level, split=split, **size))

  path = pathlib.Path(folder) / f'{kind}-{clips}'
  meta = {'generator': render.GENERATOR_VERSION}
  shards.write(path, map(record, range(clips)), meta=meta, total=clips, desc=f'render {split}')
  return shards.open(path)


@dataclasses.dataclass(frozen=True)
class First(Sequence):
  """The first ``count`` elements of a sequence."""

  source: Sequence
  count: int

  @property
  def fingerprint(self) -> str:
    return self.source.fingerprint

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, i: int):
    if not -self.count <= i < self.count:
      raise IndexError(f'element {i} of {self.count}')
    return self.source[i % self.count]


def vae_crop(record: dict, rng: np.random.Generator, *, crop: tuple[int, int]) -> dict:
  """A random piece of one modality's video, ``{'id', 'is_xyz', 'video': f32 [F H W 3]}`` in [-1, 1], for the VAE."""
  count, side = crop
  frames, height, width = record['rgb'].shape[:3]
  f, y, x = (int(rng.integers(n - size + 1)) for n, size in ((frames, count), (height, side), (width, side)))
  xyz = rng.random() < 0.5
  piece = record['xyz' if xyz else 'rgb'][f : f + count, y : y + side, x : x + side]
  video = piece.astype(np.float32) if xyz else signed(piece)
  if not xyz and rng.random() < VAE_MASKED:
    video[rng.random(count) < rng.random()] = 0
  if rng.random() < 0.5:
    video = video[:, :, ::-1]
  return {'id': record['id'], 'is_xyz': np.bool_(xyz), 'video': np.ascontiguousarray(video)}
