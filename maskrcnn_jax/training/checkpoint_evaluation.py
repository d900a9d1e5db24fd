"""Evaluation of a checkpoint: a given one, or that at the end of a run."""

import jax

from maskrcnn_jax.checkpoints import foreign_files, retention, store
from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.distributed.watchdog import config_watchdog
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import class_checks, metrics, pretrained
from maskrcnn_jax.training.evaluator import Evaluator


def evaluate(
  config,
  workdir,
  step: int | str | None = None,
  source: str | None = None,
) -> dict[str, float]:
  """Evaluates a checkpoint on every image of the evaluation set.

  Args:
    config: a ConfigDict with the sections `model, input, training, evaluation`.
    workdir: directory of a run, or where the results shall be.
    step: which checkpoint of the workdir, its number or `'best'`; the newest
      if None.
    source: a checkpoint to take in place of the workdir's: of another run, or
      of a whole Mask R-CNN by another program.

  Returns:
    The 24 numbers, `eval/AP` to `eval/mask_ARl`; {} on all hosts but the first.

  Raises:
    FileNotFoundError: the workdir holds no such checkpoint.
    UserError: an input is wrong, the checkpoint is of another model or of other
      classes, or the workdir has checkpoints and the source is none of them.
  """
  if source is None:
    store.check_workdir(workdir, config, step)
    if store.latest_step(workdir) is None:
      hint = ''.join(
        f' There is {found}: name it with --checkpoint.'
        for found in store.foreign_checkpoints(workdir)[-1:]
      )
      raise FileNotFoundError(
        f'{workdir} holds no checkpoint, so there is nothing to evaluate.{hint}'
      )
    step = wanted = store.step_of(workdir, step)
  else:
    foreign_files.check(workdir)
    _check_not_mixed(workdir, source)
    model, wanted = MaskRCNN.from_config(config.model), None
    variables, step = pretrained.whole_model(source, model, config)
  path = source or workdir
  if store.is_checkpoint(path):
    classes = class_checks.checkpoint_classes(path, wanted)
    class_checks.check_validation_classes(config, classes, path)
  evaluator = Evaluator(config, workdir)
  if source is None:
    variables, _ = store.restore(workdir, step)
  return _evaluate(evaluator, config, workdir, step, variables)


def _check_not_mixed(workdir, source) -> None:
  """Raises if the results would stand among those of another model."""
  folder = retention.directory(workdir).resolve()
  if retention.latest_step(workdir) is None or (
    retention.is_checkpoint(source)
    and retention.find(source).resolve().parent == folder
  ):
    return
  raise UserError(
    f'{workdir} has checkpoints of its own, and the scores of {source} would '
    'be taken for theirs: name another --workdir for the results.',
    argument='--workdir',
    path=workdir,
    given=source,
  )


def evaluate_end(evaluator, config, workdir) -> dict[str, float]:
  """Evaluates the newest checkpoint if that is wanted at the end of a run."""
  step = store.latest_step(workdir)
  if evaluator is None or not evaluator.options.is_due(step, is_last=True):
    return {}
  variables, _ = store.restore(workdir)
  return _evaluate(evaluator, config, workdir, step, variables)


def _evaluate(evaluator, config, workdir, step, variables) -> dict[str, float]:
  is_first_host = jax.process_index() == 0
  with (
    metrics.MetricWriter(workdir, enabled=is_first_host) as writer,
    config_watchdog(config) as watchdog,
  ):
    return evaluator(step, variables, writer, watchdog.heartbeat)


def is_missing(evaluator, workdir, step: int) -> bool:
  """Whether a run was killed between the save of a step and its evaluation."""
  if evaluator is None or not step or not evaluator.options.is_due(step):
    return False
  return bool(
    collectives.broadcast(step not in scores.read(workdir, 'eval/AP'))
  )
