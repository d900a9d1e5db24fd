"""RPN targets and matchers of the trusted implementations."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import anchors as anchor_ops
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import matching


@pytest.fixture(
  name='nvidia',
  scope='module',
  params=golden_files.files('03_rpn_targets*.npz'),
  ids=lambda path: path.stem,
)
def fixture_nvidia(request):
  return golden_files.load(request.param)


def anchors_of(recorded):
  canvas = golden_files.params(recorded)['image_size']
  levels = golden_files.levels(recorded)
  options = anchor_ops.AnchorOptions()
  return anchor_ops.pyramid_anchors(canvas, levels, options)


def padded_instances(recorded):
  boxes = recorded['gt_boxes'].reshape(-1, 4)
  # A few sizes for all recordings, so that little is compiled.
  num = 32 * (len(boxes) // 32 + 1)
  valid = np.arange(num) < len(boxes)
  return np.pad(boxes, ((0, num - len(boxes)), (0, 0))), valid


@pytest.fixture(name='matched', scope='module')
def fixture_matched(nvidia):
  """Matches and targets of all anchors, joined over the levels."""
  anchors = anchors_of(nvidia)
  boxes, valid = padded_instances(nvidia)
  params = golden_files.params(nvidia)

  @jax.jit
  def run(boxes, valid):
    options = matching.MatchingOptions(
      params['match_threshold'],
      params['unmatched_threshold'],
      low_quality_matches='one',
    )
    matches = matching.match(list(anchors.values()), boxes, valid, options)
    matches = jax.tree.map(lambda *x: jnp.concatenate(x), *matches)
    joined = np.concatenate(list(anchors.values()))
    targets = box_ops.encode(boxes[matches.indices], joined)
    positive = matches.labels[:, None] == 1
    return matches, jnp.where(positive, targets, 0.0)

  return jax.tree.map(np.asarray, run(boxes, valid))


def test_rpn_targets_of_nvidia(nvidia, matched):
  matches, targets = matched
  # Anchors that fit an instance equally well but for rounding: any may be the
  # one that is forced.
  sure = nvidia.get('near_tie_mask', np.zeros(len(targets))) == 0
  marks = np.where(matches.labels == 1, matches.indices, matches.labels - 1)
  marks = np.where(matches.labels == -1, -2, marks)
  np.testing.assert_array_equal(marks[sure], nvidia['matches'][sure])
  np.testing.assert_array_equal(
    matches.labels[sure], nvidia['labels_before_sampling'][sure]
  )
  error = golden_files.relative_error(
    targets[sure], nvidia['box_targets'][sure]
  )
  assert error <= 1e-5
  if 'max_iou' in nvidia:
    error = golden_files.relative_error(matches.ious, nvidia['max_iou'])
    assert error <= 1e-5


def test_forced_anchors_of_nvidia(nvidia, matched):
  """Where rounding can not decide, the recorded anchor is forced."""
  if 'forced_anchor_per_gt' not in nvidia:
    return  # No instances.
  matches, _ = matched
  anchors = nvidia['forced_anchor_per_gt']
  certain = nvidia['forced_near_tie_count'] == nvidia['forced_tie_count']
  assert np.any(certain)
  for anchor in anchors[certain]:
    assert matches.labels[anchor] == 1
    # Of several instances that claim the anchor the first gets it.
    owner = np.flatnonzero(anchors == anchor)[0]
    assert matches.indices[anchor] == owner


def test_levels_of_rpn_targets_of_nvidia(nvidia, matched):
  """The order of the anchors of a level is that of the head's outputs."""
  _, targets = matched
  anchors = anchors_of(nvidia)
  ends = np.cumsum([len(boxes) for boxes in anchors.values()])
  sure = nvidia.get('near_tie_mask', np.zeros(len(targets))) == 0
  by_level = {
    level: (targets[rows], sure[rows], nvidia['sampled_labels_seed0'][rows])
    for level, rows in zip(anchors, np.split(np.arange(ends[-1]), ends[:-1]))
  }
  levels = golden_files.numbers(nvidia, r'box_targets_level(\d+)')
  assert levels
  for level in levels:
    level_targets, level_sure, labels = by_level[level]
    expected = nvidia[f'box_targets_level{level}']
    expected = expected.reshape(-1, 4)[level_sure]
    actual = level_targets[level_sure]
    np.testing.assert_array_equal(
      labels, nvidia[f'score_targets_level{level}'].reshape(-1)
    )
    assert golden_files.relative_error(actual, expected) <= 1e-5


def test_sampled_labels_of_nvidia(nvidia):
  """The counts are those recorded; with the recorded draw, the labels too."""
  labels = nvidia['labels_before_sampling']
  params = golden_files.params(nvidia)
  num = params['rpn_batch_size_per_im']
  draws = [np.random.default_rng(0).uniform(size=labels.size)]
  names = sorted(key for key in nvidia if key.startswith('sampled_labels'))
  assert names
  draws += [(nvidia[name] >= 0).astype(np.float32) for name in names]
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
    np.testing.assert_array_equal(counts, nvidia['expected_counts'])
    selected.append(np.where(positive, 1, np.where(negative, 0, -1)))
  for actual, name in zip(selected[1:], names):
    np.testing.assert_array_equal(actual, nvidia[name])


def matcher_cases():
  return [
    pytest.param(recorded, number, id=f'{path.stem}-{number}')
    for path in golden_files.files('ops_boxcoder_matcher*.npz', 'torchvision')
    for recorded in [golden_files.load(path)]
    for number in golden_files.numbers(recorded, r'matcher_(\d+)/gt')
  ]


@pytest.mark.parametrize(
  'name, options',
  [
    ('rpn_07_03_lowq', matching.MatchingOptions(low_quality_matches='all')),
    ('roi_05_05', matching.MatchingOptions(0.5, 0.5)),
  ],
)
@pytest.mark.parametrize('torchvision, case', matcher_cases())
def test_matchers_of_torchvision(torchvision, case, name, options):
  instances = torchvision[f'matcher_{case}/gt'][:, [1, 0, 3, 2]]
  boxes = torchvision[f'matcher_{case}/boxes'][:, [1, 0, 3, 2]]
  iou = box_ops.pairwise_iou(instances, boxes)
  expected = torchvision[f'matcher_{case}/iou']
  assert golden_files.relative_error(iou, expected) <= 1e-5
  valid = np.ones(len(instances), bool)
  (matches,) = matching.match([boxes], instances, valid, options)
  marks = np.where(matches.labels == 1, matches.indices, matches.labels - 1)
  marks = np.where(matches.labels == -1, -2, marks)
  np.testing.assert_array_equal(marks, torchvision[f'matcher_{case}/{name}'])
