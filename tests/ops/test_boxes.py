"""Areas, IoU, clipping and coding of boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import boxes as box_ops


def random_boxes(seed, shape, size=100.0):
  """Proper boxes `[*shape, 4]` within a square image."""
  rng = np.random.default_rng(seed)
  corners = np.sort(rng.uniform(0, size, (*shape, 2, 2)), axis=-2)
  return corners.reshape(*shape, 4).astype(np.float32)


def slow_iou(box, other):
  height = min(box[2], other[2]) - max(box[0], other[0])
  width = min(box[3], other[3]) - max(box[1], other[1])
  if height <= 0 or width <= 0:
    return 0.0
  both = (box[2] - box[0]) * (box[3] - box[1])
  both += (other[2] - other[0]) * (other[3] - other[1])
  return height * width / (both - height * width)


@pytest.mark.parametrize(
  'box, expected',
  [
    ([1, 2, 4, 8], 18.0),
    ([0, 0, 0, 0], 0.0),
    ([4, 4, 2, 2], 0.0),  # Both corners on the wrong side: still empty.
  ],
)
def test_area_by_hand(box, expected):
  assert box_ops.area(jnp.array(box, jnp.float32)) == expected


@pytest.mark.parametrize(
  'other, expected',
  [
    ([0, 0, 4, 4], 1.0),  # Itself.
    ([0, 2, 4, 6], 1.0 / 3),  # Half overlapping.
    ([1, 1, 3, 3], 0.25),  # Inside.
    ([4, 0, 8, 4], 0.0),  # Touching edges share no area.
    ([2, 2, 2, 4], 0.0),  # No height.
    ([0, 0, 0, 0], 0.0),  # Padding.
  ],
)
def test_iou_by_hand(other, expected):
  boxes = jnp.array([[0, 0, 4, 4]], jnp.float32)
  others = jnp.array([other], jnp.float32)
  iou = box_ops.pairwise_iou(boxes, others)
  np.testing.assert_allclose(iou, [[expected]], rtol=1e-6)


def test_iou_matches_the_definition():
  boxes, others = random_boxes(0, (13,)), random_boxes(1, (7,))
  expected = [[slow_iou(box, other) for other in others] for box in boxes]
  iou = box_ops.pairwise_iou(boxes, others)
  np.testing.assert_allclose(iou, expected, rtol=1e-5, atol=1e-6)


def test_iou_is_symmetric_and_ignores_a_common_shift():
  boxes, others = random_boxes(2, (9,)), random_boxes(3, (9,))
  iou = box_ops.pairwise_iou(boxes, others)
  swapped = box_ops.pairwise_iou(others, boxes)
  shifted = box_ops.pairwise_iou(boxes + 32.0, others + 32.0)
  np.testing.assert_allclose(iou, swapped.T, atol=1e-6)
  np.testing.assert_allclose(iou, shifted, atol=1e-5)


def test_iou_under_jit_and_vmap():
  boxes, others = random_boxes(4, (2, 5)), random_boxes(5, (2, 6))
  expected = box_ops.pairwise_iou(boxes, others)
  assert expected.shape == (2, 5, 6)
  mapped = jax.jit(jax.vmap(box_ops.pairwise_iou))(boxes, others)
  np.testing.assert_allclose(mapped, expected, atol=1e-6)


def test_iou_gradient_is_finite_on_padding():
  padding = jnp.zeros((3, 4))
  gradient = jax.grad(lambda x: jnp.sum(box_ops.pairwise_iou(x, padding)))
  assert np.all(np.isfinite(gradient(padding)))
  assert np.all(np.isfinite(gradient(jnp.ones((3, 4)))))


@pytest.mark.parametrize('plus_one, bottom', [(False, 30.0), (True, 29.0)])
def test_clip_by_hand(plus_one, bottom):
  boxes = jnp.array([[-5.0, 3.0, 50.0, 12.0], [60.0, 60.0, 70.0, 70.0]])
  clipped = box_ops.clip(boxes, jnp.array([30.0, 40.0]), plus_one)
  right = bottom + 10
  expected = [[0, 3, bottom, 12], [bottom, right, bottom, right]]
  np.testing.assert_array_equal(clipped, expected)


def test_clip_takes_the_size_of_each_image():
  boxes = random_boxes(6, (2, 5), size=200.0)
  sizes = np.array([[50.0, 60.0], [180.0, 20.0]], np.float32)
  clipped = box_ops.clip(boxes, sizes)
  for image in range(2):
    alone = box_ops.clip(boxes[image], sizes[image])
    np.testing.assert_array_equal(clipped[image], alone)
    np.testing.assert_array_equal(
      alone, np.clip(boxes[image], 0, np.tile(sizes[image], 2))
    )


def test_clip_of_a_padded_image_is_zero():
  clipped = box_ops.clip(jnp.ones((2, 4)), jnp.zeros(2), plus_one=True)
  np.testing.assert_array_equal(clipped, 0.0)


@pytest.mark.parametrize(
  'weights, plus_one, expected',
  [
    ((1, 1, 1, 1), False, [5 / 9, 0.0, np.log(19 / 9), 0.0]),
    ((10, 10, 5, 5), True, [5.0, 0.0, 5 * np.log(2), 0.0]),
  ],
)
def test_coding_by_hand(weights, plus_one, expected):
  anchor = jnp.array([0.0, 0.0, 9.0, 9.0])
  box = jnp.array([0.0, 0.0, 19.0, 9.0])
  deltas = box_ops.encode(box, anchor, weights, plus_one)
  np.testing.assert_allclose(deltas, expected, atol=1e-6)
  decoded = box_ops.decode(deltas, anchor, weights, plus_one)
  np.testing.assert_allclose(decoded, box, atol=1e-5)


@pytest.mark.parametrize('plus_one', [False, True])
def test_decode_undoes_encode(plus_one):
  anchors = random_boxes(7, (50,)) + np.array([0, 0, 4, 4], np.float32)
  boxes = random_boxes(8, (50,)) + np.array([0, 0, 4, 4], np.float32)
  weights = (10.0, 10.0, 5.0, 5.0)
  deltas = box_ops.encode(boxes, anchors, weights, plus_one)
  decoded = box_ops.decode(deltas, anchors, weights, plus_one)
  np.testing.assert_allclose(decoded, boxes, atol=1e-3)
  decoded = box_ops.decode(0 * deltas, anchors, weights, plus_one)
  np.testing.assert_allclose(decoded, anchors, atol=1e-4)


def test_decode_limits_growth():
  anchor = jnp.array([0.0, 0.0, 16.0, 16.0])
  decoded = box_ops.decode(jnp.array([0.0, 0.0, 50.0, 1.0]), anchor)
  np.testing.assert_allclose(decoded[2] - decoded[0], 1000.0, rtol=1e-5)
  np.testing.assert_allclose(decoded[3] - decoded[1], 16 * np.e, rtol=1e-5)


def test_coding_broadcasts_anchors_over_classes():
  anchors, deltas = random_boxes(10, (3, 1)), np.full((3, 5, 4), 0.1)
  decoded = box_ops.decode(deltas.astype(np.float32), anchors)
  assert decoded.shape == (3, 5, 4)
  np.testing.assert_array_equal(decoded[:, :1], decoded[:, 4:])


@pytest.mark.parametrize('plus_one', [False, True])
def test_coding_is_finite_on_padding(plus_one):
  padding, boxes = jnp.zeros((2, 4)), jnp.array(random_boxes(11, (2,)))
  inverted = boxes[:, jnp.array([2, 3, 0, 1])]
  for coding in (box_ops.encode, box_ops.decode):
    for first in (padding, boxes, inverted):
      for second in (padding, boxes, inverted):
        value, gradients = jax.value_and_grad(
          lambda *x, coding=coding: jnp.sum(coding(*x, plus_one=plus_one)),
          argnums=(0, 1),
        )(first, second)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradients))


def test_padding_changes_no_other_row():
  anchors, boxes = random_boxes(12, (4,)), random_boxes(13, (4,))
  pad = ((0, 3), (0, 0))
  more_anchors, more_boxes = np.pad(anchors, pad), np.pad(boxes, pad)
  for coding in (box_ops.encode, box_ops.decode):
    padded = coding(more_boxes, more_anchors)
    np.testing.assert_allclose(padded[:4], coding(boxes, anchors), rtol=1e-6)
  padded = box_ops.pairwise_iou(more_boxes, more_anchors)
  expected = np.pad(box_ops.pairwise_iou(boxes, anchors), ((0, 3), (0, 3)))
  np.testing.assert_allclose(padded, expected, atol=1e-6)


def test_errors_name_the_argument():
  good, bad = jnp.zeros((2, 4)), jnp.zeros((2, 5))
  for name, function, *arguments in (
    ('others', box_ops.pairwise_iou, good, bad),
    ('anchors', box_ops.encode, good, bad),
    ('deltas', box_ops.decode, bad, good),
    ('image_sizes', box_ops.clip, good, jnp.zeros(3)),
  ):
    with pytest.raises(ValueError, match=f'^{name} '):
      function(*arguments)
