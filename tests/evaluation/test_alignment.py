"""Scale and shift: least squares and absolute deviations against SciPy, Adam against optax, and where it stalls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from one4d_jax.errors import ConfigError, DataError
from one4d_jax.evaluation.alignment import ALIGNMENTS, alignment, descend
from one4d_jax.evaluation.depth import depth_metrics

ADAM = {'adam_1e-4_1000': {'rate': 1e-4, 'steps': 1000}, 'adam_1e-2_5000': {'rate': 1e-2, 'steps': 5000}}


def pair(n=400, seed=0):
  rng = np.random.default_rng(seed)
  g = rng.uniform(1, 9, n)
  return (g - 0.7) / 2.5 + 0.1 * rng.standard_t(3, n), g


@pytest.mark.parametrize('with_shift', [True, False])
def test_least_absolute_deviations_equal_the_linear_program(with_shift):
  optimize = pytest.importorskip('scipy.optimize')
  p, g = pair(60)
  n = len(p)
  columns = np.stack([p, np.ones(n)], axis=1) if with_shift else p[:, None]
  above, below = np.hstack([columns, -np.eye(n)]), np.hstack([-columns, -np.eye(n)])
  cost = np.concatenate([np.zeros(columns.shape[1]), np.ones(n)])
  bounds = [(None, None)] * columns.shape[1] + [(0, None)] * n
  found = optimize.linprog(cost, np.vstack([above, below]), np.concatenate([g, -g]), bounds=bounds)
  s, t = alignment(p, g, 'scale_shift' if with_shift else 'scale')
  np.testing.assert_allclose(np.abs(s * p + t - g).sum(), found.fun, rtol=1e-9)
  np.testing.assert_allclose([s, t][: columns.shape[1]], found.x[: columns.shape[1]], rtol=1e-6)


def test_the_minimum_does_not_depend_on_where_the_search_starts(monkeypatch):
  for seed in range(6):
    p, g = pair(3000, seed)
    p = np.round(p, 1) if seed % 2 else p  # ties
    monkeypatch.setattr('one4d_jax.evaluation.alignment._MANY', 10**9)
    s, t = alignment(p, g, 'scale_shift')
    monkeypatch.setattr('one4d_jax.evaluation.alignment._MANY', 1000)
    again = alignment(p, g, 'scale_shift')
    np.testing.assert_allclose(np.abs(again[0] * p + again[1] - g).sum(), np.abs(s * p + t - g).sum(), rtol=1e-13)


def test_many_values_that_mostly_say_nothing_of_the_scale_are_searched_all_the_same(monkeypatch):
  """Those that are looked at first are constant: they ask for a scale of zero, from which no step would lead."""
  p, g = pair(3000)
  p[::10] = 1.0
  want = alignment(p, g, 'scale_shift')
  monkeypatch.setattr('one4d_jax.evaluation.alignment._MANY', 1000)
  found = alignment(p, g, 'scale_shift')
  assert found[0] > 1
  np.testing.assert_allclose(*(np.abs(s * p + t - g).sum() for s, t in (found, want)), rtol=1e-13)


def test_least_squares_equal_those_of_linear_algebra():
  p, g = pair()
  want = np.linalg.lstsq(np.stack([p, np.ones_like(p)], axis=1), g, rcond=None)[0]
  np.testing.assert_allclose(alignment(p, g, 'least_squares'), want, rtol=1e-10)


def test_the_median_is_that_of_each_side():
  p, g = pair()
  assert alignment(p, g, 'median') == (np.median(g) / np.median(p), 0)
  assert alignment(p, g, 'none') == (1, 0)


@pytest.mark.parametrize('rate', [1e-4, 1e-2])
def test_adam_is_that_of_optax_from_the_published_start(rate):
  p, g = pair()
  pred, true = (jnp.asarray(a, jnp.float32) for a in (p, g))
  lower = lambda a: np.sort(a)[(len(a) - 1) // 2]  # of 400 values, as PyTorch
  optimizer = optax.adam(rate)

  def step(state, _):
    x, memory = state
    slope = jax.grad(lambda x: jnp.abs(x[0] * pred + x[1] - true).sum())(x)
    change, memory = optimizer.update(slope, memory)
    return (optax.apply_updates(x, change), memory), None

  start = jnp.asarray([lower(g) / lower(p), 0], jnp.float32)
  with jax.numpy_dtype_promotion('standard'):  # optax needs it
    (want, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=300)
  np.testing.assert_allclose(descend(p, g, rate=rate, steps=300), want, atol=rate / 2)  # it ends in a zigzag


def test_the_variants_are_the_published_ones(monkeypatch):
  monkeypatch.setattr('one4d_jax.evaluation.alignment.descend', lambda p, g, **settings: settings)
  for name, settings in ADAM.items():
    assert alignment(*pair(), name) == settings


def test_the_first_adam_stalls_where_the_second_arrives_and_units_decide_how_far():
  """A perfect alignment is there: d = s p + t. The first can move s and t by a tenth or two."""
  g = np.random.default_rng(0).uniform(1, 30, 5000)
  errors = {}
  for unit, shift in ((1.0, 0.5), (1.0, 5.0), (20.0, 5.0)):
    p = (g - shift) / unit
    for name in ADAM:
      found = depth_metrics(p, g, np.ones(g.shape, bool), align=name)
      errors[unit, shift, name] = found.abs_rel
      start = np.median(g) / np.median(p)
      moved = max(abs(found.scale - start), abs(found.shift))
      assert name != 'adam_1e-4_1000' or moved < 0.2
    assert depth_metrics(p, g, np.ones(g.shape, bool)).abs_rel < 1e-9
  assert errors[1.0, 5.0, 'adam_1e-4_1000'] > 0.1 and errors[20.0, 5.0, 'adam_1e-4_1000'] > 0.1
  assert max(errors[unit, shift, 'adam_1e-2_5000'] for unit, shift in ((1.0, 0.5), (1.0, 5.0))) < 5e-3


def test_adam_stops_when_a_step_changes_nothing():
  p = np.array([1.0, 2.0, 3.0])
  s, t = alignment(p, 2 * p, 'adam_1e-2_5000')
  assert (s, t) == (2, 0), 'the start is the minimum, where all signs are 0'


def test_mistakes_are_named():
  with pytest.raises(ConfigError, match=r"'adam_1e-3_10'; choose from scale_shift.*adam_1e-2_5000"):
    alignment(*pair(), 'adam_1e-3_10')
  for name in ALIGNMENTS:
    if name not in ('none', 'scale_shift', 'least_squares'):
      with pytest.raises(DataError, match=f'prediction of zero by {name!r}'):
        alignment(np.zeros(4), np.ones(4), name)
