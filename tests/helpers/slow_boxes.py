"""Box operations from their definitions: one box at a time, in float64."""

import math

import numpy as np


def random_boxes(rng, *shape, corners=(0, 50), sides=(10, 30)):
  """Boxes `[*shape, 4]` with first corners and sides in the given ranges."""
  first = rng.uniform(*corners, (*shape, 2))
  last = first + rng.uniform(*sides, (*shape, 2))
  return np.float32(np.concatenate([first, last], axis=-1))


def overlap(box, other):
  """Intersection over union; corners may come in any order."""
  low = [np.minimum(x[:2], x[2:]) for x in (box, other)]
  high = [np.maximum(x[:2], x[2:]) for x in (box, other)]
  sides = np.minimum(*high) - np.maximum(*low)
  intersection = np.prod(np.maximum(sides, 0.0))
  union = np.prod(high[0] - low[0]) + np.prod(high[1] - low[1]) - intersection
  return intersection / union if union > 0 else 0.0


def greedy_nms(boxes, scores, valid, iou_threshold):
  """Rows kept by NMS, best first."""
  boxes = boxes.astype(np.float64)
  kept = []
  for row in np.argsort(-scores, kind='stable'):
    if valid[row] and all(
      overlap(boxes[row], boxes[better]) <= iou_threshold for better in kept
    ):
      kept.append(int(row))
  return kept


def decode(deltas, anchor, weights, plus_one):
  """One box, not clipped."""
  box = np.zeros(4)
  for axis in range(2):
    start, end = float(anchor[axis]), float(anchor[axis + 2])
    side = end - start + plus_one
    center = start + side / 2 + deltas[axis] / weights[axis] * side
    growth = min(deltas[axis + 2] / weights[axis + 2], math.log(1000 / 16))
    side *= math.exp(growth)
    box[axis] = center - side / 2
    box[axis + 2] = center + side / 2 - plus_one
  return box


def clip(box, image_size, plus_one):
  """A box moved into its image."""
  limits = np.concatenate([image_size, image_size]) - float(plus_one)
  return np.minimum(np.maximum(box, 0.0), limits)


def is_large(box, min_size, image_size, plus_one):
  """True if a `min_size` above 0 keeps the box."""
  sides = box[2:] - box[:2] + plus_one
  if not plus_one:
    return bool(np.all(sides >= min_size))
  centers = box[:2] + sides / 2
  return bool(
    np.all(sides >= max(min_size, 1)) and np.all(centers < image_size)
  )
