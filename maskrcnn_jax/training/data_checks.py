"""Checks of the data of a run before its first step: classes and annotations.

The classes of a run are those of its training records. A validation set may
have fewer of them, but never another name or number for one of them.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib

import numpy as np

from maskrcnn_jax import files
from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.datasets import categories, coco_json, ground_truth, records
from maskrcnn_jax.datasets.categories import (
  Category,
  Classes,
  check_same_classes,
  class_offset,
  known_name,
  read_from_records,
)
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics

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


def annotated_classes(annotations_file: str | None) -> dict[int, Category]:
  """Classes of a COCO json; empty if there is no such file."""
  if not annotations_file or not pathlib.Path(annotations_file).is_file():
    return {}
  return coco_json.load(annotations_file, lists=('categories',)).categories


def checkpoint_classes(
  path, step: int | str | None = None
) -> dict[int, Category]:
  """Classes that a checkpoint was trained on; see `store.restore`."""
  category_ids = store.read_category_ids(path, step)
  return {
    class_id: Category(name, category_ids.get(class_id, class_id))
    for class_id, name in store.read_classes(path, step).items()
  }


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
  annotated, recorded = annotated_classes(file), {}
  # A run that is not evaluated needs no validation records.
  with contextlib.suppress(UserError):
    recorded = read_from_records(pattern) if pattern else {}
  for found, name, path in (
    (annotated, 'annotations_file', file),
    (recorded, 'file_pattern', pattern),
  ):
    check_same_classes(wanted, found, source, f'evaluation.{name}', path)
  return annotated, recorded


def write_annotations(
  file_pattern: str, max_images: int | None, workdir: str | os.PathLike
) -> str:
  """Writes a COCO json made of records into a workdir; returns its path.

  Args:
    file_pattern: record files, or a prepared TFDS directory.
    max_images: take only the first ones; None for all.
  """
  index = _index_to_score(file_pattern, max_images)
  text = json.dumps(ground_truth.coco_from_records(index, max_images))
  # Named by its content, so that it is written once.
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  path = pathlib.Path(workdir, 'eval', f'ground-truth-{digest}.json')
  if not path.exists():
    files.write_text(path, text)
  return str(path)


def check_annotations(
  file_pattern: str,
  max_images: int | None,
  annotations_file: str,
  num_classes: int,
) -> int:
  """Checks that records, annotations and model belong together.

  Args:
    file_pattern: record files, or a prepared TFDS directory.
    max_images: take only the first ones; None for all.
    annotations_file: COCO json of these images, and maybe of others.
    num_classes: of the model, with background.

  Returns:
    The number of images.

  Raises:
    FileNotFoundError: there is no annotations file.
    UserError: no evaluation can be made with it, see `coco_metrics.load_truth`;
      it has a class that the model lacks, lacks an image, or has another name
      or number for a class than the records.
  """
  if not pathlib.Path(annotations_file).is_file():
    raise FileNotFoundError(
      f'evaluation.annotations_file {annotations_file} does not exist.'
    )
  truth = coco_metrics.load_truth(annotations_file)
  _check_category_ids(annotations_file, truth['categories'], num_classes)
  _check_numbering(annotations_file, truth['categories'], file_pattern)
  index = _index_to_score(file_pattern, max_images)
  image_ids = index.image_ids[:max_images].tolist()
  unknown = {*image_ids} - {image['id'] for image in truth['images']}
  if unknown:
    raise UserError(
      f'{file_pattern} has {len(unknown)} images that are not in '
      f'{annotations_file}, such as {sorted(unknown)[:5]}.',
      argument='evaluation.annotations_file',
      path=annotations_file,
      item=min(unknown),
    )
  return len(image_ids)


def _index_to_score(file_pattern, max_images) -> records.RecordIndex:
  """The index of validation records, of which no two may have one image id."""
  index = records.index_records(file_pattern)
  rows = np.arange(len(index))[:max_images]
  _, first = np.unique(index.image_ids[rows], return_index=True)
  repeated = np.setdiff1d(rows, first)
  if repeated.size:
    error = index.error(repeated[0], 'has an image id that was there before')
    raise UserError(
      f'{error} {repeated.size} of {rows.size} records repeat an id, and their '
      'detections would be scored as those of one image. Name each image once.',
      argument='evaluation.file_pattern',
      path=error.path,
      item=error.item,
    )
  return index


def _check_category_ids(annotations_file, categories, num_classes) -> None:
  """Raises if the model lacks one of the categories."""
  ids = [each['id'] for each in categories]
  offset = class_offset(ids)
  for category_id in ids:
    if 1 <= category_id + offset < num_classes:
      continue
    needed = max(ids) + offset + 1
    more = ', and ids from 0 count one more' if offset else ''
    raise UserError(
      f'{annotations_file} has category id {category_id}; model.num_classes is '
      f'{num_classes}, so ids may be {1 - offset} to '
      f'{num_classes - 1 - offset}. Set model.num_classes={needed} (background '
      f'is one{more}).',
      argument='model.num_classes',
      path=annotations_file,
      item=category_id,
      given=num_classes,
      wanted=needed,
    )


def _check_numbering(annotations_file, categories, file_pattern) -> None:
  """Raises if records and annotations disagree on a class."""
  offset = class_offset(each['id'] for each in categories)
  recorded = read_from_records(file_pattern)
  for class_id, found in recorded.items():
    if found.category_id not in (class_id, class_id - offset):
      raise UserError(
        f'{file_pattern} has category {found.category_id} as class {class_id}, '
        f'as it was made of annotations with a category 0, and '
        f'{annotations_file} has none: add the category 0, or prepare the '
        'records of this file.',
        argument='evaluation.annotations_file',
        path=annotations_file,
        item=class_id,
        given=found.category_id,
        wanted=class_id,
      )
  check_same_classes(
    recorded,
    annotated_classes(annotations_file),
    file_pattern,
    'evaluation.annotations_file',
    annotations_file,
  )
