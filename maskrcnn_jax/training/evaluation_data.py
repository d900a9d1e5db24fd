"""The annotations that an evaluation scores against."""

import hashlib
import json
import os
import pathlib

import jax

from maskrcnn_jax.datasets import ground_truth, records


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
    ValueError: it is no COCO json, has a class that the model lacks, or lacks
      an image.
  """
  truth = _read_annotations(annotations_file)
  for category in truth['categories']:
    if not 1 <= category['id'] < num_classes:
      raise ValueError(
        f'{annotations_file} has category id {category["id"]}; '
        f'model.num_classes is {num_classes}, so ids may be 1 to '
        f'{num_classes - 1} (0 is background).'
      )
  index = records.index_records(file_pattern)
  image_ids = index.image_ids[:max_images].tolist()
  unknown = {*image_ids} - {image['id'] for image in truth['images']}
  if unknown:
    raise ValueError(
      f'{file_pattern} has {len(unknown)} images that are not in '
      f'{annotations_file}, such as {sorted(unknown)[:5]}.'
    )
  return len(image_ids)


def class_names(annotations_file: str | None) -> dict[int, str]:
  """Class names by id; empty if there is no such file."""
  if not annotations_file or not pathlib.Path(annotations_file).is_file():
    return {}
  categories = _read_annotations(annotations_file)['categories']
  return {c['id']: c['name'] for c in categories}


def _read_annotations(file) -> dict:
  path = pathlib.Path(file)
  if not path.is_file():
    raise FileNotFoundError(
      f'evaluation.annotations_file {file} does not exist.'
    )
  try:
    truth = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{file} is no json: {error}') from error
  missing = {'images', 'annotations', 'categories'} - {*truth}
  if missing:
    raise ValueError(f'{file} is no COCO json: it has no {sorted(missing)}.')
  return truth
