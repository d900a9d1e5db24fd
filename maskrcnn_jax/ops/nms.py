"""Greedy non-maximum suppression with a fixed number of outputs."""

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.ops import boxes as box_ops

# The matrix of this many boxes, 268 MB of bools, fits into memory anywhere.
_MAX_MATRIX_SIDE = 16384


def nms(
  boxes: jax.Array,
  scores: jax.Array,
  valid: jax.Array,
  iou_threshold: float,
  max_outputs: int,
) -> tuple[jax.Array, jax.Array]:
  """Boxes kept by NMS, highest score first.

  The corners of a box may be in any order; of equal scores the lower index
  wins. A box without area neither suppresses nor is suppressed.

  Args:
    boxes: `[n, 4]` of one image.
    scores: `[n]`, any real numbers.
    valid: `[n]` bool; invalid boxes are ignored.
    iou_threshold: a box is suppressed if its IoU with a kept box of a higher
      score is above it.
    max_outputs: length of the result.

  Returns:
    indices: `[max_outputs]` int32 into the boxes; 0 where not valid.
    valid: `[max_outputs]` bool.
  """
  if boxes.ndim != 2 or boxes.shape[-1] != 4:
    raise ValueError(f'boxes must be [n, 4], got {boxes.shape}.')
  if not boxes.shape[:1] == scores.shape == valid.shape:
    raise ValueError(
      'boxes, scores and valid must agree in their first axis, got '
      f'{boxes.shape}, {scores.shape} and {valid.shape}.'
    )
  if boxes.shape[0] == 0:
    return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
  if boxes.shape[0] > _MAX_MATRIX_SIDE:
    # One output at a time: slower, with memory linear in the number of boxes.
    rows, _, found = classwise_nms(
      boxes[:, None],
      scores[:, None],
      valid[:, None],
      iou_threshold,
      max_outputs,
    )
    return rows, found
  order = jnp.lexsort((-scores, ~valid)).astype(jnp.int32)
  kept = _keep_greedily(boxes[order], valid[order], iou_threshold)
  (positions,) = jnp.nonzero(kept, size=max_outputs, fill_value=0)
  filled = jnp.arange(max_outputs) < jnp.sum(kept)
  return jnp.where(filled, order[positions], 0), filled


def _keep_greedily(boxes, valid, iou_threshold):
  """Bool `[n]`: boxes, sorted by score, that survive greedy suppression.

  Whether a box is kept depends on better boxes only. So, starting from any
  guess, one round of "kept unless a better kept box overlaps it" makes the
  first box right, the next round those that depend on it, and so on: the only
  fixed point is the greedy answer, reached after as many rounds as the longest
  chain of suppressions, which is short.
  """
  suppressors = _suppressors(boxes, valid, iou_threshold)

  def is_moving(state):
    kept, previous = state
    return jnp.any(kept != previous)

  def round_of_suppression(state):
    kept, _ = state
    suppressed = jnp.any(suppressors & kept[None, :], axis=1)
    return valid & ~suppressed, kept

  first = valid & ~jnp.any(suppressors, axis=1)
  kept, _ = jax.lax.while_loop(is_moving, round_of_suppression, (first, valid))
  return kept


def _suppressors(boxes, valid, iou_threshold):
  """Bool `[n, n]`: entry (i, j) is True if box j would suppress box i."""
  boxes = _sort_corners(boxes)
  ious = box_ops.pairwise_iou(boxes, boxes)
  rank = jnp.arange(boxes.shape[0])
  better = rank[None, :] < rank[:, None]
  return (ious > _round_down(iou_threshold)) & better & valid[None, :]


def _sort_corners(boxes):
  low = jnp.minimum(boxes[..., :2], boxes[..., 2:])
  high = jnp.maximum(boxes[..., :2], boxes[..., 2:])
  return jnp.concatenate([low, high], axis=-1)


def _round_down(threshold):
  """Largest float32 that is not above the threshold.

  An IoU in float32 exceeds it exactly where it exceeds the threshold itself;
  the nearest float32 may lie above, and an IoU between the two would pass.
  """
  nearest = np.float32(threshold)
  if float(nearest) > threshold:
    return np.nextafter(nearest, np.float32(-np.inf))
  return nearest


def classwise_nms(
  boxes: jax.Array,
  scores: jax.Array,
  valid: jax.Array,
  iou_threshold: float,
  max_outputs: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """NMS within every class, then the highest scores of all classes.

  Takes the remaining candidate with the highest score over all classes and
  drops those of its class that overlap it, `max_outputs` times. The result is
  that of NMS per class and a final top-k, without the IoUs of candidates that
  cannot be among the outputs: with 1000 boxes, 90 classes and 100 outputs 1e5
  IoUs instead of 9e7.

  Args:
    boxes: `[n, num_classes, 4]` of one image; corners in any order.
    scores: `[n, num_classes]`; of equal ones the lower index wins.
    valid: `[n, num_classes]` bool; invalid boxes are ignored.
    iou_threshold: see `nms`.
    max_outputs: length of the result.

  Returns:
    rows: `[max_outputs]` int32, highest score first; 0 where not valid.
    classes: `[max_outputs]` int32, from 0; 0 where not valid.
    valid: `[max_outputs]` bool.
  """
  if boxes.shape != (*scores.shape, 4) or scores.shape != valid.shape:
    raise ValueError(
      'boxes must be [n, num_classes, 4], scores and valid [n, num_classes], '
      f'got {boxes.shape}, {scores.shape} and {valid.shape}.'
    )
  num_classes = scores.shape[1]
  by_class = jnp.swapaxes(_sort_corners(boxes), 0, 1)
  threshold = _round_down(iou_threshold)

  def take_best(left, _):
    best = jnp.argmax(left)
    row, label = best // num_classes, best % num_classes
    found = left.reshape(-1)[best] > -jnp.inf
    same_class = by_class[label]  # [n, 4]
    ious = box_ops.pairwise_iou(same_class, same_class[row][None])[:, 0]
    dropped = ious > threshold
    dropped = dropped.at[row].set(True)
    column = jnp.where(dropped, -jnp.inf, left[:, label])
    return left.at[:, label].set(column), (row, label, found)

  left = jnp.where(valid, scores, -jnp.inf)
  _, (rows, labels, found) = jax.lax.scan(
    take_best, left, None, length=max_outputs
  )
  rows = jnp.where(found, rows, 0).astype(jnp.int32)
  return rows, jnp.where(found, labels, 0).astype(jnp.int32), found
