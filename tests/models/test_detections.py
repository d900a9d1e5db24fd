"""Detections from the outputs of the box head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_boxes

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.detections import DetectionOptions, select_detections
from maskrcnn_jax.models.heads import BoxOutputs
from maskrcnn_jax.structures import Proposals

NUM_CLASSES = 4
IMAGE_SIZES = np.float32([[60, 50], [64, 64]])
WEIGHTS = (10.0, 10.0, 5.0, 5.0)

run = jax.jit(
  select_detections, static_argnames=('options', 'weights', 'plus_one')
)


def random_case(seed=0, batch=2, num=20):
  """Box outputs and proposals, of which some are not valid."""
  rng = np.random.default_rng(seed)
  boxes = slow_boxes.random_boxes(
    rng, batch, num, corners=(0, 40), sides=(8, 30)
  )
  valid = rng.uniform(size=(batch, num)) < 0.8
  boxes = np.where(valid[..., None], boxes, np.float32(0.0))
  logits = 2 * rng.normal(size=(batch, num, NUM_CLASSES))
  deltas = rng.normal(size=(batch, num, NUM_CLASSES, 4))
  outputs = BoxOutputs(np.float32(logits), np.float32(deltas))
  scores = np.ones((batch, num), np.float32)
  return outputs, Proposals(boxes, scores, valid)


def slow_select(outputs, proposals, options, plus_one, image):
  """[(score, row, class, box)] of an image, from the definition."""
  logits = outputs.class_logits[image].astype(np.float64)
  odds = np.exp(logits)
  scores = odds / odds.sum(axis=-1, keepdims=True)
  size = IMAGE_SIZES[image].astype(np.float64)
  found, candidates = [], []
  for label in range(1, NUM_CLASSES):
    boxes, valid = [], []
    for row, proposal in enumerate(proposals.boxes[image]):
      deltas = outputs.box_deltas[image, row, label]
      box = slow_boxes.decode(deltas, proposal, WEIGHTS, plus_one)
      boxes.append(slow_boxes.clip(box, size, plus_one))
      is_large = options.min_size == 0 or slow_boxes.is_large(
        boxes[-1], options.min_size, size, plus_one
      )
      counts = scores[row, label] > options.score_threshold and is_large
      valid.append(proposals.valid[image, row] and counts)
    rows = [(scores[r, label], r, label, box) for r, box in enumerate(boxes)]
    candidates += [*zip(rows, valid)]
    threshold = options.iou_threshold if options.nms == 'class' else 0.8
    kept = slow_boxes.greedy_nms(
      np.array(boxes), scores[:, label], valid, threshold
    )
    found += [rows[row] for row in kept]
  if options.nms == 'all':
    rows, valid = zip(*candidates)
    boxes, of_rows = (np.array([x[i] for x in rows]) for i in (3, 0))
    kept = slow_boxes.greedy_nms(boxes, of_rows, valid, options.iou_threshold)
    found = [rows[index] for index in kept]
  return sorted(found, key=lambda x: -x[0])[: options.num_outputs]


@pytest.mark.parametrize(
  'options, plus_one',
  [
    (DetectionOptions(max_detections=25), True),
    (DetectionOptions(25, 0.3, 0.4, min_size=14.0), True),
    (DetectionOptions(80, 0.05, 0.5, min_size=1e-2), False),
    (DetectionOptions(25, 0.05, nms='all'), True),
    (DetectionOptions(5, 0.05, 0.3, nms='all'), False),
    (DetectionOptions(4, 0.05, 0.3, nms='mask'), True),
  ],
)
def test_detections_match_the_definition(options, plus_one):
  outputs, proposals = random_case()
  detections = run(outputs, proposals, IMAGE_SIZES, options, WEIGHTS, plus_one)
  assert detections.masks is None
  assert detections.classes.dtype == jnp.int32
  for image in range(2):
    expected = slow_select(outputs, proposals, options, plus_one, image)
    count = len(expected)
    np.testing.assert_array_equal(
      detections.valid[image], np.arange(options.num_outputs) < count
    )
    scores, _, classes, boxes = map(np.array, zip(*expected))
    found = detections.image(image)
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes, rtol=0, atol=1e-4)
    for rest in (detections.boxes, detections.scores, detections.classes):
      assert not np.any(rest[image, count:])


def test_one_box_by_hand():
  # Class 2 moves the proposal down by a tenth of its height of 20 (+1).
  proposals = Proposals(
    np.float32([[[10, 10, 29, 39]]]), np.ones((1, 1)), np.ones((1, 1), bool)
  )
  deltas = np.zeros((1, 1, 3, 4), np.float32)
  deltas[..., 2, 0] = 1.0
  logits = np.log(np.float32([[[0.1, 0.2, 0.7]]]))
  detections = select_detections(
    BoxOutputs(logits, deltas),
    proposals,
    IMAGE_SIZES[1:],
    DetectionOptions(max_detections=3),
  )
  np.testing.assert_array_equal(detections.classes, [[2, 1, 0]])
  np.testing.assert_array_equal(detections.valid, [[True, True, False]])
  np.testing.assert_allclose(detections.scores, [[0.7, 0.2, 0.0]], atol=1e-6)
  expected = [[12, 10, 31, 39], [10, 10, 29, 39], [0, 0, 0, 0]]
  np.testing.assert_allclose(detections.boxes[0], expected, atol=1e-5)


@pytest.mark.parametrize(
  'field, value',
  [
    ('nms', 'box'),
    ('max_detections', 0),
    ('score_threshold', 1.5),
    ('iou_threshold', -0.1),
  ],
)
def test_invalid_options(field, value):
  with pytest.raises(UserError) as error:
    DetectionOptions(**{field: value})
  assert error.value.argument == f'model.detections.{field}'
  assert error.value.given == value


def test_padding_changes_nothing():
  outputs, proposals = random_case()
  options = DetectionOptions(max_detections=25)
  expected = run(outputs, proposals, IMAGE_SIZES, options)

  outputs, proposals = jax.tree.map(
    lambda x: np.concatenate([x, np.zeros_like(x[:, :5])], axis=1),
    (outputs, proposals),
  )
  # Padding that would win if it took part.
  outputs.class_logits[:, 20:, 1] = 50.0
  actual = run(outputs, proposals, IMAGE_SIZES, options)
  for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(x, y, rtol=1e-6)


def test_padding_alone_gives_nothing_with_finite_gradients():
  outputs, proposals = random_case()
  proposals = jax.tree.map(np.zeros_like, proposals)

  def total(outputs):
    detections = select_detections(
      outputs, proposals, IMAGE_SIZES, DetectionOptions(max_detections=7)
    )
    return jnp.sum(detections.scores) + jnp.sum(detections.boxes), detections

  gradients, detections = jax.jit(jax.grad(total, has_aux=True))(outputs)
  for array in jax.tree.leaves(detections):
    assert not np.any(array)
  for gradient in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(gradient, 0.0)
