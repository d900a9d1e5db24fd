"""Annotations to score against: of a file, or made of validation records."""

import hashlib
import json
import os
import pathlib

import numpy as np

from maskrcnn_jax import files
from maskrcnn_jax.datasets import coco_json, ground_truth, records
from maskrcnn_jax.datasets.categories import (
  Category,
  check_same_classes,
  class_offset,
  read_from_records,
)
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics


def read_classes(annotations_file: str | None) -> dict[int, Category]:
  """Classes of a COCO json; empty if there is no such file."""
  if not annotations_file or not pathlib.Path(annotations_file).is_file():
    return {}
  return coco_json.load(annotations_file, lists=('categories',)).categories


def write(
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


def check(
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
    read_classes(annotations_file),
    file_pattern,
    'evaluation.annotations_file',
    annotations_file,
  )
