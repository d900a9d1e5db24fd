"""Where a run keeps its checkpoints, and which of them are whole.

`WORKDIR/checkpoints` holds `STEP` (whole), `STEP.orbax-checkpoint-tmp*` (a save
that was cut off; removed at the next start) and `STEP.damaged` (set aside;
never removed). Orbax and this package only count the first kind.
"""

import contextlib
import json
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from maskrcnn_jax.training import checkpoint_health

# What processes tell each other about a trouble, cut to this length.
_TROUBLE_BYTES = 1024
_UNFINISHED = '.orbax-checkpoint-tmp'
_DAMAGED = '.damaged'


def directory(workdir) -> pathlib.Path:
  """The folder of a workdir's checkpoints."""
  return pathlib.Path(workdir).absolute() / 'checkpoints'


def steps(workdir) -> list[int]:
  """The steps of all whole checkpoints, in order."""
  return sorted(ocp.path.step.checkpoint_steps(directory(workdir)))


def find(path, step: int | None) -> pathlib.Path:
  """The checkpoint that is meant by a workdir or a checkpoint's folder.

  Args:
    path: a workdir, or `WORKDIR/checkpoints/STEP`.
    step: which checkpoint of the workdir; the newest if None.

  Raises:
    FileNotFoundError: there is no such checkpoint.
  """
  path = pathlib.Path(path).absolute()
  if step is None and (path / 'state').is_dir():
    return path
  there = steps(path)
  if not there:
    raise FileNotFoundError(
      f'{path} holds no checkpoint; wanted a workdir with checkpoints/STEP, or '
      'one such directory.'
    )
  if step is not None and step not in there:
    raise FileNotFoundError(
      f'{path} holds no checkpoint of step {step}; it has {there}.'
    )
  return directory(path) / str(there[-1] if step is None else step)


def unfinished(workdir, step: int | None = None) -> list[pathlib.Path]:
  """Folders of saves that were cut off: of one step, or all."""
  name = '*' if step is None else str(step)
  return sorted(directory(workdir).glob(f'{name}{_UNFINISHED}*'))


def damaged(workdir) -> list[pathlib.Path]:
  """Checkpoints that were set aside."""
  return sorted(directory(workdir).glob(f'*{_DAMAGED}*'))


def set_aside(path: pathlib.Path, reason: str) -> pathlib.Path:
  """Renames a damaged checkpoint, so that nobody takes it; its new path.

  Args:
    path: `WORKDIR/checkpoints/STEP`.
    reason: what is wrong; kept inside as `damage.txt`.
  """
  new, number = path.with_name(path.name + _DAMAGED), 1
  # The step may have been reached again since it was first set aside.
  while new.exists():
    number += 1
    new = path.with_name(f'{path.name}{_DAMAGED}-{number}')
  path.rename(new)
  with contextlib.suppress(OSError):  # A full disk, say.
    (new / 'damage.txt').write_text(f'{reason}\n')
  return new


def read_item(path: pathlib.Path, name: str):
  """One item of a checkpoint, as it was saved."""
  health = read_health(path)
  with checkpoint_health.naming_damage(path / name):
    value = ocp.JsonCheckpointHandler().restore(path / name)
    if health:
      checkpoint_health.check_item(health, path / name, value)
  return value


def read_health(path: pathlib.Path) -> dict[str, Any] | None:
  """What was known when a checkpoint was saved; None of an older version."""
  item = path / 'health'
  if not item.exists():
    contents = path / '_CHECKPOINT_METADATA'
    if contents.exists() and b'"health"' in contents.read_bytes():
      raise checkpoint_health.DamagedError(f'{item} is gone.')
    return None
  with checkpoint_health.naming_damage(item):
    health = ocp.JsonCheckpointHandler().restore(item)
    checkpoint_health.check_health(health, item)
  return health


def tensors(path: pathlib.Path):
  """Shapes and dtypes of a saved state as nested dicts and lists."""
  return ocp.StandardCheckpointHandler().metadata(path / 'state').tree


def agree(trouble: str) -> str:
  """The first trouble that any process has; '' if none has.

  All processes must call it, and go on alike.

  Args:
    trouble: of this process; '' for none.
  """
  if jax.process_count() == 1:
    return trouble
  text = np.frombuffer(trouble.encode()[:_TROUBLE_BYTES], np.uint8)
  padded = np.zeros(_TROUBLE_BYTES, np.uint8)
  padded[: len(text)] = text
  for row in multihost_utils.process_allgather(padded):
    told = bytes(row).rstrip(b'\0').decode(errors='replace')
    if told:
      return told
  return ''


def as_json(config) -> dict[str, Any]:
  """A config in the types of JSON, as it will be read back."""
  return json.loads(json.dumps(ml_collections.ConfigDict(config).to_dict()))
