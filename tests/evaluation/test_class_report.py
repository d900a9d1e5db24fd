"""AP by class against COCO's numbers of each class alone; tables to read."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax.evaluation import class_report, coco_metrics, scoring

SIDE = 48
NAMES = {3: 'cat', 1: 'dog', 8: 'cow'}


def encode(box):
  mask = np.zeros((SIDE, SIDE), np.uint8, order='F')
  x, y, width, height = box
  mask[y : y + height, x : x + width] = 1
  rle = coco_mask.encode(mask)
  return {**rle, 'counts': rle['counts'].decode()}


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
          'segmentation': encode(box),
        }
      )
      moved = np.maximum(np.add(box, rng.integers(-2, 3, 4)), 1).tolist()
      results.append(
        {
          'image_id': image_id,
          'category_id': int(rng.choice([category, category, 1, 3, 8])),
          'bbox': moved,
          'score': float(rng.random()),
          'segmentation': encode(np.maximum(moved, 1)),
        }
      )
  return truth, results


def write(folder, truth):
  path = folder / 'truth.json'
  path.write_text(json.dumps(truth))
  return path


@pytest.mark.parametrize('scorer', scoring.SCORERS)
def test_each_class_has_the_ap_of_a_set_with_it_alone(scorer, tmp_path):
  pytest.importorskip(scorer)
  truth, results = make_case()
  numbers, report = coco_metrics.evaluate_classes(
    results, write(tmp_path, truth), range(6), scorer
  )
  assert numbers == coco_metrics.evaluate(results, write(tmp_path, truth))
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
    expected = coco_metrics.evaluate(own, write(tmp_path, alone))
    single = sum(not a['iscrowd'] for a in alone['annotations'])
    assert report.num_objects[row] == single
    for column, name in (
      ('AP', 'eval/AP'),
      ('AP50', 'eval/AP50'),
      ('AP75', 'eval/AP75'),
      ('mask AP', 'eval/mask_AP'),
      ('mask AP50', 'eval/mask_AP50'),
      ('mask AP75', 'eval/mask_AP75'),
    ):
      value = report.precisions[column][row]
      np.testing.assert_allclose(value, expected[name], rtol=1e-12)
      assert (value == -1) == (category_id == 8)
  means = [np.mean(x[:2]) for x in report.precisions.values()]
  whole = [numbers[f'eval/{x}'] for x in ('AP', 'AP50', 'AP75', 'mask_AP')]
  np.testing.assert_allclose(means[:4], whole, rtol=1e-12)


def make_report(names=('cat', 'dog'), confusion=None):
  count = len(names)
  if confusion is None:
    confusion = np.zeros([count + 1] * 2, int)
  return class_report.ClassReport(
    names=tuple(names),
    num_objects=np.arange(count) * 3,
    precisions={'AP': np.linspace(-1, 0.5, count)},
    confusion=np.asarray(confusion),
    min_score=0.5,
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
  assert text.startswith('# Step 3\n\n## AP by class\n\n| class')
  assert '## Most confused' in text
  assert 'IoU 0.5 and a score of 0.5 or more.\n\n| object' in text


def test_the_most_confused_are_listed_most_first():
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


def test_without_confusions_nothing_is_listed():
  report = make_report(confusion=np.diag([1, 2, 0]))
  assert class_report.format_pairs(report) == ''
  assert 'Most confused' not in class_report.document(report, 'x')


def test_names_that_occur_twice_stay_apart(tmp_path):
  truth, results = make_case()
  for category, name in zip(truth['categories'], ('cat', 'cat', 'background')):
    category['name'] = name
  _, report = coco_metrics.evaluate_classes(
    results, write(tmp_path, truth), range(6)
  )
  assert report.names == ('cat (1)', 'cat (3)', 'background (8)')
  header = class_report.format_confusion(report).splitlines()[0]
  assert header.count('|') == 6
