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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

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


class State(NamedTuple):
  """Between two steps of a solver."""

  step: Int[Array, '']  # the next one
  x: Float[Array, '*any']
  last: Float[Array, '*any']  # the (corrected) sample of the step before
  m1: Float[Array, '*any']  # estimates of the data of the two steps before
  m2: Float[Array, '*any']
  memory: Any  # the velocity's own, a tree of arrays


@checked
def start(z: Float[Array, '*any'], memory: Any = ()) -> State:
  """At the noise ``z``; float32."""
  x = z.astype(jnp.float32)
  return State(jnp.int32(0), x, x, jnp.zeros_like(x), jnp.zeros_like(x), memory)


def advance(velocity: Callable, state: State, plan: Schedule, stop: int | Int[Array, '']) -> State:
  """``state`` before step ``stop``. Both ends may be traced, so one program does any run of steps.

  Args:
    velocity: ``(z, sigma, memory) -> (v, memory)``, ``sigma`` a float32 scalar: the model's timestep / 1000.
  """
  rows = _rows(plan)
  step = lambda i, state: _step(velocity, state, {name: column[i] for name, column in rows.items()})
  return jax.lax.fori_loop(state.step, stop, step, state)


@checked
def solve(
  velocity: Callable, z: Float[Array, '*any'], *, solver: str, steps: int, shift: float | int
) -> Float[Array, '*any']:
  """``follow`` on the ``schedule`` of these arguments.

  Raises:
    ConfigError: unknown ``solver``, bad ``steps`` or ``shift``.
  """
  return follow(velocity, z, schedule(solver, steps=steps, shift=shift))


@checked
def follow(velocity: Callable, z: Float[Array, '*any'], plan: Schedule) -> Float[Array, '*any']:
  """Follows ``velocity`` from the noise ``z`` to the data, in one ``lax.scan``; float32 throughout.

  For tests, which hold ``advance`` and other libraries to it; samplers use ``advance``.

  Args:
    velocity: ``(z, sigma) -> v``, ``sigma`` a float32 scalar: the model's timestep / 1000.
  """
  alone = lambda z, sigma, memory: (velocity(z, sigma), memory)
  return jax.lax.scan(lambda state, row: (_step(alone, state, row), None), start(z), _rows(plan))[0].x


def _rows(plan: Schedule) -> dict[str, Float[Array, 'n']]:
  """The numbers of each step."""
  ratio = plan.sigmas[1:] / plan.sigmas[:-1]
  rows = {'sigma': plan.sigmas[:-1], 'time': plan.timesteps / 1000, 'r': ratio, 'k': plan.extrapolation}
  if plan.correction is not None:
    rows |= {'r1': np.append(1.0, ratio[:-1]), 'a': plan.correction[:, 0], 'b': plan.correction[:, 1]}
  return {name: jnp.asarray(column, jnp.float32) for name, column in rows.items()}


def _step(velocity: Callable, state: State, row: dict[str, Float[Array, '']]) -> State:
  step, x, last, m1, m2, memory = state
  v, memory = velocity(x, row['time'], memory)
  m = x - row['sigma'] * v.astype(jnp.float32)
  if 'a' in row:
    corrected = row['r1'] * last + (1 - row['r1']) * (m1 + row['b'] * (m - m1) + row['a'] * (m2 - m1))
    x = jnp.where(step > 0, corrected, x)
  predicted = row['r'] * x + (1 - row['r']) * (m + row['k'] * (m - m1))
  return State(step + 1, predicted, x, m, m1, memory)
