"""Report by class: AP of each class, and which classes are confused."""

import collections
import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.evaluation import score_thresholds, scoring
from maskrcnn_jax.tables import table

# Of the ten IoU thresholds of COCO, 0.5 to 0.95: all, the first, the sixth.
_THRESHOLDS = {'AP': slice(None), 'AP50': slice(0, 1), 'AP75': slice(5, 6)}
_COLUMN_PREFIXES = {'bbox': '', 'segm': 'mask '}
_MAX_PAIRS = 20
_BACKGROUND = 'background'
_ALL = 'all classes'
# Other column headers.
_RESERVED = ('class', 'object', 'objects', _BACKGROUND)


@dataclasses.dataclass(frozen=True)
class ClassReport:
  """Evaluation by class."""

  ids: tuple[int, ...]  # Of the categories, ascending.
  names: tuple[str, ...]  # In the order of the ids.
  num_objects: np.ndarray  # `[n]` int, of each class, without crowds.
  # AP, AP50 and AP75 of boxes and then of masks by column, each `[n]`; -1
  # without an object.
  precisions: Mapping[str, np.ndarray]
  confusion: np.ndarray  # `[n + 1, n + 1]`, see `confusion_matrix`.
  min_score: float  # Of the detections in `confusion`.
  # Precision at COCO's 101 recalls, `[thresholds, recalls, n]` of objects of
  # all sizes, by kind (`'bbox'`, `'segm'`).
  curves: Mapping[str, np.ndarray]
  # Of each class and then of all together, by masks if they were scored.
  thresholds: tuple[score_thresholds.ScoreThreshold | None, ...]


def make_report(
  truth: Mapping,
  results: Sequence[Mapping],
  image_ids: Collection[int],
  scores: Mapping[str, scoring.Scores],
  min_score: float,
) -> ClassReport:
  """The report of an evaluation.

  Args:
    truth: see `confusion_matrix`, also for the others.
    scores: by kind (`'bbox'`, `'segm'`).
  """
  categories = {c['id']: c for c in truth['categories']}
  ids, wanted = sorted(categories), {*image_ids}
  counts = collections.Counter(
    a['category_id']
    for a in truth['annotations']
    if a['image_id'] in wanted and not a.get('iscrowd')
  )
  num_objects = np.array([counts[i] for i in ids], int)
  matches = scores.get('segm', scores.get('bbox')).matches
  matches = [matches.get(i, np.zeros((0, 2))) for i in ids]
  groups = [*zip(matches, num_objects)]
  groups.append((np.concatenate(matches), np.sum(num_objects)))
  return ClassReport(
    ids=tuple(ids),
    names=_unique_names([categories[i] for i in ids]),
    num_objects=num_objects,
    precisions={
      f'{prefix}{name}': average_precisions(scores[kind].precision[thresholds])
      for kind, prefix in _COLUMN_PREFIXES.items()
      if kind in scores
      for name, thresholds in _THRESHOLDS.items()
    },
    confusion=confusion_matrix(truth, results, image_ids, min_score),
    min_score=min_score,
    # All areas, and the highest limit of detections.
    curves={k: each.precision[..., 0, -1] for k, each in scores.items()},
    thresholds=tuple(score_thresholds.best_f1(*group) for group in groups),
  )


def average_precisions(precision: np.ndarray) -> np.ndarray:
  """AP by class, of objects of all sizes; -1 without an object.

  Args:
    precision: COCOeval's, `[thresholds, recalls, classes, areas, limits]`.
  """
  # All areas, and the highest limit of detections.
  by_class = precision[:, :, :, 0, -1]
  counted = by_class > -1
  sums = np.sum(by_class, axis=(0, 1), where=counted)
  counts = np.sum(counted, axis=(0, 1))
  return np.where(counts, sums / np.maximum(counts, 1), -1.0)


def confusion_matrix(
  truth: Mapping,
  results: Sequence[Mapping],
  image_ids: Collection[int],
  min_score: float,
) -> np.ndarray:
  """Numbers of objects by their class and by the class they were detected as.

  The detections of an image are matched in the order of their scores, whatever
  their class, each to the unmatched object with the highest IoU of boxes, if
  that is at least one half. A detection without a match counts as detected
  background, unless at least half of its area lies in a crowd; an object
  without a match counts as detected as background.

  Args:
    truth: COCO dataset with `annotations` and `categories`.
    results: COCO result dicts; one without `bbox` has the box of its run
      lengths. Unknown categories and images are ignored.
    image_ids: the images that count.
    min_score: detections below are ignored.

  Returns:
    `[n + 1, n + 1]` int64: objects by row, detections by column, both in the
    order of the category ids; the last ones are background.
  """
  ids = sorted({category['id'] for category in truth['categories']})
  rows = {category_id: row for row, category_id in enumerate(ids)}
  objects = _by_image(truth['annotations'], rows, image_ids)
  found = _by_image(results, rows, image_ids)
  background = len(ids)
  matrix = np.zeros([background + 1] * 2, np.int64)
  for image_id in {*objects, *found}:
    detected = [r for r in found.get(image_id, ()) if r['score'] >= min_score]
    detected.sort(key=lambda result: -result['score'])
    annotations = objects.get(image_id, ())
    single = [a for a in annotations if not a.get('iscrowd')]
    crowds = [a for a in annotations if a.get('iscrowd')]
    free = _overlaps(detected, single)
    in_crowd = np.any(
      _overlaps(detected, crowds) >= score_thresholds.IOU_THRESHOLD, axis=1
    )
    missed = {*range(len(single))}
    for result, overlaps, is_in_crowd in zip(detected, free, in_crowd):
      column = rows[result['category_id']]
      if np.max(overlaps, initial=0.0) >= score_thresholds.IOU_THRESHOLD:
        best = int(np.argmax(overlaps))
        matrix[rows[single[best]['category_id']], column] += 1
        free[:, best] = -1.0
        missed.remove(best)
      elif not is_in_crowd:
        matrix[background, column] += 1
    for index in missed:
      matrix[rows[single[index]['category_id']], background] += 1
  return matrix


def _by_image(entries, known, image_ids) -> dict[int, list]:
  """Annotations or results of known categories by image, in their order."""
  wanted, groups = {*image_ids}, collections.defaultdict(list)
  for entry in entries:
    if entry['category_id'] in known and entry['image_id'] in wanted:
      groups[entry['image_id']].append(entry)
  return groups


def _overlaps(results, annotations) -> np.ndarray:
  """`[n, m]` IoU of boxes; for crowds the intersection over the result."""
  boxes, others = (
    np.array([_box(x) for x in part], float).reshape(-1, 4)
    for part in (results, annotations)
  )
  crowds = [int(bool(a.get('iscrowd'))) for a in annotations]
  overlaps = coco_mask.iou(boxes, others, crowds)
  return np.reshape(overlaps, (len(boxes), len(others)))


def _box(entry) -> Sequence[float]:
  if 'bbox' in entry:
    return entry['bbox']
  return coco_mask.toBbox(entry['segmentation'])


def format_classes(report: ClassReport) -> str:
  """Table with a row for each class; `n/a` without an object."""
  return table(
    [
      {'class': name, 'objects': str(report.num_objects[row])}
      | {
        column: 'n/a' if values[row] < 0 else f'{values[row]:.3f}'
        for column, values in report.precisions.items()
      }
      for row, name in enumerate(report.names)
    ]
  )


def format_confusion(report: ClassReport) -> str:
  """Table of the confusion matrix; zeros off the diagonal are blank."""
  names = [*report.names, _BACKGROUND]
  texts = np.where(report.confusion, report.confusion.astype(str), '')
  diagonal = np.arange(len(report.names))
  texts[diagonal, diagonal] = report.confusion[diagonal, diagonal]
  rows = [dict(zip(names, row)) for row in texts.tolist()]
  return table([{'object': name} | row for name, row in zip(names, rows)])


def format_pairs(report: ClassReport) -> str:
  """Table of the 20 most confused pairs, not of background; '' without any."""
  counts = report.confusion[:-1, :-1].copy()
  np.fill_diagonal(counts, 0)
  largest = np.argsort(-counts, axis=None, kind='stable')[:_MAX_PAIRS]
  pairs = zip(*np.unravel_index(largest, counts.shape))
  return table(
    [
      {
        'object': report.names[row],
        'taken for': report.names[column],
        'times': str(counts[row, column]),
        'of objects': str(report.num_objects[row]),
      }
      for row, column in pairs
      if counts[row, column]
    ]
  )


def caption(report: ClassReport) -> str:
  """One line that explains the confusion matrix."""
  return (
    'Objects by row, detections by column: matched at box IoU 0.5, scores of '
    f'{report.min_score:g} or more'
  )


def _shape_name(report: ClassReport) -> str:
  return 'mask' if 'segm' in report.curves else 'box'


def document(report: ClassReport, title: str) -> str:
  """All tables as Markdown, below a title."""
  parts = [f'# {title}', '## AP by class', format_classes(report)]
  parts += [
    '## Score thresholds',
    f'The smallest score to keep for the best F1 at {_shape_name(report)} IoU '
    f'{score_thresholds.IOU_THRESHOLD:g}; `predict --min_score=auto` takes it.',
    score_thresholds.format_thresholds(
      [*report.names, _ALL], report.thresholds
    ),
  ]
  pairs = format_pairs(report)
  if pairs:
    parts += ['## Most confused', pairs]
  parts += ['## Confusions', f'{caption(report)}.', format_confusion(report)]
  return '\n\n'.join(parts) + '\n'


def to_json(report: ClassReport, weights: str | None = None) -> str:
  """Objects, AP and score thresholds of every class as JSON.

  Args:
    weights: digest of the model that was evaluated, see `checksums`.
  """
  thresholds = [x and dataclasses.asdict(x) for x in report.thresholds]
  classes = [
    {
      'category_id': report.ids[row],
      'name': name,
      'objects': int(report.num_objects[row]),
      **{
        column: None if values[row] < 0 else float(values[row])
        for column, values in report.precisions.items()
      },
      'threshold': thresholds[row],
    }
    for row, name in enumerate(report.names)
  ]
  content = {
    'iou_of': _shape_name(report),
    'iou_threshold': score_thresholds.IOU_THRESHOLD,
    'weights': weights,
    'all_classes': thresholds[-1],
    'classes': classes,
  }
  return json.dumps(content, indent=1) + '\n'


def _unique_names(categories) -> tuple[str, ...]:
  """Names as unique column headers; equal names get their category id."""
  names = [str(c['name']).replace('|', '/') for c in categories]
  taken = collections.Counter([*names, *_RESERVED])
  return tuple(
    name if taken[name] == 1 else f'{name} ({category["id"]})'
    for name, category in zip(names, categories)
  )
