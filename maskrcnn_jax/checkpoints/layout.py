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

from maskrcnn_jax.checkpoints import checksums as checkpoint_health
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores

# What processes tell each other about a trouble, cut to this length.
_TROUBLE_BYTES = 1024
# Names the checkpoint with the best score, in place of its step.
BEST = 'best'
_UNFINISHED = '.orbax-checkpoint-tmp'
_DAMAGED = '.damaged'


def directory(workdir) -> pathlib.Path:
  """The folder of a workdir's checkpoints."""
  return pathlib.Path(workdir).absolute() / 'checkpoints'


def steps(workdir) -> list[int]:
  """The steps of all whole checkpoints, in order."""
  return sorted(ocp.path.step.checkpoint_steps(directory(workdir)))


def find(path, step: int | str | None = None) -> pathlib.Path:
  """The checkpoint that is meant by a workdir or a checkpoint's folder.

  Args:
    path: a workdir, `WORKDIR/checkpoints/STEP`, or `WORKDIR/checkpoints/best`,
      which is a name, not a folder.
    step: which checkpoint of the workdir: its number; `'best'`, by the metric
      that `training.keep_best` named; the newest if None.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ValueError: no metric says what is best.
  """
  path = pathlib.Path(path).absolute()
  if step is None and (path / 'state').is_dir():
    return path
  if step is None and is_best(path):
    path, step = path.parents[1], BEST
  there = steps(path)
  if not there:
    raise FileNotFoundError(
      f'{path} holds no checkpoint; wanted a workdir with checkpoints/STEP, or '
      'one such directory.'
    )
  if step == BEST:
    step = _find_best(path, there)
  if step is not None and step not in there:
    raise FileNotFoundError(
      f'{path} holds no checkpoint of step {step}; it has {there}.'
    )
  return directory(path) / str(there[-1] if step is None else step)


def is_best(path: pathlib.Path) -> bool:
  """Whether a path names the best checkpoint of a workdir."""
  return path.name == BEST and path.parent.name == directory('').name


def _find_best(workdir: pathlib.Path, there: list[int]) -> int:
  """The best of some steps, by what the newest of them was told to keep."""
  newest = directory(workdir) / str(there[-1])
  metric = read_item(newest, 'config').get('training', {}).get('keep_best')
  if not metric:
    raise UserError(
      f'{workdir} has no best checkpoint: training.keep_best, the number that '
      "tells, such as 'eval/mask_AP', was not set in its run."
    )
  best = scores.best_step(scores.read(workdir, metric), metric, there)
  if best is None:
    raise FileNotFoundError(
      f'{workdir} has no best checkpoint: of its steps {there} none was '
      f'evaluated with a result for {metric}.'
    )
  return best


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
