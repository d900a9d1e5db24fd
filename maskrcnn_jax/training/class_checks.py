"""Classes of a run, and checks of all that it reads against them.

The classes of a run are those of its training records. A validation set may
have fewer of them, but never another name or number for one of them.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping

import numpy as np

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.datasets import categories
from maskrcnn_jax.datasets.categories import (
  Category,
  Classes,
  check_same_classes,
  known_name,
  read_from_records,
)
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import annotations

_LISTED = 5  # Classes that an error lists.


def run_classes(config, workdir) -> dict[int, Category]:
  """Classes of a run: those of its checkpoint, or else of its records.

  Raises:
    UserError: the validation set contradicts them, or has objects of a class
      that a new run would not learn, unless `training.allow_empty_classes`.
  """
  classes = {}
  # A corrupt checkpoint is reported where it is restored.
  with contextlib.suppress(FileNotFoundError, store.CorruptCheckpointError):
    classes = checkpoint_classes(workdir)
  if not classes:
    classes, validated = training_classes(config)
    if not config.training.get('allow_empty_classes'):
      _check_learnt(config, classes, validated)
    return classes
  check_validation_classes(config, classes, workdir)
  return classes


def _check_learnt(config, classes, validated) -> None:
  """Raises if objects are scored of a class that has none to train on."""
  untrained = _untrained(classes, validated)
  if untrained:
    names = categories.names_of(validated)
    listed = ', '.join(f'{k} ({names[k]!r})' for k in untrained[:_LISTED])
    listed += ', ..' if len(untrained) > _LISTED else ''
    pattern = config.evaluation.file_pattern
    raise UserError(
      f'evaluation.file_pattern: {pattern} has objects of the classes '
      f'{listed}, and {config.input.file_pattern} has none to train on: their '
      'AP would be 0. Move some of their images to the training set, take the '
      'classes out, or set --config.training.allow_empty_classes=true.',
      argument='training.allow_empty_classes',
      path=pattern,
      item=untrained[0],
      given=untrained,
    )


def _untrained(classes: Classes, validated: Classes) -> list[int]:
  """Classes with objects in validation records and none in training records."""
  learnt = {k for k, each in classes.items() if each.is_learnt}
  return sorted({k for k, v in validated.items() if v.is_learnt} - learnt)


def training_classes(
  config,
) -> tuple[dict[int, Category], dict[int, Category]]:
  """Classes of the training records, the only ones whose names count.

  Classes that the records do not name or do not have are completed by
  `evaluation.annotations_file` where that exists.

  Args:
    config: a ConfigDict with the section `input`, maybe `evaluation`.

  Returns:
    The classes, and those of the validation records.

  Raises:
    UserError: no records or no objects to train on are found, or the validation
      set contradicts them.
  """
  pattern = config.input.file_pattern
  classes = read_from_records(pattern, config.input.get('split'), to_train=True)
  annotated, recorded = check_validation_classes(config, classes, pattern)
  unnamed = [k for k in classes if not known_name(k, classes)]
  if unnamed:
    file = config.get('evaluation', {}).get('annotations_file')
    names = f'names are taken from {file}'
    logging.warning(
      'The training records %s carry no names for the classes %s: %s.',
      *(pattern, unnamed, names if annotated else 'they are not known'),
    )
  if untrained := _untrained(classes, recorded):
    logging.warning(
      'The classes %s of %s have no object in the training records %s: their '
      'AP will be 0.',
      *(untrained, config.evaluation.file_pattern, pattern),
    )
  named = {k: v for k, v in classes.items() if k not in unnamed}
  for k, v in (annotated | named).items():
    is_learnt = k in classes and classes[k].is_learnt
    classes[k] = dataclasses.replace(v, is_learnt=is_learnt)
  return dict(sorted(classes.items())), recorded


def checkpoint_classes(
  path, step: int | str | None = None
) -> dict[int, Category]:
  """Classes that a checkpoint was trained on; see `store.restore`."""
  category_ids = store.read_category_ids(path, step)
  return {
    class_id: Category(name, category_ids.get(class_id, class_id))
    for class_id, name in store.read_classes(path, step).items()
  }


def check_training_classes(config, wanted: Classes, workdir) -> None:
  """Compares the classes of the records that a run goes on with.

  Args:
    config: its section `input` names the records.
    wanted: classes of the run so far.
    workdir: directory of the run, for the error.

  Raises:
    UserError: see `categories.check_same_classes`.
  """
  pattern = config.input.file_pattern
  found = read_from_records(pattern, config.input.get('split'))
  check_same_classes(wanted, found, workdir, 'input.file_pattern', pattern)


def check_validation_classes(
  config, wanted: Classes, source
) -> tuple[dict[int, Category], dict[int, Category]]:
  """Compares the classes of the validation set, if any, with the trained ones.

  Args:
    config: its section `evaluation`, if any, names the validation set.
    source: what they were read from, for the error.

  Returns:
    Classes of its annotations, and those of its records.

  Raises:
    UserError: see `categories.check_same_classes`.
  """
  evaluation = config.get('evaluation', {})
  file, pattern = map(evaluation.get, ('annotations_file', 'file_pattern'))
  annotated, recorded = annotations.read_classes(file), {}
  # A run that is not evaluated needs no validation records.
  with contextlib.suppress(UserError):
    recorded = read_from_records(pattern) if pattern else {}
  for found, name, path in (
    (annotated, 'annotations_file', file),
    (recorded, 'file_pattern', pattern),
  ):
    check_same_classes(wanted, found, source, f'evaluation.{name}', path)
  return annotated, recorded


def check_batch_classes(batch: Mapping, num_classes: int) -> None:
  """Raises for an instance whose class the model does not have."""
  classes = batch['instances']['classes']
  largest = np.max(classes, axis=1, initial=0)
  rows = np.flatnonzero(largest >= num_classes)
  if rows.size:
    image_id, class_id = int(batch['image_ids'][rows[0]]), int(largest[rows[0]])
    raise UserError(
      f'Image {image_id} has class {class_id}; model.num_classes is '
      f'{num_classes}, so classes may be 1 to {num_classes - 1}. Set it to the '
      f'largest class id plus one, {np.max(classes) + 1} or more.',
      argument='model.num_classes',
      item=image_id,
      given=num_classes,
      wanted=int(np.max(classes)) + 1,
    )
