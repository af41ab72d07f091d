"""The linear start of a VAE: nothing is trained, and pictures come back."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.data import render
from one4d_jax.data.clip import signed
from one4d_jax.evaluation.video import psnr
from one4d_jax.training import linear
from one4d_jax.wan.config import VAEConfig
from one4d_jax.wan.vae import WanVAE

CFG = VAEConfig(
  width=40,
  mult=(1, 1, 1),
  res_blocks=0,
  temporal=(True, True),
  latent_channels=32,
  latent_mean=(0.0,) * 32,
  latent_std=(1.0,) * 32,
  patch=8,
)


def clips(seeds, split='train'):
  return [
    signed(render.clip(i, level='easy', split=split, frames=9, height=32, width=32, supersample=1).rgb)[None]
    for i in seeds
  ]


@pytest.fixture(scope='module')
def fresh():
  return jax.tree.map(np.asarray, nn.unbox(jax.jit(WanVAE(CFG).init)(jax.random.key(0))))


@pytest.fixture(scope='module')
def started(fresh):
  return linear.start(CFG, fresh, clips(range(16)))


def round_trip(params, video):
  vae = WanVAE(CFG)
  return np.asarray(jax.jit(lambda video: vae.decode(params, vae.encode(params, video)))(jnp.asarray(video)))


def test_held_out_clips_come_back(fresh, started):
  video = np.concatenate(clips(range(4), split='test'))
  mean = np.broadcast_to(video.mean(axis=(1, 2, 3), keepdims=True), video.shape)
  flat, made = psnr(mean, video), psnr(round_trip(started, video), video)
  assert made > flat + 8 and made > psnr(round_trip(fresh, video), video) + 8, (made, flat)


def test_it_is_nearly_the_best_that_linear_maps_of_its_pieces_can_do(started):
  """Components of whole latent places, from the very clips that are shown, are a bound that it may miss by little."""
  video = np.concatenate(clips(range(16)))[:, 1:]
  places = video.reshape(16, 2, 4, 4, 8, 4, 8, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 4 * 8 * 8 * 3)
  centred = places - places.mean(axis=0)
  values = np.linalg.svd(centred, compute_uv=False)
  bound = 10 * np.log10(4 / (np.sum(values[CFG.latent_channels :] ** 2) / places.size))
  made = psnr(round_trip(started, np.concatenate(clips(range(16))))[:, 1:], video)
  assert bound - 2.5 < made, (made, bound)


def test_latents_have_a_like_size_and_a_narrow_posterior(started):
  mean, logvar = WanVAE(CFG).moments(started, jnp.asarray(np.concatenate(clips(range(4)))))
  size = np.asarray(mean).std(axis=(0, 1, 2, 3))
  assert size.min() > 0.05 and size.max() < 10
  np.testing.assert_allclose(logvar, linear.LOG_VARIANCE, atol=1e-5)


def test_it_streams_like_any_vae(started):
  vae, video = WanVAE(CFG), jnp.asarray(np.concatenate(clips(range(2))))
  z = vae.encode(started, video)
  np.testing.assert_allclose(vae.encode(started, video, chunk=1), z, atol=1e-4)
  np.testing.assert_allclose(vae.decode(started, z, chunk=1), vae.decode(started, z), atol=1e-4)


@pytest.mark.parametrize('change', [{'patch': 1, 'mult': (1, 1, 1, 1)}, {'mult': (1, 2, 2)}, {'width': 32}])
def test_where_the_chain_is_not_free_there_is_no_linear_start(change):
  assert linear.applies(CFG) and not linear.applies(dataclasses.replace(CFG, **change))
