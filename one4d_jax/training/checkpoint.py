"""Checkpoints of a run, by Orbax: whole or absent, newest first, resumed by running the same command again.

A checkpoint holds the trained parameters, optimizer state, step, PRNG key, data position and configuration, and the
*hash* of the frozen weights it was trained on. The frozen weights themselves are referenced, never copied. Arrays are
written in shares, by the process that holds each, while training goes on; they are read as the mesh of now wants them.
"""

import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator

import jax
import orbax.checkpoint as ocp

from one4d_jax.errors import CheckpointError
from one4d_jax.training.step import State

OUTDATED = 'outdated'  # folder among the checkpoints
DAMAGED = 'damaged'  # folder beside them


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """At the first array that cannot be read Orbax closes its event loop; of each other one a traceback would say so."""
  before = sys.unraisablehook

  def hook(what) -> None:
    if str(what.exc_value) != 'Event loop is closed':
      before(what)

  sys.unraisablehook = hook
  try:
    yield
  finally:
    sys.unraisablehook = before


class Checkpoints:
  """The checkpoints under ``workdir/checkpoints``.

  Args:
    every: steps between two of them.
    keep: how many of the newest stay.
    keep_every: those of multiples of it stay too; 0: none.
    weights_hash: of the frozen weights.
    config: of the run, as plain values; kept for people and for ``difference``.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    every: int,
    keep: int,
    weights_hash: str,
    keep_every: int = 0,
    config: dict | None = None,
  ):
    options = ocp.CheckpointManagerOptions(
      save_interval_steps=every,
      max_to_keep=keep,
      keep_period=keep_every or None,
      cleanup_tmp_directories=True,
      todelete_subdir=OUTDATED,
    )
    self._folder = os.path.abspath(workdir / 'checkpoints')
    self._manager = ocp.CheckpointManager(self._folder, options=options)
    self._remove_outdated()
    self._weights_hash, self._config = weights_hash, config or {}

  @property
  def latest(self) -> int | None:
    """Step of the newest whole checkpoint."""
    return self._manager.latest_step()

  def due(self, step: int) -> bool:
    """Whether ``step`` is to be saved."""
    return self._manager.should_save(step)

  def save(self, state: State, data: dict, *, step: int) -> None:
    """Starts writing in the background, unless that step is there. ``data`` is the position in the stream (JSON)."""
    if self.latest == step:
      return
    about = {'data': data, 'weights': self._weights_hash, 'config': self._config}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
    self._manager.save(step, args=args, force=True)
    self._remove_outdated()

  def _remove_outdated(self) -> None:
    """A checkpoint loses its name at once and its files later: a kill in between leaves none that is half there."""
    if jax.process_index() == 0:
      shutil.rmtree(os.path.join(self._folder, OUTDATED), ignore_errors=True)

  @_quiet()
  def restore(self, state: State, tell: Callable[[str], None] = print) -> tuple[State, dict]:
    """The newest checkpoint in the shape of ``state`` (arrays, or their shapes with shardings).

    With it comes what it says beside its arrays: ``data``, ``weights``, ``config``. One that is damaged goes to the
    folder ``damaged`` of the run, with a word to ``tell``, and the one before it is read; where there are several
    processes, which might not all see the damage, it is an error.

    Raises:
      CheckpointError: trained on other frozen weights; none that can be read and has these shapes.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    steps, unread = sorted(self._manager.all_steps(), reverse=True), {}
    for step in steps if jax.process_count() == 1 else steps[:1]:
      try:
        found = self._read(step, abstract)
      except CheckpointError:
        raise
      except Exception as error:  # Orbax, TensorStore and parsers of JSON between them raise nearly every kind
        unread[step] = error
      else:
        for bad, error in unread.items():  # not the configuration: an older one fits
          self._set_aside(bad)
          reason = ' '.join(str(error).split())[:200]
          tell(f'the checkpoint at step {bad} is damaged and was moved to {DAMAGED}/: {reason}')
        return found
    newest, error = next(iter(unread.items()))
    raise CheckpointError(
      f'the checkpoint at step {newest} is damaged or does not fit this configuration: {error}; '
      f'remove {self._folder}/{newest} to go on from the one before, or give another --workdir'
    ) from error

  def _read(self, step: int, abstract: State) -> tuple[State, dict]:
    about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
    if about['weights'] != self._weights_hash:
      raise CheckpointError(
        f'the checkpoint was trained on weights {about["weights"]!r}, config.model.weights has {self._weights_hash!r}; '
        'give those weights or another --workdir'
      )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    return self._manager.restore(step, args=args).state, about

  def _set_aside(self, step: int) -> None:
    """Nothing is deleted: somebody may want to save what is left."""
    place = pathlib.Path(self._folder).with_name(DAMAGED) / str(step)
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    os.rename(os.path.join(self._folder, str(step)), place)
    self._manager.reload()

  def wait(self) -> None:
    """Until what is being written is whole."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self.wait()
    self._manager.close()
    self._remove_outdated()


def difference(before: dict, now: dict, where: str = '') -> list[str]:
  """What two configurations differ in, as lines ``section.key: old -> new``."""
  found = []
  for key in sorted(before.keys() | now.keys()):
    old, new = before.get(key), now.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
      found += difference(old, new, f'{where}{key}.')
    elif old != new:
      found.append(f'{where}{key}: {old} -> {new}')
  return found
