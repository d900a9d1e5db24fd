"""AP by class, confusion matrices and their tables."""

import numpy as np
import pytest
from plain_evaluation import encode_box, write_truth

from maskrcnn_jax.evaluation import class_report, coco_metrics

SIDE = 48
NAMES = {3: 'cat', 1: 'dog', 8: 'cow'}


def make_case(seed=0):
  """Objects of three classes, the last one only as a crowd, and detections."""
  rng = np.random.default_rng(seed)
  truth = {
    'images': [{'id': i, 'height': SIDE, 'width': SIDE} for i in range(6)],
    'categories': [{'id': i, 'name': n} for i, n in NAMES.items()],
    'annotations': [],
  }
  results = []
  for image_id in range(6):
    for _ in range(5):
      box = [*rng.integers(0, 30, 2).tolist(), *rng.integers(6, 18, 2).tolist()]
      category = int(rng.choice([1, 3, 3, 8]))
      truth['annotations'].append(
        {
          'id': len(truth['annotations']) + 1,
          'image_id': image_id,
          'category_id': category,
          'bbox': box,
          'area': box[2] * box[3],
          'iscrowd': int(category == 8),
          'segmentation': encode_box(box, (SIDE, SIDE)),
        }
      )
      moved = np.maximum(np.add(box, rng.integers(-2, 3, 4)), 1).tolist()
      results.append(
        {
          'image_id': image_id,
          'category_id': int(rng.choice([category, category, 1, 3, 8])),
          'bbox': moved,
          'score': float(rng.random()),
          'segmentation': encode_box(moved, (SIDE, SIDE)),
        }
      )
  return truth, results


def test_each_class_has_the_ap_of_a_set_with_it_alone(scorer, tmp_path):
  truth, results = make_case()
  numbers, report = coco_metrics.evaluate_classes(
    results, write_truth(tmp_path, truth), range(6), scorer=scorer
  )
  assert numbers == coco_metrics.evaluate(results, write_truth(tmp_path, truth))
  assert report.names == ('dog', 'cat', 'cow')
  for row, category_id in enumerate((1, 3, 8)):
    alone = {
      **truth,
      'categories': [c for c in truth['categories'] if c['id'] == category_id],
      'annotations': [
        a for a in truth['annotations'] if a['category_id'] == category_id
      ],
    }
    own = [r for r in results if r['category_id'] == category_id]
    expected = coco_metrics.evaluate(own, write_truth(tmp_path, alone))
    single = sum(not a['iscrowd'] for a in alone['annotations'])
    assert report.num_objects[row] == single
    for column, values in report.precisions.items():
      name = column.replace('mask ', 'mask_')
      expected_value = expected[f'eval/{name}']
      np.testing.assert_allclose(values[row], expected_value, rtol=1e-12)
      assert (values[row] == -1) == (category_id == 8)
  assert [*report.precisions] == [
    *('AP', 'AP50', 'AP75', 'mask AP', 'mask AP50', 'mask AP75')
  ]
  means = [np.mean(x[:2]) for x in report.precisions.values()]
  whole = [numbers[f'eval/{x}'] for x in ('AP', 'AP50', 'AP75', 'mask_AP')]
  np.testing.assert_allclose(means[:4], whole, rtol=1e-12)


def make_report(names=('cat', 'dog'), confusion=None):
  count = len(names)
  if confusion is None:
    confusion = np.zeros([count + 1] * 2, int)
  return class_report.ClassReport(
    ids=tuple(range(count)),
    names=tuple(names),
    num_objects=np.arange(count) * 3,
    precisions={'AP': np.linspace(-1, 0.5, count)},
    confusion=np.asarray(confusion),
    min_score=0.5,
    curves={'segm': np.zeros((10, 101, count))},
    thresholds=(None,) * (count + 1),
  )


def test_tables_by_hand():
  report = make_report(confusion=[[5, 2, 1], [0, 0, 3], [4, 0, 0]])
  assert class_report.format_classes(report).splitlines() == [
    '| class | objects | AP    |',
    '| ----- | ------- | ----- |',
    '| cat   | 0       | n/a   |',
    '| dog   | 3       | 0.500 |',
  ]
  assert class_report.format_confusion(report).splitlines() == [
    '| object     | cat | dog | background |',
    '| ---------- | --- | --- | ---------- |',
    '| cat        | 5   | 2   | 1          |',
    '| dog        |     | 0   | 3          |',
    '| background | 4   |     |            |',
  ]
  assert class_report.format_pairs(report).splitlines()[2:] == [
    '| cat    | dog       | 2     | 0          |'
  ]
  text = class_report.document(report, 'Step 3')
  assert text.startswith('# Step 3\n')
  for part in ('classes', 'pairs', 'confusion'):
    assert getattr(class_report, f'format_{part}')(report) in text


def test_the_most_confused_pairs_come_first():
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 1000, (9, 9))
  counts[2, 3] = counts[5, 1] = 2000
  names = [f'c{i}' for i in range(8)]
  lines = class_report.format_pairs(make_report(names, counts)).splitlines()
  assert len(lines) == 22
  assert lines[2].startswith('| c2     | c3        | 2000')
  assert lines[3].startswith('| c5     | c1        | 2000')
  times = [int(line.split('|')[3]) for line in lines[2:]]
  off = counts[:8, :8][~np.eye(8, dtype=bool)]
  assert times == sorted(off.tolist(), reverse=True)[:20]


def test_without_confusions_there_is_no_table_of_pairs():
  report = make_report(confusion=np.diag([1, 2, 0]))
  assert class_report.format_pairs(report) == ''
  assert class_report.document(report, 'x').count('\n## ') == 3


def test_equal_names_get_their_category_id(tmp_path):
  truth, results = make_case()
  for category, name in zip(truth['categories'], ('cat', 'cat', 'background')):
    category['name'] = name
  _, report = coco_metrics.evaluate_classes(
    results, write_truth(tmp_path, truth), range(6)
  )
  assert report.names == ('cat (1)', 'cat (3)', 'background (8)')
  header = class_report.format_confusion(report).splitlines()[0]
  assert header.count('|') == 6


CATEGORIES = [{'id': i, 'name': n} for i, n in ((7, 'c'), (2, 'a'), (5, 'b'))]


def thing(category_id, bbox, image_id=1, **more):
  more = {'iscrowd': 0, **more}
  return {'image_id': image_id, 'category_id': category_id, 'bbox': bbox} | more


def count(annotations, results, min_score=0.5, image_ids=(1,)):
  truth = {'annotations': annotations, 'categories': CATEGORIES}
  return class_report.confusion_matrix(truth, results, image_ids, min_score)


def cells(matrix):
  """{(row, column): count} of nonzero cells; 3 is background."""
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
    # The best score is matched first; the second has no object left.
    (
      [thing(2, [0, 0, 4, 4])],
      [(2, [0, 0, 4, 4], 0.6), (5, [0, 0, 4, 3], 0.9)],
      {(0, 1): 1, (3, 0): 1},
    ),
    # It is matched to the highest IoU, whatever its class.
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
    # Another image, and a category that is not in the file.
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
  """Oracle: loops over images, detections and objects, boxes as pixels."""
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
  # Most are near an object, so that there is something to match.
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
  # Each object is in one cell, crowds in none.
  single = [a for a in annotations if not a['iscrowd'] and a['image_id'] < 3]
  assert found[:3].sum() == len(single)
