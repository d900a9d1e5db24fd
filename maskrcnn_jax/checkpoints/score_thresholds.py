"""Recommended score thresholds of a checkpoint, by its own evaluation."""

import os
import pathlib

from maskrcnn_jax.checkpoints import checksums, containment, retention, store
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import score_thresholds


def path_of(path: str | os.PathLike) -> pathlib.Path:
  """`WORKDIR/eval/classes-STEP.json` of a checkpoint; see `store.restore`."""
  checkpoint = retention.find(path)
  step = retention.step_of(path)
  return checkpoint.parent.parent / 'eval' / f'classes-{step}.json'


def read(path: str | os.PathLike) -> dict[int | None, float]:
  """Smallest scores by class id; that of other classes by None.

  Args:
    path: see `store.restore`.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    UserError: it was not evaluated, found nothing, the thresholds are those of
      other weights, or a link leads out of the workdir.
  """
  file = path_of(path)
  if not file.exists():
    raise UserError(
      f'min_score=auto needs {file}, which an evaluation of this checkpoint '
      'writes: run maskrcnn-jax eval with the --config and --workdir of the '
      'run, or give a number.',
      argument='min_score',
      path=file,
      given='auto',
    )
  containment.check_links(file, file.parent.parent)
  saved = checksums.read(retention.find(path))
  by_category = score_thresholds.read(
    file, saved and checksums.saved_model_digest(saved)
  )
  class_ids = {v: k for k, v in store.read_category_ids(path).items()}
  return {class_ids.get(k, k): score for k, score in by_category.items()}
