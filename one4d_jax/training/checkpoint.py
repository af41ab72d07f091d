"""Checkpoints of a run, by Orbax: whole or absent, newest first, resumed by running the same command again.

A checkpoint holds the trained parameters, optimizer state, step, PRNG key and data position, and the *hash* of the
frozen weights it was trained on. The frozen weights themselves are referenced, never copied.
"""

import os
import pathlib

import jax
import orbax.checkpoint as ocp

from one4d_jax.errors import CheckpointError
from one4d_jax.training.step import State


class Checkpoints:
  """The checkpoints under ``workdir/checkpoints``."""

  def __init__(self, workdir: pathlib.Path, *, every: int, keep: int, weights_hash: str):
    options = ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=keep, cleanup_tmp_directories=True)
    self._manager = ocp.CheckpointManager(os.path.abspath(workdir / 'checkpoints'), options=options)
    self._weights_hash = weights_hash

  @property
  def latest(self) -> int | None:
    """Step of the newest whole checkpoint."""
    return self._manager.latest_step()

  def save(self, state: State, data: dict, *, step: int, force: bool = False) -> None:
    """Starts writing in the background if ``step`` is due. ``data`` is the position in the stream (JSON)."""
    if (not self._manager.should_save(step) and not force) or self.latest == step:
      return
    about = {'data': data, 'weights': self._weights_hash}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
    self._manager.save(step, args=args, force=force)

  def restore(self, state: State) -> tuple[State, dict]:
    """The newest checkpoint in the shape of ``state``, and the data position.

    Raises:
      CheckpointError: trained on other frozen weights, or with parameters of other shapes.
    """
    about = self._manager.restore(self.latest, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
    if about['weights'] != self._weights_hash:
      raise CheckpointError(
        f'the checkpoint was trained on weights {about["weights"]!r}, config.model.weights has {self._weights_hash!r}; '
        'give those weights or another --workdir'
      )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    try:
      args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      return self._manager.restore(self.latest, args=args).state, about['data']
    except (ValueError, KeyError) as error:
      raise CheckpointError(f'the checkpoint at step {self.latest} does not fit this configuration: {error}') from error

  def close(self) -> None:
    self._manager.wait_until_finished()
    self._manager.close()
