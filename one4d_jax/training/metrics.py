"""Metrics as JSON lines (one object a row, easy to read back) and TensorBoard scalars and images."""

import json
import pathlib
import time

import numpy as np
from tensorboardX import SummaryWriter


class Writer:
  """Writes ``metrics.jsonl`` and TensorBoard events in one folder; a resumed run appends."""

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    self._lines = open(folder / 'metrics.jsonl', 'a', buffering=1)  # noqa: SIM115, closed by ``close``
    self._board = SummaryWriter(str(folder / 'tensorboard'))

  def scalars(self, step: int, values: dict[str, float]) -> None:
    self._lines.write(json.dumps({'step': step, 'time': round(time.time(), 1), **values}) + '\n')
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """``picture`` is uint8 ``[H W 3]``."""
    self._board.add_image(name, picture, step, dataformats='HWC')

  def close(self) -> None:
    self._lines.close()
    self._board.close()
