"""Greedy non-maximum suppression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import nms as nms_ops


def crowded_boxes(seed, num, spread=60.0):
  """Boxes that overlap a lot, with scores of which some are equal."""
  rng = np.random.default_rng(seed)
  corners = rng.uniform(0, spread, (num, 2))
  sides = rng.uniform(5, 40, (num, 2))
  boxes = np.concatenate([corners, corners + sides], axis=1)
  scores = rng.integers(-5, 40, num) / 8
  return boxes.astype(np.float32), scores.astype(np.float32)


def slow_nms(boxes, scores, valid, iou_threshold):
  """Greedy suppression from its definition, in float64."""
  boxes = boxes.astype(np.float64)
  low = np.minimum(boxes[:, :2], boxes[:, 2:])
  high = np.maximum(boxes[:, :2], boxes[:, 2:])
  kept = []
  for i in np.argsort(-scores, kind='stable'):
    if not valid[i]:
      continue
    for j in kept:
      sides = np.minimum(high[i], high[j]) - np.maximum(low[i], low[j])
      intersection = np.prod(np.maximum(sides, 0.0))
      union = np.prod(high[i] - low[i]) + np.prod(high[j] - low[j])
      if intersection > iou_threshold * (union - intersection):
        break
    else:
      kept.append(int(i))
  return kept


run_nms = jax.jit(nms_ops.nms, static_argnums=(3, 4))


def kept_indices(boxes, scores, valid, iou_threshold, max_outputs):
  # One shape for all tests, so that little is compiled.
  padding = 128 - len(boxes)
  boxes = np.pad(boxes, ((0, padding), (0, 0)))
  scores, valid = np.pad(scores, (0, padding)), np.pad(valid, (0, padding))
  indices, kept = run_nms(boxes, scores, valid, iou_threshold, 128)
  count = int(np.sum(kept))
  np.testing.assert_array_equal(kept, np.arange(128) < count)
  np.testing.assert_array_equal(indices[count:], 0)
  return np.asarray(indices)[:count].tolist()[:max_outputs]


def test_chain_by_hand():
  # Each overlaps the next by 7 / 13, and nothing else by more than 4 / 16: the
  # second is suppressed, so that it can not suppress the third.
  boxes = np.array([[0, x, 10, x + 10] for x in (0, 3, 6, 9)], np.float32)
  scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
  everything = np.ones(4, bool)
  assert kept_indices(boxes, scores, everything, 0.5, 4) == [0, 2]
  assert kept_indices(boxes, scores, everything, 0.7, 4) == [0, 1, 2, 3]
  without_first = np.array([False, True, True, True])
  assert kept_indices(boxes, scores, without_first, 0.5, 4) == [1, 3]


def test_equal_scores_keep_the_lower_index():
  boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (3, 1))
  scores = np.full(3, 0.5, np.float32)
  assert kept_indices(boxes, scores, np.ones(3, bool), 0.5, 3) == [0]


def test_iou_at_the_threshold_is_kept():
  boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
  scores = np.array([0.9, 0.8], np.float32)
  assert kept_indices(boxes, scores, np.ones(2, bool), 0.5, 2) == [0, 1]


def test_boxes_without_area_neither_suppress_nor_are_suppressed():
  line = [5, 5, 5, 9]
  boxes = np.array([line, line, [0, 0, 10, 10]], np.float32)
  scores = np.array([0.9, 0.8, 0.7], np.float32)
  assert kept_indices(boxes, scores, np.ones(3, bool), 0.5, 3) == [0, 1, 2]


def test_corners_come_in_any_order():
  boxes, scores = crowded_boxes(0, 40)
  inverted = boxes[:, [2, 3, 0, 1]]
  mixed = np.where(np.arange(40)[:, None] % 2, boxes, inverted)
  expected = kept_indices(boxes, scores, np.ones(40, bool), 0.3, 40)
  assert kept_indices(mixed, scores, np.ones(40, bool), 0.3, 40) == expected


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('iou_threshold', [0.0, 0.3, 0.7])
def test_nms_matches_the_definition(seed, iou_threshold):
  boxes, scores = crowded_boxes(seed, 120)
  valid = np.random.default_rng(seed).uniform(size=120) < 0.8
  expected = slow_nms(boxes, scores, valid, iou_threshold)
  actual = kept_indices(boxes, scores, valid, iou_threshold, 120)
  assert actual == expected


def test_no_more_than_max_outputs_are_kept():
  boxes, scores = crowded_boxes(4, 128)
  valid = np.ones(128, bool)
  expected = kept_indices(boxes, scores, valid, 0.5, 128)
  indices, kept = run_nms(boxes, scores, valid, 0.5, 7)
  assert np.all(kept)
  assert indices.tolist() == expected[:7]
  # More outputs than boxes.
  indices, kept = run_nms(boxes, scores, valid, 0.5, 130)
  assert indices[: len(expected)].tolist() == expected
  assert np.sum(kept) == len(expected)


def test_kept_boxes_are_kept_again():
  boxes, scores = crowded_boxes(5, 100)
  kept = kept_indices(boxes, scores, np.ones(100, bool), 0.3, 100)
  again = kept_indices(
    boxes[kept], scores[kept], np.ones(len(kept), bool), 0.4, 100
  )
  assert again == list(range(len(kept)))


def test_padding_changes_nothing():
  boxes, scores = crowded_boxes(6, 50)
  expected = kept_indices(boxes, scores, np.ones(50, bool), 0.5, 60)
  # Padding that would win and suppress if it took part.
  boxes = np.concatenate([boxes, np.tile([[0, 0, 99, 99]], (9, 1))])
  scores = np.concatenate([scores, np.full(9, 1e3)])
  valid = np.arange(59) < 50
  actual = kept_indices(
    boxes.astype(np.float32), scores.astype(np.float32), valid, 0.5, 60
  )
  assert actual == expected


def test_nothing_valid_gives_nothing():
  boxes, scores = crowded_boxes(7, 5)
  assert kept_indices(boxes, scores, np.zeros(5, bool), 0.5, 3) == []
  _, kept = nms_ops.nms(boxes[:0], scores[:0], np.zeros(0, bool), 0.5, 3)
  np.testing.assert_array_equal(kept, [False] * 3)


def test_nms_under_jit_and_vmap():
  rows = [crowded_boxes(seed, 64) for seed in (8, 9, 10)]
  boxes, scores = (np.stack(column) for column in zip(*rows))
  valid = np.arange(64)[None, :] < np.array([[64], [40], [0]])

  def nms(boxes, scores, valid):
    return nms_ops.nms(boxes, scores, valid, 0.5, max_outputs=20)

  indices, filled = jax.jit(jax.vmap(nms))(boxes, scores, valid)
  assert indices.dtype == jnp.int32
  for image in range(3):
    alone = nms(boxes[image], scores[image], valid[image])
    np.testing.assert_array_equal(indices[image], alone[0])
    np.testing.assert_array_equal(filled[image], alone[1])


def test_many_boxes_are_suppressed_one_by_one(monkeypatch):
  boxes, scores = crowded_boxes(11, 120)
  valid = np.arange(120) % 7 != 3
  expected = nms_ops.nms(boxes, scores, valid, 0.5, 40)
  monkeypatch.setattr(nms_ops, '_MAX_MATRIX_SIDE', 100)
  actual = nms_ops.nms(boxes, scores, valid, 0.5, 40)
  assert np.sum(actual[1]) > 20
  np.testing.assert_array_equal(actual[0], expected[0])
  np.testing.assert_array_equal(actual[1], expected[1])


def test_gradient_of_kept_boxes_is_finite():
  def kept_sum(boxes):
    indices, valid = nms_ops.nms(boxes, jnp.ones(3), jnp.zeros(3, bool), 0.5, 3)
    return jnp.sum(boxes[indices] * valid[:, None])

  np.testing.assert_array_equal(jax.grad(kept_sum)(jnp.zeros((3, 4))), 0.0)


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match=r'^boxes '):
    nms_ops.nms(jnp.zeros((2, 3, 4)), jnp.zeros(2), jnp.ones(2, bool), 0.5, 2)
  with pytest.raises(ValueError, match='boxes, scores and valid'):
    nms_ops.nms(jnp.zeros((3, 4)), jnp.zeros(2), jnp.ones(3, bool), 0.5, 2)
