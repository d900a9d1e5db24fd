"""Training targets of the heads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_boxes import random_boxes

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.targets import RPNTargetOptions, SamplingOptions
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops.matching import MatchingOptions
from maskrcnn_jax.structures import Instances, Proposals, SampledRois

RPN = RPNTargetOptions(
  MatchingOptions(low_quality_matches='one'), num_samples=24
)
SAMPLING = SamplingOptions(num_rois=16, foreground_fraction=0.25)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)

run_rpn_targets = jax.jit(targets_lib.rpn_targets, static_argnames='options')
run_sample = jax.jit(targets_lib.sample_rois, static_argnames='options')


def make_instances(seed=0, counts=(3, 2), num=4):
  rng = np.random.default_rng(seed)
  valid = np.arange(num) < np.array(counts)[:, None]
  shape = valid.shape
  masks = rng.integers(0, 256, (*shape, 8, 8))
  return Instances(
    boxes=np.where(valid[..., None], random_boxes(rng, *shape), 0.0),
    classes=np.where(valid, rng.integers(1, 9, shape), 0).astype(np.int32),
    masks=np.where(valid[..., None, None], masks, 0).astype(np.uint8),
    valid=valid,
  )


def add_padding(tree, num=3):
  """Rows of zeros behind the rows of every image."""

  def pad(x):
    return np.pad(x, [(0, 0), (0, num)] + [(0, 0)] * (x.ndim - 2))

  return jax.tree.map(pad, tree)


def make_anchors(instances, seed=1):
  """Two levels; some anchors are near an instance."""
  rng = np.random.default_rng(seed)
  near = instances.boxes[instances.valid]
  near = np.repeat(near, 4, axis=0)
  near = near + rng.normal(size=near.shape)
  return {2: np.float32(near), 3: random_boxes(rng, 40)}


def make_targets(instances, anchors=None, key=0, options=RPN):
  anchors = anchors or make_anchors(instances)
  key = jax.random.key(key)
  valid = jnp.ones(2, bool)
  return run_rpn_targets(anchors, instances, valid, key, options=options)


def joined(by_level):
  return np.concatenate([by_level[level] for level in sorted(by_level)], axis=1)


def assert_same(actual, expected):
  for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(x, y)


def test_rpn_labels_are_a_balanced_part_of_the_matches():
  instances = make_instances()
  everything = RPNTargetOptions(RPN.matching, num_samples=1000)
  full = make_targets(instances, options=everything)
  sampled = make_targets(instances)
  full_labels, labels = joined(full.labels), joined(sampled.labels)
  np.testing.assert_array_equal(joined(full.matched), full_labels == 1)
  np.testing.assert_array_equal(joined(sampled.matched), full_labels == 1)
  for image in range(2):
    positive, negative = (np.sum(full_labels[image] == x) for x in (1, 0))
    assert positive >= instances.valid[image].sum() and negative > 24
    chosen = labels[image] >= 0
    np.testing.assert_array_equal(
      labels[image][chosen], full_labels[image][chosen]
    )
    assert np.sum(labels[image] == 1) == min(positive, 12)
    assert np.sum(chosen) == 24
  assert_same(make_targets(instances), sampled)
  other = make_targets(instances, key=1)
  assert np.any(labels != joined(other.labels))


def test_rpn_deltas_lead_to_the_instances():
  instances = make_instances()
  anchors = make_anchors(instances)
  targets = make_targets(instances, anchors)
  matched, deltas = joined(targets.matched), joined(targets.box_deltas)
  assert not np.any(deltas[~matched])
  boxes = box_ops.decode(deltas, np.concatenate([anchors[2], anchors[3]]))
  for image in range(2):
    own = instances.boxes[image][instances.valid[image]]
    reached = np.asarray(boxes[image])[matched[image]]
    distances = np.abs(reached[:, None] - own).max(axis=-1)
    assert np.max(distances.min(axis=1)) < 1e-3
    # Every instance has an anchor.
    assert np.max(distances.min(axis=0)) < 1e-3


def test_padded_instances_change_no_rpn_target():
  instances = make_instances()
  anchors = make_anchors(instances)
  expected = make_targets(instances, anchors)
  assert_same(make_targets(add_padding(instances), anchors), expected)


def make_proposals(instances, seed=2, num=40):
  """Half of them near an instance; the last five are padding."""
  rng = np.random.default_rng(seed)
  batch = len(instances.boxes)
  boxes = random_boxes(rng, batch, num)
  boxes[:, ::2] = instances.boxes[:, :2].repeat(num // 4, axis=1)
  boxes = boxes + rng.normal(size=boxes.shape)
  valid = np.broadcast_to(np.arange(num) < num - 5, (batch, num))
  boxes = np.where(valid[..., None], boxes, 0.0).astype(np.float32)
  return Proposals(boxes, np.where(valid, 0.5, 0.0), valid)


def random_priorities():
  """For 40 proposals and 4 instances of two images."""
  return np.random.default_rng(3).uniform(size=(2, 44)).astype(np.float32)


def slow_sample(proposals, instances, priorities, options, image):
  """(rows of the candidates, instances, number of foreground)."""
  boxes = np.concatenate([proposals.boxes[image], instances.boxes[image]])
  valid = np.concatenate([proposals.valid[image], instances.valid[image]])
  own = np.flatnonzero(instances.valid[image])
  ious = np.zeros((len(boxes), 1))
  if len(own):
    ious = np.asarray(box_ops.pairwise_iou(boxes, instances.boxes[image][own]))
  best = ious.max(axis=1)

  def choose(candidates, count):
    rows = sorted(np.flatnonzero(candidates), key=lambda x: -priorities[x])
    return sorted(rows[:count])

  foreground = choose(valid & (best > 0.5), options.num_foreground)
  rest = options.num_rois - len(foreground)
  rows = foreground + choose(valid & (best < 0.5), rest)
  return rows, [own[ious[row].argmax()] for row in foreground]


@pytest.mark.parametrize('counts', [(3, 2), (0, 4)])
@pytest.mark.parametrize('num_rois', [16, 60])
def test_sampled_rois_match_the_definition(counts, num_rois):
  instances = make_instances(counts=counts)
  proposals = make_proposals(make_instances(counts=(4, 4)))
  options = SamplingOptions(num_rois=num_rois, fill_up=False)
  priorities = random_priorities()
  rois = run_sample(proposals, instances, priorities, options=options)
  # There are no more RoIs than candidates.
  assert rois.valid.shape == (2, min(num_rois, 44))
  candidates = np.concatenate([proposals.boxes, instances.boxes], axis=1)
  for image in range(2):
    rows, owners = slow_sample(
      proposals, instances, priorities[image], options, image
    )
    num, num_foreground = len(rows), len(owners)
    np.testing.assert_array_equal(
      rois.valid[image], np.arange(rois.valid.shape[1]) < num
    )
    np.testing.assert_array_equal(
      rois.boxes[image, :num], candidates[image, rows]
    )
    np.testing.assert_array_equal(
      rois.instance_indices[image, :num_foreground], owners
    )
    np.testing.assert_array_equal(
      rois.classes[image, :num_foreground], instances.classes[image][owners]
    )
    for rest in (rois.classes, rois.instance_indices):
      assert not np.any(rest[image, num_foreground:])
    assert not np.any(rois.boxes[image, num:])
    if counts[image] == 0:
      assert num_foreground == 0


def sample_by_hand(widths, priorities, **options):
  """RoIs from proposals with an IoU of width / 10 with the only instance."""
  instances = make_instances(counts=(1,), num=2)
  instances.boxes[0, 0] = [0, 0, 10, 10]
  boxes = np.float32([[[0, 0, 10, width] for width in widths]])
  ones = np.ones((1, len(widths)))
  return run_sample(
    Proposals(boxes, ones, ones > 0),
    instances,
    np.float32([priorities]),
    options=SamplingOptions(num_rois=5, **options),
  )


def test_foreground_fills_up_where_background_is_scarce():
  priorities = [0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 1.0]
  rois = sample_by_hand([9, 5, 8, 3, 7], priorities, foreground_fraction=0.4)
  # The share is 2: the instance itself and the best priority. One background.
  # Two more by priority fill up, in the order of the proposals.
  np.testing.assert_array_equal(rois.boxes[0, :, 3], [7, 10, 5, 8, 3], 'widths')
  np.testing.assert_array_equal(rois.classes[0] > 0, [1, 1, 1, 1, 0])
  assert np.all(rois.valid)


def test_iou_at_the_threshold_is_neither_foreground_nor_background():
  rois = sample_by_hand(
    [5, 6, 4], [0.0] * 5, foreground_fraction=0.8, fill_up=False
  )
  np.testing.assert_array_equal(rois.valid, [[1, 1, 1, 0, 0]])
  np.testing.assert_array_equal(rois.boxes[0, :3, 3], [6, 10, 4])
  assert np.all(rois.classes[0, :2] > 0) and rois.classes[0, 2] == 0


def test_padding_changes_no_sample():
  instances = make_instances()
  proposals, priorities = make_proposals(instances), random_priorities()
  expected = run_sample(proposals, instances, priorities, options=SAMPLING)
  # Padding that would be chosen if it took part.
  longer = np.ones((2, 50), np.float32)
  longer[:, :40], longer[:, 43:47] = priorities[:, :40], priorities[:, 40:]
  actual = run_sample(
    add_padding(proposals), add_padding(instances), longer, options=SAMPLING
  )
  assert_same(actual, expected)


def test_padding_alone_gives_no_roi():
  instances = jax.tree.map(np.zeros_like, make_instances())
  proposals = jax.tree.map(np.zeros_like, make_proposals(make_instances()))
  rois = run_sample(
    proposals, instances, np.ones((2, 44), np.float32), options=SAMPLING
  )
  for array in jax.tree.leaves(rois):
    assert not np.any(array)
  deltas = targets_lib.roi_box_targets(rois, instances, WEIGHTS, True)
  assert not np.any(deltas)
  masks = targets_lib.mask_targets(rois, instances, 6, 0.5)
  assert not np.any(masks)


@pytest.mark.parametrize('plus_one', [True, False])
def test_box_targets_lead_to_the_instances(plus_one):
  instances = make_instances()
  rng = np.random.default_rng(4)
  rois = SampledRois(
    boxes=random_boxes(rng, 2, 6),
    classes=np.int32([[3, 1, 2, 5, 0, 0]] * 2),
    instance_indices=np.int32([[0, 1, 1, 0, 0, 0]] * 2),
    valid=np.array([[True, True, True, False, True, False]] * 2),
  )
  deltas = targets_lib.roi_box_targets(rois, instances, WEIGHTS, plus_one)
  assert not np.any(deltas[:, 3:])
  boxes = box_ops.decode(deltas, rois.boxes, WEIGHTS, plus_one)
  np.testing.assert_allclose(
    boxes[:, :3], instances.boxes[:, [0, 1, 1]], rtol=0, atol=1e-3
  )


def foreground_rois(boxes, indices):
  shape = np.shape(indices)
  return SampledRois(
    boxes=np.float32(boxes),
    classes=np.ones(shape, np.int32),
    instance_indices=np.int32(indices),
    valid=np.ones(shape, bool),
  )


def one_mask(mask, box=(10, 20, 18, 28)):
  """One image with an instance of 8x8 pixels, and a row of padding."""
  mask = np.asarray(mask)
  masks = np.stack([mask, np.zeros_like(mask)])[None]
  valid = np.array([[True, False]])
  boxes = np.float32([[box, [0, 0, 0, 0]]])
  return Instances(boxes, valid.astype(np.int32), masks, valid)


def test_mask_rois_are_the_foreground_or_a_random_part_of_it():
  instances = make_instances()
  proposals, priorities = make_proposals(instances), random_priorities()
  candidates = np.concatenate([proposals.boxes, instances.boxes], axis=1)
  for cap, num_rows in ((None, 4), (2, 2), (9, 4)):
    options = dataclasses.replace(SAMPLING, num_mask_rois=cap, fill_up=False)
    rois = run_sample(proposals, instances, priorities, options=options)
    masks = targets_lib.mask_rois(rois, options)
    assert options.num_mask_rows == num_rows == masks.valid.shape[1]
    for image in range(2):
      rows, owners = slow_sample(
        proposals, instances, priorities[image], options, image
      )
      foreground = rows[: len(owners)]
      # Whatever the cap, the box head sees the same RoIs.
      assert {*map(tuple, np.asarray(rois.boxes[image]))} >= {
        *map(tuple, candidates[image, rows])
      }
      if cap is not None:
        foreground.sort(key=lambda row: -priorities[image, row])
      taken = np.asarray(masks.valid[image])
      np.testing.assert_array_equal(
        masks.boxes[image][taken], candidates[image, foreground[:num_rows]]
      )
      assert np.all(np.asarray(masks.classes[image])[taken] > 0)
      np.testing.assert_array_equal(
        np.asarray(rois.classes[image]) > 0,
        np.arange(rois.valid.shape[1]) < len(owners),
      )


def test_numbers_and_shares_of_samples_are_checked():
  for options, section, name, given in (
    (SamplingOptions, 'sampling', 'num_mask_rois', 0),
    (SamplingOptions, 'sampling', 'num_rois', 0),
    (SamplingOptions, 'sampling', 'foreground_fraction', 2),
    (RPNTargetOptions, 'rpn_targets', 'num_samples', 0),
    (RPNTargetOptions, 'rpn_targets', 'positive_fraction', -0.5),
  ):
    with pytest.raises(UserError) as error:
      options(**{name: given})
    assert error.value.argument == f'model.{section}.{name}'


def test_mask_targets_by_hand():
  # The mask's upper half is full.
  mask = np.zeros((8, 8), np.uint8)
  mask[:4] = 255
  rois = foreground_rois(
    # The box itself, its upper and lower half, and what lies beside it.
    [[[10, 20, 18, 28], [10, 20, 14, 28], [14, 20, 18, 28], [10, 40, 18, 48]]],
    [[0, 0, 0, 0]],
  )
  targets = targets_lib.mask_targets(rois, one_mask(mask), 4, 0.5)
  # Samples lie at rows 1, 3, 5 and 7 of the mask, where a row's number is its
  # centre, and at columns alike; 0.5 is in, so are rows up to 3.5.
  np.testing.assert_array_equal(targets[0, 0], [[1] * 4] * 2 + [[0] * 4] * 2)
  np.testing.assert_array_equal(targets[0, 1], 1.0)
  np.testing.assert_array_equal(targets[0, 2], 0.0)
  np.testing.assert_array_equal(targets[0, 3], 0.0)


def test_soft_mask_targets_keep_their_values():
  mask = np.broadcast_to(np.arange(8) / 8, (8, 8)).astype(np.float32)
  rois = foreground_rois([[[10, 20, 18, 28]]], [[0]])
  soft = targets_lib.mask_targets(rois, one_mask(mask), 4, None)
  np.testing.assert_allclose(soft[0, 0, 0], [0.125, 0.375, 0.625, 0.875])
  hard = targets_lib.mask_targets(rois, one_mask(mask), 4, 0.5)
  np.testing.assert_array_equal(hard, soft >= 0.5)


def test_bytes_and_fractions_are_the_same_mask():
  instances = make_instances()
  rng = np.random.default_rng(5)
  rois = foreground_rois(random_boxes(rng, 2, 5), rng.integers(0, 2, (2, 5)))
  fractions = instances.replace(masks=np.float32(instances.masks) / 255)
  expected = targets_lib.mask_targets(rois, fractions, 6, None)
  actual = targets_lib.mask_targets(rois, instances, 6, None)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
  assert np.min(actual) >= 0 and 0 < np.max(actual) <= 1
  padded = add_padding(instances)
  np.testing.assert_array_equal(
    targets_lib.mask_targets(rois, padded, 6, None), actual
  )


def test_gradients_of_targets_are_finite_on_padding():
  instances = jax.tree.map(
    np.zeros_like, make_instances().replace(masks=np.zeros((2, 4, 8, 8)))
  )
  indices = np.zeros((2, 3), np.int32)

  def total(boxes, instance_boxes):
    rois = SampledRois(boxes, indices, indices, indices > 0)
    own = instances.replace(boxes=instance_boxes)
    deltas = targets_lib.roi_box_targets(rois, own, WEIGHTS, False)
    masks = targets_lib.mask_targets(rois, own, 4, None)
    masks = jnp.where(rois.valid[..., None, None], masks, 0.0)
    return jnp.sum(deltas) + jnp.sum(masks)

  gradients = jax.jit(jax.grad(total, (0, 1)))(
    jnp.zeros((2, 3, 4)), jnp.zeros((2, 4, 4))
  )
  for gradient in gradients:
    assert np.all(np.isfinite(gradient))


def test_sampled_labels_take_the_highest_priorities():
  labels = jnp.array([1, 1, 1, 0, 0, 0, -1, 0])
  priorities = jnp.array([0.1, 0.9, 0.5, 0.2, 0.8, 0.7, 1.0, 0.3])
  sample = functools.partial(targets_lib.sample_labels, labels, priorities)
  four = sample(RPNTargetOptions(num_samples=4))
  np.testing.assert_array_equal(four, [-1, 1, 1, -1, 0, 0, -1, -1])
  # A quarter of four; what positives leave goes to negatives.
  quarter = sample(RPNTargetOptions(num_samples=4, positive_fraction=0.25))
  np.testing.assert_array_equal(quarter, [-1, 1, -1, -1, 0, 0, -1, 0])
