"""Disk space: checks that the checkpoints of a run can be written."""

import errno
import shutil
import tempfile

import jax
import numpy as np

from maskrcnn_jax.checkpoints import retention
from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.errors import UserError

# Besides numbers, a checkpoint holds metadata of every tensor and of itself.
# Measured: 1.1 KB and 30 KB; file systems round up.
_BYTES_PER_TENSOR = 2048
_BYTES_PER_CHECKPOINT = 2**17


class SaveError(UserError):
  """A checkpoint cannot be written; `code` is the `errno`, None if unknown."""

  def __init__(self, message: str, code: int | None = None, **fields):
    super().__init__(message, **fields)
    self.code = code


def check_can_save(workdir, state, keep: int = 3) -> None:
  """Raises before the first step if the checkpoints of a run do not fit.

  Args:
    workdir: directory of the run; made if missing.
    state: the train state, or its shapes.
    keep: checkpoints that will stay; there is one more during a save. 0: a
      single one is saved.

  Raises:
    SaveError: the folder cannot be written, or the disk is too small.
  """
  failure = None
  if jax.process_index() == 0:  # The processes share the folder.
    failure = _find_failure(workdir, checkpoint_bytes(state), keep)
  failure = first_failure(failure)
  if failure:
    raise failure


def _find_failure(workdir, size: int, keep: int) -> SaveError | None:
  """The reason why checkpoints of a size cannot be written."""
  folder = retention.directory(workdir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(bytes(1))
  except OSError as error:
    return SaveError(
      f'{folder} cannot be written ({error.strerror}), so no checkpoint could '
      'be saved.',
      error.errno,
      path=folder,
    )
  # The checkpoints on disk are among those that will be there.
  count = max(1, keep + 1 - len(retention.steps(workdir)))
  free = free_bytes(workdir)
  if free >= count * size:
    return None
  fewer = f', or keep fewer checkpoints than {keep}' if keep > 1 else ''
  return SaveError(
    f'{folder} has {free:,} bytes left, wanted {count * size:,}: {count} times '
    f'a checkpoint of {size:,}. Free some space{fewer}.',
    errno.ENOSPC,
    path=folder,
    given=free,
    wanted=count * size,
  )


def first_failure(failure: SaveError | None) -> SaveError | None:
  """The failure of the first process that has one; all processes call it."""
  if jax.process_count() == 1:
    return failure
  own = failure and [str(failure), failure.code, failure.path]
  found = collectives.first_error(own)
  return found and SaveError(*found[:2], path=found[2])


def checkpoint_bytes(state) -> int:
  """Upper bound of the bytes on disk of a checkpoint."""
  leaves = jax.tree.leaves(state)
  numbers = sum(x.size * np.dtype(x.dtype).itemsize for x in leaves)
  return numbers + _BYTES_PER_TENSOR * len(leaves) + _BYTES_PER_CHECKPOINT


def free_bytes(workdir) -> int:
  """Free bytes on the disk of a workdir, which need not exist yet."""
  folder = retention.directory(workdir)
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free
