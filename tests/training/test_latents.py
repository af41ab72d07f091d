"""Training samples drawn from latent records."""

import numpy as np

from one4d_jax.model import umc
from one4d_jax.training import latents


def record(frames=5):
  rng = np.random.default_rng(0)
  shape = (2, 2, 2, 16)
  first = np.zeros((1, frames), bool)
  first[:, [0, -1]] = True
  return {
    'z': rng.standard_normal((2, *shape)).astype(np.float16),
    'z_image': np.full(shape, 7, np.float16),
    'z_sparse': np.full((1, *shape), 8, np.float16),
    'observed_sparse': first,
    'weight': np.ones(shape[:3], np.float16),
    'first': np.zeros((16, 16, 3), np.uint8),
    'ids': np.ones(4, np.int32),
    'text_mask': np.ones(4, bool),
    'id': 'x',
  }


def draws(n=4000, **changes):
  settings = {'tasks': umc.PROBABILITIES, 'text_only': 0.1, 'text_dropout': 0.2, 'image_dropout': 0.1} | changes
  return [latents.draw(record(), np.random.default_rng(i), **settings) for i in range(n)]


def test_tasks_come_in_their_shares_with_the_latent_of_their_condition():
  samples = draws()
  share = lambda keep: np.mean([keep(s) for s in samples])
  seen = lambda s: int(s['observed'].sum())
  np.testing.assert_allclose(share(lambda s: seen(s) == 0), 0.1, atol=0.02)
  np.testing.assert_allclose(share(lambda s: seen(s) == 1), 0.9 * 0.35, atol=0.03)
  np.testing.assert_allclose(share(lambda s: seen(s) == 2), 0.9 * 0.30, atol=0.03)
  np.testing.assert_allclose(share(lambda s: seen(s) == 5), 0.9 * 0.35, atol=0.03)
  np.testing.assert_allclose(share(lambda s: not s['text_kept']), 0.2, atol=0.02)
  for s in samples[:200]:
    expected = {0: 0, 1: 7, 2: 8}.get(seen(s))
    np.testing.assert_array_equal(s['latent'], s['z'][0] if expected is None else np.full_like(s['latent'], expected))


def test_nothing_observed_shows_no_image():
  assert not any(s['image_kept'] for s in draws(50, text_only=1.0))
  assert all(s['image_kept'] for s in draws(50, text_only=0.0, image_dropout=0.0))


def test_cells_are_supervised_by_the_share_of_known_pixels():
  known = np.ones((5, 16, 16), bool)
  known[0, :8, :8] = False  # frame 0 is latent frame 0
  known[1:3, 8:, 8:] = False  # half of the four frames of latent frame 1
  weight = latents._supervised(known)
  assert weight.shape == (2, 2, 2)
  np.testing.assert_array_equal(weight[0], [[0, 1], [1, 1]])
  np.testing.assert_array_equal(weight[1], [[1, 1], [1, 0.5]])
