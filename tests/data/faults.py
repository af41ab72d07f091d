"""Clips of the procedural world, and the faults that readers and data have, for what tells one from the other."""

import dataclasses
import functools
import io

import numpy as np
from PIL import Image

from one4d_jax.data import consistency, curate, render

SPLITS = {'easy': 'train', 'medium': 'train', 'hard': 'test'}
CHECKS = (*consistency.ALTERNATIVES, 'consistency', 'consistency_long', 'consistency_seen')


@functools.cache
def clip(level, seed):
  return render.clip(seed, level=level, split=SPLITS[level], frames=17, height=96, width=160)


def noisy(clip, seed=0):
  """Depth of 1 % noise, colours through JPEG."""
  rng = np.random.default_rng(seed)
  depth = clip.depth * np.exp(0.01 * rng.standard_normal(clip.depth.shape))
  return dataclasses.replace(clip, rgb=np.stack([jpeg(frame) for frame in clip.rgb]), depth=depth.astype(np.float32))


def jpeg(frame, quality=85):
  file = io.BytesIO()
  Image.fromarray(frame).save(file, 'JPEG', quality=quality)
  return np.asarray(Image.open(file))


def unmarked(clip):
  return dataclasses.replace(clip, dynamic=np.zeros_like(clip.dynamic))


def zoomed(clip, factor):
  return dataclasses.replace(clip, K=clip.K * np.float32([[factor, 1, 1], [1, factor, 1], [1, 1, 1]]))


def moved(clip, x, y):
  return dataclasses.replace(clip, K=clip.K + np.float32([[0, 0, x], [0, 0, y], [0, 0, 0]]))


def transposed(clip):
  poses = clip.world_from_cam.copy()
  poses[:, :3, :3] = np.swapaxes(clip.world_from_cam[:, :3, :3], 1, 2)
  return dataclasses.replace(clip, world_from_cam=poses)


def inverted(clip):
  return dataclasses.replace(clip, world_from_cam=np.linalg.inv(clip.world_from_cam))


def rebased(clip):
  """World coordinates of the first camera, as ``Recording.read`` gives them."""
  return dataclasses.replace(clip, world_from_cam=np.linalg.inv(clip.world_from_cam[0]) @ clip.world_from_cam)


def shifted(clip, by):
  """Depth and cameras of one frame with the colours of another."""
  middle = slice(1, clip.frames - 1)
  rest = {name: getattr(clip, name)[middle] for name in ('depth', 'valid', 'sky', 'dynamic', 'K', 'world_from_cam')}
  return dataclasses.replace(clip, rgb=clip.rgb[1 + by : clip.frames - 1 + by], **rest)


FAULTS = {
  'longer focal': lambda clip: zoomed(clip, 1.1),
  'shorter focal': lambda clip: zoomed(clip, 0.9),
  'transposed': transposed,
  'inverted': inverted,
  'transposed in the first camera': lambda clip: transposed(rebased(clip)),
  'inverted in the first camera': lambda clip: inverted(rebased(clip)),
  'inverted, then from the first camera': lambda clip: rebased(inverted(clip)),
  'colours early': lambda clip: shifted(clip, 1),
  'colours late': lambda clip: shifted(clip, -1),
}


def rejected(clip):
  """The filters of geometry that a clip does not pass."""
  found = curate.reasons(consistency.measure(clip), curate.Limits())
  return [name for name in found if name in CHECKS]
