"""Interpolation, target, time shift and loss."""

import jax
import jax.numpy as jnp
import numpy as np

from one4d_jax.flow import rectified

SHAPE = (2, 3, 2, 4, 4, 16)  # m b f h w c


def pair():
  return jax.random.normal(jax.random.key(0), SHAPE), jax.random.normal(jax.random.key(1), SHAPE)


def test_sigma_zero_is_data_and_one_is_noise():
  z, eps = pair()
  np.testing.assert_array_equal(rectified.interpolate(z, eps, jnp.zeros(3)), z)
  np.testing.assert_array_equal(rectified.interpolate(z, eps, jnp.ones(3)), eps)
  np.testing.assert_array_equal(rectified.interpolate(z, eps, jnp.float32(1)), eps)


def test_every_sample_has_its_own_sigma_in_both_modalities():
  z, eps = pair()
  mixed = rectified.interpolate(z, eps, jnp.asarray([0.0, 0.5, 1.0]))
  np.testing.assert_array_equal(mixed[:, 0], z[:, 0])
  np.testing.assert_allclose(mixed[:, 1], (z + eps)[:, 1] / 2, atol=1e-6)
  np.testing.assert_array_equal(mixed[:, 2], eps[:, 2])


def test_target_is_the_derivative_along_the_line():
  z, eps = pair()
  line = lambda s: rectified.interpolate(z, eps, s)
  _, slope = jax.jvp(line, (jnp.full(3, 0.3),), (jnp.ones(3),))
  np.testing.assert_allclose(slope, rectified.target(z, eps), atol=1e-5)


def test_modality_axis_is_optional():
  z, eps = pair()
  one = rectified.interpolate(z[0], eps[0], jnp.full(3, 0.2))
  np.testing.assert_array_equal(one, rectified.interpolate(z, eps, jnp.full(3, 0.2))[0])
  assert rectified.loss(z[0], eps[0]).shape == ()


def test_shift_keeps_the_ends_and_one_is_the_identity():
  u = np.linspace(0, 1, 11)
  assert rectified.shift(0.0, 5.0) == 0 and rectified.shift(1.0, 5.0) == 1
  np.testing.assert_array_equal(rectified.shift(u, 1.0), u)
  np.testing.assert_allclose(rectified.shift(0.5, 5.0), 5 / 6)


def test_drawn_sigmas_follow_the_shift():
  sigma = rectified.draw_sigma(jax.random.key(3), (20000,), shift=5.0)
  assert sigma.dtype == jnp.float32 and float(sigma.min()) >= 0 and float(sigma.max()) <= 1
  np.testing.assert_allclose(
    np.quantile(sigma, [0.1, 0.5, 0.9]), rectified.shift(np.array([0.1, 0.5, 0.9]), 5), atol=0.02
  )


def test_a_range_of_shifts_draws_much_and_little_noise_more_often_than_its_middle():
  draw = lambda **shifts: np.asarray(rectified.draw_sigma(jax.random.key(3), (20000,), **shifts))
  middle, mixed = draw(shift=40**0.5), draw(shift=1.0, shift_max=40.0)
  assert mixed.dtype == np.float32 and mixed.min() >= 0 and mixed.max() <= 1
  for rare in (lambda sigma: sigma < 0.1, lambda sigma: sigma > 0.99):
    assert rare(mixed).mean() > 1.3 * rare(middle).mean()
  np.testing.assert_allclose(np.median(mixed), np.median(middle), atol=0.02)  # symmetric in the logarithm


def test_loss_without_weight_is_the_mean_of_each_modality():
  v, target = pair()
  expected = np.square(np.asarray(v) - np.asarray(target)).mean(axis=(1, 2, 3, 4, 5))
  np.testing.assert_allclose(rectified.loss(v, target), expected, rtol=1e-5)
  np.testing.assert_allclose(rectified.loss(v, target, jnp.ones(SHAPE[:-1])), expected, rtol=1e-5)


def test_masked_positions_do_not_count():
  v, target = pair()
  weight = jnp.ones(SHAPE[:-1]).at[1, :, 0].set(0)
  broken = v.at[1, :, 0].add(1e3)
  np.testing.assert_allclose(rectified.loss(broken, target, weight), rectified.loss(v, target, weight), rtol=1e-6)
  expected = np.square(np.asarray(v) - np.asarray(target))[1, :, 1:].mean()
  np.testing.assert_allclose(rectified.loss(v, target, weight)[1], expected, rtol=1e-5)


def test_nothing_valid_is_zero_loss_and_finite_gradient():
  v, target = pair()
  f = lambda v: rectified.loss(v, target, jnp.zeros(SHAPE[:-1])).sum()
  value, grad = jax.value_and_grad(f)(v)
  assert value == 0 and np.all(np.asarray(grad) == 0)


def test_loss_is_float32_for_half_precision_inputs():
  v, target = (a.astype(jnp.bfloat16) for a in pair())
  assert rectified.loss(v, target).dtype == jnp.float32
