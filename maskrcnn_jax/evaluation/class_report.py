"""An evaluation class by class: AP of each, and what each is taken for."""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from maskrcnn_jax.evaluation import confusion
from maskrcnn_jax.tables import table

# Of the ten thresholds of COCO, 0.5 to 0.95: all, the first, the sixth.
_THRESHOLDS = {'AP': slice(None), 'AP50': slice(0, 1), 'AP75': slice(5, 6)}
_COLUMNS = {'bbox': '', 'segm': 'mask '}
# As many confusions as a report lists one by one.
_MOST_PAIRS = 20
_BACKGROUND = 'background'
# What else heads a column.
_RESERVED = ('class', 'object', 'objects', _BACKGROUND)


@dataclasses.dataclass(frozen=True)
class ClassReport:
  """What an evaluation says about each class.

  Attributes:
    names: of the classes, in the order of their ids.
    num_objects: `[n]` int, of each class, without crowds.
    precisions: AP, AP50 and AP75 of boxes and then of masks by column, each
      `[n]`; -1 where there is no object.
    confusion: `[n + 1, n + 1]`, see `confusion.confusion_matrix`.
    min_score: of the detections in it.
  """

  names: tuple[str, ...]
  num_objects: np.ndarray
  precisions: Mapping[str, np.ndarray]
  confusion: np.ndarray
  min_score: float


def make_report(
  truth: Mapping,
  results: Sequence[Mapping],
  image_ids: Collection[int],
  tables: Mapping[str, np.ndarray],
  min_score: float,
) -> ClassReport:
  """The report of an evaluation.

  Args:
    truth: COCO dataset.
    results: COCO result dicts with `bbox`.
    image_ids: the images that count.
    tables: COCOeval's `precision` by kind (`'bbox'`, `'segm'`), its categories
      in the order of their ids.
    min_score: of the detections that confusions are counted of.
  """
  categories = {c['id']: c for c in truth['categories']}
  ids, wanted = sorted(categories), {*image_ids}
  counts = collections.Counter(
    a['category_id']
    for a in truth['annotations']
    if a['image_id'] in wanted and not a.get('iscrowd')
  )
  return ClassReport(
    names=_unique_names([categories[i] for i in ids]),
    num_objects=np.array([counts[i] for i in ids], int),
    precisions={
      f'{prefix}{name}': average_precisions(tables[kind][thresholds])
      for kind, prefix in _COLUMNS.items()
      if kind in tables
      for name, thresholds in _THRESHOLDS.items()
    },
    confusion=confusion.confusion_matrix(truth, results, image_ids, min_score),
    min_score=min_score,
  )


def average_precisions(precision: np.ndarray) -> np.ndarray:
  """AP by class, of objects of all sizes; -1 without an object.

  Args:
    precision: COCOeval's, `[thresholds, recalls, classes, areas, limits]`.

  Returns:
    `[classes]`, the means over thresholds and recalls.
  """
  # All areas, and as many detections as there may be.
  by_class = precision[:, :, :, 0, -1]
  counted = by_class > -1
  sums = np.sum(by_class, axis=(0, 1), where=counted)
  counts = np.sum(counted, axis=(0, 1))
  return np.where(counts, sums / np.maximum(counts, 1), -1.0)


def format_classes(report: ClassReport) -> str:
  """A table with a row for each class; `n/a` where it has no object."""
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
  """A table with a row for each class of objects, a column for each detected.

  A zero is left blank but on the diagonal.
  """
  names = [*report.names, _BACKGROUND]
  rows = []
  for row, name in enumerate(names):
    counts = report.confusion[row]
    cells = {'object': name}
    for column, other in enumerate(names):
      is_right = row == column < len(report.names)
      shown = counts[column] or is_right
      cells[other] = str(counts[column]) if shown else ''
    rows.append(cells)
  return table(rows)


def format_pairs(report: ClassReport) -> str:
  """A table of the classes that are most often taken for another one.

  Background is none of them. '' if no class is taken for another.
  """
  counts = report.confusion[:-1, :-1].copy()
  np.fill_diagonal(counts, 0)
  rows = []
  for place in np.argsort(-counts, axis=None, kind='stable')[:_MOST_PAIRS]:
    row, column = np.unravel_index(place, counts.shape)
    if counts[row, column]:
      rows.append(
        {
          'object': report.names[row],
          'taken for': report.names[column],
          'times': str(counts[row, column]),
          'of objects': str(report.num_objects[row]),
        }
      )
  return table(rows)


def caption(report: ClassReport) -> str:
  """One line that says what the table of confusions counts."""
  return (
    'Objects by row, what they were detected as by column: boxes with IoU 0.5 '
    f'and a score of {report.min_score:g} or more'
  )


def document(report: ClassReport, title: str) -> str:
  """All tables as Markdown.

  Args:
    report: to be shown.
    title: its heading.
  """
  parts = [f'# {title}', '## AP by class', format_classes(report)]
  pairs = format_pairs(report)
  if pairs:
    parts += ['## Most confused', pairs]
  parts += ['## Confusions', f'{caption(report)}.', format_confusion(report)]
  return '\n\n'.join(parts) + '\n'


def _unique_names(categories) -> tuple[str, ...]:
  """Names that can head a column each: none twice."""
  names = [str(c['name']).replace('|', '/') for c in categories]
  taken = collections.Counter([*names, *_RESERVED])
  return tuple(
    name if taken[name] == 1 else f'{name} ({category["id"]})'
    for name, category in zip(names, categories)
  )
