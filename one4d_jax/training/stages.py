"""What differs between the three stages: data, what is trained, the loss, what validation shows.

vae     the VAE, on pieces of RGB and XYZ videos
base    the DiT with its text and image encoders, in-painting RGB latents
one4d   the adapters over all of that, frozen; RGB and XYZ latents
"""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from one4d_jax.data import pipeline, procedural
from one4d_jax.data.clip import signed
from one4d_jax.errors import DataError
from one4d_jax.flow import rectified
from one4d_jax.model import umc
from one4d_jax.model.bundle import Bundle
from one4d_jax.model.generate import generate
from one4d_jax.training import latents, sets
from one4d_jax.viewer.pictures import to_uint8, video_sheet
from one4d_jax.wan import dit
from one4d_jax.wan.vae import WanVAE


class Stage:
  """One stage over its data. ``bundle`` holds what the stages before made; ``config`` is the whole configuration."""

  def __init__(self, config, bundle: Bundle):
    self.config, self.bundle = config, bundle
    self.sets = sets.training(config.data)
    self.validation = sets.validation(config.data)

  @property
  def frozen(self) -> dict:
    """Parameters that the loss needs and no gradient reaches."""
    return {}

  @property
  def given(self) -> dict | None:
    """Trainable parameters that the bundle brings along, to go on with."""
    return None

  def init(self, key: jax.Array) -> dict:
    """Fresh trainable parameters, unboxed."""
    raise NotImplementedError

  def components(self) -> list[pipeline.Component]:
    """What the training stream is mixed from."""
    raise NotImplementedError

  def loss(self, params: dict, frozen: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """The loss of one microbatch and its metrics."""
    raise NotImplementedError

  def finished(self, params: dict) -> Bundle:
    """The bundle with this stage's parameters in it."""
    raise NotImplementedError

  def validate(self, params: dict) -> tuple[dict, np.ndarray]:
    """Metrics on validation clips and a picture, uint8 ``[H W 3]``."""
    raise NotImplementedError


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
  """Peak signal-to-noise ratio of values in [-1, 1], in dB."""
  return 10 * jnp.log10(4 / jnp.mean(jnp.square(a - b)))


def videos(record: dict) -> tuple[np.ndarray, np.ndarray]:
  """A clip's RGB and XYZ video, float32 in about [-1, 1]."""
  return signed(record['rgb']), record['xyz'].astype(np.float32)


class VAEStage(Stage):
  """L1 on pixels and on their differences in space and time, and a small KL term. Continues a VAE it is given."""

  @property
  def vae(self) -> WanVAE:
    """The VAE without normalisation of latents: their statistics are known only when it is trained."""
    channels = self.bundle.config.vae.latent_channels
    raw = {'latent_mean': (0.0,) * channels, 'latent_std': (1.0,) * channels}
    return WanVAE(dataclasses.replace(self.bundle.config.vae, **raw))

  @property
  def given(self):
    return self.bundle.params.get('vae')

  def init(self, key):
    params = nn.unbox(self.vae.init(key))
    moments = params['encoder']['to_moments']  # a posterior much narrower than its mean: noise does not drown colours
    moments['bias'] = moments['bias'].at[self.bundle.config.vae.latent_channels :].set(-5.0)
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
    mean, logvar = self.vae.moments(params, video)
    logvar = jnp.clip(logvar, -30.0, 20.0)
    decoded = self.vae.decode(params, mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape))
    error = decoded - video
    slopes = sum(jnp.abs(jnp.diff(error, axis=axis)).mean() for axis in (1, 2, 3))
    kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)
    value = jnp.abs(error).mean() + 0.3 * slopes + self.config.train.kl * kl
    return value, {'l1': jnp.abs(error).mean(), 'kl': kl, 'psnr': psnr(decoded, video)}

  def finished(self, params):
    """Latents are normalised by the statistics of both modalities over training clips."""
    encode = jax.jit(self.vae.encode)
    count = -(-64 // len(self.sets))
    clips = (np.stack(videos(one.records[i])) for one in self.sets for i in range(min(count, len(one.records))))
    z = np.concatenate([np.asarray(encode(params, clip)).reshape(-1, self.vae.cfg.latent_channels) for clip in clips])
    channels = lambda f: tuple(np.round(f(z, axis=0).astype(float), 5).tolist())
    vae = dataclasses.replace(self.vae.cfg, latent_mean=channels(np.mean), latent_std=channels(np.std))
    config = dataclasses.replace(self.bundle.config, vae=vae)
    return Bundle({'vae': params}, config, self.bundle.record)

  def validate(self, params):
    rows, metrics = [], {'psnr_rgb': [], 'psnr_xyz': []}
    for i in range(len(self.validation.records)):
      pair = np.stack(videos(self.validation.records[i]))
      decoded = self._round_trip(params, pair)
      for name, a, b in zip(metrics, decoded, pair, strict=True):
        metrics[name].append(float(psnr(a, b)))
      if i < 4:
        rows += [pair[0], np.asarray(decoded[0]), pair[1], np.asarray(decoded[1])]
    return {k: float(np.mean(v)) for k, v in metrics.items()}, video_sheet(rows)

  @functools.cached_property
  def _round_trip(self):
    return jax.jit(lambda params, video: self.vae.decode(params, self.vae.encode(params, video)))


class FlowStage(Stage):
  """What ``base`` and ``one4d`` share: latents, the condition, the rectified flow.

  Procedural clips are encoded once, into the cache. Of an encoded set, what it lacks is computed in the step, and of a
  prepared set everything is.
  """

  def __init__(self, config, bundle):
    super().__init__(config, bundle)
    self._components, needed = [], set()
    for one in self.sets:
      component, parts = self._samples(one)
      self._components.append(component)
      needed |= parts
    self.encoders = {part: bundle.params[part] for part in latents.PARTS if part in needed and part in bundle.params}

  def components(self):
    return self._components

  def _samples(self, one: sets.Set) -> tuple[pipeline.Component, set[str]]:
    """The component of a set, and the encoders that its batches need in the step."""
    names, data = ('tasks', 'text_only', 'text_dropout', 'image_dropout'), self.config.data
    settings = {name: getattr(self.config.train, name) for name in names}
    if one.meta:
      self.check(one)
      draw = functools.partial(latents.draw, null=one.null, text_len=one.meta['networks']['text_len'], **settings)
      parts = {'vae'} if one.meta['conditions'] == 'frames' else set()
    elif one.name == 'procedural':
      make = functools.partial(latents.build, pathlib.Path(data.cache), bundle=self.bundle)
      records = make(one.records, name=f'train-{len(one.records)}', sparse_masks=data.sparse_masks)
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

  def validation_clip(self, i: int) -> dict:
    """The i-th, in turn, as pixels; one of an encoded set is decoded."""
    record = self.validation.records[i % len(self.validation.records)]
    if not self.validation.meta:
      return record
    rgb, xyz = latents.decode(self.bundle, self.bundle.params['vae'], record['z'])
    return {'rgb': to_uint8(rgb), 'xyz': xyz, 'caption': record['caption']}

  def noised(self, z: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(z_sigma, sigma, target)`` for ``z`` ``[m b f h w c]``."""
    key_sigma, key_noise = jax.random.split(key)
    sigma = rectified.draw_sigma(key_sigma, (z.shape[1],), shift=self.config.train.shift)
    eps = jax.random.normal(key_noise, z.shape)
    return rectified.interpolate(z, eps, sigma), sigma, rectified.target(z, eps)

  def validate(self, params):
    """A picture of samples for each task, and the error of the fully observed clips among them."""
    bundle, rows, metrics = self.finished(params), [], {'psnr_rgb': [], 'psnr_xyz': []}
    for i, task in enumerate(('video', 'video', 'sparse', 'image', 'text')):
      record = self.validation_clip(i)
      rgb, xyz = videos(record)
      made = generate(bundle, rgb, umc.observed_frames(task, len(rgb)), record['caption'], seed=i)
      rows += [rgb, made.rgb, xyz, made.xyz]
      if task == 'video':
        metrics['psnr_rgb'].append(float(psnr(made.rgb, rgb)))
        metrics['psnr_xyz'].append(float(psnr(made.xyz, xyz)))
    return {k: float(np.mean(v)) for k, v in metrics.items()}, video_sheet(rows)


class BaseStage(FlowStage):
  """The RGB model that stands for Wan at this size; trains its text and image encoders along."""

  PARTS = ('base', 'text', 'image')

  @property
  def frozen(self):
    return {name: value for name, value in self.encoders.items() if name not in self.PARTS}

  def check(self, one):
    raise DataError(
      f'{one.name} holds features of text and image encoders, which the base stage trains; give the prepared set'
    )

  def init(self, key):
    keys = jax.random.split(key, 3)
    parts = (self.bundle.model.init_base, self.bundle.text.init, self.bundle.image.init)
    params = {name: nn.unbox(init(k)) for name, init, k in zip(self.PARTS, parts, keys, strict=True)}
    head = params['base']['head']['out']
    head['kernel'] = jnp.zeros_like(head['kernel'])  # as Wan starts: the first prediction is zero
    return params

  def loss(self, params, frozen, batch, key):
    z, condition = latents.complete(batch, self.bundle, params | frozen)
    z_sigma, sigma, target = self.noised(z[:1], key)
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
      remat=self.config.model.remat,
    )
    value = rectified.loss(v[None], target)[0]
    return value, {'loss_rgb': value}

  def finished(self, params):
    return self.bundle.replace(params).untrained()


class One4DStage(FlowStage):
  """Adapters over the frozen base; the mean of both modalities' losses, XYZ where its target is known."""

  @property
  def frozen(self):
    return {'base': self.bundle.params['base'], **self.encoders}

  @property
  def given(self):
    return self.bundle.params.get('adapters')

  def init(self, key):
    return nn.unbox(self.bundle.model.init_adapters(key, self.bundle.params['base']))

  def loss(self, params, frozen, batch, key):
    z, condition = latents.complete(batch, self.bundle, frozen)
    z_sigma, sigma, target = self.noised(z, key)
    model = dataclasses.replace(self.bundle.model, remat=self.config.model.remat)
    v = model.velocity(frozen['base'], params, z_sigma, sigma, condition)
    weight = batch['weight'].astype(jnp.float32)
    weight = jnp.stack([jnp.ones_like(weight), weight])
    rgb, xyz = rectified.loss(v, target, weight)
    return (rgb + xyz) / 2, {'loss_rgb': rgb, 'loss_xyz': xyz}

  def finished(self, params):
    return self.bundle.replace({'adapters': params})


STAGES = {'vae': VAEStage, 'base': BaseStage, 'one4d': One4DStage}
