"""Recorded detections and sampled anchors beside ours."""

import jax
import numpy as np

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


def rpn_targets(anchors, samples):
  """RPN targets of the recorded samples, by level.

  Args:
    anchors: `[n, 4]` by level.
    samples: for each image the rows of its negative and of its positive
      anchors, and the deltas of these.
  """
  ends = np.cumsum([len(boxes) for boxes in anchors.values()])
  labels = np.full((len(samples), ends[-1]), -1, np.int32)
  all_deltas = np.zeros((*labels.shape, 4), np.float32)
  for image, (negative, positive, deltas) in enumerate(samples):
    labels[image, negative] = 0
    labels[image, positive] = 1
    all_deltas[image, positive] = deltas

  def split(values):
    return dict(zip(anchors, np.split(values, ends[:-1], axis=1)))

  return RPNTargets(split(labels), split(labels == 1), split(all_deltas))
