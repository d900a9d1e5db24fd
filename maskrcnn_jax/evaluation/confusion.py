"""Which classes are taken for which: objects against detections, counted."""

import collections
from collections.abc import Collection, Mapping, Sequence

import numpy as np


def confusion_matrix(
  truth: Mapping,
  results: Sequence[Mapping],
  image_ids: Collection[int],
  min_score: float,
  iou_threshold: float = 0.5,
) -> np.ndarray:
  """Counts of objects by their class and by the class they were detected as.

  In every image the detections choose in the order of their scores, whatever
  their class: the object whose box overlaps most, of those that are free and
  overlap by at least the threshold. A detection that finds none counts as
  background taken for an object, unless the threshold of its area lies in a
  crowd; an object that none chooses, as taken for background.

  Args:
    truth: COCO dataset with `annotations` and `categories`.
    results: COCO result dicts with `bbox`. Those of unknown categories or
      images do not count.
    image_ids: the images that count.
    min_score: detections below do not count.
    iou_threshold: of boxes.

  Returns:
    `[n + 1, n + 1]` int64: objects by row, detections by column, both in the
    order of the category ids; the last ones are background.
  """
  ids = sorted({category['id'] for category in truth['categories']})
  places = {category_id: place for place, category_id in enumerate(ids)}
  objects = _by_image(truth['annotations'], places, image_ids)
  found = _by_image(results, places, image_ids)
  background = len(ids)
  matrix = np.zeros([background + 1] * 2, np.int64)
  for image_id in {*objects, *found}:
    rows = [r for r in found.get(image_id, ()) if r['score'] >= min_score]
    rows.sort(key=lambda row: -row['score'])
    annotations = objects.get(image_id, ())
    single = [a for a in annotations if not a.get('iscrowd')]
    crowds = [a for a in annotations if a.get('iscrowd')]
    matches = _match(_overlaps(rows, single), iou_threshold)
    for row, match in zip(rows, matches):
      column = places[row['category_id']]
      if match is not None:
        matrix[places[single[match]['category_id']], column] += 1
      elif not np.any(_overlaps([row], crowds, inside=True) >= iou_threshold):
        matrix[background, column] += 1
    missed = {*range(len(single))} - {*matches}
    for index in missed:
      matrix[places[single[index]['category_id']], background] += 1
  return matrix


def _by_image(rows, places, image_ids) -> dict[int, list]:
  """Annotations or results of known categories by image, in their order."""
  wanted, groups = {*image_ids}, collections.defaultdict(list)
  for row in rows:
    if row['category_id'] in places and row['image_id'] in wanted:
      groups[row['image_id']].append(row)
  return groups


def _match(overlaps: np.ndarray, threshold: float) -> list[int | None]:
  """The column that each row takes, in their order; None: none."""
  free = overlaps.copy()
  matches = []
  for row in range(len(free)):
    best = int(np.argmax(free[row])) if free.shape[1] else None
    if best is not None and free[row, best] >= threshold:
      matches.append(best)
      free[:, best] = -1.0
    else:
      matches.append(None)
  return matches


def _overlaps(rows, others, inside: bool = False) -> np.ndarray:
  """Intersection over union of boxes, or over the area of the rows' own."""
  boxes, others = (
    np.array([x['bbox'] for x in part], float).reshape(-1, 4)
    for part in (rows, others)
  )
  start = np.maximum(boxes[:, None, :2], others[None, :, :2])
  end = np.minimum(
    (boxes[:, :2] + boxes[:, 2:])[:, None],
    (others[:, :2] + others[:, 2:])[None],
  )
  shared = np.prod(np.maximum(end - start, 0.0), axis=-1)
  area = np.prod(boxes[:, 2:], axis=-1)[:, None]
  if not inside:
    area = area + np.prod(others[:, 2:], axis=-1) - shared
  return shared / np.where(area > 0, area, 1.0)
