"""Matching of boxes to instances, and balanced selection."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import matching

ONE = matching.MatchingOptions(low_quality_matches='one')
ALL = matching.MatchingOptions(low_quality_matches='all')
ROI = matching.MatchingOptions(
  positive_iou=0.5, negative_iou=0.5, positive_strict=True
)
EVERY_KIND = pytest.mark.parametrize('options', [ONE, ALL, ROI])


def random_boxes(seed, num, size=64.0):
  """Boxes on whole pixels, so that some IoUs are exactly equal."""
  rng = np.random.default_rng(seed)
  corners = rng.integers(0, size, (num, 2))
  sides = rng.integers(4, 28, (num, 2))
  return np.concatenate([corners, corners + sides], 1).astype(np.float32)


def slow_match(ious, options):
  """Labels and instances from a matrix `[instances, boxes]`, as defined."""
  best, indices = ious.max(axis=0), ious.argmax(axis=0)
  labels = np.where(best < options.negative_iou, 0, -1)
  labels[best > options.positive_iou] = 1
  if not options.positive_strict:
    labels[best == options.positive_iou] = 1
  for instance in reversed(range(len(ious))):
    row = ious[instance]
    if options.low_quality_matches == 'one':
      labels[row.argmax()] = 1
      indices[row.argmax()] = instance
    elif options.low_quality_matches == 'all':
      labels[row == row.max()] = 1
  return labels, indices


@functools.partial(jax.jit, static_argnums=3)
def run_match(boxes, instance_boxes, instance_valid, options):
  return matching.match(boxes, instance_boxes, instance_valid, options)


def match_one(boxes, instance_boxes, options, valid=None):
  boxes = jnp.array(boxes, jnp.float32)
  instance_boxes = jnp.array(instance_boxes, jnp.float32)
  if valid is None:
    valid = np.ones(len(instance_boxes), bool)
  return run_match(boxes, instance_boxes, valid, options)


def test_thresholds_by_hand():
  # IoU with [0, 0, 10, 10] is width / 10.
  boxes = [[0, 0, 10, width] for width in (8, 7, 5, 3, 2)]
  instance = [[0, 0, 10, 10]]
  options = matching.MatchingOptions()
  matches = match_one(boxes, instance, options)
  np.testing.assert_array_equal(matches.labels, [1, 1, -1, -1, 0])
  np.testing.assert_allclose(matches.ious, [0.8, 0.7, 0.5, 0.3, 0.2])
  assert matches.labels.dtype == matches.indices.dtype == jnp.int32


@pytest.mark.parametrize('strict, expected', [(True, -1), (False, 1)])
def test_strict_threshold_excludes_equality(strict, expected):
  options = matching.MatchingOptions(0.5, 0.5, positive_strict=strict)
  matches = match_one([[0, 0, 10, 5]], [[0, 0, 10, 10]], options)
  np.testing.assert_array_equal(matches.labels, [expected])


def test_first_of_equal_instances_wins():
  matches = match_one(
    [[0, 0, 4, 4]], [[9, 9, 12, 12]] + [[0, 0, 4, 4]] * 2, ROI
  )
  np.testing.assert_array_equal(matches.indices, [1])


def test_one_low_quality_match_by_hand():
  boxes = jnp.array(
    [
      [50.0, 50.0, 60.0, 60.0],
      [0.0, 0.0, 10.0, 4.0],
      [0.0, 0.0, 10.0, 4.0],
      [0.0, 0.0, 10.0, 1.0],
    ]
  )
  instances = jnp.array(
    [
      [0.0, 0.0, 10.0, 10.0],  # Best 0.4, of two boxes: the first one.
      [90.0, 90.0, 99.0, 99.0],  # Touches nothing: the very first box.
      [0.0, 0.0, 10.0, 11.0],  # Claims the box of the first instance.
      [0.0, 0.0, 10.0, 1.0],  # Is a box.
    ]
  )
  matches = run_match(boxes, instances, np.ones(4, bool), ONE)
  np.testing.assert_array_equal(matches.labels, [1, 1, -1, 1])
  np.testing.assert_array_equal(matches.indices, [1, 0, 0, 3])


def test_all_low_quality_matches_by_hand():
  boxes = [
    [0, 0, 10, 5],  # 0.5 of the first instance: positive, with its tie.
    [0, 5, 10, 10],  # The tie, but a quarter of it is another instance.
    [0, 0, 10, 4],  # 0.4: in between.
    [50, 50, 51, 51],  # Nothing.
  ]
  instances = [[0, 0, 10, 10], [0, 5, 10, 7]]
  matches = match_one(boxes, instances, ALL)
  np.testing.assert_array_equal(matches.labels, [1, 1, -1, 0])
  np.testing.assert_array_equal(matches.indices, [0, 0, 0, 0])
  # An instance that touches nothing matches nothing.
  far = match_one(boxes, [*instances, [90, 90, 95, 95]], ALL)
  np.testing.assert_array_equal(far.labels, matches.labels)
  np.testing.assert_array_equal(far.indices, matches.indices)


@EVERY_KIND
@pytest.mark.parametrize(
  'seed, num',
  # The last are so many that the instances do not fit into one part.
  [(0, 300), (1, 300), (2, 300), (3, 300_000)],
)
def test_match_follows_the_definition(seed, num, options):
  boxes, instances = random_boxes(seed, num), random_boxes(seed + 50, 9)
  ious = np.asarray(box_ops.pairwise_iou(instances, boxes))
  labels, indices = slow_match(ious, options)
  matches = match_one(boxes, instances, options)
  np.testing.assert_array_equal(matches.labels, labels)
  np.testing.assert_array_equal(matches.indices, indices)
  np.testing.assert_allclose(matches.ious, ious.max(axis=0), atol=1e-6)


def test_slow_match_is_torchvision_s():
  """The oracle above, on the matrix of which no boxes were recorded."""
  (path,) = golden_files.files('ops_boxcoder_matcher.npz', 'torchvision')
  recorded = golden_files.load(path)
  roi = matching.MatchingOptions(0.5, 0.5)
  cases = {'rpn_07_03_lowq': ALL, 'roi_05_05': roi}
  for name, options in cases.items():
    labels, indices = slow_match(recorded['matcher_ties/iou'], options)
    marks = np.where(labels == 1, indices, np.where(labels == 0, -1, -2))
    np.testing.assert_array_equal(marks, recorded[f'matcher_ties/{name}'])


@pytest.mark.parametrize('num_valid', [0, 1, 7, 9])
def test_overlaps_on_accelerators_are_those_on_a_cpu(num_valid):
  boxes, instances = random_boxes(3, 300), random_boxes(4, 9)
  instances[5] = instances[2]  # Ties on both axes.
  boxes[200:] = boxes[:100]
  valid = np.arange(9) < num_valid
  arguments = boxes, jnp.array(instances), valid
  at_once = jax.jit(matching._overlaps_at_once)(*arguments)
  in_parts = jax.jit(matching._overlaps_in_parts)(*arguments)
  jax.tree.map(np.testing.assert_array_equal, at_once, in_parts)


@EVERY_KIND
def test_padded_instances_match_nothing(options):
  boxes, instances = random_boxes(5, 300), random_boxes(6, 9)
  expected = match_one(boxes, instances, options)
  for padding in (np.zeros((3, 4)), boxes[:3]):
    padded = np.concatenate([instances, padding])
    actual = match_one(boxes, padded, options, np.arange(12) < 9)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@EVERY_KIND
def test_without_instances_all_is_negative(options):
  matches = match_one(
    random_boxes(9, 300), np.zeros((9, 4)), options, np.zeros(9, bool)
  )
  np.testing.assert_array_equal(matches.labels, 0)
  np.testing.assert_array_equal(matches.indices, 0)
  np.testing.assert_array_equal(matches.ious, 0.0)


def test_match_under_jit_and_vmap():
  boxes = random_boxes(10, 60)
  instances = np.stack([random_boxes(seed, 5) for seed in (11, 12)])
  valid = np.array([[True] * 5, [True, True, False, False, False]])

  def run(instance_boxes, instance_valid):
    return matching.match(boxes, instance_boxes, instance_valid, ONE)

  mapped = jax.jit(jax.vmap(run))(instances, valid)
  for image in range(2):
    alone = run(instances[image], valid[image])
    np.testing.assert_array_equal(mapped.labels[image], alone.labels)
    np.testing.assert_array_equal(mapped.indices[image], alone.indices)


def test_no_gradient_flows_through_matches():
  def total(boxes, instances):
    return jnp.sum(match_one(boxes, instances, ROI).ious)

  boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
  gradients = jax.grad(total, (0, 1))(boxes, boxes + 1.0)
  jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0.0), gradients)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match=r"^low_quality_matches .*'ties'"):
    matching.MatchingOptions(low_quality_matches='ties')
  with pytest.raises(ValueError, match=r'^instance_boxes .*\(0, 4\)'):
    match_one(np.zeros((3, 4)), np.zeros((0, 4)), ROI)


def select(positive, negative, priorities, num, max_positive):
  return tuple(
    np.flatnonzero(chosen).tolist()
    for chosen in matching.select_balanced(
      np.array(positive, bool),
      np.array(negative, bool),
      np.array(priorities, np.float32),
      num,
      max_positive,
    )
  )


def test_selection_by_hand():
  positive = [1, 0, 1, 0, 1, 0, 0]
  negative = [0, 1, 0, 1, 0, 1, 0]
  priorities = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9]
  chosen = select(positive, negative, priorities, 4, 2)
  assert chosen == ([2, 4], [3, 5])
  # Too few positives: negatives fill up; too few of both: all of them.
  assert select(positive, negative, priorities, 5, 1) == ([4], [1, 3, 5])
  assert select(positive, negative, priorities, 7, 7) == ([0, 2, 4], [1, 3, 5])
  assert select(positive, negative, priorities, 2, 7) == ([2, 4], [])
  assert select(positive, negative, [0.5] * 7, 3, 2) == ([0, 2], [1])


@pytest.mark.parametrize('share', [0.0, 0.01, 0.5])
def test_selection_counts_and_takes_the_highest(share):
  rng = np.random.default_rng(0)
  positive = rng.uniform(size=1000) < share
  negative = ~positive & (rng.uniform(size=1000) < 0.5)
  # Few different priorities: thresholds alone would select too many.
  priorities = rng.integers(0, 8, 1000).astype(np.float32)
  chosen = select(positive, negative, priorities, 256, 128)
  num_positive = min(128, positive.sum())
  expected = [
    sorted(np.flatnonzero(candidates), key=lambda i: (-priorities[i], i))[:num]
    for candidates, num in (
      (positive, num_positive),
      (negative, 256 - num_positive),
    )
  ]
  assert [sorted(indices) for indices in expected] == list(chosen)


def test_selection_ignores_rows_that_are_no_candidates():
  positive, negative = [1, 0, 0, 1], [0, 1, 1, 0]
  priorities = [0.3, 0.1, 0.2, 0.4]
  expected = select(positive, negative, priorities, 2, 1)
  padding = [0] * 5
  padded = select(
    positive + padding, negative + padding, priorities + [9.0] * 5, 2, 1
  )
  assert padded == expected
  assert select(padding, padding, padding, 2, 1) == ([], [])


def test_selection_under_jit_and_vmap():
  rng = np.random.default_rng(1)
  positive = rng.uniform(size=(3, 40)) < 0.3
  priorities = rng.uniform(size=(3, 40)).astype(np.float32)
  run = functools.partial(matching.select_balanced, num=16, max_positive=4)
  mapped = jax.jit(jax.vmap(run))(positive, ~positive, priorities)
  for image in range(3):
    alone = run(positive[image], ~positive[image], priorities[image])
    np.testing.assert_array_equal(mapped[0][image], alone[0])
    np.testing.assert_array_equal(mapped[1][image], alone[1])
