"""Both scorers agree to the last bit, with any number of workers."""

import sys

import numpy as np
import plain_evaluation
import pytest
from plain_evaluation import write_truth
from pycocotools import mask as coco_mask

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics
from maskrcnn_jax.evaluation.workers import Workers

SIZES = ((60, 80), (90, 50), (33, 33))


def _rectangle(rng, size):
  """A box `[x, y, width, height]` with sides from 0 on."""
  height, width = size
  x, y = rng.integers(width), rng.integers(height)
  return [
    *(int(x), int(y)),
    *(int(rng.integers(width - x + 1)), int(rng.integers(height - y + 1))),
  ]


def _mask(rng, box, size):
  """Run lengths of a box with holes."""
  x, y, width, height = box
  mask = np.zeros(size, np.uint8)
  mask[y : y + height, x : x + width] = 1
  mask[rng.random(size) < 0.1] = 0
  return plain_evaluation.encode_mask(mask)


def make_case(seed, num_images=12, num_categories=5):
  """A dataset and results with ties, crowds, and images without either."""
  rng = np.random.default_rng(seed)
  truth = {'images': [], 'annotations': [], 'categories': []}
  # Gaps between the ids, and one category that nothing belongs to.
  ids = [3 * number + 1 for number in range(num_categories)]
  truth['categories'] = [{'id': i, 'name': f'c{i}'} for i in [*ids, 90]]
  results = []
  for image_id in rng.permutation(num_images * 7)[:num_images].tolist():
    size = SIZES[image_id % len(SIZES)]
    height, width = size
    truth['images'].append({'id': image_id, 'height': height, 'width': width})
    for _ in range(rng.integers(6)):
      box = _rectangle(rng, size)
      mask = _mask(rng, box, size)
      if not coco_mask.area(mask):
        continue  # No object of the ground truth.
      truth['annotations'].append(
        {
          'id': len(truth['annotations']) + 1,
          'image_id': image_id,
          'category_id': int(rng.choice(ids)),
          'bbox': box,
          'area': int(coco_mask.area(mask)) * int(rng.choice([1, 1, 60])),
          'iscrowd': int(rng.random() < 0.15),
          'segmentation': mask,
        }
      )
      results += [
        _result(rng, truth['annotations'][-1], ids, size)
        for _ in range(rng.integers(5))
      ]
    results += [
      _result(rng, {'image_id': image_id}, ids, size)
      for _ in range(rng.choice([0, 3, 120]))
    ]
  return truth, [results[i] for i in rng.permutation(len(results))]


def _result(rng, annotation, ids, size):
  """A result at an annotation, or anywhere; few scores, so that many tie."""
  box = annotation.get('bbox') or _rectangle(rng, size)
  mask = annotation.get('segmentation')
  if mask is None or rng.random() < 0.7:
    mask = _mask(rng, box, size)
  shift = rng.normal(0, 2, 4) * (rng.random() < 0.7)
  category_id = annotation.get('category_id')
  if category_id is None or rng.random() < 0.2:
    category_id = rng.choice(ids)
  return {
    'image_id': annotation['image_id'],
    'category_id': int(category_id),
    'bbox': np.maximum(np.add(box, shift), 0).tolist(),
    'score': float(rng.integers(1, 10)) / 10,
    'segmentation': mask,
  }


@pytest.mark.parametrize('seed', range(6))
def test_random_cases_are_scored_as_by_plain_pycocotools(
  seed, scorer, tmp_path
):
  truth, results = make_case(seed)
  path = write_truth(tmp_path, truth)
  image_ids = sorted(image['id'] for image in truth['images'])[:-2]
  metrics = coco_metrics.evaluate(results, path, image_ids, scorer=scorer)
  plain = plain_evaluation.score(truth, results, image_ids)
  assert list(metrics.values()) == plain
  # The case is not trivial.
  assert len({*plain}) > 10


@pytest.mark.parametrize('count', [1, 2, 9])
def test_numbers_do_not_depend_on_the_workers(count, tmp_path):
  truth, results = make_case(7)
  path = write_truth(tmp_path, truth)
  expected = coco_metrics.evaluate(results, path)
  with Workers(count) as workers:
    assert coco_metrics.evaluate(results, path, workers=workers) == expected


def test_every_form_of_a_mask(scorer, tmp_path):
  truth, results = make_case(8)
  path = write_truth(tmp_path, truth)
  expected = coco_metrics.evaluate(results, path, kinds=('segm',))
  for result in results:
    size = result['segmentation']['size']
    mask = coco_mask.decode(result['segmentation']).reshape(-1, order='F')
    edges = np.flatnonzero(np.diff(mask, prepend=0))
    lengths = np.diff(edges, prepend=0, append=len(mask)).tolist()
    result['segmentation'] = {'size': size, 'counts': lengths}
  metrics = coco_metrics.evaluate(results, path, kinds=('segm',), scorer=scorer)
  assert metrics == expected


def test_boxes_around_masks_and_polygons(scorer, tmp_path):
  truth, results = make_case(9)
  path = write_truth(tmp_path, truth)
  for number, result in enumerate(results):
    x, y, width, height = result['bbox']
    if number % 3 == 0:
      corners = [x, y, x + width + 1, y, x + width + 1, y + height + 1]
      result['segmentation'] = [corners]
    if number % 3 == 1:
      del result['bbox']
  metrics = coco_metrics.evaluate(results, path, scorer=scorer)
  with Workers(2) as workers:
    assert coco_metrics.evaluate(results, path, workers=workers) == metrics


@pytest.mark.parametrize('name', ['coco', 'hotcoco'])
def test_unknown_and_missing_scorers(name, tmp_path, monkeypatch):
  truth, results = make_case(0)
  # None makes Python refuse the import.
  monkeypatch.setitem(sys.modules, 'hotcoco', None)
  with pytest.raises(UserError) as error:
    coco_metrics.evaluate(results, write_truth(tmp_path, truth), scorer=name)
  assert error.value.argument == 'evaluation.scorer'
  assert error.value.given == name
  if name == 'hotcoco':
    assert 'maskrcnn-jax[hotcoco]' in str(error.value)  # How to install it.


def test_more_than_100_detections_may_count(scorer, tmp_path):
  count = 160
  boxes = [[20 * (i % 20), 20 * (i // 20), 10, 10] for i in range(count)]
  common = {'image_id': 1, 'category_id': 1}
  truth = {
    'images': [{'id': 1, 'height': 200, 'width': 400}],
    'annotations': [
      {**common, 'id': i + 1, 'bbox': box} for i, box in enumerate(boxes)
    ],
    'categories': [{'id': 1, 'name': 'a'}],
  }
  results = [
    {**common, 'bbox': box, 'score': 1 - i / count}
    for i, box in enumerate(boxes)
  ]
  path = write_truth(tmp_path, truth)

  def score(**kwargs):
    found = coco_metrics.evaluate(
      results, path, kinds=('bbox',), scorer=scorer, **kwargs
    )
    return found['eval/AP'], found['eval/ARmax10'], found['eval/ARmax100']

  # Recalls 0, 0.01, .. up to 100 / 160 are reached with precision 1: 63 of 101.
  np.testing.assert_allclose(score(), [63 / 101, 10 / count, 100 / count])
  np.testing.assert_allclose(
    score(max_detections=120), [76 / 101, 10 / count, 120 / count]
  )
  np.testing.assert_allclose(score(max_detections=256), [1, 10 / count, 1])
