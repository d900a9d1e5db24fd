"""RPN targets and matchers of the trusted implementations."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import assert_near, swap_axes

from maskrcnn_jax.ops import anchors as anchor_ops
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import matching

nvidia = golden_files.each('03_rpn_targets*.npz')


def anchors_of(recorded):
  canvas = golden_files.params(recorded)['image_size']
  levels = golden_files.levels(recorded)
  options = anchor_ops.AnchorOptions()
  return anchor_ops.pyramid_anchors(canvas, levels, options)


def marks_of(matches):
  """Matches as recorded: an instance, -1 negative, -2 ignored."""
  others = np.where(matches.labels == 0, -1, -2)
  return np.where(matches.labels == 1, matches.indices, others)


@pytest.fixture(name='matched', scope='module')
def fixture_matched(recorded):
  """Matches and targets of all anchors, joined over the levels."""
  anchors = anchors_of(recorded)
  boxes = recorded['gt_boxes'].reshape(-1, 4)
  # A few sizes for all recordings, so that little is compiled.
  num = 32 * (len(boxes) // 32 + 1)
  valid = np.arange(num) < len(boxes)
  boxes = np.pad(boxes, ((0, num - len(boxes)), (0, 0)))
  params = golden_files.params(recorded)

  @jax.jit
  def run(boxes, valid):
    options = matching.MatchingOptions(
      params['match_threshold'],
      params['unmatched_threshold'],
      low_quality_matches='one',
    )
    joined = np.concatenate(list(anchors.values()))
    matches = matching.match(joined, boxes, valid, options)
    targets = box_ops.encode(boxes[matches.indices], joined)
    positive = matches.labels[:, None] == 1
    return matches, jnp.where(positive, targets, 0.0)

  return jax.tree.map(np.asarray, run(boxes, valid))


@nvidia
def test_rpn_targets_of_nvidia(recorded, matched):
  matches, targets = matched
  # Of anchors that fit an instance equally well but for rounding, any may be
  # its low-quality match.
  sure = recorded.get('near_tie_mask', np.zeros(len(targets))) == 0
  marks = marks_of(matches)
  np.testing.assert_array_equal(marks[sure], recorded['matches'][sure])
  np.testing.assert_array_equal(
    matches.labels[sure], recorded['labels_before_sampling'][sure]
  )
  assert_near(targets[sure], recorded['box_targets'][sure], 1e-5)
  if 'max_iou' in recorded:
    assert_near(matches.ious, recorded['max_iou'], 1e-5)


@nvidia
def test_low_quality_matches_of_nvidia(recorded, matched):
  """The recorded anchor is matched unless rounding decides."""
  if 'forced_anchor_per_gt' not in recorded:
    return  # No instances.
  matches, _ = matched
  anchors = recorded['forced_anchor_per_gt']
  certain = recorded['forced_near_tie_count'] == recorded['forced_tie_count']
  assert np.any(certain)
  for anchor in anchors[certain]:
    assert matches.labels[anchor] == 1
    # Of several instances that claim the anchor the first gets it.
    owner = np.flatnonzero(anchors == anchor)[0]
    assert matches.indices[anchor] == owner


@nvidia
def test_levels_of_rpn_targets_of_nvidia(recorded, matched):
  """The order of the anchors of a level is that of the head's outputs."""
  _, targets = matched
  anchors = anchors_of(recorded)
  ends = np.cumsum([len(boxes) for boxes in anchors.values()])
  sure = recorded.get('near_tie_mask', np.zeros(len(targets))) == 0
  by_level = {
    level: (targets[rows], sure[rows], recorded['sampled_labels_seed0'][rows])
    for level, rows in zip(anchors, np.split(np.arange(ends[-1]), ends[:-1]))
  }
  levels = golden_files.numbers(recorded, r'box_targets_level(\d+)')
  assert levels
  for level in levels:
    level_targets, level_sure, labels = by_level[level]
    expected = recorded[f'box_targets_level{level}']
    expected = expected.reshape(-1, 4)[level_sure]
    actual = level_targets[level_sure]
    np.testing.assert_array_equal(
      labels, recorded[f'score_targets_level{level}'].reshape(-1)
    )
    assert_near(actual, expected, 1e-5)


@nvidia
def test_sampled_labels_of_nvidia(recorded):
  """The counts are those recorded; with the recorded draw, the labels too."""
  labels = recorded['labels_before_sampling']
  params = golden_files.params(recorded)
  num = params['rpn_batch_size_per_im']
  draws = [np.random.default_rng(0).uniform(size=labels.size)]
  names = sorted(key for key in recorded if key.startswith('sampled_labels'))
  assert names
  draws += [(recorded[name] >= 0).astype(np.float32) for name in names]
  selected = []
  for priorities in draws:
    positive, negative = matching.select_balanced(
      jnp.array(labels == 1),
      jnp.array(labels == 0),
      jnp.array(priorities, jnp.float32),
      num=num,
      max_positive=int(num * params['rpn_fg_fraction']),
    )
    counts = [int(jnp.sum(positive)), int(jnp.sum(negative)), labels.size]
    np.testing.assert_array_equal(counts, recorded['expected_counts'])
    selected.append(np.where(positive, 1, np.where(negative, 0, -1)))
  for actual, name in zip(selected[1:], names):
    np.testing.assert_array_equal(actual, recorded[name])


@pytest.mark.parametrize(
  'name, options',
  [
    ('rpn_07_03_lowq', matching.MatchingOptions(low_quality_matches='all')),
    ('roi_05_05', matching.MatchingOptions(0.5, 0.5)),
  ],
)
@golden_files.each('ops_boxcoder_matcher*.npz', 'torchvision', r'matcher_\d+')
def test_matchers_of_torchvision(recorded, name, options):
  instances, boxes = (swap_axes(recorded[key]) for key in ('gt', 'boxes'))
  iou = box_ops.pairwise_iou(instances, boxes)
  assert_near(iou, recorded['iou'], 1e-5)
  valid = np.ones(len(instances), bool)
  matches = matching.match(boxes, instances, valid, options)
  np.testing.assert_array_equal(marks_of(matches), recorded[name])


@golden_files.each('ops_matcher*.npz', 'detectron2')
def test_matchers_of_detectron2(recorded):
  """Low quality sets the label only: the instance stays that of the argmax."""
  instances, boxes = (swap_axes(recorded[x]) for x in ('gt_boxes', 'anchors'))
  assert_near(box_ops.pairwise_iou(instances, boxes), recorded['iou'], 1e-5)
  valid = np.ones(len(instances), bool)
  for name in ('rpn', 'rpn_no_low', 'roi'):
    options = matcher_options(recorded, name)
    matches = matching.match(boxes, instances, valid, options)
    np.testing.assert_array_equal(
      matches.labels, recorded[f'{name}/iou/labels'], name
    )
    np.testing.assert_array_equal(
      matches.indices, recorded[f'{name}/iou/matches'], name
    )
  matches = matching.match(
    boxes, instances, ~valid, matcher_options(recorded, 'rpn')
  )
  assert not np.any(recorded['empty/labels']) and not np.any(matches.labels)


@pytest.mark.parametrize('kind', ['quality', 'zero_row'])
@golden_files.each('ops_matcher*.npz', 'detectron2')
def test_thresholds_of_detectron2(recorded, kind):
  """IoUs equal to a threshold, and several equal ones of a box."""
  ious = recorded[kind]
  overlaps = matching._Overlaps(ious.max(axis=0), ious.argmax(axis=0), 0, 0)
  for name in ('rpn_no_low', 'roi'):
    matches = matching._match_by_threshold(
      jax.tree.map(jnp.asarray, overlaps), matcher_options(recorded, name)
    )
    np.testing.assert_array_equal(
      matches.labels, recorded[f'{name}/{kind}/labels'], name
    )
    np.testing.assert_array_equal(
      matches.indices, recorded[f'{name}/{kind}/matches'], name
    )


def matcher_options(recorded, name):
  """`MatchingOptions` of a recorded matcher."""
  thresholds = recorded[f'{name}/thresholds']
  return matching.MatchingOptions(
    positive_iou=float(thresholds[-1]),
    negative_iou=float(thresholds[0]),
    low_quality_matches='all'
    if recorded[f'{name}/allow_low_quality']
    else 'none',
  )


@golden_files.each('ops_subsample_labels*.npz', 'detectron2')
def test_sampled_counts_of_detectron2(recorded):
  """Ignored boxes at the end give all cases one length, hence one program."""
  length = max(map(sum, recorded['candidates_pos_neg_ign']))
  for candidates, num, fraction, expected in zip(
    recorded['candidates_pos_neg_ign'],
    recorded['num_samples'],
    recorded['positive_fraction'],
    recorded['sampled_pos_neg'],
  ):
    labels = np.full(length, -1)
    labels[: sum(candidates)] = np.repeat([1, 0, -1], candidates)
    selected = matching.select_balanced(
      jnp.array(labels == 1),
      jnp.array(labels == 0),
      jnp.zeros(len(labels)),
      num=int(num),
      max_positive=int(num * fraction),
    )
    counts = [int(jnp.sum(x)) for x in selected]
    np.testing.assert_array_equal(counts, expected)
