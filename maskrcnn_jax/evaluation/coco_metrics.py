"""The 12 box and the 12 mask numbers of COCO.

The seed leaves the box in a result when it scores masks, so that an unmatched
detection falls into an area range by the area of its box. COCO's own evaluation
takes the area of the mask; so do we. Only the numbers by object size differ.
"""

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import class_report, processes, scoring

# In the order of COCOeval.stats.
NAMES = (
  'AP',
  'AP50',
  'AP75',
  'APs',
  'APm',
  'APl',
  'ARmax1',
  'ARmax10',
  'ARmax100',
  'ARs',
  'ARm',
  'ARl',
)
PREFIXES = {'bbox': 'eval/', 'segm': 'eval/mask_'}

_LOGGER = logging.getLogger(__name__)


def evaluate(
  results: Sequence[Mapping],
  annotations_file: str | os.PathLike,
  image_ids: Collection[int] | None = None,
  kinds: Sequence[str] = ('bbox', 'segm'),
  scorer: str = 'pycocotools',
  workers: processes.Processes | None = None,
  max_detections: int = scoring.MAX_DETECTIONS,
) -> dict[str, float]:
  """COCO's numbers for the results, -1 where there is nothing to measure.

  Args:
    results: COCO result dicts; may be empty. A result without `bbox` is scored
      by the box around its mask.
    annotations_file: COCO json of the ground truth.
    image_ids: the images that were looked at; all of the file by default. A
      result on another image is not counted.
    kinds: `'bbox'`, `'segm'` or both.
    scorer: one of `scoring.SCORERS`; the numbers are the same.
    workers: processes that share the work; None: this one does it.
    max_detections: of an image and category that count, the best ones. With
      another number than COCO's 100, `ARmax100` is of that many, too.

  Returns:
    `eval/AP` .. `eval/ARl` for boxes, `eval/mask_AP` .. for masks.

  Raises:
    FileNotFoundError: there is no annotations file.
    ValueError: the file is no COCO annotations file, or an image id is not in
      it, or a result or an annotation has no mask while masks are scored, or
      there is no such scorer.
    ImportError: the scorer is not installed.
  """
  _, _, scores = _score(
    results,
    annotations_file,
    image_ids,
    kinds,
    scorer,
    workers,
    max_detections,
  )
  return _named(scores)


def evaluate_classes(
  results: Sequence[Mapping],
  annotations_file: str | os.PathLike,
  image_ids: Collection[int],
  scorer: str = 'pycocotools',
  workers: processes.Processes | None = None,
  max_detections: int = scoring.MAX_DETECTIONS,
  min_score: float = 0.5,
) -> tuple[dict[str, float], class_report.ClassReport]:
  """What `evaluate` returns of boxes and masks, and a report by class.

  Args:
    results: see `evaluate`; all with `bbox`.
    annotations_file: see `evaluate`, also for the three after it.
    image_ids: the images that were looked at.
    scorer: one of `scoring.SCORERS`.
    workers: processes that share the work.
    max_detections: see `evaluate`.
    min_score: of the detections that confusions are counted of.
  """
  kinds = tuple(PREFIXES)
  truth, image_ids, scores = _score(
    results,
    annotations_file,
    image_ids,
    kinds,
    scorer,
    workers,
    max_detections,
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


def _score(
  results,
  annotations_file,
  image_ids,
  kinds,
  scorer,
  workers,
  max_detections,
):
  """The ground truth, the images that count, and `scoring.score` of them."""
  unknown = set(kinds) - set(PREFIXES)
  if unknown:
    raise UserError(f'kinds must be of {list(PREFIXES)}, got {list(kinds)}.')
  scoring.check_scorer(scorer)
  truth = _load_truth(annotations_file, 'segm' in kinds)
  known = {image['id'] for image in truth['images']}
  image_ids = sorted(known if image_ids is None else {*map(int, image_ids)})
  _check_ids('image_ids', image_ids, known, annotations_file)
  _check_ids(
    'results', (r['image_id'] for r in results), known, annotations_file
  )
  _warn_of_categories(results, truth, annotations_file)
  scores = scoring.score(
    truth,
    results,
    image_ids,
    kinds,
    scorer,
    workers or processes.Processes(0),
    max_detections,
  )
  return truth, image_ids, scores


def _load_truth(annotations_file, with_masks):
  """The ground truth as COCOeval needs it."""
  if not os.path.isfile(annotations_file):
    raise FileNotFoundError(
      f'annotations_file {os.fspath(annotations_file)!r} does not exist.'
    )
  with open(annotations_file, encoding='utf-8') as file:
    try:
      dataset = json.load(file)
    except ValueError as error:
      raise UserError(f'{annotations_file} is no json: {error}') from error
  wanted = ('images', 'annotations', 'categories')
  missing = [
    key for key in wanted if not isinstance(dataset, dict) or key not in dataset
  ]
  if missing:
    raise UserError(
      f'{annotations_file} is no COCO annotations file: it has no {missing}.'
    )
  for image in dataset['images']:
    if not isinstance(image['id'], int):
      raise UserError(
        f'{annotations_file}: image ids must be integers, got {image["id"]!r}.'
      )
  _complete_annotations(dataset, annotations_file, with_masks)
  # Names of files and licences need not go to other processes.
  fields = ('id', 'height', 'width')
  images = [{k: i[k] for k in fields if k in i} for i in dataset['images']]
  return {
    'images': images,
    'annotations': dataset['annotations'],
    'categories': dataset['categories'],
  }


def _complete_annotations(dataset, annotations_file, with_masks):
  """Numbers the annotations and fills in fields that many files leave out."""
  for number, annotation in enumerate(dataset['annotations'], start=1):
    needed = ['image_id', 'category_id', 'bbox']
    missing = [key for key in needed if key not in annotation]
    if with_masks and not annotation.get('segmentation'):
      missing.append('segmentation')
    if missing:
      raise UserError(
        f'{annotations_file}: annotation {annotation.get("id")} has no '
        f'{missing}.'
      )
    annotation.setdefault('iscrowd', 0)
    if 'area' not in annotation:
      _, _, width, height = annotation['bbox']
      annotation['area'] = width * height
    # COCOeval takes id 0 for "no match", and ids that occur twice for one.
    annotation['id'] = number


def _check_ids(argument, image_ids, known, annotations_file):
  """Raises for ids of images that the annotations file does not have."""
  unknown = sorted(set(image_ids) - known)
  if unknown:
    raise UserError(
      f'{argument} has {len(unknown)} image ids that are not in '
      f'{annotations_file}: {unknown[:5]}{" ..." * (len(unknown) > 5)}.'
    )


def _warn_of_categories(results, truth, annotations_file):
  """Warns of results that no annotation could ever match."""
  unknown = {result['category_id'] for result in results}
  unknown -= {category['id'] for category in truth['categories']}
  if unknown:
    _LOGGER.warning(
      'Results of the categories %s are not counted: %s has no such ids.',
      sorted(unknown),
      annotations_file,
    )


def format_table(metrics: Mapping[str, float]) -> str:
  """A table of the numbers: a row for boxes and one for masks.

  Args:
    metrics: of `evaluate`; a kind that is not in it gets no row.

  Returns:
    Lines of less than 100 columns, without a final line break; `n/a` stands
    where there was nothing to measure.
  """
  widths = [max(len(name), 5) + 1 for name in NAMES]
  lines = [' ' * 4 + ''.join(f'{n:>{w}}' for n, w in zip(NAMES, widths))]
  for label, prefix in zip(('box', 'mask'), PREFIXES.values()):
    if prefix + NAMES[0] not in metrics:
      continue
    values = [metrics[prefix + name] for name in NAMES]
    cells = ['n/a' if v < 0 or np.isnan(v) else f'{v:.3f}' for v in values]
    lines.append(
      f'{label:<4}' + ''.join(f'{c:>{w}}' for c, w in zip(cells, widths))
    )
  return '\n'.join(lines)
