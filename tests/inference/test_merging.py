"""Merging: every object once, by the best of its views."""

import numpy as np
import slow_boxes

from maskrcnn_jax.inference import merging
from maskrcnn_jax.structures import Detections


def make_part(boxes, scores, classes, masks=None):
  return Detections(
    boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
    scores=np.asarray(scores, np.float32),
    classes=np.asarray(classes, np.int32),
    masks=masks,
    valid=np.ones(len(scores), bool),
  )


def draw(rng, count, num_classes=3, side=60):
  corners = rng.uniform(0, side, (count, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], 1)
  return make_part(
    boxes,
    rng.random(count),
    rng.integers(1, num_classes + 1, count),
    rng.random((count, 4, 4), np.float32),
  )


def slow_merge(parts, threshold):
  """Rows of the union that greedy NMS within each class keeps, best first."""
  boxes, scores, classes = (
    np.concatenate([getattr(part, name) for part in parts])
    for name in ('boxes', 'scores', 'classes')
  )
  kept = []
  for label in set(classes.tolist()):
    kept += slow_boxes.greedy_nms(boxes, scores, classes == label, threshold)
  return sorted(kept, key=lambda row: -scores[row])


def test_the_best_view_of_an_object_stays_with_its_mask():
  masks = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 2, 2))
  low = make_part([[0, 0, 10, 10]], [0.6], [1], masks[:1])
  high = make_part(
    [[0, 1, 10, 11], [0, 0, 10, 10]], [0.9, 0.5], [1, 2], masks[1:]
  )
  merged = merging.merge([low, high], 0.5)
  assert merged.boxes.tolist() == [[0, 1, 10, 11], [0, 0, 10, 10]]
  np.testing.assert_allclose(merged.scores, [0.9, 0.5])
  assert merged.classes.tolist() == [1, 2]
  np.testing.assert_array_equal(merged.masks, masks[1:])


def test_it_is_nms_within_each_class_over_the_union():
  rng = np.random.default_rng(1)
  for threshold in (0.3, 0.5):
    parts = [draw(rng, count) for count in (13, 0, 30, 1)]
    merged = merging.merge(parts, threshold)
    rows = slow_merge(parts, threshold)
    for name in ('boxes', 'scores', 'classes', 'masks'):
      union = np.concatenate([getattr(p, name) for p in parts])
      np.testing.assert_array_equal(getattr(merged, name), union[rows])
    assert merged.valid.all() and len(merged.valid) == len(rows)


def test_merging_again_changes_nothing():
  merged = merging.merge([draw(np.random.default_rng(2), 40)], 0.5)
  again = merging.merge([merged, merged], 0.5)
  for name in ('boxes', 'scores', 'classes', 'masks'):
    np.testing.assert_array_equal(getattr(again, name), getattr(merged, name))


def test_at_most_so_many():
  part = draw(np.random.default_rng(3), 40)
  whole = merging.merge([part], 0.5)
  few = merging.merge([part], 0.5, max_detections=4)
  np.testing.assert_array_equal(few.scores, whole.scores[:4])


def test_nothing_and_no_masks():
  nothing = make_part([], [], [])
  merged = merging.merge([nothing, nothing], 0.5)
  assert merged.boxes.shape == (0, 4) and merged.masks is None
  one = make_part([[0, 0, 4, 4]], [0.5], [7])
  assert merging.merge([nothing, one], 0.5).classes.tolist() == [7]


def test_few_lengths_are_compiled():
  before = merging._nms._cache_size()
  rng = np.random.default_rng(4)
  for count in range(33, 65):
    part = draw(rng, count, num_classes=1)
    merging.merge([part], 0.37)
  assert merging._nms._cache_size() == before + 1
