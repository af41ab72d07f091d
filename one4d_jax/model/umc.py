"""Unified Masked Conditioning: one input format for a text, an image, a few frames or a whole video (One4D, Sec. 3.3).

Beside the noisy latent, the RGB branch sees 20 channels: 4 say what is observed, 16 are the VAE latent of the video
with everything unobserved set to 0 (mid grey). A task is nothing but the set of observed frames.

The mask is 1 where observed. Its 4 channels are the 4 pixel frames that share a latent frame; latent frame 0 holds
pixel frame 0 alone, four times over:

  pixel frame     0 0 0 0 | 1 2 3 4 | 5 6 7 8 | …
  latent frame       0         1         2

Text alone gives 20 zero channels (not the latent of a grey video) and zero image features, as the base model was
trained. The XYZ branch always gets 20 zero channels; ``model/one4d.py`` adds them.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from one4d_jax.checks import checked
from one4d_jax.errors import ConfigError

TASKS = ('image', 'sparse', 'video')
ALL_TASKS = ('text', *TASKS)
PROBABILITIES = (0.35, 0.30, 0.35)  # of TASKS, Sec. 4.1
SPARSITY = (0.04, 0.5)  # range of the observed fraction in the sparse task; ours, the paper evaluates 0.03 to 0.5


@struct.dataclass
class Condition:
  """All that steers a sample. The negative of guidance differs in ``text`` only."""

  latent: Float[Array, 'b f h w c']
  mask: Float[Array, 'b f h w 4']
  text: Float[Array, 'b t c']
  image: Float[Array, 'b i c']


@checked
def frame_mask(observed: Bool[Array, 'b F']) -> Float[Array, 'b f 4']:
  """The mask of whole frames, per latent frame; F = 4 (f - 1) + 1."""
  first, rest = observed[:, :1], observed[:, 1:]
  groups = jnp.concatenate([jnp.repeat(first, 4, axis=1), rest], axis=1)
  return groups.reshape(observed.shape[0], -1, 4).astype(jnp.float32)


@checked
def latent_mask(observed: Bool[Array, 'b F H W']) -> Float[Array, 'b f h w 4']:
  """The mask at latent resolution: per 8x8 cell the mean of its central 2x2 pixels.

  That is what the base model's resize (half-pixel, not antialiased) amounts to; whole frames stay 0 or 1.
  """
  b, frames, height, width = observed.shape
  cells = observed.reshape(b, frames, height // 8, 8, width // 8, 8)[:, :, :, 3:5, :, 3:5]
  cells = cells.astype(jnp.float32).mean(axis=(3, 5))  # b F h w
  groups = jnp.concatenate([jnp.repeat(cells[:, :1], 4, axis=1), cells[:, 1:]], axis=1)
  return jnp.moveaxis(groups.reshape(b, -1, 4, height // 8, width // 8), 2, -1)


def _pixels(observed: Array, height: int, width: int) -> Bool[Array, 'b F H W']:
  """Per-frame or per-pixel observation, per pixel."""
  if observed.ndim == 4:
    return observed
  return jnp.broadcast_to(observed[:, :, None, None], (*observed.shape, height, width))


@checked
def condition_video(
  video: Float[Array, 'b F H W 3'], observed: Bool[Array, 'b F'] | Bool[Array, 'b F H W']
) -> Float[Array, 'b F H W 3']:
  """The video with unobserved frames or pixels at 0, the middle of [-1, 1]."""
  return jnp.where(_pixels(observed, *video.shape[2:4])[..., None], video, jnp.zeros_like(video))


@checked
def make_condition(
  vae_encode: Callable,
  video: Float[Array, 'b F H W 3'],
  observed: Bool[Array, 'b F'] | Bool[Array, 'b F H W'],
  text: Float[Array, 'b t c'],
  image: Float[Array, 'b i d'],
) -> Condition:
  """What the model is given about ``video`` in [-1, 1]; with nothing observed, text alone.

  Args:
    vae_encode: video ``[b F H W 3]`` to the normalised latent mean ``[b f h w 16]``. For a fully observed video
      the condition is therefore the RGB latent itself.
    image: CLIP features of the first frame; set to zero in samples with nothing observed.
  """
  observed = _pixels(observed, *video.shape[2:4])
  anything = observed.any(axis=(1, 2, 3))
  latent = vae_encode(condition_video(video, observed))
  return Condition(
    latent=jnp.where(anything[:, None, None, None, None], latent, jnp.zeros_like(latent)),
    mask=latent_mask(observed),
    text=text,
    image=jnp.where(anything[:, None, None], image, jnp.zeros_like(image)),
  )


def sparse_frames(frames: int, count: int) -> np.ndarray:
  """``count`` frames out of ``frames``: first and last, the rest uniformly between (Sec. 4.3); increasing int64.

  Raises:
    ConfigError: ``count`` is below 2 or above ``frames``.
  """
  if not 2 <= count <= frames:
    raise ConfigError(f'a sparse clip of {frames} frames keeps 2 to {frames} of them, got {count}')
  return np.arange(count) * (frames - 1) // (count - 1)


def sparse_count(frames: int, fraction: float) -> int:
  """How many frames a sparsity of ``fraction`` observes, rounded, at least first and last.

  Raises:
    ConfigError: ``fraction`` is outside (0, 1].
  """
  if not 0 < fraction <= 1:
    raise ConfigError(f'the observed fraction of frames must be in (0, 1], got {fraction}')
  return max(2, round(fraction * frames))


def observed_frames(task: str, frames: int, *, fraction: float = 0.25) -> np.ndarray:
  """Which frames a task observes, bool ``[F]``: ``text``, ``image`` (the first), ``sparse`` or ``video`` (all).

  Raises:
    ConfigError: unknown ``task``, or a ``fraction`` outside (0, 1].
  """
  observed = np.zeros(frames, bool)
  if task == 'image':
    observed[0] = True
  elif task == 'sparse':
    observed[sparse_frames(frames, sparse_count(frames, fraction))] = True
  elif task == 'video':
    observed[:] = True
  elif task != 'text':
    raise ConfigError(f'unknown task {task!r}; choose from text, {", ".join(TASKS)}')
  return observed


@checked
def tasks(observed: Bool[Array, 'b F']) -> Int[Array, 'b']:
  """Which of ``ALL_TASKS`` each sample is: nothing, one frame, some or all frames observed."""
  seen = observed.astype(jnp.int32).sum(axis=1)
  return jnp.where(seen < 2, seen, jnp.where(seen < observed.shape[1], 2, 3))


def draw_observed(
  rng: np.random.Generator, frames: int, probabilities: Sequence[float] = PROBABILITIES
) -> tuple[int, np.ndarray]:
  """A training task: its index in ``TASKS`` and the observed frames, bool ``[F]``. NumPy only.

  The sparse task draws its observed fraction log-uniformly from ``SPARSITY`` and places frames as at evaluation.

  Raises:
    ConfigError: ``probabilities`` are not three numbers that sum to 1.
  """
  if len(probabilities) != len(TASKS) or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-6:
    raise ConfigError(f'task probabilities for {TASKS} must be >= 0 and sum to 1, got {tuple(probabilities)}')
  task = int(rng.choice(len(TASKS), p=probabilities))
  fraction = float(np.exp(rng.uniform(*np.log(SPARSITY))))
  return task, observed_frames(TASKS[task], frames, fraction=fraction)
