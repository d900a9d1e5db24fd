"""Scores of a run: evaluation metrics by step, and the best step.

They are read from `WORKDIR/metrics.jsonl`, which every evaluation appends to
and which survives a killed run, so that nothing else has to be saved.
"""

import json
import pathlib
from collections.abc import Collection, Mapping

# Terms of the training loss on the evaluation set, and their sum.
TERMS = ('rpn_objectness', 'rpn_box', 'class', 'box', 'mask')
LOSS = 'eval/loss'
LOSSES = (LOSS, *(f'{LOSS}_{term}' for term in TERMS))


def is_better(metric: str, value: float, other: float) -> bool:
  """Whether a value is better than another; a loss is better if lower."""
  return value < other if metric in LOSSES else value > other


def read(workdir, metric: str) -> dict[int, float | None]:
  """The last value of a metric by step; None where it was not finite."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return {}
  found = {}
  for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
    if f'"{metric}"' in line:
      try:
        values = json.loads(line)
      except json.JSONDecodeError:
        continue  # The line that a killed run was writing.
      found[values['step']] = values[metric]
  return found


def best_step(
  scores: Mapping[int, float | None],
  metric: str,
  steps: Collection[int] | None = None,
) -> int | None:
  """The step with the best score, the newest of equal ones; None without any.

  Args:
    scores: by step, as `read` returns them.
    metric: decides which score is better.
    steps: the ones to choose from; None: all.
  """
  best = None
  for step in sorted(scores if steps is None else steps):
    value = scores.get(step)
    if value is None:
      continue
    if best is None or not is_better(metric, scores[best], value):
      best = step
  return best


def first_best_step(
  scores: Mapping[int, float | None], metric: str
) -> int | None:
  """The step that no later one improved on; None without a score."""
  best = None
  for step in sorted(scores):
    value = scores[step]
    if value is None:
      continue
    if best is None or is_better(metric, value, scores[best]):
      best = step
  return best
