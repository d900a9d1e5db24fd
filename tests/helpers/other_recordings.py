"""Recordings with other counts and levels, cut from the golden files.

Everything in them follows from recorded numbers: they show that the golden
tests take their counts from the files.
"""

import itertools
import json

import golden_files
import numpy as np


def write(folder):
  """Writes the recordings into a folder for `MASKRCNN_GOLDEN`."""
  made = {
    'nvidia_tf2/03_rpn_targets_joined': joined_rpn_targets(
      ['a', 'edge', 'manypos', 'manypos', 'manypos']
    ),
    'nvidia_tf2/06_roialign_from_level3': roi_align_from(3),
    'nvidia_tf2/08_loss_rpn_from_level3': rpn_loss_from(3),
    'nvidia_tf2/01_anchors_to_level5': anchors_to(5),
    'torchvision/ops_boxcoder_matcher_two': numbered(
      'ops_boxcoder_matcher', 'matcher_{}/', (3, 1)
    ),
    'torchvision/ops_anchors_two': numbered('ops_anchors', '{}/', (4, 2)),
  }
  for name, arrays in made.items():
    path = folder / f'{name}.npz'
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def load(name, source='nvidia_tf2'):
  (path,) = golden_files.files(f'{name}.npz', source)
  return golden_files.load(path)


def with_params(recorded, **params):
  """The description of a recording with some parameters changed."""
  meta = json.loads(str(recorded['meta']))
  return np.array(json.dumps({**meta, 'params': {**meta['params'], **params}}))


def joined_rpn_targets(names):
  """The instances of several recordings of one canvas, 91 of them.

  The best anchor of an instance does not depend on the others; an anchor
  belongs to the instance with the largest IoU, of equal ones to the first.
  """
  parts = [load(f'03_rpn_targets_{name}') for name in names]
  starts = np.cumsum([0, *(len(part['gt_boxes']) for part in parts)])
  boxes = np.concatenate([part['gt_boxes'] for part in parts])
  params = golden_files.params(parts[0])
  ious = np.stack([part['max_iou'] for part in parts])
  winner = ious.argmax(axis=0)
  anchors = np.arange(ious.shape[1])
  # A recording does not name the instance of an anchor below the threshold.
  matches = np.full(ious.shape[1], -2)
  best = ious[winner, anchors]
  matches[best < params['unmatched_threshold']] = -1
  owners = np.stack([part['matches'] for part in parts])[winner, anchors]
  sure = best >= params['match_threshold']
  matches[sure] = (owners + starts[winner])[sure]
  unsure = np.any([part['near_tie_mask'] for part in parts], axis=0)
  # A low-quality match hides which instance the anchor overlaps most.
  best_anchors = np.concatenate(
    [part['forced_anchor_per_gt'] for part in parts]
  )
  for part in parts:
    own = part['forced_anchor_per_gt']
    unsure[own[part['max_iou'][own] >= params['match_threshold']]] = True
  for number in reversed(range(len(boxes))):
    matches[best_anchors[number]] = number
  unsure[best_anchors] = True
  labels = np.where(matches >= 0, 1, np.where(matches == -1, 0, -1))
  targets = np.stack([part['box_targets'] for part in parts])[winner, anchors]
  num = params['rpn_batch_size_per_im']
  num_positive = min(
    int(num * params['rpn_fg_fraction']), int(np.sum(labels == 1))
  )
  num_negative = min(num - num_positive, int(np.sum(labels == 0)))
  sampled = np.full(len(labels), -1)
  sampled[np.flatnonzero(labels == 1)[:num_positive]] = 1
  sampled[np.flatnonzero(labels == 0)[:num_negative]] = 0
  ties = ('forced_tie_count', 'forced_near_tie_count')
  return {
    'gt_boxes': boxes,
    'matches': matches,
    'labels_before_sampling': labels,
    'near_tie_mask': unsure.astype(np.uint8),
    'box_targets': targets,
    'forced_anchor_per_gt': best_anchors,
    'max_iou': best,
    'sampled_labels_seed0': sampled,
    'expected_counts': np.array([num_positive, num_negative, len(labels)]),
    'meta': parts[0]['meta'],
    **by_level(parts[0], sampled, targets),
    **{name: np.concatenate([part[name] for part in parts]) for name in ties},
  }


def by_level(recorded, labels, targets):
  """Labels and targets of the two coarsest levels, as maps."""
  maps, end = {}, len(labels)
  for level in (6, 5):
    shape = recorded[f'score_targets_level{level}'].shape
    start = end - int(np.prod(shape))
    maps[f'score_targets_level{level}'] = labels[start:end].reshape(shape)
    maps[f'box_targets_level{level}'] = targets[start:end].reshape(
      *shape[:2], -1
    )
    end = start
  return maps


def roi_align_from(level):
  """The boxes of coarse levels, without the finest maps."""
  recorded = load('06_roialign7_256x320')
  rows = [np.flatnonzero(x >= level) for x in recorded['levels']]
  num = min(map(len, rows))
  rows = np.stack([x[:num] for x in rows])
  images = np.arange(len(rows))[:, None]
  return {
    **{
      name: recorded[name][images, rows]
      for name in ('boxes', 'levels', 'level_margin', 'out')
    },
    **{
      name: recorded[name]
      for number in range(level, 7)
      for name in [f'features_level{number}']
    },
  }


def rpn_loss_from(level):
  """The loss without the finest levels: it is a sum over the levels."""
  recorded = load('08_loss_rpn_a')
  dropped = level - golden_files.levels(recorded)[0]
  kept = {
    name: array
    for name, array in recorded.items()
    if not any(name.endswith(f'_level{x}') for x in range(2, level))
  }
  return {
    **kept,
    'rpn_score_loss': np.sum(recorded['score_loss_per_level'][dropped:]),
    'rpn_box_loss': np.sum(recorded['box_loss_per_level'][dropped:]),
    'meta': with_params(recorded, min_level=level),
  }


def anchors_to(level):
  """The anchors of the finer levels."""
  recorded = load('01_anchors_832x1344')
  kept = {
    name: array
    for name, array in recorded.items()
    if not any(name.startswith(f'level{x}_') for x in range(level + 1, 7))
  }
  return {**kept, 'meta': with_params(recorded, max_level=level)}


def numbered(name, prefix, order):
  """Some of the numbered groups of a recording, renumbered."""
  recorded = load(name, 'torchvision')
  groups = {
    key: array
    for key, array in recorded.items()
    if not any(key.startswith(prefix.format(x)) for x in range(10))
  }
  for (number, former), key in itertools.product(enumerate(order), recorded):
    if key.startswith(prefix.format(former)):
      rest = key.removeprefix(prefix.format(former))
      groups[prefix.format(number) + rest] = recorded[key]
  return groups
