"""Detections of one image, without padding."""

import numpy as np

from maskrcnn_jax.structures import Detections


def make_found(boxes, scores=None, classes=None, masks=None):
  """By default with falling scores, each of a class of its own, no masks."""
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  count = len(boxes)
  scores = np.linspace(0.9, 0.1, count) if scores is None else scores
  classes = np.arange(1, count + 1) if classes is None else classes
  return Detections(
    boxes=boxes,
    scores=np.asarray(scores, np.float32),
    classes=np.asarray(classes, np.int32),
    masks=masks,
    valid=np.ones(count, bool),
  )
