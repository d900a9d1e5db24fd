"""The 12 box and the 12 mask numbers of COCO.

Habana leaves the box in a result when it scores masks, so that an unmatched
detection falls into an area range by the area of its box. COCO's own evaluation
takes the area of the mask; so do we. Only the numbers by object size differ.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from maskrcnn_jax.datasets import coco_json, masks
from maskrcnn_jax.errors import UserError, brief, invalid
from maskrcnn_jax.evaluation import class_report, scoring

# In the order of COCOeval.stats.
NAMES = (
  *('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'),
  *('ARmax1', 'ARmax10', 'ARmax100', 'ARs', 'ARm', 'ARl'),
)
PREFIXES = {'bbox': 'eval/', 'segm': 'eval/mask_'}

_LOGGER = logging.getLogger(__name__)


def evaluate(
  results: Sequence[Mapping],
  annotations_file: str | os.PathLike,
  image_ids: Collection[int] | None = None,
  kinds: Sequence[str] = ('bbox', 'segm'),
  **options,
) -> dict[str, float]:
  """COCO's numbers of the results, -1 where there is nothing to measure.

  Args:
    results: COCO result dicts; may be empty. A result without `bbox` is scored
      by the box around its mask.
    annotations_file: COCO json of the ground truth.
    image_ids: the images that were evaluated; all of the file by default.
      Results of other images are ignored.
    kinds: `'bbox'`, `'segm'` or both.
    **options: `scorer`, `workers` and `max_detections` of `scoring.score`. With
      a `max_detections` other than COCO's 100, `ARmax100` is of that many, too.

  Returns:
    `eval/AP` .. `eval/ARl` for boxes, `eval/mask_AP` .. for masks.

  Raises:
    UserError: the file is not a COCO annotations file, an image id is not in
      it, a result or an annotation has no mask while masks are scored, or the
      scorer is unknown or not installed.
  """
  _, _, scores = _score(results, annotations_file, image_ids, kinds, options)
  return _named(scores)


def evaluate_classes(
  results: Sequence[Mapping],
  annotations_file: str | os.PathLike,
  image_ids: Collection[int],
  min_score: float = 0.5,
  **options,
) -> tuple[dict[str, float], class_report.ClassReport]:
  """The numbers of `evaluate` for boxes and masks, and a report by class.

  Args:
    results: see `evaluate`, also for the others; all with `bbox`.
    min_score: of the detections in the confusion matrix.
  """
  truth, image_ids, scores = _score(
    results, annotations_file, image_ids, tuple(PREFIXES), options
  )
  tables = {kind: precision for kind, (_, precision) in scores.items()}
  report = class_report.make_report(
    truth, results, image_ids, tables, min_score
  )
  return _named(scores), report


def _named(scores) -> dict[str, float]:
  """The 12 numbers of every kind by name."""
  return {
    PREFIXES[kind] + name: float(value)
    for kind, (numbers, _) in scores.items()
    for name, value in zip(NAMES, numbers)
  }


def _score(results, annotations_file, image_ids, kinds, options):
  """The ground truth, the images that count, and their `scoring.score`."""
  if not set(kinds) <= set(PREFIXES):
    raise invalid('kinds', kinds, f'of {list(PREFIXES)}')
  scoring.check_scorer(options.get('scorer', scoring.SCORERS[0]))
  truth = _load_truth(annotations_file, 'segm' in kinds)
  known = {image['id'] for image in truth['images']}
  image_ids = sorted(known if image_ids is None else {*map(int, image_ids)})
  given = {'image_ids': image_ids, 'results': {r['image_id'] for r in results}}
  for argument, ids in given.items():
    unknown = sorted(set(ids) - known)
    if unknown:
      raise UserError(
        f'{argument} has {len(unknown)} image ids that are not in '
        f'{annotations_file}: {unknown[:5]}{" ..." * (len(unknown) > 5)}.',
        argument=argument,
        path=annotations_file,
        given=unknown,
      )
  unknown = {result['category_id'] for result in results}
  unknown -= {category['id'] for category in truth['categories']}
  if unknown:
    # No annotation could ever match them.
    _LOGGER.warning(
      'Results of the categories %s are ignored: %s does not have them.',
      *(sorted(unknown), annotations_file),
    )
  scores = scoring.score(truth, results, image_ids, kinds, **options)
  return truth, image_ids, scores


def _load_truth(annotations_file, with_masks):
  """The ground truth as COCOeval needs it, which itself checks nothing."""
  dataset = coco_json.read_lists(annotations_file)
  for name in ('images', 'categories'):
    for entry in dataset[name]:
      if not isinstance(entry, dict) or type(entry.get('id')) is not int:
        raise UserError(
          f'{annotations_file}: ids of {name} must be integers, got '
          f'{brief(entry)}.',
          path=annotations_file,
          item=entry.get('id') if isinstance(entry, dict) else None,
        )
  # Other fields need not be sent to worker processes.
  fields = ('id', 'height', 'width')
  images = [{k: i[k] for k in fields if k in i} for i in dataset['images']]
  sizes = {i['id']: (i.get('height'), i.get('width')) for i in images}
  for number, annotation in enumerate(dataset['annotations'], start=1):
    given = annotation.get('id') if isinstance(annotation, dict) else None
    try:
      _complete(annotation, sizes, with_masks)
    except UserError as error:
      raise UserError(
        f'{annotations_file}: annotation {brief(given)} (number {number}) is '
        f'wrong: {error}',
        path=annotations_file,
        item=given,
        wanted=error.wanted,
      ) from error
    # COCOeval takes id 0 for "no match", and equal ids for one annotation.
    annotation['id'] = number
  return dataset | {'images': images}


def _complete(annotation, sizes, with_masks):
  """Checks an annotation and adds fields that many files lack."""
  if not isinstance(annotation, dict):
    raise UserError(f'must be an object, got {brief(annotation)}')
  needed = ['image_id', 'category_id', 'bbox']
  missing = [key for key in needed if key not in annotation]
  if with_masks and not annotation.get('segmentation'):
    missing.append('segmentation')
  if missing:
    raise UserError(f'has no {", ".join(missing)}', wanted=missing)
  for name in needed[:2]:
    if type(annotation[name]) is not int:
      raise invalid(name, annotation[name], 'an integer')
  box = annotation['bbox']
  if not masks.is_box(box):
    raise invalid('bbox', box, 'x, y, width, height')
  annotation.setdefault('iscrowd', 0)
  if annotation['iscrowd'] not in (0, 1):
    raise invalid('iscrowd', annotation['iscrowd'], '0 or 1')
  if not masks.is_number(annotation.setdefault('area', box[2] * box[3])):
    raise invalid('area', annotation['area'], 'a number')
  size = sizes.get(annotation['image_id'])
  if with_masks and size:
    if not all(type(side) is int and side > 0 for side in size):
      raise invalid('height and width of the image', size, 'integers')
    found = masks.read_segmentation(annotation['segmentation'], *size)
    annotation['segmentation'] = found | {'counts': found['counts'].decode()}


def format_table(metrics: Mapping[str, float]) -> str:
  """Table of `evaluate`'s numbers: a row for boxes and one for masks, if given.

  Lines have less than 100 columns; `n/a` where there was nothing to measure.
  """
  widths = [max(len(name), 5) + 1 for name in NAMES]
  rows = {'': NAMES}
  for label, prefix in zip(('box', 'mask'), PREFIXES.values()):
    if prefix + NAMES[0] in metrics:
      values = [metrics[prefix + name] for name in NAMES]
      rows[label] = [
        'n/a' if v < 0 or np.isnan(v) else f'{v:.3f}' for v in values
      ]
  return '\n'.join(
    f'{label:<4}' + ''.join(f'{c:>{w}}' for c, w in zip(cells, widths))
    for label, cells in rows.items()
  )
