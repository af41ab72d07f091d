"""From frames and a prompt to RGB frames and a pointmap: encode, condition, sample, decode."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from one4d_jax.errors import ShapeError
from one4d_jax.flow.sampling import sample
from one4d_jax.model import umc
from one4d_jax.model.bundle import Bundle, Sizes
from one4d_jax.nn import partition

_CHUNK = 4  # latent frames the VAE works on at a time


class Generated(NamedTuple):
  """Both videos as the VAE decodes them, float32 NumPy ``[F H W 3]``."""

  rgb: np.ndarray  # in [-1, 1]
  xyz: np.ndarray  # normalised pointmap code; ``model/pointmap.py`` reads it


def generate(
  bundle: Bundle,
  video: np.ndarray,
  observed: np.ndarray,
  prompt: str,
  *,
  seed: int = 0,
  steps: int | None = None,
  guidance: float | None = None,
  shift: float | None = None,
  solver: str | None = None,
  progress: Callable[[int], None] | None = None,
) -> Generated:
  """One 4D scene. What is ``None`` takes the bundle's default. Every process of the bundle's mesh must call this.

  Args:
    video: float32 ``[F H W 3]`` in [-1, 1]; frames that are not observed are ignored. F = 4n+1, sides multiples of 16.
    observed: bool ``[F]``; all False is text alone, frame 0 alone an image, all True reconstruction.
    progress: called with the number of each step.

  Raises:
    ShapeError: ``video`` and ``observed`` do not belong together, or sizes the networks cannot take.
  """
  frames, height, width = video.shape[:3]
  if observed.shape != (frames,) or frames % 4 != 1 or height % 16 or width % 16:
    raise ShapeError(
      f'video {video.shape} with observed {observed.shape}: expected [F H W 3] and [F], F = 4n+1, sides multiples of 16'
    )
  config = bundle.config
  ids, mask = bundle.tokenizer([prompt, ''])
  run = compiled(
    config,
    steps=config.steps if steps is None else steps,
    guidance=config.guidance if guidance is None else float(guidance),
    shift=config.shift if shift is None else float(shift),
    solver=config.solver if solver is None else solver,
    layout=bundle.layout,
    callback=_report,
  )
  with _reporting(progress):
    rgb, xyz = run(bundle.params, video[None], observed[None], ids, mask, np.uint32(seed))
    return Generated(np.asarray(rgb), np.asarray(xyz))


_progress: list[Callable[[int], None]] = []  # the compiled function outlives any one call's callback


class _reporting:
  """While open, steps are reported to ``progress``."""

  def __init__(self, progress: Callable[[int], None] | None):
    self._progress = progress

  def __enter__(self):
    if self._progress is not None:
      _progress.append(self._progress)

  def __exit__(self, *_):
    jax.effects_barrier()
    if self._progress is not None:
      _progress.remove(self._progress)


def _report(step) -> None:
  for progress in _progress:
    progress(int(step))


@functools.lru_cache(maxsize=8)
def compiled(
  config: Sizes,
  *,
  steps: int,
  guidance: float,
  shift: float,
  solver: str,
  layout: partition.Layout | None,
  callback: Callable | None = None,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """``(params, video, observed, ids, mask, seed) -> (rgb, xyz)``, jitted: all of ``generate`` but the tokenizer."""
  parts = Bundle({}, config, {})
  vae, model = parts.vae, parts.model
  f = lambda frames: (frames - 1) // 4 + 1

  def condition(params, video, observed, ids, mask):
    image = parts.image.encode(params['image'], video[:, 0])
    image = jnp.where(observed[:, :1, None], image, jnp.zeros_like(image))  # only of a frame that was given
    text = parts.text.encode(params['text'], ids, mask)
    encode = lambda video: vae.encode(params['vae'], video, chunk=_CHUNK)
    positive = umc.make_condition(encode, video, observed, text[:1], image)
    return positive, positive.replace(text=text[1:])

  def run(params, video, observed, ids, mask, seed):
    positive, negative = condition(params, video, observed, ids, mask)

    def velocity(z, sigma, condition):
      sigma = jnp.full(z.shape[1], sigma)
      return model.velocity(params['base'], params['adapters'], z, sigma, condition)

    _, frames, height, width, _ = video.shape
    shape = (2, 1, f(frames), height // 8, width // 8, config.vae.latent_channels)
    z = sample(
      jax.random.key(seed),
      velocity,
      positive,
      negative,
      shape=shape,
      solver=solver,
      steps=steps,
      shift=shift,
      guidance=guidance,
      together=True,
      callback=callback,
    )
    return vae.decode(params['vae'], z[:, 0], chunk=_CHUNK)

  def traced(*args):
    with partition.using(layout):
      return run(*args)

  whole = None if layout is None else NamedSharding(layout.mesh, PartitionSpec())
  return jax.jit(traced, out_shardings=whole)
