"""Metrics as JSON lines (one object a row, easy to read back), TensorBoard scalars and images, and Weights & Biases.

``metrics.jsonl`` is what counts: a run that resumes from an older checkpoint drops the rows after it, and the others
follow. TensorBoard hides what came after that step. A run of Weights & Biases goes on under the id in ``wandb-id.txt``
and is sent the rows that it lacks: all of them where ``WANDB_MODE=offline``, which starts a new folder each time, so
that the newest one is whole by itself (its pictures are those since). Steps it has are not sent again.
"""

import json
import pathlib
import resource
import sys
import time
import types
import uuid

import jax
import numpy as np
from tensorboardX import SummaryWriter

from one4d_jax.errors import ConfigError
from one4d_jax.model.files import write_whole

FILE = 'metrics.jsonl'


class Writer:
  """Writes the metrics of a run into its folder.

  Args:
    resume_step: the step that was restored, 0 at the beginning; later rows are dropped. None keeps all.
    enabled: whether this process writes; of many, one does.
    wandb: a project of Weights & Biases, as PROJECT or PROJECT/RUN; the run has the folder's name if none is given.

  Raises:
    ConfigError: as ``require_wandb``.
  """

  def __init__(self, folder: pathlib.Path, *, resume_step: int | None = None, enabled: bool = True, wandb: str = ''):
    self._lines = self._board = self._run = None
    if not enabled:
      return
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read(folder) if resume_step is None or row['step'] <= resume_step]
    write_whole(folder / FILE, ''.join(json.dumps(row) + '\n' for row in rows))
    if wandb:
      self._run = _Wandb(folder, wandb, rows)
    self._lines = open(folder / FILE, 'a', buffering=1)  # noqa: SIM115, closed by ``close``
    purge = None if resume_step is None else resume_step + 1
    self._board = SummaryWriter(str(folder / 'tensorboard'), purge_step=purge)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    if self._lines is None:
      return
    row = {'step': step, 'time': round(time.time(), 1), **values}
    self._lines.write(json.dumps(row) + '\n')
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    if self._run:
      self._run.row(row)

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """``picture`` is uint8 ``[H W 3]``."""
    if self._lines is None:
      return
    self._board.add_image(name, picture, step, dataformats='HWC')
    if self._run:
      self._run.image(step, name, picture)

  def close(self) -> None:
    for part in (self._lines, self._board, self._run):
      if part:
        part.close()


class _Wandb:
  def __init__(self, folder: pathlib.Path, name: str, rows: list[dict]):
    self._wandb = require_wandb()
    project, _, run = name.partition('/')
    file = folder / 'wandb-id.txt'
    if not file.is_file():
      write_whole(file, uuid.uuid4().hex[:12])
    self._run = self._wandb.init(
      project=project, name=run or folder.resolve().name, id=file.read_text(), resume='allow', dir=str(folder)
    )
    self._from = self._run.step  # it takes no earlier ones
    for row in rows:
      self.row(row)

  def row(self, row: dict) -> None:
    self._log(row['step'], {name: value for name, value in row.items() if name not in ('step', 'time')})

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    self._log(step, {name: self._wandb.Image(picture)})

  def close(self) -> None:
    self._run.finish()

  def _log(self, step: int, values: dict) -> None:
    if step >= self._from:
      self._run.log(values, step=step)


def require_wandb() -> types.ModuleType:
  """The package ``wandb``, which is optional.

  Raises:
    ConfigError: it is not installed.
  """
  try:
    import wandb
  except ImportError as error:
    raise ConfigError(
      'train.wandb needs the package wandb: pip install wandb, or leave train.wandb empty; '
      'metrics.jsonl and TensorBoard are written anyway'
    ) from error
  return wandb


def read(folder: pathlib.Path) -> list[dict]:
  """The rows of a run's metrics, oldest first. A row that was cut off by a crash is left out."""
  file, rows = folder / FILE, []
  for line in file.read_bytes().splitlines() if file.is_file() else ():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if isinstance(row, dict) and 'step' in row:
      rows.append(row)
  return rows


def last(folder: pathlib.Path) -> dict[str, float]:
  """The last value of everything that was logged, and the last step."""
  values = {}
  for row in read(folder):
    values |= row
  return {name: value for name, value in values.items() if name != 'time'}


def memory() -> dict[str, float]:
  """The most memory used so far, in GiB: of this process's devices the fullest one's, else the process's own."""
  stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
  used = [one['peak_bytes_in_use'] for one in stats if 'peak_bytes_in_use' in one]
  if used:
    return {'memory/device_peak_gib': max(used) / 2**30}
  unit = 1 if sys.platform == 'darwin' else 1024
  return {'memory/process_peak_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
