"""The programs of a scene, on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import ConfigError, ShapeError
from one4d_jax.flow import caching, solvers
from one4d_jax.flow.sampling import sample
from one4d_jax.model import bundle as bundles
from one4d_jax.model import umc
from one4d_jax.model.generate import generate, with_defaults
from tests import small


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
  """Adapters that do something."""
  found = bundles.load(small.bundle(tmp_path_factory.mktemp('bundle'))).untrained()
  noisy = lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape)
  return found.replace({'adapters': jax.tree.map(noisy, found.params['adapters'])})


VIDEO = np.random.default_rng(0).uniform(-1, 1, (5, 32, 32, 3)).astype(np.float32)
OBSERVED = np.array([True, False, False, True, False])


def made(bundle, **settings):
  return generate(bundle, VIDEO, OBSERVED, 'a red box', **({'seed': 3, 'steps': 4, 'guidance': 3.0} | settings))


@pytest.fixture(scope='module')
def whole(bundle):
  return made(bundle)


@pytest.mark.parametrize('solver', solvers.SOLVERS)
def test_is_the_sampler_over_the_velocity(bundle, solver):
  """Keys once for all steps, guidance in one batch and steps in pieces change nothing."""
  params, config = bundle.params, bundle.config
  text = bundle.text.encode(params['text'], *bundle.tokenizer(['a red box', '']))
  image = bundle.image.encode(params['image'], VIDEO[None, 0])
  encode = lambda video: bundle.vae.encode(params['vae'], video)
  positive = umc.make_condition(encode, jnp.asarray(VIDEO)[None], jnp.asarray(OBSERVED)[None], text[:1], image)

  @jax.jit
  def velocity(z, sigma, condition):
    sigma = jnp.full(z.shape[1], sigma)
    return bundle.model.velocity(params['base'], params['adapters'], z, sigma, condition)

  size = (2, *positive.latent.shape)
  settings = {'shape': size, 'solver': solver, 'steps': 4, 'shift': config.shift, 'guidance': 3.0}
  z = sample(jax.random.key(3), velocity, positive, positive.replace(text=text[1:]), **settings)
  found = made(bundle, solver=solver)
  for video, expected in zip(found, bundle.vae.decode(params['vae'], z[:, 0]), strict=True):
    np.testing.assert_allclose(video, expected, atol=1e-4)


def test_progress_counts_every_step(bundle, whole):
  seen = []
  for found, expected in zip(made(bundle, progress=seen.append), whole, strict=True):
    np.testing.assert_array_equal(found, expected)
  assert seen == [0, 1, 2, 3]


def test_a_large_cache_skips_all_steps_but_the_first(bundle, whole, monkeypatch):
  ran, change = [], caching.change
  monkeypatch.setattr(caching, 'change', lambda *pair: jax.debug.callback(ran.append, change(*pair)) or change(*pair))
  near, far = made(bundle, cache=1e-6), made(bundle, cache=1e6)
  jax.effects_barrier()
  assert len(ran) == 8
  for one, other, expected in zip(near, far, whole, strict=True):
    np.testing.assert_allclose(one, expected, atol=1e-4)
    assert np.abs(other - expected).max() > 1e-3


def test_guidance_in_no_step_is_no_guidance(bundle):
  for one, other in zip(made(bundle, guidance_interval=(0.0, 0.0)), made(bundle, guidance=1.0), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'guidance_interval': (0.9, 0.2)}, 'guidance_interval 0.9,0.2: expected noise levels'),
    ({'cache': -1.0}, 'cache -1.0 must be 0'),
    ({'stepz': 3}, "no setting of sampling 'stepz'"),
    ({'solver': 'heun'}, "unknown solver 'heun'"),
    ({'steps': 0}, 'steps >= 1'),
  ],
)
def test_settings_that_do_not_go_are_named(bundle, settings, message):
  with pytest.raises(ConfigError, match=message):
    made(bundle, **settings)


def test_what_is_not_asked_for_is_the_bundles(bundle):
  found = with_defaults(bundle.config, {'steps': None, 'guidance': 2})
  assert found['steps'] == bundle.config.steps and found['guidance'] == 2.0


def test_videos_that_do_not_fit_are_named(bundle):
  with pytest.raises(ShapeError, match=r'F = 4n\+1, sides multiples of 16'):
    generate(bundle, VIDEO[:4], OBSERVED[:4], '')
