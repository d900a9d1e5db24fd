"""Recorded detections and sampled anchors beside ours."""

import jax
import numpy as np
from golden_files import swap_axes

from maskrcnn_jax.models import losses as losses_lib
from maskrcnn_jax.models.targets import RPNTargets

# Of boxes: relative to their longer side, but at least `PIXELS`.
BOX, PIXELS = 1e-3, 0.02
SCORE = 1e-4


def in_order(ours, boxes, classes):
  """Our detections of an image in the order of the recorded ones.

  They are matched by class and box, since the order of nearly equal scores
  depends on the last bits. Every recorded one must be found, and no other.

  Args:
    ours: detections without padding.
    boxes: the recorded `[n, 4]`.
    classes: the recorded `[n]`.
  """
  assert len(ours.scores) == len(classes)
  distances = np.abs(boxes[:, None] - ours.boxes).max(axis=-1)
  distances[classes[:, None] != ours.classes] = np.inf
  rows = np.argmin(distances, axis=1)
  assert len({*rows}) == len(rows)
  return jax.tree.map(lambda x: x[rows], ours)


def box_tolerance(boxes):
  """Largest difference of the sides of boxes, `[n, 1]`."""
  sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
  return np.maximum(BOX * sides, PIXELS)


def rpn_targets(golden, anchors, name):
  """RPN targets of the samples of two images, by level.

  Args:
    golden: the recording.
    anchors: `[n, 4]` by level.
    name: of the recorded deltas of positive anchors.
  """
  ends = np.cumsum([len(boxes) for boxes in anchors.values()])
  labels = np.full((2, ends[-1]), -1, np.int32)
  all_deltas = np.zeros((*labels.shape, 4), np.float32)
  for image in range(2):
    positive = golden[f'{image}/rpn_sampled_pos']
    labels[image, golden[f'{image}/rpn_sampled_neg']] = 0
    labels[image, positive] = 1
    all_deltas[image, positive] = swap_axes(golden[f'{image}/{name}'])

  def split(values):
    return dict(zip(anchors, np.split(values, ends[:-1], axis=1)))

  return RPNTargets(split(labels), split(labels == 1), split(all_deltas))


def losses_of_samples(model, outputs, rois, rpn_targets, deltas, masks):
  """The five losses of two images, of recorded samples and targets."""
  foreground = rois.classes[:, : masks.shape[1]] > 0
  return {
    **losses_lib.rpn_losses(
      outputs.rpn, rpn_targets, np.ones(2, bool), model.losses
    ),
    **losses_lib.box_losses(
      outputs.box, rois.classes, deltas, rois.valid, model.losses
    ),
    'mask': losses_lib.mask_loss(outputs.mask_logits, masks, foreground),
  }
