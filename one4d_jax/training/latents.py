"""What the flow stages train on: clips as latents and features of frozen networks, made once, or made in the step.

``Encoder`` turns clips into records, spread over the devices of this process. A record holds both modalities, the
conditions that need an encoding of their own (first frame, a few drawn sparse sets; a full video's condition is its RGB
latent), which latent cells are supervised, and text and first frame: as features, or as tokens and pixels where their
encoders are trained. Latents are means, never samples, so that condition and target of a full video agree.

``draw`` makes a training sample of such a record, or of a clip as pixels, in NumPy. ``complete`` is the other half,
in the jitted step: whatever a sample does not bring along is computed there.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from one4d_jax.data import codec, shards
from one4d_jax.data.clip import signed
from one4d_jax.errors import DataError
from one4d_jax.model import umc
from one4d_jax.model.bundle import Bundle, Sizes
from one4d_jax.nn import partition
from one4d_jax.parallel import load
from one4d_jax.wan.tokenizer import EOS, Tokenizer
from one4d_jax.wan.vae import chunk_for, video_size

PARTS = ('vae', 'text', 'image')  # the networks whose outputs are stored
PIXELS = 2**24  # encoded at a time on one device, at least one clip
STORED = ('size', 'jpeg', 'jpeg_lengths')  # of ``data/codec.py``: frames as they are in a prepared set
_AXIS = 'fsdp'  # batches and weights are split over the same devices
_LIMIT = float(np.finfo(np.float16).max)


def identity(bundle: Bundle) -> dict[str, str | int]:
  """What stored latents and features depend on: two bundles that agree in it give the same records."""
  normalisation = f'{bundle.config.vae.latent_mean} {bundle.config.vae.latent_std}'
  own = {'normalisation': hashlib.sha256(normalisation.encode()).hexdigest()[:16]}
  return (
    {part: bundle.hashes[part] for part in PARTS if part in bundle.hashes}
    | own
    | {'text_len': bundle.config.dit.text_len}
  )


def build(folder: pathlib.Path, clips, bundle: Bundle, *, name: str, sparse_masks: int):
  """Opens the latent shards of ``clips`` under the VAE of ``bundle``; makes them first if they are not there.

  The folder is named after all that they depend on: other clips or other settings have one of their own.
  """
  known = identity(bundle)
  made_by = f'{known["vae"]}-{known["normalisation"][:4]}-{known["text_len"]}'
  path = pathlib.Path(folder) / f'{name}-latents-{made_by}-{sparse_masks}-{clips.fingerprint[:8]}'
  if not path.exists():
    meta = {'vae': bundle.hashes['vae'], 'value': 'posterior mean, normalised per channel'}
    encoder = Encoder(bundle, sparse_masks=sparse_masks, features=False)
    size = encoder.batch(clips[0]['rgb'].shape[:3])
    groups = (range(i, min(i + size, len(clips))) for i in range(0, len(clips), size))
    records = (record for group in groups for record in encoder([clips[i] for i in group], group))
    shards.write(path, records, meta=meta, total=len(clips), desc=f'encode {name}')
  return shards.open(path)


class Encoder:
  """Records of clips, by frozen networks.

  Args:
    bundle: with ``vae``, and for features ``text`` and ``image``; converted parts that were not loaded are read
      straight to the devices.
    sparse_masks: drawn sets of observed frames a clip.
    features: text and image features; else tokens and the first frame.
    frames: pass on a clip's JPEG frames in place of the conditions, which then are encoded in the step.
    devices: that share a batch, and the weights where a size divides; default: all of this process.
  """

  def __init__(
    self,
    bundle: Bundle,
    *,
    sparse_masks: int,
    features: bool = True,
    frames: bool = False,
    devices: Sequence[jax.Device] | None = None,
  ):
    self.bundle, self.sparse_masks, self.features, self.frames = bundle, sparse_masks, features, frames
    self._tokenizer = bundle.tokenizer  # which reads its model each time
    self.mesh = Mesh(np.array(devices or jax.local_devices()), (_AXIS,))
    self.params = {part: load.part(bundle, part, self.mesh) for part in (PARTS if features else ('vae',))}
    self._networks = networks(bundle.config)

  def batch(self, size: tuple[int, int, int]) -> int:
    """How many clips of (frames, height, width) to encode at a time: every device has as many to do."""
    return self.mesh.size * clips_at_a_time(size)

  def __call__(self, clips: Sequence[dict], indices: Sequence[int]) -> list[dict]:
    """Records of clips of one size (``procedural.to_record``, with ``STORED`` where frames are passed on).

    Sparse sets are drawn by the clip's index.

    Raises:
      DataError: values that float16 cannot hold, naming the clip.
    """
    observed = [_sparse_sets(clip, i, self.sparse_masks) for clip, i in zip(clips, indices, strict=True)]
    videos = [_videos(clip, () if self.frames else sets) for clip, sets in zip(clips, observed, strict=True)]
    z = np.stack([self._run('vae', np.stack(some)) for some in zip(*videos, strict=True)])  # memory for one of a clip
    texts = self.text([clip['caption'] for clip in clips])
    first = np.stack([clip['rgb'][0] for clip in clips])
    images = self._run('image', signed(first)) if self.features else first
    records = []
    for i, clip in enumerate(clips):
      record = {
        'z': z[:2, i],  # rgb, xyz
        'weight': _supervised(clip['known']),
        'scale': clip['scale'],
        'id': clip['id'],
        'caption': clip['caption'],
      }
      if self.frames:
        record |= {name: clip[name] for name in STORED}
      else:
        record |= {'z_image': z[2, i], 'z_sparse': z[3:, i], 'observed_sparse': observed[i]}
      record |= texts[i] | {'image' if self.features else 'first': images[i]}
      records.append({name: _half(value, f'{name} of {clip["id"]}') for name, value in record.items()})
    return records

  def text(self, prompts: Sequence[str]) -> list[dict]:
    """``text`` [n c] without padding, n tokens long; or ``ids`` and ``text_mask``, padded."""
    ids, mask = self._tokenizer(prompts)
    if not self.features:
      return [{'ids': i, 'text_mask': m} for i, m in zip(ids, mask, strict=True)]
    rows = self._run('text', ids, mask)
    return [{'text': row[: m.sum()]} for row, m in zip(rows, mask, strict=True)]

  def _run(self, part: str, *inputs: np.ndarray) -> np.ndarray:
    """A network's float32 output for a batch that is split over the devices, filled up to divide."""
    count = len(inputs[0])
    rows = np.minimum(np.arange(self.mesh.size * -(-count // self.mesh.size)), count - 1)
    placed = jax.device_put([x[rows] for x in inputs], NamedSharding(self.mesh, P(_AXIS)))
    return np.asarray(self._networks[part](self.params[part], *placed).astype(jnp.float32))[:count]


def encode(bundle: Bundle, params: dict, video: jax.Array) -> jax.Array:
  """Latents ``[b f h w c]`` of videos ``[b F H W 3]``, in bounded memory."""
  return bundle.vae.encode(params, video, chunk=chunk_for(*video.shape[1:4], partition.platform()))


def decode(bundle: Bundle, params: dict, z: np.ndarray) -> np.ndarray:
  """Both videos ``[2 F H W 3]`` of a record's ``z``, one after the other."""
  network = networks(bundle.config)['decode']
  return np.concatenate([np.asarray(network(params, video)) for video in z[:, None].astype(np.float32)])


def clips_at_a_time(size: tuple[int, int, int]) -> int:
  """Of (frames, height, width) on one device."""
  return int(np.clip(PIXELS // int(np.prod(size)), 1, 4))


@functools.lru_cache(maxsize=2)
def networks(config: Sizes) -> dict[str, Callable]:
  """The networks ``(params, ...) -> output`` by part, and ``decode``."""
  bundle = Bundle({}, config, {})
  chunk = lambda z: chunk_for(*video_size(*z.shape[1:4]), partition.platform())
  return {
    'vae': jax.jit(functools.partial(encode, bundle)),
    'decode': jax.jit(lambda params, z: bundle.vae.decode(params, z, chunk=chunk(z))),
    'text': jax.jit(bundle.text.encode),
    'image': jax.jit(bundle.image.encode),
  }


def _half(value, what: str):
  """Floats as float16; integers, masks and strings as they are."""
  if isinstance(value, str) or value.dtype.kind != 'f' or value.ndim == 0:
    return value
  if not np.abs(value).max() < _LIMIT:  # NaN too
    raise DataError(f'{what} reaches {np.abs(value).max()}, float16 holds less than {_LIMIT:g}; leave this clip out')
  return value.astype(np.float16)


def _sparse_sets(record: dict, index: int, count: int) -> np.ndarray:
  """``count`` drawn sets of observed frames for the sparse task, bool ``[count F]``."""
  rng = np.random.default_rng([2718, index])
  frames = len(record['rgb'])
  return np.stack([umc.draw_observed(rng, frames, (0, 1, 0))[1] for _ in range(count)])


def _videos(record: dict, observed: Sequence[np.ndarray]) -> np.ndarray:
  """RGB, XYZ and, where sparse sets are given, first frame and those: float32 ``[v F H W 3]``."""
  rgb = signed(record['rgb'])
  first = np.zeros(len(rgb), bool)
  first[0] = True
  known = [np.where(o[:, None, None, None], rgb, 0) for o in (first, *observed)] if len(observed) else []
  return np.stack([rgb, record['xyz'].astype(np.float32), *known])


def _supervised(known: np.ndarray) -> np.ndarray:
  """Share of pixels with a known target in each latent cell, float16 ``[f h w]``."""
  frames, height, width = known.shape
  cells = known.reshape(frames, height // 8, 8, width // 8, 8).mean((2, 4))
  rest = cells[1:].reshape(-1, 4, *cells.shape[1:]).mean(1)
  return np.concatenate([cells[:1], rest]).astype(np.float16)


# -- Samples: what a record, or a clip, gives to the step -----------------------------------------------------------


def draw(
  record: dict,
  rng: np.random.Generator,
  *,
  tasks,
  text_only: float,
  text_dropout: float,
  image_dropout: float,
  null: np.ndarray | None = None,
  text_len: int = 0,
) -> dict:
  """A training sample: draws the task and what is dropped. NumPy only.

  Args:
    record: of ``Encoder``, or see ``draw_pixels``. Its ``id`` goes along, for messages.
    null: features of the empty prompt ``[n c]``, which replace those of dropped text.
    text_len: rows to which text features are padded.
  """
  frames = 4 * (len(record['weight']) - 1) + 1
  task, observed = umc.draw_observed(rng, frames, tasks)
  sample = {name: record[name] for name in ('id', 'weight', 'z') if name in record}  # float16: half the way
  if 'z_image' in record:
    latent = {'image': record['z_image'], 'video': record['z'][0]}.get(umc.TASKS[task])
    if latent is None:
      j = int(rng.integers(len(record['observed_sparse'])))
      latent, observed = record['z_sparse'][j], record['observed_sparse'][j]
    sample['latent'] = latent
  if rng.random() < text_only:
    observed = np.zeros_like(observed)
    if 'latent' in sample:
      sample['latent'] = np.zeros_like(sample['latent'])
  text_kept = np.bool_(rng.random() >= text_dropout)
  image_kept = np.bool_(observed.any() and rng.random() >= image_dropout)
  sample['observed'] = observed
  if 'jpeg' in record:
    sample['rgb'] = np.zeros((*record['size'], 3), np.uint8)  # the others do not count
    sample['rgb'][observed] = codec.frames(record, np.flatnonzero(observed))
  elif 'rgb' in record:
    sample |= {'rgb': record['rgb'], 'xyz': record['xyz']}
  if 'text' in record:
    text = record['text'] if text_kept else null
    return sample | {
      'text': np.pad(text, ((0, text_len - len(text)), (0, 0))),
      'image': record['image'] * image_kept,
    }
  if 'first' in record:
    sample['first'] = signed(record['first'])
  names = ('ids', 'text_mask')
  return sample | {name: record[name] for name in names} | {'text_kept': text_kept, 'image_kept': image_kept}


def draw_pixels(clip: dict, rng: np.random.Generator, *, tokenizer: Tokenizer, **settings) -> dict:
  """``draw`` for a clip (``procedural.to_record``) of which nothing is encoded: ``complete`` does that."""
  ids, mask = tokenizer([clip['caption']])
  record = {name: clip[name] for name in ('id', 'rgb', 'xyz')} | {'weight': _supervised(clip['known'])}
  return draw(record | {'ids': ids[0], 'text_mask': mask[0]}, rng, **settings)


def arrays(batch: dict) -> dict:
  """What of a batch goes to the devices: all but strings."""
  return {name: value for name, value in batch.items() if value.dtype.kind != 'U'}


def complete(batch: dict, bundle: Bundle, params: dict) -> tuple[jax.Array, umc.Condition]:
  """``(z [m b f h w c], condition)`` of a batch of samples: what is there is used, the rest is computed.

  Dropped text is the empty prompt, a dropped image zero features.

  Args:
    batch: of ``draw``, stacked.
    bundle: the networks.
    params: of those that are needed: ``vae`` for pixels, ``text`` and ``image`` for tokens.
  """
  video = batch['rgb'].astype(jnp.float32) / 127.5 - 1 if 'rgb' in batch else None
  if 'z' in batch:
    z = batch['z'].swapaxes(0, 1).astype(jnp.float32)
  else:
    xyz = batch['xyz'].astype(jnp.float32)
    z = jnp.stack([encode(bundle, params['vae'], pixels) for pixels in (video, xyz)])
  observed = batch['observed']
  if 'latent' in batch:
    latent = batch['latent'].astype(jnp.float32)
  else:
    seen = observed.any(axis=1)[:, None, None, None, None]
    latent = encode(bundle, params['vae'], umc.condition_video(video, observed))
    latent = jnp.where(seen, latent, jnp.zeros_like(latent))
  text, image = _features(batch, bundle, params, video)
  mask = jnp.broadcast_to(umc.frame_mask(observed)[:, :, None, None], (*latent.shape[:4], 4))
  return z, umc.Condition(latent=latent, mask=mask, text=text, image=image)


def _features(batch: dict, bundle: Bundle, params: dict, video: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """Text and image features: as stored, or of tokens and the first frame."""
  if 'text' in batch:
    return tuple(batch[name].astype(bundle.precision.dtype) for name in ('text', 'image'))
  empty = jnp.zeros_like(batch['ids'][:1]).at[0, 0].set(EOS)
  kept = batch['text_kept'][:, None]
  mask = jnp.where(kept, batch['text_mask'], empty == EOS)
  text = bundle.text.encode(params['text'], jnp.where(kept, batch['ids'], empty), mask)
  image = bundle.image.encode(params['image'], batch['first'] if 'first' in batch else video[:, 0])
  return text, jnp.where(batch['image_kept'][:, None, None], image, jnp.zeros_like(image))
