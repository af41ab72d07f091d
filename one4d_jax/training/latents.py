"""Latents of a data set under a frozen VAE, made once: what the flow stages train on.

Per clip: both modalities, the conditions that need an encoding of their own (first frame, a few drawn sparse sets; a
full video's condition is its RGB latent), which latent cells are supervised, the prompt's tokens and the first frame
for the image encoder. Means, never samples, so that condition and target of a full video agree.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from one4d_jax.data import shards
from one4d_jax.data.clip import signed
from one4d_jax.model import umc
from one4d_jax.model.bundle import Bundle

_BATCH = 4  # clips encoded at a time


def build(folder: pathlib.Path, clips, bundle: Bundle, *, name: str, sparse_masks: int):
  """Opens the latent shards of ``clips`` under the VAE of ``bundle``; makes them first if they are not there."""
  path = pathlib.Path(folder) / f'{name}-latents-{bundle.hashes["vae"]}-{bundle.config.dit.text_len}'
  if not path.exists():
    meta = {'vae': bundle.hashes['vae'], 'value': 'posterior mean, normalised per channel'}
    records = _records(clips, bundle, sparse_masks)
    shards.write(path, records, meta=meta, total=len(clips), desc=f'encode {name}')
  return shards.open(path)


def _records(clips, bundle: Bundle, sparse_masks: int):
  encode = jax.jit(lambda video: bundle.vae.encode(bundle.params['vae'], video))
  tokens = bundle.tokenizer
  for start in range(0, len(clips), _BATCH):
    group = [clips[i] for i in range(start, min(start + _BATCH, len(clips)))]
    observed = [_sparse_sets(record, start + i, sparse_masks) for i, record in enumerate(group)]
    videos = [_videos(record, sets) for record, sets in zip(group, observed, strict=True)]
    latents = np.asarray(encode(jnp.asarray(np.concatenate(videos))), np.float16)
    ids, mask = tokens([record['caption'] for record in group])
    for i, (record, z) in enumerate(zip(group, np.split(latents, len(group)), strict=True)):
      yield {
        'z': z[:2],  # rgb, xyz
        'z_image': z[2],
        'z_sparse': z[3:],
        'observed_sparse': observed[i],
        'weight': _supervised(record['known']),
        'first': record['rgb'][0],
        'ids': ids[i],
        'text_mask': mask[i],
        'id': record['id'],
      }


def _sparse_sets(record: dict, index: int, count: int) -> np.ndarray:
  """``count`` drawn sets of observed frames for the sparse task, bool ``[count F]``."""
  rng = np.random.default_rng([2718, index])
  frames = len(record['rgb'])
  return np.stack([umc.draw_observed(rng, frames, (0, 1, 0))[1] for _ in range(count)])


def _videos(record: dict, observed: np.ndarray) -> np.ndarray:
  """All that is encoded of one clip, float32 ``[2 + 1 + j F H W 3]``."""
  rgb = signed(record['rgb'])
  first = np.zeros(len(rgb), bool)
  first[0] = True
  known = [np.where(o[:, None, None, None], rgb, 0) for o in (first, *observed)]
  return np.stack([rgb, record['xyz'].astype(np.float32), *known])


def _supervised(known: np.ndarray) -> np.ndarray:
  """Share of pixels with a known target in each latent cell, float16 ``[f h w]``."""
  frames, height, width = known.shape
  cells = known.reshape(frames, height // 8, 8, width // 8, 8).mean((2, 4))
  rest = cells[1:].reshape(-1, 4, *cells.shape[1:]).mean(1)
  return np.concatenate([cells[:1], rest]).astype(np.float16)


def draw(record: dict, rng: np.random.Generator, *, tasks, text_only: float, text_dropout: float, image_dropout: float):
  """A training sample from a latent record: draws the task and what is dropped. NumPy only."""
  frames = record['observed_sparse'].shape[1]
  task, observed = umc.draw_observed(rng, frames, tasks)
  latent = record['z'][0]
  if umc.TASKS[task] == 'image':
    latent = record['z_image']
  elif umc.TASKS[task] == 'sparse':
    j = int(rng.integers(len(record['observed_sparse'])))
    latent, observed = record['z_sparse'][j], record['observed_sparse'][j]
  if rng.random() < text_only:
    latent, observed = np.zeros_like(latent), np.zeros_like(observed)
  return {
    'z': record['z'].astype(np.float32),
    'latent': latent.astype(np.float32),
    'observed': observed,
    'weight': record['weight'].astype(np.float32),
    'first': signed(record['first']),
    'ids': record['ids'],
    'text_mask': record['text_mask'],
    'text_kept': np.bool_(rng.random() >= text_dropout),
    'image_kept': np.bool_(observed.any() and rng.random() >= image_dropout),
  }
