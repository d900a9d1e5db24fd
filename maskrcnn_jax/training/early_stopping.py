"""When a run has learnt what it will: its score stays where it was.

What is known about earlier evaluations is read from `WORKDIR/metrics.jsonl`
every time. So a run that is killed and goes on decides as one that was not, and
one that has stopped stops again.
"""

from collections.abc import Callable

from maskrcnn_jax.evaluation import scores


def reason_to_stop(
  workdir,
  step: int,
  metric: str,
  patience: int,
  counts: Callable[[int], bool] = lambda step: True,
) -> str | None:
  """Why a run should end after an evaluation; None if it should not.

  Args:
    workdir: of the run.
    step: finished; later evaluations, of a run that went back, do not count.
    metric: a key of `metrics.jsonl`, see `scores`.
    patience: so many evaluations in a row that do not improve it are enough; a
      value that is not finite does not improve it.
    counts: whether an evaluation after a step counts.
  """
  found = scores.read(workdir, metric)
  found = {s: v for s, v in found.items() if s <= step and counts(s)}
  best = scores.first_best_step(found, metric)
  later = sum(best is None or s > best for s in found)
  if later < patience:
    return None
  since = 'never had a value'
  if best is not None:
    since = f'has not improved since step {best} ({found[best]:.4g})'
  return (
    f'stopped early at step {step}: {metric} {since}, in {later} evaluations. '
    f'training.patience is {patience}; with a higher one, or None, the same '
    'command goes on.'
  )
