"""From frames and a prompt to RGB frames and a pointmap: encode, condition, sample, decode."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from one4d_jax.errors import ConfigError, ShapeError
from one4d_jax.flow import caching, solvers
from one4d_jax.flow.guidance import guided
from one4d_jax.flow.sampling import both, last
from one4d_jax.model import umc
from one4d_jax.model.bundle import Bundle, Sizes
from one4d_jax.nn import partition
from one4d_jax.wan import dit
from one4d_jax.wan.vae import chunk_for

SETTINGS = ('steps', 'guidance', 'guidance_interval', 'shift', 'solver', 'cache', 'tile')  # of sampling, as in Sizes


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
  progress: Callable[[int], None] | None = None,
  **settings,
) -> Generated:
  """One 4D scene. Every process of the bundle's mesh must call this.

  Args:
    video: float32 ``[F H W 3]`` in [-1, 1]; frames that are not observed are ignored. F = 4n+1, sides multiples of 16.
    observed: bool ``[F]``; all False is text alone, frame 0 alone an image, all True reconstruction.
    progress: called with the number of each step that is done, from 0.
    settings: any of ``SETTINGS``; those that are missing or ``None`` are the bundle's.

  Raises:
    ShapeError: ``video`` and ``observed`` do not belong together, or sizes the networks cannot take.
    ConfigError: settings that do not go.
  """
  frames, height, width = video.shape[:3]
  if observed.shape != (frames,) or frames % 4 != 1 or height % 16 or width % 16:
    raise ShapeError(
      f'video {video.shape} with observed {observed.shape}: expected [F H W 3] and [F], F = 4n+1, sides multiples of 16'
    )
  chosen = with_defaults(bundle.config, settings)
  run = compiled(bundle.config, bundle.layout, **chosen)
  ids, mask = bundle.tokenizer([prompt, ''])
  given, state = run.begin(bundle.params, video[None], observed[None], ids, mask, np.uint32(seed))
  for stop in range(1, chosen['steps'] + 1) if progress else (chosen['steps'],):
    state = run.advance(bundle.params, given, state, np.int32(stop))
    if progress:
      jax.block_until_ready(state.step)
      progress(stop - 1)
  rgb, xyz = run.decode(bundle.params, state.x)
  return Generated(np.asarray(rgb), np.asarray(xyz))


def with_defaults(config: Sizes, settings: dict) -> dict:
  """All of ``SETTINGS``: what is missing or ``None`` is the bundle's. Raises ConfigError for what does not go."""
  if unknown := set(settings) - set(SETTINGS):
    raise ConfigError(f'no setting of sampling {sorted(unknown)[0]!r}; there are {", ".join(SETTINGS)}')
  found = {name: getattr(config, name) if settings.get(name) is None else settings[name] for name in SETTINGS}
  low, high = found['guidance_interval']
  if not 0 <= low <= high <= 1:
    raise ConfigError(f'guidance_interval {low:g},{high:g}: expected noise levels, 0 <= least <= largest <= 1')
  if not found['cache'] >= 0:
    raise ConfigError(f'cache {found["cache"]} must be 0 (off) or a relative change above it, as in 0.05')
  if found['tile'] != 0 and found['tile'] < 4:
    raise ConfigError(f'tile {found["tile"]} must be 0 (whole frames) or 4 and more latent places, as in 32')
  return found | {name: float(found[name]) for name in ('guidance', 'shift', 'cache')}


class Given(NamedTuple):
  """What steers a scene; samples without the prompt before those with it, where there is guidance."""

  condition: umc.Condition
  keys: dit.Keys


class Programs(NamedTuple):
  """The parts of ``generate``, jitted. ``params`` are all of a bundle."""

  begin: Callable  # (params, video [1 F H W 3], observed [1 F], ids, mask, seed) -> (Given, solvers.State)
  advance: Callable  # (params, given, state, stop) -> state before step ``stop``; the one that is given is used up
  decode: Callable  # (params, z [2 1 f h w c]) -> (rgb, xyz), [F H W 3] each, whole on every device


@functools.lru_cache(maxsize=8)
def compiled(
  config: Sizes,
  layout: partition.Layout | None,
  *,
  steps: int,
  guidance: float,
  guidance_interval: tuple[float, float],
  shift: float,
  solver: str,
  cache: float,
  tile: int,
) -> Programs:
  """The programs of some settings; each compiles when it is first called with a size of video.

  Raises:
    ConfigError: unknown ``solver``, bad ``steps`` or ``shift``.
  """
  parts, plan = Bundle({}, config, {}), solvers.schedule(solver, steps=steps, shift=shift)
  vae, model = parts.vae, parts.model

  def begin(params, video, observed, ids, mask, seed):
    image = parts.image.encode(params['image'], video[:, 0])
    image = jnp.where(observed[:, :1, None], image, jnp.zeros_like(image))  # only of a frame that was given
    text = parts.text.encode(params['text'], ids, mask)
    chunk = chunk_for(*video.shape[1:4], partition.platform())
    encode = lambda video: vae.encode(params['vae'], split(video), chunk=chunk)
    positive = umc.make_condition(encode, video, observed, text[:1], image)
    rows = both(positive, positive.replace(text=text[1:]), guidance)
    given = Given(rows, model.keys(params['base'], params['adapters'], rows))
    noise = jax.random.normal(jax.random.key(seed), (2, *positive.latent.shape))
    return placed((given, solvers.start(noise, memory(given, noise.shape))))

  def memory(given, shape):
    if not cache:
      return ()
    tokens = model.tokens_per_place * int(np.prod(dit.token_grid(config.dit, shape)))
    size = model.sequences, len(given.condition.text), tokens, config.dit.width
    return caching.nothing(jax.ShapeDtypeStruct(size, model.precision.dtype))

  def advance(params, given, state, stop):
    def velocity(z, sigma, memory):
      rows = z.shape[1]
      stack = caching.FirstBlock(cache, memory) if cache else None
      v = model.velocity(
        params['base'],
        params['adapters'],
        z,
        jnp.full(rows, sigma),
        last(given.condition, rows),
        keys=last(given.keys, rows, axis=2),
        stack=stack,
      )
      return v, stack.kept if cache else memory

    return placed(solvers.advance(guided(velocity, guidance, guidance_interval), state, plan, stop))

  def decode(params, z):
    f, h, w = z.shape[2:5]
    chunk = chunk_for(4 * f - 3, 8 * h, 8 * w, partition.platform())
    video = lambda z: vae.decode(params['vae'], split(z), chunk=chunk, tile=tile or None)
    if layout is not None and layout.modality_axis:
      return tuple(video(z[:, 0]))
    return tuple(jax.lax.map(video, z)[:, 0])  # one after the other, in half of the memory

  def split(video):
    """The VAE's work, over the rows of the frames."""
    return partition.constrain(video, 'modality', None, 'rows', None, None)

  def jit(function, **options):
    def traced(*args):
      with partition.using(layout):
        return function(*args)

    return jax.jit(traced, keep_unused=True, **options)  # a plan counts all that lies there

  whole = None if layout is None else NamedSharding(layout.mesh, PartitionSpec())
  return Programs(jit(begin), jit(advance, donate_argnums=2), jit(decode, out_shardings=whole))


def placed(tree, place: Callable = partition.constrain):
  """What goes from one program to the next, each leaf ``place(leaf, *names of its axes)``: what is large is split."""
  keys, kept = ('layers', 'modality', 'batch', None, 'heads', None), ('modality', 'batch', None, None)
  names = {dit.Keys: keys, caching.Kept: kept}

  def part(found):
    return jax.tree.map(lambda a: place(a, *names.get(type(found), (None,) * a.ndim)), found)

  return jax.tree.map(part, tree, is_leaf=lambda found: type(found) in names)
