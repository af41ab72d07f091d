"""What a run tells while it goes: means of its metrics, skipped steps, speed. The device is never waited for.

A step's metrics are read when a later one has been started, so they are there or nearly so.
"""

import collections
import dataclasses
import json
import pathlib
import time

import numpy as np

from one4d_jax.errors import UserError

LAG = 2  # steps between starting one and reading its metrics


@dataclasses.dataclass
class Journal:
  """Collects the metrics of steps, ``{name: (sum, count)}`` each, and how fast they go.

  Attributes:
    folder: ``skipped.jsonl`` (of other processes than the first: ``skipped-N.jsonl``) tells of steps that changed
      nothing: step, metrics, and the clips that this process gave to it.
    patience: so many skipped steps in a row end the run.
    peak: what all devices could do, FLOP/s, if that is known.
    process: of JAX.
  """

  folder: pathlib.Path
  patience: int
  peak: float | None = None
  process: int = 0

  def __post_init__(self):
    self._pending, self._sums, self._work = collections.deque(), {}, collections.Counter()
    self._since = time.perf_counter()
    name = f'skipped-{self.process}.jsonl' if self.process else 'skipped.jsonl'
    self._skipped = self.folder / name

  def add(self, step: int, metrics: dict, clips: list[str], work: dict[str, float]) -> None:
    """Metrics of ``step``, which may still be computing, and its ``samples``, ``tokens`` and ``flops``.

    Raises:
      UserError: too many steps in a row were skipped.
    """
    self._pending.append((step, metrics, clips))
    self._work.update(work | {'steps': 1})
    while len(self._pending) > LAG:
      self._read(*self._pending.popleft())

  def drain(self) -> dict[str, float]:
    """Means and rates since the last call; waits for what is computing.

    ``mfu`` is the share of the devices' peak that the model's own operations make, remat not counted.
    """
    while self._pending:
      self._read(*self._pending.popleft())
    means = {name: total / count for name, (total, count) in self._sums.items() if count}
    now = time.perf_counter()
    seconds, steps = now - self._since, self._work.pop('steps', 0)
    means['seconds_per_step'] = seconds / max(steps, 1)
    means |= {f'{name}_per_second': amount / seconds for name, amount in self._work.items()}
    if self.peak and 'flops_per_second' in means:
      means['mfu'] = means['flops_per_second'] / self.peak
    self._sums, self._since = {}, now
    self._work.clear()
    return means

  def pause(self) -> None:
    """What has passed since the last ``drain`` is not counted as time of steps; no step may have been added since."""
    self._since = time.perf_counter()

  def _read(self, step: int, metrics: dict, clips: list[str]) -> None:
    found = {name: (float(total), float(count)) for name, (total, count) in metrics.items()}
    in_a_row = found.pop('skipped_in_a_row')[0]
    skipped = found['skipped'][0] > 0
    for name, (total, count) in found.items():
      if not skipped or name == 'skipped':
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = before[0] + total, before[1] + count
    if not skipped:
      return
    values = {name: total / count for name, (total, count) in found.items() if count}
    shown = {name: value if np.isfinite(value) else str(value) for name, value in values.items()}
    row = {'step': step, 'in_a_row': int(in_a_row), **shown, 'clips': clips}
    with open(self._skipped, 'a') as file:
      file.write(json.dumps(row) + '\n')
    if in_a_row >= self.patience:
      why = ', '.join(f'{name} {value}' for name, value in shown.items())
      raise UserError(
        f'{int(in_a_row)} steps in a row were skipped, the last at {step} ({why}; clips {", ".join(clips[:8])}); see '
        f'{self._skipped}, lower train.learning_rate or leave these clips out, and run again from the last checkpoint'
      )
