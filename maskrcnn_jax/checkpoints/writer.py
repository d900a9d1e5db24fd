"""Saves the states of a run in the background; says early what cannot be saved.

A save is atomic: Orbax writes `STEP.orbax-checkpoint-tmp` and renames it. Older
checkpoints are removed only after that.
"""

import logging
import shutil
import tempfile
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp

from maskrcnn_jax.checkpoints import checksums as checkpoint_health
from maskrcnn_jax.checkpoints import layout as checkpoint_layout
from maskrcnn_jax.checkpoints import retention as checkpoint_policy
from maskrcnn_jax.checkpoints import signals as checkpoint_signals
from maskrcnn_jax.errors import UserError

# Beside the numbers, a checkpoint has descriptions: of every tensor, and of
# itself. Measured: 1.1 KB and 30 KB; file systems round up.
_BYTES_PER_TENSOR = 2048
_BYTES_PER_CHECKPOINT = 2**17


class SaveError(OSError):
  """A checkpoint cannot be written; the message says where and why."""


class CheckpointWriter:
  """Saves in the background and keeps what a policy says; a context manager.

  Leaving the context waits for the last save. A save first copies the state to
  the host, so the step may donate it right after. SIGTERM and SIGINT are heard
  between these, not in them.
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
      raise UserError(f'keep must be at least 1, got {keep}.')
    if keep_every_hours is not None and keep_every_hours <= 0:
      raise UserError(
        f'keep_every_hours must be positive, got {keep_every_hours}.'
      )
    self._workdir = workdir
    self._policy = checkpoint_policy.preservation(
      workdir, keep, keep_best, keep_every_hours
    )
    self._last_step = None
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
    classes: Mapping[int, str | Mapping],
  ) -> bool:
    """Starts to save; a step that is saved already stays as it is.

    Waits for the save before. Where the disk is too full for one more, or was
    for the one before, it warns, so that training can go on and save later.

    Args:
      step: finished steps.
      state: the train state.
      position: `examples` and `salt` of the next batch.
      config: of the run.
      classes: name of every class id, or `name` and `category_id` where the
        annotations number it otherwise.

    Returns:
      Whether there is or will be a checkpoint of the step; False if the disk is
      too full.

    Raises:
      SaveError: this save or the one before failed for another reason.
    """
    with checkpoint_signals.deferred():
      return self._save(step, state, position, config, classes)

  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      SaveError: the last save failed.
    """
    with checkpoint_signals.deferred():
      trouble = self._settle()
    if trouble:
      raise SaveError(trouble)

  def __enter__(self):
    return self

  def __exit__(self, error_type, *unused_error):
    trouble = ''
    with checkpoint_signals.deferred():
      try:
        self._manager.wait_until_finished()
      except Exception as error:
        trouble = self._trouble(error)
      # Not `_settle`: an error may have brought this process here alone.
      self._close()
    if trouble and error_type is None:
      raise SaveError(trouble)
    if trouble:
      # The error that ends the run matters more.
      logging.warning('%s', trouble)

  def _save(self, step, state, position, config, classes) -> bool:
    trouble = self._settle()
    if trouble and not _is_full(trouble):
      raise SaveError(trouble)
    if trouble:
      logging.warning('%s Training goes on.', trouble)
    if step in self._manager.all_steps():
      return True
    if not self._has_room(step, state):
      return False
    items = {
      'position': {k: int(v) for k, v in position.items()},
      'config': checkpoint_layout.as_json(config),
      'classes': {str(k): v for k, v in classes.items()},
    }
    items['health'] = checkpoint_health.describe(state, items)
    args = {name: ocp.args.JsonSave(item) for name, item in items.items()}
    args['state'] = ocp.args.StandardSave(state)
    self._last_step = step
    try:
      self._manager.save(step, args=ocp.args.Composite(**args))
    except Exception as error:
      trouble = self._trouble(error)
      # Other processes may be past it: they cannot be asked to try again.
      if jax.process_count() > 1 or not _is_full(trouble):
        raise SaveError(trouble) from error
      logging.warning('%s Training goes on.', trouble)
      self._reopen()
      return False
    return True

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

  def _settle(self) -> str:
    """Waits for the save in the background; what went wrong in any process."""
    trouble = ''
    try:
      self._manager.wait_until_finished()
    # Whatever a thread of another package ends with.
    except Exception as error:
      trouble = self._trouble(error)
    trouble = checkpoint_layout.agree(trouble)
    if trouble:
      self._reopen()
    return trouble

  def _trouble(self, error: Exception) -> str:
    path = checkpoint_layout.directory(self._workdir) / str(self._last_step)
    reason = checkpoint_health.in_short(error)
    return (
      f'Step {self._last_step} could not be saved as {path}: {reason}. Older '
      'checkpoints are as they were.'
    )

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
      # It tells once more what `wait_until_finished` has told.
      logging.debug('At the end of the writer: %s', error)
    if jax.process_index() == 0 and self._last_step is not None:
      for path in checkpoint_layout.unfinished(self._workdir, self._last_step):
        shutil.rmtree(path, ignore_errors=True)

  def _has_room(self, step: int, state) -> bool:
    """Whether the disk takes one more; of several processes, the first asks."""
    trouble = ''
    if jax.process_index() == 0:
      needed, free = checkpoint_bytes(state), _free_bytes(self._workdir)
      if free < needed:
        trouble = (
          f'Step {step} is not saved: a checkpoint needs {needed:,} bytes, and '
          f'{checkpoint_layout.directory(self._workdir)} has {free:,} left. '
          'Training goes on.'
        )
        logging.warning('%s', trouble)
    return not checkpoint_layout.agree(trouble)


def check_can_save(workdir, state, keep: int = 3) -> None:
  """Raises before work is lost: can the checkpoints of a run be written?

  Args:
    workdir: directory of the run; made if missing.
    state: the train state, or its shapes.
    keep: how many checkpoints will stay; there is one more during a save.

  Raises:
    SaveError: the folder cannot be written, or the disk is too small.
  """
  trouble = ''
  # The processes share the folder.
  if jax.process_index() == 0:
    trouble = _why_not(workdir, checkpoint_bytes(state), keep)
  trouble = checkpoint_layout.agree(trouble)
  if trouble:
    raise SaveError(trouble)


def _why_not(workdir, size: int, keep: int) -> str:
  """Why checkpoints of a size cannot be written; '' if they can."""
  folder = checkpoint_layout.directory(workdir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(bytes(1))
  except OSError as error:
    return (
      f'{folder} cannot be written ({error.strerror}), so no checkpoint of '
      'this run could be saved. Nothing was trained.'
    )
  # Those of the run so far are among the ones that will be there.
  count = max(1, keep + 1 - len(checkpoint_layout.steps(workdir)))
  free = _free_bytes(workdir)
  if free >= count * size:
    return ''
  return (
    f'{folder} has {free:,} bytes left, and {count} more checkpoints of '
    f'{size:,} bytes need {count * size:,}. Nothing was trained; free some '
    f'space, or keep fewer than {keep}.'
  )


def checkpoint_bytes(state) -> int:
  """At most so many bytes are on disk for a checkpoint of a state."""
  leaves = jax.tree.leaves(state)
  numbers = sum(x.size * np.dtype(x.dtype).itemsize for x in leaves)
  return numbers + _BYTES_PER_TENSOR * len(leaves) + _BYTES_PER_CHECKPOINT


def _free_bytes(workdir) -> int:
  folder = checkpoint_layout.directory(workdir)
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free


def _is_full(trouble: str) -> bool:
  """Whether a disk without space is behind it."""
  # The library that writes the tensors tells it in words only.
  texts = ('No space left on device', 'Disk quota exceeded')
  return any(text in trouble for text in texts)
