"""Unified masked conditioning: masks equal the original's, tasks observe what they should."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import ConfigError
from one4d_jax.model import umc

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'cond_mask.npz'))


def encode(video):
  """A stand-in for the VAE: any fixed map that does not send grey to zero."""
  b, _, height, width, _ = video.shape
  cells = video[:, ::4].reshape(b, -1, height // 8, 8, width // 8, 8, 3).mean(axis=(3, 5, 6))
  return jnp.repeat(cells[..., None], 16, axis=-1) + 0.5


def inputs(b=2, frames=5):
  video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (b, frames, 16, 24, 3)), jnp.float32)
  return video, jnp.ones((b, 7, 4)), jnp.ones((b, 3, 6))


def test_frame_masks_equal_the_original():
  generate = GOLDEN['frame_mask_video_255gen'][:, 0]  # b F H W, 255 = to generate
  expected = GOLDEN['frame_mask_latent'].T  # stored as [channel, latent frame]
  mask = umc.frame_mask(jnp.asarray(generate[:, :, 0, 0] < 128))
  np.testing.assert_array_equal(mask[0], expected)
  full = umc.latent_mask(jnp.asarray(generate < 128))
  np.testing.assert_array_equal(full, np.broadcast_to(expected[None, :, None, None], full.shape))


def test_pixel_masks_equal_the_original():
  generate = GOLDEN['spatial_mask_video_255gen'][:, 0]
  mask = umc.latent_mask(jnp.asarray(generate < 128))
  np.testing.assert_array_equal(mask, np.moveaxis(GOLDEN['spatial_mask_latent'], 1, -1))


def test_unobserved_pixels_are_mid_grey():
  video, *_ = inputs()
  observed = jnp.zeros((2, 5), bool).at[:, 0].set(True)
  shown = umc.condition_video(video, observed)
  np.testing.assert_array_equal(shown[:, 0], video[:, 0])
  assert not np.any(shown[:, 1:])


def test_full_video_condition_is_the_rgb_latent():
  video, text, image = inputs()
  condition = umc.make_condition(encode, video, jnp.ones((2, 5), bool), text, image)
  np.testing.assert_array_equal(condition.latent, encode(video))
  assert np.all(np.asarray(condition.mask) == 1)


def test_text_alone_is_zeros_not_the_latent_of_grey():
  video, text, image = inputs()
  observed = jnp.asarray([[False] * 5, [True] + [False] * 4])
  condition = umc.make_condition(encode, video, observed, text, image)
  assert not np.any(condition.latent[0]) and not np.any(condition.mask[0]) and not np.any(condition.image[0])
  assert np.any(condition.latent[1]) and np.any(condition.mask[1]) and np.all(condition.image[1] == 1)
  np.testing.assert_array_equal(condition.text, text)


def test_shapes_that_do_not_fit_are_refused():
  video, *_ = inputs()
  with pytest.raises(Exception, match='condition_video'):
    umc.condition_video(video, jnp.ones((2, 4), bool))


@pytest.mark.parametrize('frames', [2, 3, 17, 81])
def test_sparse_frames_keep_both_ends_and_increase(frames):
  for count in range(2, frames + 1):
    kept = umc.sparse_frames(frames, count)
    assert len(kept) == count and kept[0] == 0 and kept[-1] == frames - 1
    gaps = np.diff(kept)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize('count', [1, 18])
def test_sparse_frames_refuse_impossible_counts(count):
  with pytest.raises(ConfigError, match='keeps 2 to 17'):
    umc.sparse_frames(17, count)


@pytest.mark.parametrize(('fraction', 'count'), [(0.5, 40), (0.25, 20), (0.1, 8), (0.05, 4), (0.03, 2), (0.01, 2)])
def test_sparsity_of_the_paper_in_frames(fraction, count):
  assert umc.sparse_count(81, fraction) == count


def test_each_task_observes_its_frames():
  assert not umc.observed_frames('text', 9).any()
  assert umc.observed_frames('image', 9).tolist() == [True] + [False] * 8
  assert np.flatnonzero(umc.observed_frames('sparse', 9, fraction=0.33)).tolist() == [0, 4, 8]
  assert umc.observed_frames('video', 9).all()
  with pytest.raises(ConfigError, match="unknown task 'depth'"):
    umc.observed_frames('depth', 9)


def test_drawn_tasks_follow_the_paper():
  rng = np.random.default_rng(0)
  draws = [umc.draw_observed(rng, 17) for _ in range(4000)]
  share = np.bincount([task for task, _ in draws], minlength=3) / len(draws)
  np.testing.assert_allclose(share, umc.PROBABILITIES, atol=0.03)
  assert all(observed[0] for _, observed in draws)  # the first frame feeds CLIP in every task
  counts = {observed.sum() for task, observed in draws if umc.TASKS[task] == 'sparse'}
  assert counts == set(range(2, 9))


def test_drawing_repeats_with_its_seed():
  one, two = (umc.draw_observed(np.random.default_rng(7), 17) for _ in range(2))
  assert one[0] == two[0] and np.array_equal(one[1], two[1])


def test_bad_probabilities_are_named():
  with pytest.raises(ConfigError, match='sum to 1'):
    umc.draw_observed(np.random.default_rng(0), 17, (0.5, 0.5, 0.5))
