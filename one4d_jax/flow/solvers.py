"""Solvers of dz/dsigma = v from noise (sigma 1) to data (0): Euler, DPM++ 2M (midpoint), UniPC (order 2, bh2).

Written with the data estimate m = x - sigma v, all three are one update. With r = sigma' / sigma of the step,

  predict   x' = r x + (1 - r) (m + k (m - m1))
  correct   x  = r1 last + (1 - r1) (m1 + b (m - m1) + a (m2 - m1))      before predicting

where m1, m2 are the estimates of the two steps before, ``last`` is the (corrected) sample of the step before and
r1 its r. Only the numbers k, a, b differ:

  Euler   k = 0, no corrector
  DPM++   k = h / (2 h0), no corrector
  UniPC   k = h / (2 h0), and a, b from its order conditions

with h, h0 the present and the previous step in lam = log((1 - sigma) / sigma). They depend on the schedule alone,
so a solver is a table in float64 and sampling is a single scan. An estimate is not renewed after a correction.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from one4d_jax.checks import checked
from one4d_jax.errors import ConfigError
from one4d_jax.flow.rectified import shift as shift_time

SOLVERS = ('euler', 'unipc', 'dpm++')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """What a solver needs, for n steps; NumPy float64."""

  sigmas: np.ndarray  # [n+1] from noise to 0
  timesteps: np.ndarray  # [n] what the model is told, 1000 sigma (whole numbers for UniPC and DPM++)
  extrapolation: np.ndarray  # [n] k
  correction: np.ndarray | None  # [n 2] (a, b) from step 1 on; None = no corrector


def schedule(solver: str, *, steps: int, shift: float) -> Schedule:
  """The noise levels of Wan2.1 (UniPC, DPM++) or VideoX-Fun (Euler), and the solver's table over them.

  Raises:
    ConfigError: unknown ``solver``, or ``steps`` below 1, or ``shift`` not above 0.
  """
  if solver not in SOLVERS:
    raise ConfigError(f'unknown solver {solver!r}; choose from {", ".join(SOLVERS)}')
  if steps < 1 or shift <= 0:
    raise ConfigError(f'a sampler needs steps >= 1 and shift > 0, got steps={steps}, shift={shift}')
  if solver == 'euler':  # the shift acts twice at the low end, as in the training pipeline of the base model
    u = np.linspace(1, shift_time(0.001, shift), steps)
  else:
    u = np.linspace(0.999 if solver == 'unipc' else 1, 0, steps + 1)[:-1]
  sigmas = np.append(shift_time(u, shift), 0.0)
  timesteps = 1000 * sigmas[:-1]
  return tabulate(solver, sigmas, timesteps if solver == 'euler' else np.trunc(timesteps))


def tabulate(solver: str, sigmas: np.ndarray, timesteps: np.ndarray) -> Schedule:
  """The solver's table over any noise levels ``[n+1]`` that fall to 0, such as those of another library."""
  return Schedule(
    sigmas,
    timesteps,
    np.zeros(len(timesteps)) if solver == 'euler' else _extrapolation(sigmas),
    _correction(sigmas) if solver == 'unipc' else None,
  )


def _log_snr(sigmas: np.ndarray) -> np.ndarray:
  with np.errstate(divide='ignore'):
    return np.log(1 - sigmas) - np.log(sigmas)


def _extrapolation(sigmas: np.ndarray) -> np.ndarray:
  """k = h / (2 h0); first order at both ends, where there is no history and where the data is reached."""
  k, h = np.zeros(len(sigmas) - 1), np.diff(_log_snr(sigmas))
  k[1:-1] = h[1:-1] / (2 * h[:-2])
  return k


def _correction(sigmas: np.ndarray) -> np.ndarray:
  """(a, b) of step i, which corrects the sample that step i-1 predicted; order 1 at i = 1, else 2."""
  n = len(sigmas) - 1
  h = np.diff(_log_snr(sigmas))
  table = np.zeros((n, 2))
  if n > 1:
    table[1] = 0, 0.5
  for i in range(2, n):
    big = np.expm1(-h[i - 1])
    ratio = -h[i - 2] / h[i - 1]
    phi = big / -h[i - 1] - 1
    b1, b2 = phi / big, 2 * (phi / -h[i - 1] - 0.5) / big
    rho = (b1 - b2) / (1 - ratio)
    table[i] = rho / ratio, b1 - rho
  return table


@checked
def solve(
  velocity: Callable,
  z: Float[Array, '*any'],
  *,
  solver: str,
  steps: int,
  shift: float | int,
  callback: Callable | None = None,
) -> Float[Array, '*any']:
  """``follow`` on the ``schedule`` of these arguments.

  Raises:
    ConfigError: unknown ``solver``, bad ``steps`` or ``shift``.
  """
  return follow(velocity, z, schedule(solver, steps=steps, shift=shift), callback=callback)


@checked
def follow(
  velocity: Callable, z: Float[Array, '*any'], plan: Schedule, *, callback: Callable | None = None
) -> Float[Array, '*any']:
  """Follows ``velocity`` from the noise ``z`` to the data, in one ``lax.scan``; float32 throughout.

  Args:
    velocity: ``(z, sigma) -> v``, ``sigma`` a float32 scalar: the model's timestep / 1000.
    callback: called on the host as ``callback(step)`` before each of the steps 0 .. n-1.
  """
  ratio = plan.sigmas[1:] / plan.sigmas[:-1]
  rows = {'step': np.arange(len(ratio)), 'sigma': plan.sigmas[:-1], 'time': plan.timesteps / 1000, 'r': ratio}
  rows |= {'k': plan.extrapolation}
  if plan.correction is not None:
    rows |= {'r1': np.append(1.0, ratio[:-1]), 'a': plan.correction[:, 0], 'b': plan.correction[:, 1]}
  rows = {k: jnp.asarray(v, jnp.int32 if k == 'step' else jnp.float32) for k, v in rows.items()}

  def step(carry, row):
    x, last, m1, m2 = carry
    if callback is not None:
      jax.debug.callback(callback, row['step'])
    m = x - row['sigma'] * velocity(x, row['time']).astype(jnp.float32)
    if plan.correction is not None:
      corrected = row['r1'] * last + (1 - row['r1']) * (m1 + row['b'] * (m - m1) + row['a'] * (m2 - m1))
      x = jnp.where(row['step'] > 0, corrected, x)
    predicted = row['r'] * x + (1 - row['r']) * (m + row['k'] * (m - m1))
    return (predicted, x, m, m1), None

  x = z.astype(jnp.float32)
  zero = jnp.zeros_like(x)
  return jax.lax.scan(step, (x, x, zero, zero), rows)[0][0]
