"""Saves the states of a run in the background.

A save is atomic: Orbax writes `STEP.orbax-checkpoint-tmp` and renames it. Older
checkpoints are removed only after that.
"""

import logging
from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp

from maskrcnn_jax.training import (
  checkpoint_health,
  checkpoint_layout,
  checkpoint_policy,
)


class CheckpointWriter:
  """Saves in the background and keeps what a policy says; a context manager.

  Leaving the context waits for the last save. A save first copies the state to
  the host, so the step may donate it right after.
  """

  def __init__(
    self,
    workdir,
    keep: int = 3,
    keep_best: str | None = None,
    keep_every_hours: float | None = None,
  ):
    """Opens `workdir` for saving; removes saves that were cut off.

    Args:
      workdir: directory of the run; made if missing.
      keep: how many of the newest checkpoints stay on disk.
      keep_best: a key of `metrics.jsonl`; the checkpoint with its highest value
        stays too, see `best_step`. None: no such.
      keep_every_hours: the oldest checkpoint stays too, and of the later ones
        always the next that is so many hours younger. None: no such.
    """
    if keep < 1:
      raise ValueError(f'keep must be at least 1, got {keep}.')
    if keep_every_hours is not None and keep_every_hours <= 0:
      raise ValueError(
        f'keep_every_hours must be positive, got {keep_every_hours}.'
      )
    self._workdir = workdir
    self._policy = checkpoint_policy.preservation(
      workdir, keep, keep_best, keep_every_hours
    )
    if jax.process_index() == 0:
      for path in checkpoint_layout.unfinished(workdir):
        logging.warning(
          '%s is a save that was cut off: it is skipped and removed.', path
        )
    self._manager = self._open()

  def save(
    self,
    step: int,
    state,
    position: Mapping[str, int],
    config,
    classes: Mapping[int, str],
  ) -> None:
    """Starts to save; a step that is saved already stays as it is."""
    if step in self._manager.all_steps():
      return
    items = {
      'position': {k: int(v) for k, v in position.items()},
      'config': checkpoint_layout.as_json(config),
      'classes': {str(k): v for k, v in classes.items()},
    }
    items['health'] = checkpoint_health.describe(state, items)
    args = {name: ocp.args.JsonSave(item) for name, item in items.items()}
    args['state'] = ocp.args.StandardSave(state)
    self._manager.save(step, args=ocp.args.Composite(**args))

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    self._manager.close()

  def _open(self) -> ocp.CheckpointManager:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = ocp.StandardCheckpointHandler()
    registry.add('state', ocp.args.StandardSave, handler)
    for name in ('position', 'config', 'classes', 'health'):
      registry.add(name, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return ocp.CheckpointManager(
      checkpoint_layout.directory(self._workdir),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy, cleanup_tmp_directories=True
      ),
      handler_registry=registry,
    )
