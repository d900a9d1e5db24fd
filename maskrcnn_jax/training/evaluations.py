"""The evaluations of a run: when they are made, and what follows from them."""

from collections.abc import Callable

import jax

from maskrcnn_jax import charts
from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores
from maskrcnn_jax.training import early_stopping, health
from maskrcnn_jax.training.evaluator import Evaluator


def look_at(
  evaluator: Evaluator,
  workdir,
  step: int,
  variables,
  writer,
  feed: Callable[[str], None],
) -> dict[str, float]:
  """Evaluates; says so where the result is far below earlier ones; draws.

  Args:
    evaluator: see there, also for the others.
    workdir: of the run.
    step: finished.
    variables: of the model.
    writer: `metrics.MetricWriter`.
    feed: is told of progress.
  """
  values = evaluator(step, variables, writer, feed)
  message = values and health.fallen_score(workdir, step, values)
  if message:
    writer.say(f'WARNING: {message}')
  if writer.enabled:
    charts.learning_curves(workdir)
  return values


def check(training, evaluator: Evaluator | None) -> None:
  """Raises if a run could never have the numbers that it is to go by.

  Args:
    training: `options.TrainingOptions`.
    evaluator: of the run; None: it is not evaluated.

  Raises:
    ValueError: it names the options that contradict each other.
  """
  on_the_way = evaluator is not None and evaluator.options.every_steps > 0
  if training.patience is not None and not on_the_way:
    raise UserError(
      f'training.patience={training.patience} counts evaluations on the way: '
      'it needs train_and_eval and evaluation.every_steps above 0.'
    )
  by_loss = training.keep_best in scores.LOSSES
  if by_loss and on_the_way and not evaluator.options.losses:
    raise UserError(
      f'training.keep_best={training.keep_best} needs evaluation.losses=True.'
    )


def is_missing(evaluator: Evaluator | None, workdir, step: int) -> bool:
  """Whether a run was killed between the save of a step and its evaluation.

  All processes must ask.

  Args:
    evaluator: of the run; None: it is not evaluated.
    workdir: of the run.
    step: that it goes on from.
  """
  if evaluator is None or not step or not evaluator.options.is_due(step):
    return False
  return collectives.broadcast(step not in scores.read(workdir, 'eval/AP'))


def reason_to_stop(
  training, evaluator: Evaluator | None, workdir, step: int
) -> str | None:
  """Why a run should end after a step, see `early_stopping`; None: go on.

  All processes must ask, and go on alike; only the first one is told why.

  Args:
    training: `options.TrainingOptions`.
    evaluator: of the run; None: it is not evaluated.
    workdir: of the run.
    step: finished.
  """
  if evaluator is None or training.patience is None:
    return None
  reason = None
  if jax.process_index() == 0:
    reason = early_stopping.reason_to_stop(
      workdir,
      step,
      training.keep_best,
      training.patience,
      evaluator.options.is_due,
    )
  return (reason or '') if collectives.broadcast(reason is not None) else None
