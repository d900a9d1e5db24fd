"""Retention: the checkpoints of a workdir, and which of them stay.

`WORKDIR/checkpoints` holds `STEP` (complete), `STEP.orbax-checkpoint-tmp*` (an
interrupted save; removed at the next start) and `STEP.damaged` (corrupt; never
removed; the suffix is that of older versions). Orbax and this package count the
first kind only.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence

import orbax.checkpoint as ocp

from maskrcnn_jax.checkpoints import checksums, containment, saved_config
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores

# Names the checkpoint with the best score, in place of its step.
BEST = 'best'
_FOLDER = 'checkpoints'
_UNFINISHED = '.orbax-checkpoint-tmp'
_CORRUPT = '.damaged'
_policies = ocp.checkpoint_managers


def directory(workdir) -> pathlib.Path:
  """The folder of a workdir's checkpoints."""
  return pathlib.Path(workdir).absolute() / _FOLDER


def steps(workdir) -> list[int]:
  """The steps of all complete checkpoints, in order."""
  return sorted(ocp.path.step.checkpoint_steps(directory(workdir)))


def latest_step(workdir) -> int | None:
  """The newest complete checkpoint, which may be corrupt; None without any."""
  return max(steps(workdir), default=None)


def find(path, step: int | str | None = None) -> pathlib.Path:
  """The folder of a checkpoint.

  Args:
    path: a workdir, `WORKDIR/checkpoints/STEP`, or `WORKDIR/checkpoints/best`,
      which is a name, not a folder.
    step: of the workdir: its number; `'best'`, by the metric
      `training.keep_best`; the newest if None.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    CorruptCheckpointError: a link leads out of it.
    UserError: no metric says which is best.
  """
  path = pathlib.Path(path).absolute()
  if step is None and (path / 'state').is_dir():
    containment.check_links(path, path)
    return path
  if step is None and _is_best(path):
    path, step = path.parents[1], BEST
  saved = steps(path)
  if not saved:
    raise FileNotFoundError(
      f'{path} holds no checkpoint; wanted a workdir with checkpoints/STEP, or '
      'one such directory.'
    )
  if step == BEST:
    step = _find_best(path, saved)
  if step is not None and step not in saved:
    raise FileNotFoundError(
      f'{path} holds no checkpoint of step {step}; it has {saved}.'
    )
  found = directory(path) / str(saved[-1] if step is None else step)
  containment.check_links(found, path)
  return found


def _is_best(path: pathlib.Path) -> bool:
  return path.name == BEST and path.parent.name == _FOLDER


def is_checkpoint(path) -> bool:
  """Whether a path is a checkpoint, or a workdir that has one."""
  path = pathlib.Path(path)
  if _is_best(path):
    path = path.parents[1]
  return (path / 'state').is_dir() or latest_step(path) is not None


def step_of(path, step: int | str | None = None) -> int:
  """The finished steps of the checkpoint that `find(path, step)` returns."""
  found = find(path, step)
  if not found.name.isdecimal():
    raise UserError(
      f'{found} is a checkpoint without its number: name its folder by the '
      'number of finished steps.',
      path=found,
    )
  return int(found.name)


def foreign_checkpoints(workdir) -> list[str]:
  """Prefixes of the TensorFlow checkpoints in a folder."""
  paths = pathlib.Path(workdir).glob('*ckpt*.index')
  return sorted(str(path.with_suffix('')) for path in paths)


def best_step(
  workdir, metric: str, saved: Sequence[int] | None = None
) -> int | None:
  """The saved step with the best score; None if no saved one has a score.

  Only checkpoints that were evaluated at their own step count. Of equal scores
  the newest wins.
  """
  saved = steps(workdir) if saved is None else saved
  return scores.best_step(scores.read(workdir, metric), metric, saved)


def _find_best(workdir: pathlib.Path, saved: list[int]) -> int:
  """The best of some steps, by the metric in the config of the newest."""
  newest = directory(workdir) / str(saved[-1])
  containment.check_links(newest, workdir)
  config = saved_config.with_new_names(
    checksums.read_item(newest, 'config'), newest / 'config'
  )
  metric = config.get('training', {}).get('keep_best')
  if not isinstance(metric, str) or not metric:
    raise UserError(
      f'{workdir} has no best checkpoint: training.keep_best, its metric, such '
      "as 'eval/mask_AP', was not set in its run.",
      argument='training.keep_best',
      path=workdir,
    )
  best = best_step(workdir, metric, saved)
  if best is None:
    raise FileNotFoundError(
      f'{workdir} has no best checkpoint: none of its steps {saved} was '
      f'evaluated with a result for {metric}.'
    )
  return best


def unfinished(workdir, step: int | None = None) -> list[pathlib.Path]:
  """Folders of interrupted saves: of one step, or all."""
  name = '*' if step is None else str(step)
  return sorted(directory(workdir).glob(f'{name}{_UNFINISHED}*'))


def corrupt(workdir) -> list[pathlib.Path]:
  """Folders of corrupt checkpoints that were renamed."""
  return sorted(directory(workdir).glob(f'*{_CORRUPT}*'))


def set_aside(path: pathlib.Path, reason: str) -> pathlib.Path:
  """Renames a corrupt checkpoint, so that it is not used; returns the new path.

  Args:
    reason: kept inside as `damage.txt`.
  """
  new, number = path.with_name(path.name + _CORRUPT), 1
  # The step may have been reached again since it was first renamed.
  while new.exists():
    number += 1
    new = path.with_name(f'{path.name}{_CORRUPT}-{number}')
  path.rename(new)
  with contextlib.suppress(OSError):  # A full disk, say.
    (new / 'damage.txt').write_text(f'{reason}\n')
  return new


def preservation(
  workdir, keep: int, keep_best: str | None, keep_every_hours: float | None
):
  """Orbax's policy for the options of `CheckpointWriter`."""
  kept = [_policies.LatestN(keep)]
  if keep_best:
    kept.append(_Best(workdir, keep_best))
  if keep_every_hours:
    kept.append(_policies.EveryNSeconds(3600 * keep_every_hours))
  return _policies.AnyPreservationPolicy(kept)


@dataclasses.dataclass(frozen=True)
class _Best(_policies.PreservationPolicy):
  """Keeps the checkpoint with the best score so far.

  `metrics.jsonl` is read at every save, as evaluations follow the save of their
  step.
  """

  workdir: str | pathlib.Path
  metric: str

  def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
    """One bool for each checkpoint."""
    saved = [info.step for info in checkpoints]
    best = best_step(self.workdir, self.metric, saved)
    return [step == best for step in saved]
