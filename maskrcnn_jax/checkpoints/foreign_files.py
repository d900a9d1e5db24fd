"""Files of a user under names that a run writes, in a folder for a new run.

A folder is a run's own from its `config.json` on, which is written first, or if
it has one of its checkpoints. Results of `eval` into a new folder are known by
their lines in `metrics.jsonl`.
"""

import os
import pathlib

from maskrcnn_jax.checkpoints import retention
from maskrcnn_jax.checkpoints.compatibility import WorkdirError
from maskrcnn_jax.evaluation import scores

METRICS = 'metrics.jsonl'
CURVES = 'curves.png'


def check(workdir: str | os.PathLike) -> None:
  """Raises if a run would change a file of a user; the lock checks its own.

  Args:
    workdir: directory of a run, or where one will be.

  Raises:
    WorkdirError: see `error`.
    UserError: the metrics are a symbolic link.
  """
  workdir = pathlib.Path(workdir)
  if is_of_a_run(workdir):
    return
  if steps := retention.steps(workdir):
    folder = retention.directory(workdir) / str(steps[0])
    raise error(workdir, f'{folder.parent.name}/{folder.name}')
  if (workdir / METRICS).exists():
    if not _has_own_metrics(workdir):
      raise error(workdir, METRICS)
  elif os.path.lexists(workdir / CURVES):
    raise error(workdir, CURVES)


def is_of_a_run(workdir: str | os.PathLike) -> bool:
  """Whether a run of this package has begun in a folder."""
  if pathlib.Path(workdir, 'config.json').exists():
    return True
  folder = retention.directory(workdir)
  paths = [folder / str(step) for step in retention.steps(workdir)]
  return any(
    (path / 'state').is_dir() and (path / 'config').is_dir() for path in paths
  )


def error(workdir: str | os.PathLike, name: str) -> WorkdirError:
  """The error of a file or folder in the way; its `item` is the name."""
  return WorkdirError(
    f'{workdir} holds {name}, which is of no run of maskrcnn-jax, and a run '
    'would change it: move it away or take another workdir.',
    path=workdir,
    item=name,
  )


def _has_own_metrics(workdir: pathlib.Path) -> bool:
  first = next(scores.read_lines(workdir), {})
  names = first.keys() - {'step'}
  is_own = bool(names) and all('/' in name for name in names)
  return is_own or not (workdir / METRICS).stat().st_size
