"""Scores of a run: evaluation metrics by step, and the best step.

They are read from `WORKDIR/metrics.jsonl`, which every evaluation appends to
and which survives a killed run, so that nothing else has to be saved.
"""

import contextlib
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping

from maskrcnn_jax import files

# Terms of the training loss on the evaluation set, and their sum.
TERMS = ('rpn_objectness', 'rpn_box', 'class', 'box', 'mask')
LOSS = 'eval/loss'
LOSSES = (LOSS, *(f'{LOSS}_{term}' for term in TERMS))


def read_lines(workdir, key: str = '') -> Iterator[dict]:
  """Lines of a run's `metrics.jsonl` in which a key occurs, oldest first."""
  path = files.not_a_link(pathlib.Path(workdir, 'metrics.jsonl'))
  if not path.exists():
    return
  with path.open(encoding='utf-8', errors='replace') as file:
    for line in file:
      if key in line:
        # A killed run may have left half a line, a stranger anything.
        with contextlib.suppress(ValueError, RecursionError):
          values = json.loads(line)
          if isinstance(values, dict) and type(values.get('step')) is int:
            yield values


def read(workdir, metric: str) -> dict[int, float | None]:
  """The last value of a metric by step; None where it was not finite."""
  lines = read_lines(workdir, f'"{metric}"')
  return {
    line['step']: line[metric]
    for line in lines
    if isinstance(line.get(metric, ''), int | float | None)
  }


def best_step(
  scores: Mapping[int, float | None],
  metric: str,
  steps: Collection[int] | None = None,
  first: bool = False,
) -> int | None:
  """The step with the best score; None without any.

  Args:
    scores: by step, as `read` returns them.
    metric: a loss is better if it is lower, any other if it is higher.
    steps: the ones to choose from; None: all.
    first: take the first of equal ones instead of the newest.
  """
  sign, order = -1 if metric in LOSSES else 1, -1 if first else 1
  steps = scores if steps is None else steps
  return max(
    (step for step in steps if scores.get(step) is not None),
    key=lambda step: (sign * scores[step], order * step),
    default=None,
  )
