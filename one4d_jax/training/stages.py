"""What differs between the three stages: data, what is trained, the loss, what validation shows.

vae     the VAE, on pieces of RGB and XYZ videos
base    the DiT with its text and image encoders, in-painting RGB latents
one4d   the adapters over all of that, frozen; RGB and XYZ latents
"""

import dataclasses
import functools
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from one4d_jax.data import pipeline, procedural
from one4d_jax.data.clip import signed
from one4d_jax.errors import DataError
from one4d_jax.flow import rectified
from one4d_jax.model import umc, weights
from one4d_jax.model.bundle import Bundle
from one4d_jax.model.files import PARTS
from one4d_jax.model.generate import generate
from one4d_jax.nn import partition
from one4d_jax.parallel import load
from one4d_jax.parallel.layout import batch_sharding
from one4d_jax.training import flops, latents, linear, sets
from one4d_jax.training.step import mean
from one4d_jax.viewer.pictures import to_uint8, video_sheet
from one4d_jax.wan import dit
from one4d_jax.wan.vae import WanVAE, chunk_for, latent_grid

MODALITIES = ('rgb', 'xyz')
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels of the validation loss


class Stage:
  """One stage over its data. ``bundle`` holds what the stages before made; ``config`` is the whole configuration."""

  def __init__(self, config, bundle: Bundle):
    self.config, self.bundle = config, bundle
    self.sets = sets.training(config.data)
    self.validation = sets.validation(config.data)

  @property
  def frozen(self) -> set[str]:
    """Parts of the bundle that the loss needs and no gradient reaches."""
    return set()

  @property
  def given(self) -> dict | None:
    """Trainable parameters that the bundle brings along, to go on with."""
    return None

  def init(self, key: jax.Array, frozen: dict) -> dict:
    """Fresh trainable parameters, boxed with logical axes. ``frozen`` has the parts of that name."""
    raise NotImplementedError

  def components(self) -> list[pipeline.Component]:
    """What the training stream is mixed from."""
    raise NotImplementedError

  def loss(self, params: dict, frozen: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """The loss of one microbatch and its metrics, each as ``step.mean`` gives it."""
    raise NotImplementedError

  def validation_loss(self, params: dict, frozen: dict, layout) -> dict[str, float]:
    """Losses on validation clips at fixed noise levels; empty where the stage has none."""
    return {}

  def finished(self, params: dict) -> Bundle:
    """The bundle with this stage's parameters in it, which are whole on the host."""
    raise NotImplementedError

  def work(self, batch: dict) -> dict[str, float]:
    """``samples`` of a batch and, where they are counted, ``tokens`` and ``flops`` of a step on it."""
    return {'samples': len(batch['video'])}

  def observe(self, params: dict) -> dict[str, float]:
    """What else to tell of the parameters."""
    return {}

  def validate(self, params: dict, frozen: dict, layout) -> tuple[dict, np.ndarray]:
    """Metrics on validation clips and a picture, uint8 ``[H W 3]``. Every process of the mesh must call this."""
    raise NotImplementedError


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
  """Peak signal-to-noise ratio of values in [-1, 1], in dB."""
  return 10 * jnp.log10(4 / jnp.mean(jnp.square(a - b)))


def videos(record: dict) -> tuple[np.ndarray, np.ndarray]:
  """A clip's RGB and XYZ video, float32 in about [-1, 1]."""
  return signed(record['rgb']), record['xyz'].astype(np.float32)


def _chunk(video: jax.Array) -> int | None:
  """Whole clips ``[b F H W 3]`` go through the VAE in bounded memory."""
  return chunk_for(*video.shape[1:4], partition.platform())


class VAEStage(Stage):
  """Errors of pixels and of their differences in space and time, and a small KL term.

  An error e costs |e| + 5 e^2: edges stay sharp, and large errors do not linger. In an XYZ video it weighs by how near
  the point is to the first camera, since depth is judged by its relative error. Continues a VAE it is given; else
  starts from the best linear one where the architecture has room for it.
  """

  @property
  def vae(self) -> WanVAE:
    """The VAE without normalisation of latents: their statistics are known only when it is trained."""
    channels = self.bundle.config.vae.latent_channels
    raw = {'latent_mean': (0.0,) * channels, 'latent_std': (1.0,) * channels}
    return WanVAE(dataclasses.replace(self.bundle.config.vae, **raw))

  @functools.cached_property
  def given(self):
    key = jax.random.key(self.config.train.seed)
    if 'vae' in self.bundle.params:
      return self.bundle.params['vae']
    if 'vae' in self.bundle.folders:
      return weights.restore(self.bundle.folders['vae'], nn.unbox(jax.eval_shape(self.vae.init, key)))
    if not linear.applies(self.vae.cfg):
      return None
    fresh = nn.unbox(jax.jit(self.vae.init)(key))
    records = self.sets[0].records
    return linear.start(self.vae.cfg, fresh, [np.stack(videos(records[i])) for i in range(min(64, len(records)))])

  def init(self, key, frozen):
    params = self.vae.init(key)
    moments = params['encoder']['to_moments']  # a posterior much narrower than its mean: noise does not drown colours
    narrow = lambda bias: bias.at[self.bundle.config.vae.latent_channels :].set(-5.0)
    moments['bias'] = jax.tree.map(narrow, moments['bias'])
    return params

  def __init__(self, config, bundle):
    super().__init__(config, bundle)
    if encoded := [one.name for one in (*self.sets, self.validation) if one.meta]:
      raise DataError(f'the VAE trains on clips, {encoded[0]} is encoded; give the prepared set it was made of')

  def components(self):
    draw = functools.partial(procedural.vae_crop, crop=self.config.train.crop)
    return [one.component(draw) for one in self.sets]  # pieces are of one size: one bucket

  def loss(self, params, frozen, batch, key):
    video = batch['video']
    centre, logvar = self.vae.moments(params, video)
    logvar = jnp.clip(logvar, -30.0, 20.0)
    decoded = self.vae.decode(params, centre + jnp.exp(0.5 * logvar) * jax.random.normal(key, centre.shape))
    error = decoded - video
    cost = lambda e: jnp.abs(e) + 5 * jnp.square(e)
    distance = jnp.linalg.norm(video - jnp.asarray([0, 0, -1.0]), axis=-1, keepdims=True)
    near = jnp.where(batch['is_xyz'][:, None, None, None, None], jnp.clip(1 / (0.2 + distance), 0.5, 3.0), 1.0)
    slopes = sum(cost(jnp.diff(error, axis=axis)).mean() for axis in (1, 2, 3))
    kl = 0.5 * jnp.mean(jnp.square(centre) + jnp.exp(logvar) - 1 - logvar)
    value = (near * cost(error)).mean() + 0.1 * slopes + self.config.train.kl * kl
    return value, {'l1': mean(jnp.abs(error).mean()), 'kl': mean(kl), 'psnr': mean(psnr(decoded, video))}

  def finished(self, params):
    """Latents are normalised by the statistics of both modalities over training clips.

    A mean for each channel, one scale for all: a channel that tells more of the pixels keeps more of the loss.
    """
    encode, count = jax.jit(self._encode), -(-64 // len(self.sets))
    clips = (np.stack(videos(one.records[i])) for one in self.sets for i in range(min(count, len(one.records))))
    z = np.concatenate([np.asarray(encode(params, clip)).reshape(-1, self.vae.cfg.latent_channels) for clip in clips])
    channels = lambda values: tuple(np.round(values.astype(float), 5).tolist())
    mean, scale = z.mean(axis=0), np.sqrt(z.var(axis=0).mean())
    vae = dataclasses.replace(self.vae.cfg, latent_mean=channels(mean), latent_std=channels(np.full(mean.shape, scale)))
    config = dataclasses.replace(self.bundle.config, vae=vae)
    return Bundle({'vae': params}, config, self.bundle.record)

  def validate(self, params, frozen, layout):
    params, rows, metrics = load.gathered(params), [], {'psnr_rgb': [], 'psnr_xyz': []}
    for i in range(len(self.validation.records)):
      pair = np.stack(videos(self.validation.records[i]))
      decoded = self._round_trip(params, pair)
      for name, a, b in zip(metrics, decoded, pair, strict=True):
        metrics[name].append(float(psnr(a, b)))
      if i < 4:
        rows += [pair[0], np.asarray(decoded[0]), pair[1], np.asarray(decoded[1])]
    return {k: float(np.mean(v)) for k, v in metrics.items()}, video_sheet(rows)

  def _encode(self, params: dict, video: jax.Array) -> jax.Array:
    return self.vae.encode(params, video, chunk=_chunk(video))

  @functools.cached_property
  def _round_trip(self):
    return jax.jit(lambda params, video: self.vae.decode(params, self._encode(params, video), chunk=_chunk(video)))


class FlowStage(Stage):
  """What ``base`` and ``one4d`` share: latents, the condition, the rectified flow.

  Procedural clips are encoded once, into the cache. Of an encoded set, what it lacks is computed in the step, and of a
  prepared set everything is.
  """

  def __init__(self, config, bundle):
    super().__init__(config, bundle)
    self._components, needed = [], set()
    for one in self.sets:
      component, parts = self._samples(one, 'train')
      self._components.append(component)
      needed |= parts
    self._held_out, parts = self._samples(self.validation, 'val')
    self.encoders = {part for part in needed | parts if part in bundle.hashes}

  def components(self):
    return self._components

  def _samples(self, one: sets.Set, split: str) -> tuple[pipeline.Component, set[str]]:
    """The component of a set, and the encoders that its batches need in the step."""
    names, data = ('tasks', 'text_only', 'text_dropout', 'image_dropout'), self.config.data
    settings = {name: getattr(self.config.train, name) for name in names}
    if one.meta:
      self.check(one)
      draw = functools.partial(latents.draw, null=one.null, text_len=one.meta['networks']['text_len'], **settings)
      parts = {'vae'} if one.meta['conditions'] == 'frames' else set()
    elif one.name == 'procedural':
      make = functools.partial(latents.build, pathlib.Path(data.cache), bundle=self.bundle)
      records = make(one.records, name=f'{split}-{len(one.records)}', sparse_masks=data.sparse_masks)
      one = dataclasses.replace(one, records=records)
      draw, parts = functools.partial(latents.draw, **settings), {'text', 'image'}
    else:
      draw = functools.partial(latents.draw_pixels, tokenizer=self.bundle.tokenizer, **settings)
      parts = set(latents.PARTS)
    return one.component(draw, bucket=(*one.size, *sorted(parts))), parts

  def check(self, one: sets.Set) -> None:
    """Raises DataError unless an encoded set was made by the networks that this stage freezes."""
    here, there = latents.identity(self.bundle), one.meta['networks']
    if other := [f'{k} {v} (config.model.weights: {here.get(k)})' for k, v in there.items() if here.get(k) != v]:
      raise DataError(f'{one.name} was encoded with {", ".join(other)}; encode it again, or give the weights it is of')

  def validation_clip(self, i: int, vae: dict) -> dict:
    """The i-th, in turn, as pixels; one of an encoded set is decoded by the parameters ``vae``."""
    record = self.validation.records[i % len(self.validation.records)]
    if not self.validation.meta:
      return record
    rgb, xyz = latents.decode(self.bundle, vae, record['z'])
    return {'rgb': to_uint8(rgb), 'xyz': xyz, 'caption': record['caption']}

  def work(self, batch):
    count, config = len(batch['observed']), self.bundle.config
    channels = config.vae.latent_channels
    latent = batch['z'].shape[2:] if 'z' in batch else (*latent_grid(*batch['rgb'].shape[1:4]), channels)
    grid = dit.token_grid(config.dit, latent)
    sizes = flops.Sizes(count, grid, config.dit.text_len, config.image.tokens)
    tokens, operations = self.counted(sizes)
    return {'samples': count, 'tokens': tokens, 'flops': sum(operations.step.values())}

  def counted(self, sizes: flops.Sizes) -> tuple[int, flops.Count]:
    """Tokens and operations of a step."""
    raise NotImplementedError

  def trained(self, params: dict) -> dict[str, dict]:
    """The parts of a bundle that ``params`` are, adapters among them."""
    raise NotImplementedError

  def losses(self, params: dict, frozen: dict, batch: dict, sigma: jax.Array, key: jax.Array) -> tuple:
    """``(loss [m], loss of each sample [m b])`` at noise levels ``sigma`` ``[b]``; ``key`` draws the noise."""
    raise NotImplementedError

  def loss(self, params, frozen, batch, key):
    key_sigma, key_noise = jax.random.split(key)
    seen = batch['observed']
    cfg = self.config.train
    sigma = rectified.draw_sigma(key_sigma, (len(seen),), shift=cfg.shift, shift_max=cfg.shift_max)
    whole, each = self.losses(params, frozen, batch, sigma, key_noise)
    tasks, metrics = umc.tasks(seen), {}
    for name, value, samples in zip(MODALITIES, whole, each):  # noqa: B905, the base stage has one modality
      metrics[f'loss_{name}'] = mean(value)
      metrics |= {f'loss_{name}/{task}': mean(samples, tasks == i) for i, task in enumerate(umc.ALL_TASKS)}
    return whole.mean(), metrics

  def validation_loss(self, params, frozen, layout):
    """One pass over the validation clips at each of ``SIGMAS``, samples and noise the same every time, on any mesh."""
    totals, size = {}, self.config.train.batch  # which every mesh divides
    run = self._validation_losses(layout)
    for start in range(0, len(self._held_out.source), size):
      index = [i % len(self._held_out.source) for i in range(start, start + size)]
      samples = [self._held_out.transform(self._held_out.source[i], np.random.default_rng(i)) for i in index]
      batch = latents.arrays({name: np.stack([sample[name] for sample in samples]) for name in samples[0]})
      placed = load.put(batch, dict.fromkeys(batch, batch_sharding(layout.mesh)))
      for name, value in run(params, frozen, placed).items():
        totals.setdefault(name, []).append(np.asarray(value))
    return {name: float(np.mean(values)) for name, values in totals.items()}

  @functools.lru_cache(maxsize=1)  # noqa: B019, a stage lives as long as its run
  def _validation_losses(self, layout):
    def run(params, frozen, batch):
      with partition.using(layout):
        found = {}
        for level in SIGMAS:
          sigma = jnp.full(len(batch['observed']), level)
          whole, _ = self.losses(params, frozen, batch, sigma, jax.random.key(0))
          found |= {f'loss_{name}@{level:g}': value for name, value in zip(MODALITIES, whole)}  # noqa: B905
        return found

    return jax.jit(run, out_shardings=NamedSharding(layout.mesh, PartitionSpec()))

  def validate(self, params, frozen, layout):
    """A picture of samples for each task, and the error of the fully observed clips among them.

    Networks that the step does not need are read for it and released.
    """
    parts = frozen | self.trained(params)
    parts |= {part: load.part(self.bundle, part, layout.mesh) for part in PARTS if part not in parts}
    bundle = dataclasses.replace(self.bundle, params=parts, layout=layout)
    vae = load.gathered(parts['vae']) if self.validation.meta else None
    rows, metrics = [], {'psnr_rgb': [], 'psnr_xyz': []}
    for i, task in enumerate(('video', 'video', 'sparse', 'image', 'text')):
      record = self.validation_clip(i, vae)
      rgb, xyz = videos(record)
      seen = umc.observed_frames(task, len(rgb))
      made = generate(bundle, rgb, seen, record['caption'], seed=i)
      rows += [rgb, made.rgb, xyz, made.xyz]
      if task == 'video':
        metrics['psnr_rgb'].append(float(psnr(made.rgb, rgb)))
        metrics['psnr_xyz'].append(float(psnr(made.xyz, xyz)))
    return {k: float(np.mean(v)) for k, v in metrics.items()}, video_sheet(rows)


def noised(z: jax.Array, sigma: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``(z_sigma, target)`` for ``z`` ``[m b f h w c]``."""
  eps = jax.random.normal(key, z.shape)
  return rectified.interpolate(z, eps, sigma), rectified.target(z, eps)


def compared(v: jax.Array, target: jax.Array, weight: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """The loss of each modality ``[m]``, and of each of its samples ``[m b]``."""
  alone = lambda x: None if x is None else x[:, :, None]
  return rectified.loss(v, target, weight), rectified.loss(alone(v), alone(target), alone(weight))


class BaseStage(FlowStage):
  """The RGB model that stands for Wan at this size; trains its text and image encoders along."""

  PARTS = ('base', 'text', 'image')

  def counted(self, sizes):
    return sizes.batch * math.prod(sizes.grid), flops.base(self.bundle.config.dit, sizes)

  @property
  def frozen(self):
    return self.encoders - set(self.PARTS)

  def check(self, one):
    raise DataError(
      f'{one.name} holds features of text and image encoders, which the base stage trains; give the prepared set'
    )

  def init(self, key, frozen):
    keys = jax.random.split(key, 3)
    parts = (self.bundle.model.init_base, self.bundle.text.init, self.bundle.image.init)
    params = {name: init(k) for name, init, k in zip(self.PARTS, parts, keys, strict=True)}
    head = params['base']['head']['out']
    head['kernel'] = jax.tree.map(jnp.zeros_like, head['kernel'])  # as Wan starts: the first prediction is zero
    return params

  def losses(self, params, frozen, batch, sigma, key):
    z, condition = latents.complete(batch, self.bundle, params | frozen)
    z_sigma, target = noised(z[:1], sigma, key)
    model = self.bundle.model
    x = jnp.concatenate([z_sigma[0], condition.mask, condition.latent], axis=-1)
    v = dit.velocity(
      model.cfg,
      params['base'],
      x,
      1000 * sigma,
      condition.text,
      condition.image,
      precision=model.precision,
      policy=self.config.model.remat,
    )
    return compared(v[None], target)

  def trained(self, params):
    fresh = jax.jit(lambda base: nn.unbox(self.bundle.model.init_adapters(jax.random.key(0), base)))
    return params | {'adapters': fresh(params['base'])}

  def finished(self, params):
    return self.bundle.replace(params).untrained()


class One4DStage(FlowStage):
  """Adapters over the frozen base; the mean of both modalities' losses, XYZ where its target is known."""

  def counted(self, sizes):
    config = self.bundle.config
    return flops.tokens(self.bundle.model, sizes), flops.one4d(config.dit, config.adapters, sizes)

  @property
  def frozen(self):
    return {'base'} | self.encoders

  @property
  def given(self):
    return self.bundle.params.get('adapters')

  def init(self, key, frozen):
    return self.bundle.model.init_adapters(key, frozen['base'])

  def losses(self, params, frozen, batch, sigma, key):
    z, condition = latents.complete(batch, self.bundle, frozen)
    z_sigma, target = noised(z, sigma, key)
    model = dataclasses.replace(self.bundle.model, remat=self.config.model.remat)
    v = model.velocity(frozen['base'], params, z_sigma, sigma, condition)
    weight = batch['weight'].astype(jnp.float32)
    return compared(v, target, jnp.stack([jnp.ones_like(weight), weight]))

  def trained(self, params):
    return {'adapters': params}

  def finished(self, params):
    return self.bundle.replace({'adapters': params})

  def observe(self, params):
    """The norm of every control link; they start at zero."""
    if 'links' not in params:
      return {}
    model = self.bundle.model
    whole = NamedSharding(params['links'].sharding.mesh, PartitionSpec())
    norms = np.asarray(jax.jit(_link_norms, out_shardings=whole)(params['links']))
    names = [f'{MODALITIES[into]}_from_{MODALITIES[1 - into]}' for into in model.linked]
    layers = model.adapters.link_layers
    return {f'link/{n}/{layer}': float(norms[k, m]) for k, layer in enumerate(layers) for m, n in enumerate(names)}


def _link_norms(links: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.square(links.astype(jnp.float32)).sum(axis=(2, 3)))


STAGES = {'vae': VAEStage, 'base': BaseStage, 'one4d': One4DStage}
