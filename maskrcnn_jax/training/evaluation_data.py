"""The annotations that an evaluation scores against."""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping

import jax

from maskrcnn_jax.datasets import coco_json as annotations
from maskrcnn_jax.datasets import ground_truth, record_classes, records
from maskrcnn_jax.errors import UserError


def write_annotations(
  file_pattern: str, max_images: int | None, workdir: str | os.PathLike
) -> str:
  """A COCO json in the workdir that is made of the records.

  Args:
    file_pattern: record files, or a prepared TFDS directory.
    max_images: of the first ones only; None for all.
    workdir: directory of the run.

  Returns:
    Its path.
  """
  index = records.index_records(file_pattern)
  text = json.dumps(ground_truth.coco_from_records(index, max_images))
  # The name says what it is made of: it stays as it is, and fits.
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  path = pathlib.Path(workdir, 'eval', f'ground-truth-{digest}.json')
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f'.{jax.process_index()}.unfinished')
    unfinished.write_text(text, encoding='utf-8')
    unfinished.replace(path)
  return str(path)


def check_annotations(
  file_pattern: str,
  max_images: int | None,
  annotations_file: str,
  num_classes: int,
) -> int:
  """The number of images.

  Args:
    file_pattern: record files, or a prepared TFDS directory.
    max_images: the first ones only; None for all.
    annotations_file: COCO json of these images, and maybe of others.
    num_classes: of the model, with background.

  Raises:
    FileNotFoundError: there is no annotations file.
    ValueError: it is no COCO json, has a class that the model lacks, lacks an
      image, or numbers classes otherwise than the records.
  """
  truth = _read_annotations(annotations_file)
  _check_classes(annotations_file, truth['categories'], num_classes)
  _check_numbering(annotations_file, truth['categories'], file_pattern)
  index = records.index_records(file_pattern)
  image_ids = index.image_ids[:max_images].tolist()
  unknown = {*image_ids} - {image['id'] for image in truth['images']}
  if unknown:
    raise UserError(
      f'{file_pattern} has {len(unknown)} images that are not in '
      f'{annotations_file}, such as {sorted(unknown)[:5]}.'
    )
  return len(image_ids)


def class_names(annotations_file: str | None) -> dict[int, str]:
  """Class names by class id; empty if there is no such file."""
  return names_of(saved_classes(annotations_file))


def names_of(classes: Mapping[int, str | Mapping]) -> dict[int, str]:
  """The names alone of what `saved_classes` gives."""
  return {k: v if isinstance(v, str) else v['name'] for k, v in classes.items()}


def category_ids(annotations_file: str | None) -> dict[int, int]:
  """Category id by class id, of classes that have another there."""
  classes = saved_classes(annotations_file)
  return {
    k: v['category_id'] for k, v in classes.items() if not isinstance(v, str)
  }


def saved_classes(
  annotations_file: str | None, file_pattern: str | None = None
) -> dict[int, str | dict]:
  """What a checkpoint keeps of the classes, see `CheckpointWriter.save`.

  Args:
    annotations_file: COCO json; it need not be there.
    file_pattern: of records whose classes are added; they are all looked at.
  """
  found = {}
  if file_pattern is not None:
    recorded = record_classes.read_classes(file_pattern)
    found = {k: (v.name or str(k), v.category_id) for k, v in recorded.items()}
  if annotations_file and pathlib.Path(annotations_file).is_file():
    categories = _read_annotations(annotations_file)['categories']
    offset = annotations.class_offset(each['id'] for each in categories)
    found |= {
      each['id'] + offset: (each['name'], each['id']) for each in categories
    }
  return {
    class_id: name
    if category_id == class_id
    else {'name': name, 'category_id': category_id}
    for class_id, (name, category_id) in sorted(found.items())
  }


def _check_classes(annotations_file, categories, num_classes: int) -> None:
  """Raises if the model lacks one of the categories."""
  ids = [each['id'] for each in categories]
  offset = annotations.class_offset(ids)
  for category_id in ids:
    if 1 <= category_id + offset < num_classes:
      continue
    needed = max(ids) + offset + 1
    more = ', and ids from 0 count one more' if offset else ''
    raise UserError(
      f'{annotations_file} has category id {category_id}; model.num_classes is '
      f'{num_classes}, so ids may be {1 - offset} to '
      f'{num_classes - 1 - offset}. Set model.num_classes={needed} (background '
      f'is one{more}).'
    )


def _check_numbering(annotations_file, categories, file_pattern) -> None:
  """Raises if records and annotations disagree on what a class is."""
  offset = annotations.class_offset(each['id'] for each in categories)
  names = {each['id'] + offset: each['name'] for each in categories}
  for class_id, found in record_classes.read_classes(file_pattern).items():
    if found.category_id not in (class_id, class_id - offset):
      raise UserError(
        f'{file_pattern} has category {found.category_id} as class {class_id}, '
        f'as it was made of annotations with a category 0, and '
        f'{annotations_file} has none: add the category 0, or prepare the '
        'records of this file.'
      )
    name = names.get(class_id)
    if found.name and name is not None and name != found.name:
      logging.warning(
        'Class %d is %r in %s and %r in %s: is one of them the wrong file?',
        *(class_id, found.name, file_pattern, name, annotations_file),
      )


def _read_annotations(file) -> dict:
  path = pathlib.Path(file)
  if not path.is_file():
    raise FileNotFoundError(
      f'evaluation.annotations_file {file} does not exist.'
    )
  try:
    truth = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UserError(f'{file} is no json: {error}') from error
  missing = {'images', 'annotations', 'categories'} - {*truth}
  if missing:
    raise UserError(f'{file} is no COCO json: it has no {sorted(missing)}.')
  return truth
