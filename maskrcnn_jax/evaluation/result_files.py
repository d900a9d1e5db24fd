"""Reader of COCO result files that other programs wrote."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maskrcnn_jax import files
from maskrcnn_jax.datasets import coco_values, masks
from maskrcnn_jax.datasets.findings import (
  Finding,
  InvalidEntryError,
  collected,
  raise_errors,
)
from maskrcnn_jax.errors import UserError, brief
from maskrcnn_jax.evaluation import coco_metrics


@dataclasses.dataclass(frozen=True)
class ScorableResults:
  """Results of a file, and what they are scored with."""

  results: list[dict]  # As COCO has them.
  truth: dict[str, list]  # See `coco_metrics.load_truth`.
  # Of `'bbox'` and `'segm'`: masks if all results and any object have one.
  kinds: tuple[str, ...]
  # On values that were read in other ways, and results that are not scored.
  notes: list[Finding]


def read(
  results_file: str | os.PathLike, annotations_file: str | os.PathLike
) -> ScorableResults:
  """Reads results, and the ground truth they belong to.

  Values written in other ways than COCO's are read as in annotations.

  Args:
    results_file: JSON list of dicts with `image_id`, `category_id`, `score`,
      and `bbox` or `segmentation` (run lengths or polygons) or both.
    annotations_file: COCO json.

  Raises:
    InvalidDataError: an entry cannot be scored; the findings and the message
      name its place in the file and its image.
    UserError: one of the files is no such file.
  """
  file = os.fspath(results_file)
  entries = files.read_json(file)
  if not isinstance(entries, list):
    raise UserError(
      f'{file} must be a JSON list of results, got {brief(entries)}.',
      path=file,
      wanted='a list',
    )
  reader, errors, results = coco_values.Reader(), [], []
  for number, entry in enumerate(entries):
    with _located(errors, file, number, entry):
      if not isinstance(entry, dict):
        raise InvalidEntryError('entry', f'must be an object: {brief(entry)}.')
      results.append((number, reader.read(entry, 'results')))
  raise_errors(errors)
  with_masks = _all_have_masks(results, file)
  truth = coco_metrics.load_truth(annotations_file, with_masks and None)
  with_masks = with_masks and _has_masks(truth)
  kinds = ('bbox', 'segm') if with_masks else ('bbox',)
  images = {image['id']: image for image in truth['images']}
  checked = []
  for number, entry in results:
    with _located(errors, file, number, entry):
      checked.append(_check(entry, images, kinds, annotations_file))
  raise_errors(errors)
  notes = [*reader.notes(file), *_unknown_categories(checked, truth, file)]
  return ScorableResults(checked, truth, kinds, notes)


def _unknown_categories(results, truth, file) -> Iterator[Finding]:
  """Yields a finding if results are of categories that are not scored."""
  known = {each['id'] for each in truth['categories']}
  found = [x['category_id'] for x in results if x['category_id'] not in known]
  if found:
    message = (
      f'{len(found)} of {len(results)} results are of categories that the '
      f'annotations do not have, such as {found[0]}: they are not scored. Are '
      'the numbers those of the annotations?'
    )
    yield Finding('unknown_category', file, message)


@contextlib.contextmanager
def _located(findings, file, number, entry) -> Iterator[None]:
  """Turns an `InvalidEntryError` in the block into a finding with its place."""
  image_id = entry.get('image_id') if isinstance(entry, dict) else None
  found = []
  with collected(found, file, image_id):
    yield
  findings += (
    dataclasses.replace(x, message=f'entry {number} (from 0): {x.message}')
    for x in found
  )


def _has_masks(truth: Mapping) -> bool:
  return any('segmentation' in each for each in truth['annotations'])


def _all_have_masks(results: Sequence, file: str) -> bool:
  """Whether the results have masks; an error if only some do."""
  missing = [each for each in results if not each[1].get('segmentation')]
  if missing and len(missing) < len(results):
    number, entry = missing[0]
    raise UserError(
      f'{file}: entry {number} (from 0, image '
      f'{brief(entry.get("image_id"))}) has no segmentation, and others have '
      'one: give boxes alone, or a mask to every result.',
      path=file,
      item=entry.get('image_id'),
    )
  return not missing


def _check(entry: dict, images: Mapping, kinds, annotations_file) -> dict:
  """The fields that are scored, as COCO has them."""
  image_id = entry.get('image_id')
  if type(image_id) is not int or image_id not in images:
    raise InvalidEntryError(
      'unknown_image',
      f'{annotations_file} has no image {brief(image_id)}. predict gives '
      'results the ids of a COCO json with --annotations.',
    )
  if type(entry.get('category_id')) is not int:
    message = (
      f'category_id must be an integer: {brief(entry.get("category_id"))}.'
    )
    raise InvalidEntryError('category_id', message)
  if not masks.is_number(entry.get('score')):
    message = f'score must be a number: {brief(entry.get("score"))}.'
    raise InvalidEntryError('score', message)
  checked = {k: entry[k] for k in ('image_id', 'category_id', 'score')}
  box = entry.get('bbox')
  if box not in (None, []):
    if not masks.is_box(box) or min(box[2:]) < 0:
      message = f'bbox must be x, y, width, height: {brief(box)}.'
      raise InvalidEntryError('unusable_box', message)
    checked['bbox'] = box
  if 'segm' in kinds or 'bbox' not in checked:
    checked['segmentation'] = _check_mask(entry, images[image_id])
  return checked


def _check_mask(entry: dict, image: Mapping) -> Any:
  """Compressed run lengths, or polygons with an inside."""
  segmentation = entry.get('segmentation')
  if not segmentation:
    message = 'it has neither bbox nor segmentation.'
    raise InvalidEntryError('no_shape', message)
  try:
    runs = masks.read_segmentation(
      segmentation, image['height'], image['width']
    )
  except UserError as error:
    raise InvalidEntryError('unusable_mask', f'{error}.') from error
  if isinstance(segmentation, list) and entry.get('bbox'):
    # As in COCO's own evaluation, their area is that of the box.
    return [polygon for polygon in segmentation if len(polygon) >= 6]
  return {'size': [*runs['size']], 'counts': runs['counts'].decode('ascii')}
