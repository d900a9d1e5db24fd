"""Writer: saves checkpoints in the background and keeps what a policy says.

A save is atomic: Orbax writes `STEP.orbax-checkpoint-tmp` and renames it. Older
checkpoints are removed only after that.
"""

import errno
import logging
import shutil
from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp

from maskrcnn_jax.checkpoints import (
  checksums,
  compatibility,
  disk_space,
  retention,
)
from maskrcnn_jax.checkpoints.disk_space import SaveError
from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.distributed.termination import deferred_signals
from maskrcnn_jax.errors import invalid

_FULL = (errno.ENOSPC, errno.EDQUOT)


class CheckpointWriter:
  """Saves in the background; a context manager.

  Leaving the context waits for the last save. A save first copies the state to
  the host, so the step may donate it right after. Handlers of SIGTERM and
  SIGINT run between saves, not in them.
  """

  def __init__(
    self,
    workdir,
    keep: int = 3,
    keep_best: str | None = None,
    keep_every_hours: float | None = None,
  ):
    """Opens `workdir` for saving; removes interrupted saves.

    Args:
      workdir: directory of the run; made if missing.
      keep: number of the newest checkpoints that stay on disk.
      keep_best: a key of `metrics.jsonl`; the checkpoint with its best value
        stays too, see `best_step`.
      keep_every_hours: the oldest checkpoint stays too, then the first that is
        at least this many hours younger, and so on.
    """
    if keep < 1:
      raise invalid('keep', keep, 'at least 1')
    if keep_every_hours is not None and keep_every_hours <= 0:
      raise invalid('keep_every_hours', keep_every_hours, 'positive')
    self._workdir = workdir
    self._policy = retention.preservation(
      workdir, keep, keep_best, keep_every_hours
    )
    self._last_step = None
    if jax.process_index() == 0:
      for path in retention.unfinished(workdir):
        logging.warning(
          '%s is an interrupted save: it is skipped and removed.', path
        )
    self._manager = self._open()

  @deferred_signals()
  def save(
    self,
    step: int,
    state,
    position: Mapping[str, int],
    config,
    classes: Mapping[int, str | Mapping],
  ) -> bool:
    """Starts to save; a step that is saved already stays as it is.

    Waits for the previous save. If the disk is or was too full, it warns, so
    that training goes on and saves later.

    Args:
      position: `examples` and `salt` of the next batch.
      classes: name of every class id, or `name` and `category_id` where they
        differ in the annotations.

    Returns:
      Whether there is or will be a checkpoint of the step; False if the disk is
      too full.

    Raises:
      SaveError: this save or the previous one failed for another reason.
    """
    self._continue_or_raise(self._settle())
    if step in self._manager.all_steps():
      return True
    if not self._has_room(step, state):
      return False
    items = {
      'position': {k: int(v) for k, v in position.items()},
      'config': compatibility.as_json(config),
      'classes': {str(k): v for k, v in classes.items()},
    }
    items[checksums.ITEM] = checksums.compute(state, items)
    args = {name: ocp.args.JsonSave(item) for name, item in items.items()}
    args['state'] = ocp.args.StandardSave(state)
    self._last_step = step
    try:
      self._manager.save(step, args=ocp.args.Composite(**args))
    except Exception as error:
      failure = self._save_error(error)
      # Other processes may be past it: they cannot be asked to try again.
      if jax.process_count() > 1:
        raise failure from error
      self._continue_or_raise(failure)
      self._reopen()
      return False
    return True

  @deferred_signals()
  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      SaveError: the last save failed.
    """
    failure = self._settle()
    if failure:
      raise failure

  def __enter__(self):
    return self

  @deferred_signals()
  def __exit__(self, unused_type, error, unused_traceback):
    if jax.process_count() > 1 and error and collectives.is_loss(str(error)):
      # The save would wait for the lost process until JAX ends this one, which
      # could then not name it.
      return
    # Not `_settle`: an error may have brought this process here alone.
    failure = self._finish()
    self._close()
    if failure and error:
      # The error that ends the run matters more.
      logging.warning('%s', failure)
    elif failure:
      raise failure

  def _open(self) -> ocp.CheckpointManager:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = ocp.StandardCheckpointHandler()
    registry.add('state', ocp.args.StandardSave, handler)
    for name in ('position', 'config', 'classes', checksums.ITEM):
      registry.add(name, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return ocp.CheckpointManager(
      retention.directory(self._workdir),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy, cleanup_tmp_directories=True
      ),
      handler_registry=registry,
    )

  def _finish(self) -> SaveError | None:
    """Waits for the save in the background; its failure in this process."""
    try:
      self._manager.wait_until_finished()
    # A thread of another package may end with anything.
    except Exception as error:
      return self._save_error(error)
    return None

  def _settle(self) -> SaveError | None:
    """Waits for the save in the background; its failure in any process."""
    failure = disk_space.first_failure(self._finish())
    if failure:
      self._reopen()
    return failure

  def _save_error(self, error: Exception) -> SaveError:
    path = retention.directory(self._workdir) / str(self._last_step)
    return SaveError(
      f'Step {self._last_step} could not be saved as {path}: '
      f'{checksums.summary(error)}. Older checkpoints are as they were.',
      checksums.system_code(error),
      path=path,
      item=self._last_step,
    )

  def _continue_or_raise(self, failure: SaveError | None) -> None:
    if failure and failure.code not in _FULL:
      raise failure
    if failure:
      logging.warning('%s Training goes on.', failure)

  def _reopen(self) -> None:
    """Clears up after a failed save, so that the next one starts afresh."""
    # A manager whose thread failed no longer knows the checkpoints that it was
    # about to remove.
    self._close()
    self._manager = self._open()

  def _close(self) -> None:
    try:
      self._manager.close()
    except Exception as error:
      # The same error as that of `wait_until_finished`.
      logging.debug('At the end of the writer: %s', error)
    if jax.process_index() == 0 and self._last_step is not None:
      for path in retention.unfinished(self._workdir, self._last_step):
        shutil.rmtree(path, ignore_errors=True)

  def _has_room(self, step: int, state) -> bool:
    """Whether the disk has room for one more; process 0 asks for all."""
    needed = disk_space.checkpoint_bytes(state)
    free = disk_space.free_bytes(self._workdir)
    fits = bool(collectives.broadcast(free >= needed))
    if not fits and jax.process_index() == 0:
      logging.warning(
        'Step %d is not saved: a checkpoint needs %s bytes, and %s has %s '
        'left. Training goes on.',
        *(step, f'{needed:,}', retention.directory(self._workdir)),
        f'{free:,}',
      )
    return fits
