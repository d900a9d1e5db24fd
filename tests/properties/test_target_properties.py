"""Properties from the heads' outputs to the losses, on random cases.

The shapes are fixed, so that each family is compiled once. Every property is
checked with few examples, and with many in the long tests: their draws are the
same every time, and the few are of the same kinds.
"""

import hypothesis
import jax
import numpy as np
import pytest
import target_cases
from hypothesis import strategies as st

from maskrcnn_jax.ops import boxes as box_ops

TERMS = {'rpn_objectness', 'rpn_box', 'class', 'box', 'mask'}


@pytest.fixture(
  params=['few', pytest.param('many', marks=pytest.mark.long)],
)
def check(request):
  """Runs a property on random cases and values of further strategies."""
  profile = hypothesis.settings.get_profile(request.param)

  def run(holds, *strategies):
    profile(hypothesis.given(target_cases.cases(), *strategies)(holds))()

  return run


@pytest.fixture(params=target_cases.FAMILIES)
def family(request):
  return request.param


def joined(by_level):
  return np.concatenate([by_level[level] for level in sorted(by_level)], axis=1)


def test_everything_is_finite(family, check):
  def holds(case):
    found = target_cases.run(family, case)
    for path, value in jax.tree_util.tree_leaves_with_path(found):
      assert np.all(np.isfinite(value)), jax.tree_util.keystr(path)
    assert found['losses'].keys() == TERMS
    assert all(loss >= 0 for loss in found['losses'].values())

  check(holds)


def test_an_invalid_image_has_no_targets_and_no_gradient(family, check):
  def holds(case):
    case['valid'] = np.array([False, True])
    found = target_cases.run(family, case)
    assert np.all(joined(found['rpn'].labels)[0] == -1)
    for part in (found['rpn'].matched, found['rois'], found['gradients']):
      for value in jax.tree.leaves(part):
        assert not np.any(value[0])
    # Nor does it change the losses of the other one.
    other = dict(case)
    other['instances'] = jax.tree.map(
      lambda x: np.stack([np.zeros_like(x[0]), x[1]]), case['instances']
    )
    other['rpn'] = jax.tree.map(
      lambda x: np.stack([np.zeros_like(x[0]), x[1]]), case['rpn']
    )
    expected = target_cases.run(family, other)
    for term in TERMS:
      assert found['losses'][term] == expected['losses'][term], term

  check(holds)


def test_anchors_are_counted_exactly(family, check):
  model = target_cases.make_model(family)
  num = model.rpn_targets.num_samples
  share = int(num * model.rpn_targets.positive_fraction)

  def holds(case):
    found = target_cases.run(family, case)
    labels, matched = joined(found['rpn'].labels), joined(found['rpn'].matched)
    deltas = joined(found['rpn'].box_deltas)
    assert np.all(np.isin(labels, [-1, 0, 1]))
    assert not np.any(deltas[found['anchor_labels'] != 1])
    for row in np.flatnonzero(case['valid']):
      possible = found['anchor_labels'][row]
      np.testing.assert_array_equal(matched[row], possible == 1)
      sampled = labels[row] >= 0
      np.testing.assert_array_equal(
        labels[row][sampled], possible[sampled], 'Sampling changed a label.'
      )
      positive = min(np.sum(possible == 1), share)
      negative = min(np.sum(possible == 0), num - positive)
      assert np.sum(labels[row] == 1) == positive
      assert np.sum(labels[row] == 0) == negative
      if not np.any(case['instances'].valid[row]):
        assert positive == 0

  check(holds)


def test_proposals_lie_in_the_image_best_first(family, check):
  plus_one = target_cases.make_model(family).plus_one

  def holds(case):
    proposals = target_cases.run(family, case)['proposals']
    limits = np.maximum(case['image_sizes'] - plus_one, 0)
    limits = np.tile(limits, 2)[:, None]
    assert np.all((proposals.boxes >= 0) & (proposals.boxes <= limits))
    assert np.all((proposals.scores >= 0) & (proposals.scores <= 1))
    # Invalid ones come last and are zeros.
    assert np.all(np.diff(proposals.scores, axis=1) <= 0)
    assert np.all(np.diff(proposals.valid.astype(int), axis=1) <= 0)
    assert not np.any(proposals.boxes[~proposals.valid])
    assert not np.any(proposals.scores[~proposals.valid])

  check(holds)


def test_rois_are_counted_exactly(family, check):
  options = target_cases.make_model(family).sampling

  def holds(case):
    found = target_cases.run(family, case)
    rois, labels = found['rois'], found['candidate_labels']
    for row in range(target_cases.BATCH):
      possible = labels[row][found['candidate_valid'][row]]
      foreground = min(np.sum(possible == 1), options.num_foreground)
      background = min(np.sum(possible == 0), options.num_rois - foreground)
      filled = 0
      if options.fill_up:
        left = np.sum(possible != 0) - foreground
        filled = min(left, options.num_rois - foreground - background)
      assert np.sum(rois.valid[row]) == foreground + background + filled
      assert np.sum(rois.classes[row] > 0) == foreground + filled
    # Foreground, background, padding; and padding is zeros.
    rank = rois.valid.astype(int) + (rois.classes > 0)
    assert np.all(np.diff(rank, axis=1) <= 0)
    assert not np.any((rois.classes > 0) & ~rois.valid)
    for value in (rois.boxes, rois.classes, rois.instance_indices):
      assert not np.any(value[~rois.valid])

  check(holds)


def test_targets_are_in_their_ranges(family, check):
  model = target_cases.make_model(family)

  def holds(case):
    found = target_cases.run(family, case)
    rois, instances = found['rois'], case['instances']
    assert np.all((rois.classes >= 0) & (rois.classes < model.num_classes))
    foreground = rois.classes > 0
    indices = rois.instance_indices
    for row in range(target_cases.BATCH):
      own = indices[row][foreground[row]]
      assert np.all(instances.valid[row][own])
      np.testing.assert_array_equal(
        rois.classes[row][foreground[row]], instances.classes[row][own]
      )
      # In the image, unless it is the box of an instance.
      limits = np.tile(case['image_sizes'][row], 2)
      inside = np.all((rois.boxes[row] >= 0) & (rois.boxes[row] <= limits), -1)
      is_instance = np.any(
        np.all(rois.boxes[row][:, None] == instances.boxes[row], -1), -1
      )
      assert np.all(inside | is_instance)
    assert not np.any(found['box_deltas'][~foreground])
    masks = found['masks']
    assert np.all((masks >= 0) & (masks <= 1))
    if model.mask_threshold is not None:
      assert np.all((masks == 0) | (masks == 1))

  check(holds)


def test_padding_changes_nothing(family, check):
  """Values of invalid rows have no effect."""

  def holds(case, number):
    expected = target_cases.run(family, case)
    rng = np.random.default_rng(number)
    instances = case['instances']
    valid = instances.valid

    def fill(x):
      noise = rng.integers(0, target_cases.NUM_CLASSES, x.shape).astype(x.dtype)
      return np.where(
        valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, noise
      )

    filled = jax.tree.map(fill, instances).replace(valid=valid)
    found = target_cases.run(family, case | {'instances': filled})
    # Padded RoIs point to row 0.
    real = expected['rois'].first(expected['masks'].shape[1]).classes > 0
    for result in (found, expected):
      result['masks'] = np.where(real[..., None, None], result['masks'], 0)
      # Labels of invalid candidates.
      result['candidate_labels'] = np.where(
        result['candidate_valid'], result['candidate_labels'], 0
      )
    for (path, x), y in zip(
      jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected)
    ):
      np.testing.assert_array_equal(x, y, jax.tree_util.keystr(path))

  check(holds, st.integers(0, 2**32 - 1))


def test_order_of_the_instances_changes_nothing(family, check):
  """Nor does the position of padding among them."""

  def holds(case, number):
    expected = target_cases.run(family, case)
    rng = np.random.default_rng(number)
    orders = np.stack(
      [rng.permutation(target_cases.NUM_ROWS) for _ in range(2)]
    )
    other = target_cases.permuted(case, orders)
    found = target_cases.run(family, other)
    for name in ('labels', 'matched'):
      np.testing.assert_array_equal(
        joined(getattr(found['rpn'], name)),
        joined(getattr(expected['rpn'], name)),
        name,
      )
    for row in range(target_cases.BATCH):
      assert_same_deltas(family, case, found, expected, row)
      assert_same_rois(case, found, expected, orders[row], row)

  check(holds, st.integers(0, 2**32 - 1))


def ious_with_instances(case, row, boxes):
  """`[n, NUM_ROWS]`, -1 for padding."""
  ious = box_ops.pairwise_iou(boxes, case['instances'].boxes[row])
  return np.where(case['instances'].valid[row], np.asarray(ious), -1.0)


def assert_same_deltas(family, case, found, expected, row):
  """Deltas differ only where several instances match an anchor equally."""
  model = target_cases.make_model(family)
  anchors = model.anchor_boxes(target_cases.CANVAS)
  anchors = np.concatenate([anchors[level] for level in sorted(anchors)])
  ious = ious_with_instances(case, row, anchors)
  claims = ious >= ious.max(axis=1, keepdims=True) - 1e-6
  claims |= ious >= ious.max(axis=0) - 1e-6
  alone = np.sum(claims & (ious >= 0), axis=1) < 2
  deltas, other = (
    joined(result['rpn'].box_deltas)[row] for result in (found, expected)
  )
  np.testing.assert_array_equal(deltas[alone], other[alone])


def assert_same_rois(case, found, expected, order, row):
  """The same boxes are sampled, each with an instance of the same IoU."""
  rois, other = (
    jax.tree.map(lambda x: x[row], result['rois'])
    for result in (found, expected)
  )
  keys, other_keys = (np.lexsort(x.boxes.T) for x in (rois, other))
  for name in ('boxes', 'valid'):
    np.testing.assert_array_equal(
      getattr(rois, name)[keys], getattr(other, name)[other_keys], name
    )
  ious = ious_with_instances(case, row, rois.boxes)
  owners = order[rois.instance_indices]
  overlap = np.take_along_axis(ious, owners[:, None], axis=1)[:, 0]
  foreground = rois.classes > 0
  best = ious.max(axis=1)
  np.testing.assert_array_equal(overlap[foreground], best[foreground])
  assert np.sum(foreground) == np.sum(other.classes > 0)
