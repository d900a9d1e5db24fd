"""Recommended score thresholds: where F1 is highest on an evaluation set.

A detection counts as in COCO's evaluation at an IoU of 0.5, of masks where they
are scored: it hits the unmatched object of its class with the highest IoU, and
is ignored in a crowd. Of all thresholds the one is taken that gives the highest
F1 = 2 hits / (detections + objects); of several equals the highest. It lies
halfway between the lowest score that is kept and the next lower one, or 0: no
detection is dropped where another program of the model rounds otherwise.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_jax import files
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.tables import table

IOU_THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True)
class ScoreThreshold:
  """The smallest score to keep, and what is reached on the evaluation set."""

  score: float
  f1: float
  precision: float
  recall: float


def best_f1(matches: np.ndarray, num_objects: int) -> ScoreThreshold | None:
  """The threshold with the highest F1; None if no detection hits an object.

  Args:
    matches: `[n, 2]` score of every detection, and 1 if it hits an object.
    num_objects: that could be hit.
  """
  scores, hits = matches[np.argsort(-matches[:, 0], kind='stable')].T
  hits = np.cumsum(hits)
  counts = np.arange(1, len(scores) + 1)
  # Detections of one score are kept or dropped together.
  last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
  f1 = np.where(last, 2 * hits / (counts + num_objects), 0.0)
  if not np.any(f1):
    return None
  best = int(np.argmax(f1))
  lower = scores[best + 1] if best + 1 < len(scores) else 0.0
  return ScoreThreshold(
    score=float(scores[best] + lower) / 2,
    f1=float(f1[best]),
    precision=float(hits[best] / counts[best]),
    recall=float(hits[best] / num_objects),
  )


def format_thresholds(
  names: Sequence[str], thresholds: Sequence[ScoreThreshold | None]
) -> str:
  """Table with a row for each name."""
  rows = []
  for name, best in zip(names, thresholds, strict=True):
    values = (None,) * 4 if best is None else dataclasses.astuple(best)
    columns = 'min score', 'F1', 'precision', 'recall'
    texts = ('n/a' if x is None else f'{x:.3f}' for x in values)
    rows.append({'class': name, **dict(zip(columns, texts))})
  return table(rows)


def read(
  path: str | os.PathLike, weights: str | None = None
) -> dict[int | None, float]:
  """Scores of `eval/classes-STEP.json` by category id; for others by None.

  Args:
    path: of the file.
    weights: digest of the model that was evaluated; None: any.

  Raises:
    UserError: it is no such file, of another model, or no detection hit any
      object.
  """
  content = files.read_json(path)
  try:
    evaluated = content.get('weights')
    common = _score(content['all_classes'])
    scores = {
      int(each['category_id']): _score(each['threshold'])
      for each in content['classes']
    }
  except (AttributeError, TypeError, KeyError, ValueError) as error:
    message = f'{path} has no score thresholds of an evaluation.'
    raise UserError(message, path=path) from error
  if weights not in (None, evaluated):
    raise UserError(
      f'{path} was written by an evaluation of other weights than those of the '
      'checkpoint: evaluate this one again, by maskrcnn-jax eval with the '
      '--config and --workdir of its run, or give a number.',
      argument='min_score',
      path=path,
      given=evaluated,
      wanted=weights,
    )
  if common is None:
    message = f'{path}: no detection hit an object, so there is no threshold.'
    raise UserError(message, path=path)
  return {None: common} | {k: v for k, v in scores.items() if v is not None}


def _score(threshold: Mapping[str, Any] | None) -> float | None:
  if threshold is None:
    return None
  score = float(threshold['score'])
  if not 0 <= score <= 1:
    raise ValueError(score)
  return score
