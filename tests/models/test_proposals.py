"""Proposals from the outputs of the region proposal network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_boxes

from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models.heads import RPNOutputs
from maskrcnn_jax.models.proposals import ProposalOptions, propose

NUM_ANCHORS = {2: 40, 3: 12}
IMAGE_SIZES = np.float32([[60, 50], [64, 64]])


def random_outputs(seed=0, batch=2):
  """Outputs and anchors of two small levels; many boxes overlap."""
  rng = np.random.default_rng(seed)
  logits, deltas, anchors = {}, {}, {}
  for level, num in NUM_ANCHORS.items():
    anchors[level] = slow_boxes.random_boxes(rng, num, corners=(-10, 50))
    logits[level] = rng.normal(size=(batch, num)).astype(np.float32)
    deltas[level] = 0.2 * rng.normal(size=(batch, num, 4)).astype(np.float32)
  return RPNOutputs(logits, deltas), anchors


run = jax.jit(propose, static_argnames=('options', 'plus_one'))


def slow_propose(outputs, anchors, image_sizes, options, plus_one, image):
  """(boxes, logits) of an image, from the definition."""
  size = image_sizes[image].astype(np.float64)
  found = []
  for level in sorted(anchors):
    logits = outputs.objectness_logits[level][image]
    best = np.argsort(-logits, kind='stable')[: options.pre_nms_top_k]
    boxes, valid = [], []
    for row in best:
      deltas = outputs.box_deltas[level][image, row]
      box = slow_boxes.decode(deltas, anchors[level][row], (1,) * 4, plus_one)
      box = slow_boxes.clip(box, size, plus_one)
      boxes.append(box)
      valid.append(
        options.min_size == 0
        or slow_boxes.is_large(box, options.min_size, size, plus_one)
      )
    rows = np.flatnonzero(valid)
    if options.iou_threshold is not None:
      rows = slow_boxes.greedy_nms(
        np.array(boxes), logits[best], valid, options.iou_threshold
      )
    found += [(logits[best[row]], boxes[row]) for row in rows]
  found = sorted(found, key=lambda x: -x[0])[: options.post_nms_top_k]
  return np.array([box for _, box in found]), np.array([x for x, _ in found])


@pytest.mark.parametrize(
  'options, plus_one',
  [
    (ProposalOptions(30, 25, 0.5), True),
    (ProposalOptions(30, 25, 0.5, min_size=12.0), True),
    (ProposalOptions(30, 60, 0.7, min_size=12.0), False),
    (ProposalOptions(10, 15, None), True),
    (ProposalOptions(None, 15, 0.3), False),
  ],
)
def test_proposals_match_the_definition(options, plus_one):
  outputs, anchors = random_outputs()
  proposals = run(outputs, anchors, IMAGE_SIZES, options, plus_one)
  num_outputs = proposals.valid.shape[1]
  assert num_outputs == min(options.post_nms_top_k, 42)
  for image in range(2):
    boxes, logits = slow_propose(
      outputs, anchors, IMAGE_SIZES, options, plus_one, image
    )
    count = len(boxes)
    np.testing.assert_array_equal(
      proposals.valid[image], np.arange(num_outputs) < count
    )
    found = jax.tree.map(lambda x, i=image: np.asarray(x[i]), proposals)
    np.testing.assert_allclose(found.boxes[:count], boxes, rtol=0, atol=1e-4)
    scores = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found.scores[:count], scores, rtol=1e-5)
    assert not np.any(found.boxes[count:]) and not np.any(found.scores[count:])


def test_nms_is_within_a_level():
  # The same box on two levels, twice on the first.
  box = np.float32([[10, 10, 30, 30]])
  anchors = {2: np.concatenate([box, box]), 3: box}
  outputs = RPNOutputs(
    {2: jnp.float32([[2.0, 1.0]]), 3: jnp.float32([[3.0]])},
    {2: jnp.zeros((1, 2, 4)), 3: jnp.zeros((1, 1, 4))},
  )
  proposals = run(outputs, anchors, IMAGE_SIZES[:1], ProposalOptions(2, 3))
  np.testing.assert_array_equal(proposals.valid, [[True, True, False]])
  expected = jax.nn.sigmoid(jnp.float32([3.0, 2.0]))
  np.testing.assert_allclose(proposals.scores[0, :2], expected)
  np.testing.assert_allclose(proposals.boxes[0, :2], np.repeat(box, 2, axis=0))


def test_levels_and_images_share_a_loop():
  outputs, anchors = random_outputs()
  traced = run.trace(outputs, anchors, IMAGE_SIZES, ProposalOptions(30, 25))
  assert traced.lower().as_text().count('stablehlo.while') == 1


def test_an_image_does_not_change_another():
  outputs, anchors = random_outputs()
  options = ProposalOptions(30, 25, 0.5)
  expected = run(outputs, anchors, IMAGE_SIZES, options, True)
  swapped = jax.tree.map(lambda x: x[::-1], outputs)
  actual = run(swapped, anchors, IMAGE_SIZES[::-1], options, True)
  for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(x[::-1], y)


def test_no_gradient_passes_and_large_outputs_are_finite():
  outputs, anchors = random_outputs()
  outputs = jax.tree.map(lambda x: 1e4 * x, outputs)

  def total(outputs):
    proposals = propose(outputs, anchors, IMAGE_SIZES, ProposalOptions(9, 9))
    return jnp.sum(proposals.boxes) + jnp.sum(proposals.scores), proposals

  gradients, proposals = jax.jit(jax.grad(total, has_aux=True))(outputs)
  for gradient in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(gradient, 0.0)
  assert np.all(np.isfinite(proposals.boxes))
  assert np.all(proposals.boxes >= 0)
  assert np.all(proposals.boxes[0, :, 2:] <= IMAGE_SIZES[0] - 1)


@pytest.mark.parametrize(
  'box, min_size, plus_one, expected',
  [
    ([0, 0, 15, 15], 16.0, True, True),
    ([0, 0, 15, 14], 16.0, True, False),
    ([0, 0, 15, 15], 16.0, False, False),
    ([0, 0, 16, 16], 16.0, False, True),
    ([4, 4, 4, 4], 0.1, True, True),  # At least a pixel, whatever is asked.
    ([4, 4, 3.5, 4], 0.1, True, False),
    ([59, 10, 60, 20], 1.0, True, False),  # The centre lies on the border.
    ([59, 10, 60, 20], 1.0, False, True),
  ],
)
def test_small_boxes_by_hand(box, min_size, plus_one, expected):
  actual = proposals_lib.is_large(
    jnp.float32([[box]]), min_size, IMAGE_SIZES[:1], plus_one
  )
  np.testing.assert_array_equal(actual, [[expected]])


def test_rows_are_taken_per_image():
  x = np.arange(24).reshape(2, 3, 4)
  indices = np.array([[2, 0], [1, 1]])
  expected = np.stack([x[0, [2, 0]], x[1, [1, 1]]])
  take_rows = functools.partial(proposals_lib.take_rows, indices=indices)
  np.testing.assert_array_equal(take_rows(x), expected)
  np.testing.assert_array_equal(take_rows(x[..., 0]), expected[..., 0])
