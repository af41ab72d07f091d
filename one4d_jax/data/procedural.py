"""The procedural world as training data: rendered once into shards, then read like any other data set. NumPy only."""

import pathlib

import numpy as np

from one4d_jax.data import render, shards
from one4d_jax.data.clip import Clip
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


def build(folder: pathlib.Path, *, split: str, clips: int, levels: tuple[str, ...], frames: int, height: int, width: int):
  """Opens the shards of ``clips`` rendered clips, levels in turn; renders them first if they are not there."""
  name = f'{split}-{"-".join(levels)}-{clips}x{frames}x{height}x{width}-v{render.GENERATOR_VERSION}'
  path = pathlib.Path(folder) / name
  if not path.exists():
    make = lambda i: render.clip(
      i // len(levels), level=levels[i % len(levels)], split=split, frames=frames, height=height, width=width
    )
    records = (to_record(make(i)) for i in range(clips))
    shards.write(path, records, meta={'generator': render.GENERATOR_VERSION}, total=clips, desc=f'render {split}')
  return shards.open(path)


def vae_crop(record: dict, rng: np.random.Generator, *, crop: tuple[int, int]) -> dict:
  """A random piece of one modality's video, ``{'video': f32 [F H W 3]}`` in [-1, 1], for the VAE."""
  count, side = crop
  frames, height, width = record['rgb'].shape[:3]
  f, y, x = (int(rng.integers(n - size + 1)) for n, size in ((frames, count), (height, side), (width, side)))
  xyz = rng.random() < 0.5
  piece = record['xyz' if xyz else 'rgb'][f : f + count, y : y + side, x : x + side]
  video = piece.astype(np.float32) if xyz else piece.astype(np.float32) / 127.5 - 1
  if not xyz and rng.random() < VAE_MASKED:
    video[rng.random(count) < rng.random()] = 0
  if rng.random() < 0.5:
    video = video[:, :, ::-1]
  return {'video': np.ascontiguousarray(video)}
