"""The 12 box and the 12 mask numbers of COCO.

Habana leaves the box in a result when it scores masks, so that an unmatched
detection falls into an area range by the area of its box. COCO's own evaluation
takes the area of the mask; so do we. Only the numbers by object size differ.
"""

import collections
import itertools
import logging
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from maskrcnn_jax.datasets import coco_json, examples
from maskrcnn_jax.datasets.findings import collected, raise_errors
from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.evaluation import class_report, scoring

# In the order of COCOeval.stats.
NAMES = (
  *('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'),
  *('ARmax1', 'ARmax10', 'ARmax100', 'ARs', 'ARm', 'ARl'),
)
PREFIXES = {'bbox': 'eval/', 'segm': 'eval/mask_'}

# Pixels that a sound box may reach out of its image: those of COCO are rounded
# to hundredths.
_OUTSIDE = 1.0

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
    UserError: the file cannot be read, see `load_truth`, an image id is not in
      it, a result has no mask while masks are scored, or the scorer is unknown
      or not installed.
  """
  _check_options(kinds, options)
  truth = load_truth(annotations_file, 'segm' in kinds)
  truth_of = truth, annotations_file
  _, scores = _score(results, truth_of, image_ids, kinds, options)
  return _named(scores)


def evaluate_classes(
  results: Sequence[Mapping],
  annotations_file: str | os.PathLike,
  image_ids: Collection[int] | None = None,
  kinds: Sequence[str] = ('bbox', 'segm'),
  min_score: float = 0.5,
  truth: Mapping | None = None,
  **options,
) -> tuple[dict[str, float], class_report.ClassReport]:
  """The numbers of `evaluate`, and a report by class.

  Args:
    results: see `evaluate`, also for the others.
    min_score: of the detections in the confusion matrix.
    truth: of the file, if `load_truth` has read it already.
  """
  _check_options(kinds, options)
  truth = truth or load_truth(annotations_file, 'segm' in kinds)
  truth_of = truth, annotations_file
  image_ids, scores = _score(results, truth_of, image_ids, kinds, options)
  report = class_report.make_report(
    truth, results, image_ids, scores, min_score
  )
  return _named(scores), report


def _named(scores) -> dict[str, float]:
  """The 12 numbers of every kind by name."""
  return {
    PREFIXES[kind] + name: float(value)
    for kind, each in scores.items()
    for name, value in zip(NAMES, each.numbers)
  }


def _check_options(kinds, options) -> None:
  if not set(kinds) <= set(PREFIXES):
    raise invalid('kinds', kinds, f'of {list(PREFIXES)}')
  scoring.check_scorer(options.get('scorer', scoring.SCORERS[0]))


def _score(results, truth_of, image_ids, kinds, options):
  """The images that count, and their `scoring.score`."""
  truth, annotations_file = truth_of
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
  return image_ids, scores


def load_truth(
  annotations_file: str | os.PathLike, with_masks: bool | None = True
) -> dict[str, list]:
  """The ground truth as COCOeval needs it, of the objects that `prepare` keeps.

  Others are counted in a warning. Images need no file name. Boxes and areas are
  those of the file, so that a file without faults gives the numbers of
  pycocotools; a box that reaches `_OUTSIDE` pixels or more out of the image is
  clipped, as it is for training.

  Args:
    annotations_file: COCO json.
    with_masks: False scores boxes only, and reads no mask; None reads masks if
      any object has one.

  Raises:
    UserError: an entry is malformed, see `coco_json.load`.
  """
  file = os.fspath(annotations_file)
  content = coco_json.read_lists(file)
  unnamed = {'file_name': 'unnamed'}
  content['images'] = [
    unnamed | x if isinstance(x, dict) else x for x in content['images']
  ]
  dataset = coco_json.parse(content, file)
  # What scores boxes and masks does not care how large ids are.
  raise_errors([x for x in dataset.findings if x.kind != 'huge_category_ids'])
  skipped = [x for x in dataset.findings if x.severity == 'warning']
  if with_masks is None:
    entries = itertools.chain(*dataset.annotations.values())
    with_masks = any(entry.get('segmentation') for entry in entries)
  annotations = []
  for image in dataset.images:
    for entry in dataset.annotations.get(image.image_id, ()):
      with collected(skipped, file, image.image_id, entry.get('id')):
        found = examples.read_object(entry, image, with_masks)
        # COCOeval takes id 0 for "no match".
        annotations.append(_annotation(entry, found, len(annotations) + 1))
  if skipped:
    counts = collections.Counter(each.kind for each in skipped)
    _LOGGER.warning(
      '%d objects are not scored, as prepare skips them (%s), such as %s',
      *(len(skipped), ', '.join(f'{n} {kind}' for kind, n in counts.items())),
      skipped[0],
    )
  return {
    'images': [
      {'id': x.image_id, 'height': x.height, 'width': x.width}
      for x in dataset.images
    ],
    'annotations': annotations,
    'categories': [
      {'id': x.category_id, 'name': x.name} for x in dataset.categories.values()
    ],
  }


def _annotation(entry, found: examples.UsableObject, number: int) -> dict:
  annotation = {
    'id': number,
    'image_id': entry['image_id'],
    'category_id': entry['category_id'],
    'bbox': _scored_box(entry, found.box),
    'area': found.area,
    'iscrowd': int(found.is_crowd),
  }
  if found.mask is not None:
    counts = found.mask['counts'].decode()
    annotation['segmentation'] = found.mask | {'counts': counts}
  return annotation


def _scored_box(entry, box) -> list[float]:
  """The box of the file, unless clipping changed it by a pixel or more."""
  if not examples.has_box(entry):
    return box
  given = entry['bbox']
  differences = (abs(a - b) for a, b in zip(given, box))
  return given if max(differences) < _OUTSIDE else box


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
