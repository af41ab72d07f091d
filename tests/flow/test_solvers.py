"""The solvers: against the originals on a toy field, and exact where a solver must be."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import ConfigError
from one4d_jax.flow import solvers

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / 'golden' / 'solvers.json').read_text())
RUNS = [(r['solver'].split('(')[0], r) for r in GOLDEN['runs']]


def toy(x, sigma):
  return jnp.tanh(0.7 * x) * (1 + sigma) + 0.5 * x


@pytest.mark.parametrize(('name', 'run'), RUNS, ids=[f'{n}-{r["steps"]}-{r["shift"]:g}' for n, r in RUNS])
def test_matches_the_original(name, run):
  plan = solvers.schedule(name, steps=run['steps'], shift=run['shift'])
  np.testing.assert_allclose(plan.sigmas, run['sigmas'], atol=1e-7)
  np.testing.assert_allclose(plan.timesteps, run['timesteps'], atol=1e-3)
  sigmas, times = (jnp.asarray(a, jnp.float32) for a in (plan.sigmas[:-1], plan.timesteps / 1000))

  def velocity(x, time):  # the golden field was evaluated at sigma, not at the truncated timestep
    return toy(x, sigmas[jnp.argmin(jnp.abs(times - time))])

  x = jnp.asarray(GOLDEN['x_init'], jnp.float32)
  out = solvers.solve(velocity, x, solver=name, steps=run['steps'], shift=run['shift'])
  np.testing.assert_allclose(out, run['final'], atol=1e-5)


def start_of(name, **options):
  """The sigma at which a solver begins (UniPC starts at 0.999 before the shift)."""
  return float(solvers.schedule(name, **options).sigmas[0])


@pytest.mark.parametrize('name', solvers.SOLVERS)
@pytest.mark.parametrize('steps', [1, 2, 3, 7])
def test_a_straight_line_is_followed_exactly(name, steps):
  eps, data = jnp.linspace(-2, 2, 9), jnp.linspace(1, 3, 9)
  options = {'steps': steps, 'shift': 5.0}
  sigma = start_of(name, **options)
  z = (1 - sigma) * data + sigma * eps
  out = solvers.solve(lambda z, sigma: eps - data, z, solver=name, **options)
  np.testing.assert_allclose(out, data, atol=2e-6)


@pytest.mark.parametrize('name', solvers.SOLVERS)
def test_gaussian_data_is_sampled_well_and_order_two_wins(name):
  """For data N(0, s^2) the flow is known: z_sigma = z_1 sqrt((1-sigma)^2 s^2 + sigma^2)."""
  s = 0.5
  scale = lambda sigma: (1 - sigma) ** 2 * s**2 + sigma**2
  velocity = lambda z, sigma: z * (sigma - (1 - sigma) * s**2) / scale(sigma)
  plan = solvers.schedule(name, steps=50, shift=3.0)
  table = jnp.asarray(plan.sigmas[:-1], jnp.float32), jnp.asarray(plan.timesteps / 1000, jnp.float32)
  at_sigma = lambda z, time: velocity(z, table[0][jnp.argmin(jnp.abs(table[1] - time))])
  z = jnp.asarray([-1.0, 0.3, 2.0])
  start = float(np.sqrt(scale(plan.sigmas[0])))
  out = solvers.solve(at_sigma, z * start, solver=name, steps=50, shift=3.0)
  error = float(jnp.abs(out - z * s).max())
  assert error < (0.1 if name == 'euler' else 0.02)


@pytest.mark.parametrize('name', solvers.SOLVERS)
def test_steps_taken_one_by_one_are_the_whole(name):
  plan = solvers.schedule(name, steps=5, shift=3.0)
  velocity = lambda z, sigma, count: (toy(z, sigma), count + 1)
  advance = jax.jit(lambda state, stop: solvers.advance(velocity, state, plan, stop))
  state = solvers.start(jnp.ones(3), jnp.int32(0))
  for stop in (1, 2, 4, 5, 5):
    state = advance(state, stop)
    assert state.step == state.memory == stop
  np.testing.assert_allclose(state.x, solvers.follow(toy, jnp.ones(3), plan), rtol=1e-6)
  assert advance._cache_size() == 1


def test_is_one_scan_and_can_be_jitted():
  f = lambda z: solvers.solve(toy, z, solver='unipc', steps=6, shift=3.0)
  assert str(jax.make_jaxpr(f)(jnp.ones(3))).count('scan[') == 1
  np.testing.assert_allclose(jax.jit(f)(jnp.ones(3)), f(jnp.ones(3)), atol=1e-6)


def test_half_precision_velocity_keeps_a_float32_state():
  out = solvers.solve(
    lambda z, s: z.astype(jnp.bfloat16), jnp.ones(3, jnp.bfloat16), solver='dpm++', steps=3, shift=1.0
  )
  assert out.dtype == jnp.float32


def test_unknown_solver_names_the_choices():
  with pytest.raises(ConfigError, match=r"'heun'.*euler, unipc, dpm\+\+"):
    solvers.schedule('heun', steps=5, shift=1.0)


@pytest.mark.parametrize(('steps', 'shift'), [(0, 1.0), (5, 0.0)])
def test_bad_numbers_are_named(steps, shift):
  with pytest.raises(ConfigError, match='steps >= 1 and shift > 0'):
    solvers.schedule('euler', steps=steps, shift=shift)
