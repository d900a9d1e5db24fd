"""Suppression within every class, and the best of all classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_boxes

from maskrcnn_jax.ops import nms as nms_ops

run = jax.jit(nms_ops.classwise_nms, static_argnums=(3, 4))


def crowded_boxes(seed, num=60, num_classes=5):
  """Overlapping boxes for each class; some scores are equal."""
  rng = np.random.default_rng(seed)
  corners = rng.uniform(0, 60, (num, num_classes, 2))
  sides = rng.uniform(5, 40, (num, num_classes, 2))
  boxes = np.concatenate([corners, corners + sides], axis=-1)
  scores = rng.integers(1, 80, (num, num_classes)) / 128
  valid = rng.uniform(size=(num, num_classes)) < 0.8
  return boxes.astype(np.float32), scores.astype(np.float32), valid


def slow_classwise_nms(boxes, scores, valid, iou_threshold, max_outputs):
  """Class by class from the definition; then the best of all."""
  kept = []
  for label in range(boxes.shape[1]):
    own = slow_boxes.greedy_nms(
      boxes[:, label], scores[:, label], valid[:, label], iou_threshold
    )
    kept += [(-scores[row, label], row, label) for row in own]
  return [(row, label) for _, row, label in sorted(kept)][:max_outputs]


def kept_pairs(boxes, scores, valid, iou_threshold=0.5, max_outputs=100):
  """(row, class) of what is kept; checks the padding behind it."""
  rows, classes, kept = map(
    np.asarray, run(boxes, scores, valid, iou_threshold, max_outputs)
  )
  assert rows.shape == classes.shape == kept.shape == (max_outputs,)
  assert rows.dtype == classes.dtype == np.int32
  count = int(np.sum(kept))
  np.testing.assert_array_equal(kept, np.arange(max_outputs) < count)
  assert not np.any(rows[count:]) and not np.any(classes[count:])
  return list(zip(rows[:count].tolist(), classes[:count].tolist()))


def test_classes_do_not_suppress_each_other():
  # Two boxes on top of each other, in two classes.
  boxes = np.zeros((2, 2, 4), np.float32) + np.float32([0, 0, 10, 10])
  scores = np.array([[0.9, 0.3], [0.5, 0.4]], np.float32)
  valid = np.ones((2, 2), bool)
  assert kept_pairs(boxes, scores, valid) == [(0, 0), (1, 1)]


def test_equal_scores_keep_the_lower_index():
  boxes = np.zeros((3, 2, 4), np.float32) + np.float32([0, 0, 10, 10])
  boxes += 20 * np.arange(3, dtype=np.float32)[:, None, None]
  scores = np.full((3, 2), 0.5, np.float32)
  valid = np.ones((3, 2), bool)
  expected = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
  assert kept_pairs(boxes, scores, valid) == expected


def test_iou_at_the_threshold_is_kept():
  boxes = np.float32([[[0, 0, 10, 10]], [[0, 0, 10, 5]]])
  scores = np.float32([[0.9], [0.8]])
  assert kept_pairs(boxes, scores, scores > 0) == [(0, 0), (1, 0)]


def test_boxes_without_area_neither_suppress_nor_are_suppressed():
  boxes = np.float32([[[5, 5, 5, 9]], [[5, 5, 5, 9]], [[0, 0, 10, 10]]])
  scores = np.float32([[0.9], [0.8], [0.7]])
  assert kept_pairs(boxes, scores, scores > 0) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('iou_threshold, max_outputs', [(0.5, 40), (0.3, 400)])
def test_result_matches_the_definition(seed, iou_threshold, max_outputs):
  boxes, scores, valid = crowded_boxes(seed)
  boxes[::3] = boxes[::3][..., [2, 1, 0, 3]]  # Corners in any order.
  expected = slow_classwise_nms(
    boxes, scores, valid, iou_threshold, max_outputs
  )
  actual = kept_pairs(boxes, scores, valid, iou_threshold, max_outputs)
  assert actual == expected


def test_result_is_that_of_nms_class_by_class():
  boxes, scores, valid = crowded_boxes(5)
  kept = kept_pairs(boxes, scores, valid, 0.5, 400)
  for label in range(scores.shape[1]):
    rows, filled = nms_ops.nms(
      boxes[:, label], scores[:, label], valid[:, label], 0.5, len(boxes)
    )
    own = [row for row, other in kept if other == label]
    assert own == np.asarray(rows)[np.asarray(filled)].tolist()


def test_padding_changes_nothing():
  boxes, scores, valid = crowded_boxes(6)
  expected = kept_pairs(boxes, scores, valid)
  # Padding that would win and suppress if it took part.
  wall = np.broadcast_to(np.float32([0, 0, 99, 99]), (7, 5, 4))
  actual = kept_pairs(
    np.concatenate([boxes, wall]),
    np.concatenate([scores, np.full((7, 5), 9.0, np.float32)]),
    np.concatenate([valid, np.zeros((7, 5), bool)]),
  )
  assert actual == expected


def test_nothing_valid_gives_nothing():
  boxes, scores, valid = crowded_boxes(7)
  assert kept_pairs(boxes, scores, np.zeros_like(valid)) == []


def test_images_under_vmap_are_those_alone():
  boxes, scores, valid = (
    np.stack(x) for x in zip(*(crowded_boxes(seed) for seed in (8, 9)))
  )
  valid[1] = False
  nms = functools.partial(
    nms_ops.classwise_nms, iou_threshold=0.5, max_outputs=20
  )
  together = jax.jit(jax.vmap(nms))(boxes, scores, valid)
  for image in range(2):
    alone = nms(boxes[image], scores[image], valid[image])
    for actual, expected in zip(together, alone):
      np.testing.assert_array_equal(actual[image], expected)


def test_gradient_of_kept_boxes_is_finite_on_padding():
  def kept_sum(boxes, scores):
    rows, classes, kept = nms_ops.classwise_nms(
      boxes, scores, jnp.zeros((3, 2), bool), 0.5, 4
    )
    kept_boxes = jnp.where(kept[:, None], boxes[rows, classes], 0.0)
    return jnp.sum(kept_boxes) + jnp.sum(scores[rows, classes], where=kept)

  gradients = jax.grad(kept_sum, (0, 1))(jnp.zeros((3, 2, 4)), jnp.ones((3, 2)))
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0.0)


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match=r'^boxes '):
    nms_ops.classwise_nms(
      jnp.zeros((3, 4)), jnp.zeros((3, 2)), jnp.ones((3, 2), bool), 0.5, 2
    )
