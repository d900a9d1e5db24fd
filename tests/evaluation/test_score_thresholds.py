"""Score thresholds of the best F1, against a slow search."""

import json

import numpy as np
import pytest
from plain_evaluation import write_truth
from pycocotools import mask as coco_mask
from test_scoring import make_case

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import (
  class_report,
  coco_metrics,
  score_thresholds,
)
from maskrcnn_jax.evaluation.workers import Workers


@pytest.mark.parametrize(
  'scores, hits, num_objects, expected',
  [
    # 1 of 2, 2 of 3 and 3 of 5 detections hit: F1 2/5, 4/6, 6/8. All are kept,
    # and the threshold is halfway to 0.
    ([0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 0, 1], 3, (0.25, 0.75, 0.6, 1.0)),
    # Halfway to the score that is dropped.
    ([0.5, 0.9], [0, 1], 1, (0.7, 1.0, 1.0, 1.0)),
    # Equal F1 of 2/3: the higher score.
    ([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 1], 2, (0.85, 2 / 3, 1.0, 0.5)),
    # Equal scores are kept or dropped together.
    ([0.5, 0.5, 0.5], [1, 0, 0], 1, (0.25, 0.5, 1 / 3, 1.0)),
    ([0.8, 0.8, 0.8, 0.4, 0.4], [1, 0, 1, 0, 0], 2, (0.6, 0.8, 2 / 3, 1.0)),
    ([0.5], [0], 1, None),
    ([], [], 1, None),
    ([0.5], [0], 0, None),
  ],
)
def test_best_f1_by_hand(scores, hits, num_objects, expected):
  matches = np.stack([scores, hits], axis=-1).astype(float)
  best = score_thresholds.best_f1(matches, num_objects)
  if expected is None:
    assert best is None
  else:
    found = best.score, best.f1, best.precision, best.recall
    assert found == pytest.approx(expected)


def _plain_counts(truth, results, category_id, least):
  """Hits and counted detections from `least` on, matched one by one."""
  hits = counted = 0
  for image in truth['images']:
    own = [
      [
        x
        for x in part
        if (x['image_id'], x['category_id']) == (image['id'], category_id)
      ]
      for part in (results, truth['annotations'])
    ]
    found, objects = own
    found = sorted(found, key=lambda x: -x['score'])[:100]
    taken = set()
    for result in found:
      if result['score'] < least:
        continue
      best, best_iou = None, 0.5
      in_crowd = False
      for number, each in enumerate(objects):
        masks = [x['segmentation'] for x in (result, each)]
        iou = coco_mask.iou(masks[:1], masks[1:], [each['iscrowd']])[0, 0]
        if each['iscrowd']:
          in_crowd |= iou >= 0.5
        elif number not in taken and iou >= best_iou:
          best, best_iou = number, iou
      if best is not None:
        taken.add(best)
        hits += 1
      counted += best is not None or not in_crowd
  return hits, counted


@pytest.mark.parametrize('seed', range(4))
def test_thresholds_are_those_of_a_slow_search(seed, scorer, tmp_path):
  truth, results = make_case(seed)
  results = [x for x in results if isinstance(x['segmentation'], dict)]
  path = write_truth(tmp_path, truth)
  _, report = coco_metrics.evaluate_classes(results, path, scorer=scorer)
  for row, category_id in enumerate(report.ids):
    candidates = []
    for score in {x['score'] for x in results}:
      hits, counted = _plain_counts(truth, results, category_id, score)
      total = counted + report.num_objects[row]
      candidates.append((2 * hits / total if total else 0, score))
    f1, score = max(candidates)
    best = report.thresholds[row]
    if not f1:
      assert best is None
      continue
    assert best.f1 == pytest.approx(f1)
    # The next detection that counts.
    kept = _plain_counts(truth, results, category_id, score)
    lower = max(
      (
        x
        for _, x in candidates
        if x < score and _plain_counts(truth, results, category_id, x) != kept
      ),
      default=0.0,
    )
    assert best.score == (score + lower) / 2


def test_workers_find_the_same(scorer, tmp_path):
  truth, results = make_case(0)
  path = write_truth(tmp_path, truth)
  alone = coco_metrics.evaluate_classes(results, path, scorer=scorer)[1]
  with Workers(2) as workers:
    shared = coco_metrics.evaluate_classes(
      results, path, scorer=scorer, workers=workers
    )[1]
  assert alone.thresholds == shared.thresholds
  assert alone.thresholds[-1] is not None


def test_boxes_alone_have_thresholds_of_boxes(tmp_path):
  truth, results = make_case(0)
  path = write_truth(tmp_path, truth)
  _, report = coco_metrics.evaluate_classes(results, path, kinds=('bbox',))
  assert json.loads(class_report.to_json(report))['iou_of'] == 'box'
  assert 'box IoU 0.5' in class_report.document(report, 'x')


def test_the_file_is_read_back(tmp_path):
  truth, results = make_case(0)
  path = write_truth(tmp_path, truth)
  _, report = coco_metrics.evaluate_classes(results, path)
  file = tmp_path / 'classes-4.json'
  file.write_text(class_report.to_json(report))
  found = score_thresholds.read(file)
  assert found.pop(None) == report.thresholds[-1].score
  expected = zip(report.ids, report.thresholds)
  assert found == {k: x.score for k, x in expected if x is not None}
  assert report.ids[-1] == 90 and 90 not in found  # It has no objects.


@pytest.mark.parametrize(
  'content',
  [
    {},
    [],
    {'all_classes': None, 'classes': []},
    {'all_classes': {'score': 'a'}, 'classes': []},
    {'all_classes': {'score': 3}, 'classes': []},
    {'all_classes': {'score': 0.5}, 'classes': [{'threshold': None}]},
  ],
)
def test_files_without_thresholds(content, tmp_path):
  file = tmp_path / 'classes-4.json'
  file.write_text(json.dumps(content))
  with pytest.raises(UserError) as error:
    score_thresholds.read(file)
  assert error.value.path == str(file)
