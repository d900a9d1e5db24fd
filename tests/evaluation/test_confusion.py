"""Confusions: drawn by hand, and counted pixel by pixel from the definition."""

import numpy as np
import pytest

from maskrcnn_jax.evaluation import confusion

CATEGORIES = [{'id': i, 'name': n} for i, n in ((7, 'c'), (2, 'a'), (5, 'b'))]


def thing(category_id, bbox, image_id=1, **more):
  more = {'iscrowd': 0, **more}
  return {'image_id': image_id, 'category_id': category_id, 'bbox': bbox} | more


def count(annotations, results, min_score=0.5, image_ids=(1,)):
  truth = {'annotations': annotations, 'categories': CATEGORIES}
  return confusion.confusion_matrix(truth, results, image_ids, min_score)


def cells(matrix):
  """{(row, column): count} of what is not 0; 3 is background."""
  rows, columns = np.nonzero(matrix)
  found = zip(rows.tolist(), columns.tolist(), matrix[rows, columns].tolist())
  return {(row, column): number for row, column, number in found}


@pytest.mark.parametrize(
  'annotations, results, expected',
  [
    ([], [], {}),
    # Classes are in the order of their ids: 2, 5, 7.
    ([thing(5, [0, 0, 4, 4])], [(5, [0, 0, 4, 4], 0.9)], {(1, 1): 1}),
    ([thing(5, [0, 0, 4, 4])], [(7, [0, 0, 4, 4], 0.9)], {(1, 2): 1}),
    ([thing(5, [0, 0, 4, 4])], [(5, [0, 0, 4, 4], 0.4)], {(1, 3): 1}),
    # An IoU of exactly 0.5 is enough, a little less is not.
    ([thing(5, [0, 0, 4, 4])], [(5, [0, 0, 4, 2], 0.5)], {(1, 1): 1}),
    (
      [thing(5, [0, 0, 4, 4])],
      [(5, [0, 0, 4, 1.9], 0.9)],
      {(1, 3): 1, (3, 1): 1},
    ),
    # The best score chooses first, so the second finds nothing free.
    (
      [thing(2, [0, 0, 4, 4])],
      [(2, [0, 0, 4, 4], 0.6), (5, [0, 0, 4, 3], 0.9)],
      {(0, 1): 1, (3, 0): 1},
    ),
    # It takes the object that it overlaps most, whatever its class.
    (
      [thing(2, [0, 0, 4, 4]), thing(5, [0, 0, 4, 5])],
      [(2, [0, 0, 4, 5], 0.9), (2, [0, 0, 4, 4], 0.8)],
      {(1, 0): 1, (0, 0): 1},
    ),
    # In a crowd nothing is counted; half beside it, it is.
    (
      [thing(2, [0, 0, 9, 9], iscrowd=1)],
      [(2, [1, 1, 2, 2], 0.9), (5, [8, 0, 4, 4], 0.9)],
      {(3, 1): 1},
    ),
    # An empty box overlaps nothing.
    (
      [thing(2, [3, 3, 0, 0])],
      [(2, [3, 3, 0, 0], 0.9)],
      {(0, 3): 1, (3, 0): 1},
    ),
    # Other images, and categories that are not in the file.
    (
      [thing(2, [0, 0, 4, 4], image_id=8)],
      [(9, [0, 0, 4, 4], 0.9)],
      {},
    ),
  ],
)
def test_confusions_by_hand(annotations, results, expected):
  found = [thing(c, box, score=score) for c, box, score in results]
  assert cells(count(annotations, found)) == expected


def pixels(box, side=24):
  x, y, width, height = box
  mask = np.zeros((side, side), bool)
  mask[y : y + height, x : x + width] = True
  return mask


def by_definition(annotations, results, min_score, image_ids):
  """Loops over images, detections and objects; boxes are sets of pixels."""
  ids = [2, 5, 7]
  matrix = np.zeros((4, 4), int)
  for image_id in image_ids:
    own = [a for a in annotations if a['image_id'] == image_id]
    objects = [a for a in own if not a['iscrowd']]
    crowds = [a for a in own if a['iscrowd']]
    taken = set()
    rows = [r for r in results if r['image_id'] == image_id]
    for row in sorted(rows, key=lambda r: -r['score']):
      if row['score'] < min_score:
        continue
      mask, best, best_iou = pixels(row['bbox']), None, 0.0
      for index, each in enumerate(objects):
        other = pixels(each['bbox'])
        union = (mask | other).sum()
        iou = (mask & other).sum() / union if union else 0.0
        if index not in taken and iou > best_iou:
          best, best_iou = index, iou
      column = ids.index(row['category_id'])
      if best is not None and best_iou >= 0.5:
        taken.add(best)
        matrix[ids.index(objects[best]['category_id']), column] += 1
        continue
      shares = [
        (mask & pixels(crowd['bbox'])).sum() / max(mask.sum(), 1)
        for crowd in crowds
      ]
      if max(shares, default=0.0) < 0.5:
        matrix[3, column] += 1
    for index, each in enumerate(objects):
      if index not in taken:
        matrix[ids.index(each['category_id']), 3] += 1
  return matrix


@pytest.mark.parametrize('seed', range(5))
def test_random_confusions_are_those_of_the_definition(seed):
  rng = np.random.default_rng(seed)

  def box():
    start, sides = rng.integers(0, 12, 2), rng.integers(0, 12, 2)
    return [*start.tolist(), *sides.tolist()]

  def draw(more):
    return thing(
      int(rng.choice([2, 5, 7])), box(), int(rng.integers(4)), **more()
    )

  def crowd():
    return {'iscrowd': int(rng.random() < 0.2)}

  annotations = [draw(crowd) for _ in range(40)]
  # Near an object, most of them, so that there is something to match.
  results = [draw(lambda: {'score': float(rng.random())}) for _ in range(30)]
  for each in annotations:
    moved = np.maximum(np.add(each['bbox'], rng.integers(-1, 2, 4)), 0)
    results.append(
      thing(
        int(rng.choice([each['category_id'], 2, 5, 7])),
        moved.tolist(),
        each['image_id'],
        score=float(rng.random()),
      )
    )
  found = count(annotations, results, 0.3, (0, 1, 2))
  expected = by_definition(annotations, results, 0.3, (0, 1, 2))
  np.testing.assert_array_equal(found, expected)
  assert found[:3, :3].sum() > 5
  # Each object is in one place, crowds in none.
  single = [a for a in annotations if not a['iscrowd'] and a['image_id'] < 3]
  assert found[:3].sum() == len(single)
