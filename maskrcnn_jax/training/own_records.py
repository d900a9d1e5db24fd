"""Records of a run that are made of images and labels in its workdir.

Process 0 prepares them under the lock of the workdir while the others wait.
"""

import contextlib
import logging
from collections.abc import Sequence

import jax

from maskrcnn_jax.checkpoints import store, workdir_lock
from maskrcnn_jax.datasets import run_records
from maskrcnn_jax.datasets.run_data import TRAIN, VAL, RunData
from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.errors import UserError


def complete(
  config, workdir, data: RunData | None, overrides: Sequence[str] = ()
) -> None:
  """Sets the record files of a config to those of the workdir.

  They are prepared first if there are none; an earlier run keeps its own.

  Args:
    config: changed in place; may be locked.
    workdir: directory of the run; made if missing.
    data: images and labels; None: records that are there are used, unless the
      user names others.
    overrides: fields of the config that the user sets.

  Raises:
    UserError: the data cannot be prepared, are others than those of the run, or
      are named twice.
  """
  given = {text.partition('=')[0] for text in overrides}
  if data is None:
    names_records = 'input.file_pattern' in given
    if names_records or not run_records.is_prepared(workdir):
      return
  else:
    _check_named_once(data, given)
  failure = None
  lock = workdir_lock.held(workdir) if data else contextlib.nullcontext()
  with lock:
    if jax.process_index() == 0:
      try:
        _prepare(config, workdir, data)
      except (UserError, OSError) as error:
        failure = error
    collectives.barrier()
  text = collectives.first_error(str(failure) if failure else '')
  if failure:
    raise failure
  if text:
    raise UserError(text, path=workdir)
  _set_fields(config, workdir, given)


def _check_named_once(data, given) -> None:
  """Raises if a field of the config names the records too."""
  named = {'input.file_pattern': '--images'}
  if data.val_annotations or data.val_share:
    flag = '--val_annotations' if data.val_annotations else '--val_share'
    named['evaluation.file_pattern'] = flag
  for field, flag in named.items():
    if field in given:
      raise UserError(
        f'{flag} and --config.{field} both name data: leave out one of them.',
        argument=field,
      )


def _prepare(config, workdir, data) -> None:
  """Prepares the records of a workdir, or checks those that are there."""
  if not run_records.is_prepared(workdir):
    claimed = store.claimed_config(workdir)
    if claimed is not None:
      records = claimed.get('input', {}).get('file_pattern')
      raise UserError(
        f'{workdir} holds a run on the records {records}: take another '
        '--workdir, or leave out --images.',
        argument='--workdir',
        path=workdir,
        given=records,
      )
    print(run_records.prepare_all(workdir, data))
  found = run_records.check(workdir, data)
  number, validated = (found.num_images.get(x, 0) for x in (TRAIN, VAL))
  logging.info(
    'records in %s: %d images to train on, %d to validate on',
    *(run_records.folder(workdir), number, validated),
  )
  training = config.training
  if data is not None and training.get('num_epochs') is None:
    steps, batch_size = training.num_steps, config.input.batch_size
    logging.info(
      '%d steps of %d images are %.3g epochs (training.num_steps, or '
      'training.num_epochs)',
      *(steps, batch_size, steps * batch_size / max(number, 1)),
    )


def _set_fields(config, workdir, given) -> None:
  """Names the records in the config."""
  with config.unlocked():
    config.input.file_pattern = run_records.pattern(workdir, TRAIN)
    if 'evaluation' in config and 'evaluation.file_pattern' not in given:
      validated = run_records.has_validation(workdir)
      pattern = run_records.pattern(workdir, VAL) if validated else ''
      config.evaluation.file_pattern = pattern
      if 'evaluation.annotations_file' not in given:
        config.evaluation.annotations_file = ''
