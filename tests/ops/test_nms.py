"""Greedy non-maximum suppression: of one set of boxes, and within classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_boxes

from maskrcnn_jax.ops import nms as nms_ops

NUM = 128
run_nms = jax.jit(nms_ops.nms, static_argnums=(3, 4))
run_classwise = jax.jit(nms_ops.classwise_nms, static_argnums=(3, 4))


def one_class(boxes, scores, valid, iou_threshold, max_outputs):
  """`classwise_nms` with a single class, as `nms`."""
  arrays = (x[:, None] for x in (boxes, scores, valid))
  rows, _, kept = run_classwise(*arrays, iou_threshold, max_outputs)
  return rows, kept


BOTH = pytest.mark.parametrize(
  'nms', [run_nms, one_class], ids=['nms', 'classwise']
)


def crowded_boxes(seed, *shape):
  """Boxes that overlap a lot, with scores of which some are equal."""
  rng = np.random.default_rng(seed)
  boxes = slow_boxes.random_boxes(rng, *shape, corners=(0, 60), sides=(5, 40))
  scores = rng.integers(-5, 40, shape) / 8
  valid = rng.uniform(size=shape) < 0.8
  return boxes, scores.astype(np.float32), valid


def kept_rows(nms, boxes, scores, valid=None, iou_threshold=0.5):
  """Rows that are kept, best first; checks the padding behind them."""
  # One shape for all tests, so that little is compiled.
  pad = NUM - len(boxes)
  valid = np.ones(len(boxes), bool) if valid is None else valid
  boxes = np.pad(np.float32(boxes), ((0, pad), (0, 0)))
  scores, valid = np.pad(np.float32(scores), (0, pad)), np.pad(valid, (0, pad))
  rows, kept = nms(boxes, scores, valid, iou_threshold, NUM)
  count = int(np.sum(kept))
  np.testing.assert_array_equal(kept, np.arange(NUM) < count)
  assert not np.any(rows[count:])
  return rows[:count].tolist()


@BOTH
def test_chain_by_hand(nms):
  # Each overlaps the next by 7 / 13, and nothing else by more than 4 / 16: the
  # second is suppressed, so that it cannot suppress the third.
  boxes = [[0, x, 10, x + 10] for x in (0, 3, 6, 9)]
  scores = [0.9, 0.8, 0.7, 0.6]
  assert kept_rows(nms, boxes, scores) == [0, 2]
  assert kept_rows(nms, boxes, scores, None, 0.7) == [0, 1, 2, 3]
  assert kept_rows(nms, boxes, scores, np.arange(4) > 0) == [1, 3]


@BOTH
@pytest.mark.parametrize(
  'boxes, scores, expected',
  [
    # Of equal scores the lower index.
    ([[0, 0, 10, 10]] * 3, [0.5] * 3, [0]),
    # An IoU at the threshold does not suppress.
    ([[0, 0, 10, 10], [0, 0, 10, 5]], [0.9, 0.8], [0, 1]),
    # Boxes without area neither suppress nor are suppressed.
    ([[5, 5, 5, 9]] * 2 + [[0, 0, 10, 10]], [0.9, 0.8, 0.7], [0, 1, 2]),
  ],
)
def test_limits_by_hand(nms, boxes, scores, expected):
  assert kept_rows(nms, boxes, scores) == expected


@BOTH
@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('iou_threshold', [0.0, 0.3, 0.7])
def test_nms_matches_the_definition(nms, seed, iou_threshold):
  boxes, scores, valid = crowded_boxes(seed, 120)
  boxes[::3] = boxes[::3][:, [2, 1, 0, 3]]  # Corners in any order.
  boxes[1::3] = boxes[1::3][:, [2, 3, 0, 1]]
  expected = slow_boxes.greedy_nms(boxes, scores, valid, iou_threshold)
  assert kept_rows(nms, boxes, scores, valid, iou_threshold) == expected


def test_no_more_than_max_outputs_are_kept():
  boxes, scores, valid = crowded_boxes(4, NUM)
  expected = kept_rows(run_nms, boxes, scores, valid)
  rows, kept = run_nms(boxes, scores, valid, 0.5, 7)
  assert np.all(kept)
  assert rows.tolist() == expected[:7]
  # More outputs than boxes.
  rows, kept = run_nms(boxes, scores, valid, 0.5, NUM + 2)
  assert rows[: len(expected)].tolist() == expected
  assert np.sum(kept) == len(expected)


@BOTH
def test_kept_boxes_are_kept_again(nms):
  boxes, scores, _ = crowded_boxes(5, 100)
  kept = kept_rows(nms, boxes, scores, None, 0.3)
  again = kept_rows(nms, boxes[kept], scores[kept], None, 0.4)
  assert again == list(range(len(kept)))


@BOTH
def test_padding_changes_nothing(nms):
  boxes, scores, valid = crowded_boxes(6, 50)
  expected = kept_rows(nms, boxes, scores, valid)
  # Padding that would win and suppress if it took part.
  boxes = np.concatenate([boxes, np.tile([[0, 0, 99, 99]], (9, 1))])
  scores = np.concatenate([scores, np.full(9, 1e3)])
  valid = np.concatenate([valid, np.zeros(9, bool)])
  assert kept_rows(nms, boxes, scores, valid) == expected


@BOTH
def test_nothing_valid_gives_nothing(nms):
  boxes, scores, valid = crowded_boxes(7, 5)
  assert kept_rows(nms, boxes, scores, np.zeros_like(valid)) == []


def test_no_boxes_give_nothing():
  _, kept = nms_ops.nms(
    np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool), 0.5, 3
  )
  np.testing.assert_array_equal(kept, [False] * 3)


@pytest.mark.parametrize(
  'function, shape', [(nms_ops.nms, ()), (nms_ops.classwise_nms, (5,))]
)
def test_images_under_jit_and_vmap_are_those_alone(function, shape):
  images = [crowded_boxes(seed, 64, *shape) for seed in (8, 9, 10)]
  boxes, scores, valid = (np.stack(column) for column in zip(*images))
  valid[2] = False
  nms = functools.partial(function, iou_threshold=0.5, max_outputs=20)
  together = jax.jit(jax.vmap(nms))(boxes, scores, valid)
  assert together[0].dtype == jnp.int32 and together[-1].dtype == bool
  for image in range(3):
    alone = nms(boxes[image], scores[image], valid[image])
    for actual, expected in zip(together, alone):
      np.testing.assert_array_equal(actual[image], expected)


def test_many_boxes_are_suppressed_one_by_one(monkeypatch):
  boxes, scores, valid = crowded_boxes(11, 120)
  expected = nms_ops.nms(boxes, scores, valid, 0.5, 40)
  monkeypatch.setattr(nms_ops, '_MAX_MATRIX_SIDE', 100)
  actual = nms_ops.nms(boxes, scores, valid, 0.5, 40)
  assert np.sum(actual[1]) > 20
  np.testing.assert_array_equal(actual[0], expected[0])
  np.testing.assert_array_equal(actual[1], expected[1])


def sorted_groups(lengths):
  """Boxes of groups one after another, each sorted, and the rows kept."""
  groups = []
  for seed, length in enumerate(lengths):
    boxes, scores, valid = crowded_boxes(seed, length)
    order = np.argsort(-scores, kind='stable')
    groups.append((boxes[order], scores[order], valid[order]))
  starts = np.cumsum([0, *lengths])
  expected = [
    start + row
    for start, group in zip(starts, groups)
    for row in slow_boxes.greedy_nms(*group, 0.5)
  ]
  boxes, _, valid = (np.concatenate(x) for x in zip(*groups))
  return boxes, valid, np.sort(expected)


@pytest.mark.parametrize('largest', [16384, 40])
@pytest.mark.parametrize('lengths', [(70, 1, 64, 33), (20, 90), (64,)])
def test_groups_of_any_length(monkeypatch, lengths, largest):
  """Tiles that are full or not; groups too large for a matrix."""
  monkeypatch.setattr(nms_ops, '_TILE', 32)
  monkeypatch.setattr(nms_ops, '_MAX_MATRIX_SIDE', largest)
  boxes, valid, expected = sorted_groups(lengths)
  kept = jax.jit(
    lambda *x: nms_ops.keep_sorted(*x, 0.5, max(lengths), lengths)
  )(boxes, valid)
  np.testing.assert_array_equal(np.flatnonzero(kept), expected)


def test_a_chain_through_all_tiles(monkeypatch):
  """Every box overlaps the next, so that one round decides about one box."""
  monkeypatch.setattr(nms_ops, '_TILE', 32)
  x = 3.0 * np.arange(100)
  boxes = np.stack([0 * x, x, 0 * x + 10, x + 10], axis=-1).astype(np.float32)
  kept = jax.jit(nms_ops.keep_sorted, static_argnums=(2, 3))(
    boxes, np.ones(100, bool), 0.5, 100
  )
  np.testing.assert_array_equal(np.flatnonzero(kept), np.arange(0, 100, 2))


@pytest.mark.parametrize(
  'function, shape', [(nms_ops.nms, ()), (nms_ops.classwise_nms, (2,))]
)
def test_gradient_of_kept_boxes_is_finite_on_padding(function, shape):
  def kept_sum(boxes, scores):
    *indices, kept = function(
      boxes, scores, jnp.zeros((3, *shape), bool), 0.5, 4
    )
    kept_boxes = jnp.where(kept[:, None], boxes[*indices], 0.0)
    return jnp.sum(kept_boxes) + jnp.sum(scores[*indices], where=kept)

  gradients = jax.grad(kept_sum, (0, 1))(
    jnp.zeros((3, *shape, 4)), jnp.ones((3, *shape))
  )
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0.0)


def kept_pairs(boxes, scores, valid, iou_threshold=0.5, max_outputs=100):
  """(row, class) of the candidates kept; checks the padding behind them."""
  rows, classes, kept = map(
    np.asarray, run_classwise(boxes, scores, valid, iou_threshold, max_outputs)
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
  assert kept_pairs(boxes, scores, scores > 0) == [(0, 0), (1, 1)]


def test_equal_scores_keep_the_lower_row_then_the_lower_class():
  boxes = np.zeros((3, 2, 4), np.float32) + np.float32([0, 0, 10, 10])
  boxes += 20 * np.arange(3, dtype=np.float32)[:, None, None]
  scores = np.full((3, 2), 0.5, np.float32)
  expected = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
  assert kept_pairs(boxes, scores, scores > 0) == expected


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('iou_threshold, max_outputs', [(0.5, 40), (0.3, 400)])
def test_classes_match_the_definition(seed, iou_threshold, max_outputs):
  boxes, scores, valid = crowded_boxes(seed, 60, 5)
  kept = []
  for label in range(5):
    own = slow_boxes.greedy_nms(
      boxes[:, label], scores[:, label], valid[:, label], iou_threshold
    )
    kept += [(-scores[row, label], row, label) for row in own]
  expected = [(row, label) for _, row, label in sorted(kept)][:max_outputs]
  actual = kept_pairs(boxes, scores, valid, iou_threshold, max_outputs)
  assert actual == expected


def test_padding_changes_no_class():
  boxes, scores, valid = crowded_boxes(6, 60, 5)
  expected = kept_pairs(boxes, scores, valid)
  wall = np.broadcast_to(np.float32([0, 0, 99, 99]), (7, 5, 4))
  actual = kept_pairs(
    np.concatenate([boxes, wall]),
    np.concatenate([scores, np.full((7, 5), 9.0, np.float32)]),
    np.concatenate([valid, np.zeros((7, 5), bool)]),
  )
  assert actual == expected


def test_errors_name_the_argument():
  valid = jnp.ones(2, bool)
  with pytest.raises(ValueError, match=r'^boxes '):
    nms_ops.nms(jnp.zeros((2, 3, 4)), jnp.zeros(2), valid, 0.5, 2)
  with pytest.raises(ValueError, match='boxes, scores and valid'):
    nms_ops.nms(jnp.zeros((3, 4)), jnp.zeros(2), valid, 0.5, 2)
  with pytest.raises(ValueError, match=r'^boxes '):
    nms_ops.classwise_nms(jnp.zeros((3, 4)), jnp.zeros((3, 2)), valid, 0.5, 2)
