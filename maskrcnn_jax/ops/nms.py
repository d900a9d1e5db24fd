"""Greedy non-maximum suppression with a fixed number of outputs."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.ops import boxes as box_ops

# Half the matrix of this many boxes, 134 MB of bools, fits anywhere.
_MAX_MATRIX_SIDE = 16384
# Side of its tiles: whole registers, and little more than half of the matrix.
_TILE = 256


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
  order = jnp.lexsort((-scores, ~valid)).astype(jnp.int32)
  kept = keep_sorted(boxes[order], valid[order], iou_threshold, max_outputs)
  (positions,) = jnp.nonzero(kept, size=max_outputs, fill_value=0)
  filled = jnp.arange(max_outputs) < jnp.sum(kept)
  return jnp.where(filled, order[positions], 0), filled


def keep_sorted(
  boxes: jax.Array,
  valid: jax.Array,
  iou_threshold: float,
  max_outputs: int,
  lengths: Sequence[int] | None = None,
) -> jax.Array:
  """Mask of the boxes kept by NMS, of boxes sorted by score.

  Args:
    boxes: `[n, 4]` of one image, highest score first.
    valid: `[n]` bool; invalid boxes are ignored.
    iou_threshold: see `nms`.
    max_outputs: number of kept boxes that are marked at least, if there are as
      many.
    lengths: of groups of boxes, which follow each other; NMS is within each,
      and each is sorted. None: one group.

  Returns:
    `[n]` bool.
  """
  lengths = [boxes.shape[0]] if lengths is None else lengths
  if max(lengths) <= _MAX_MATRIX_SIDE:
    return _keep_greedily(boxes, valid, iou_threshold, lengths)
  ends = np.cumsum(lengths)[:-1]
  kept = []
  for group, is_valid in zip(jnp.split(boxes, ends), jnp.split(valid, ends)):
    if len(group) <= _MAX_MATRIX_SIDE:
      args = group, is_valid, iou_threshold, [len(group)]
      kept.append(_keep_greedily(*args))
      continue
    # One output at a time: slower, with memory linear in the number of boxes.
    ranks = jnp.arange(len(group), 0.0, -1.0)
    columns = (x[:, None] for x in (group, ranks, is_valid))
    rows, _, found = classwise_nms(*columns, iou_threshold, max_outputs)
    kept.append(jnp.zeros_like(is_valid).at[rows].max(found))
  return jnp.concatenate(kept)


def _keep_greedily(boxes, valid, iou_threshold, lengths):
  """Bool `[n]`: boxes, sorted by score, that survive greedy suppression.

  Whether a box is kept depends on better boxes only. So, starting from any
  guess, one round of "kept unless a better kept box overlaps it" makes the
  first box right, the next round those that depend on it, and so on: the only
  fixed point is the greedy answer, reached after as many rounds as the longest
  chain of suppressions, which is short, and never after more than the longest
  group has boxes. A single loop serves all groups, whose boxes lie in tiles; a
  tile meets itself and those before it in its group.
  """
  side = min(_TILE, max(lengths))
  tiles = functools.partial(_to_tiles, lengths=lengths, side=side)
  boxes, valid = tiles(boxes), tiles(valid)
  rows, columns, of_row = _tile_pairs([-(-x // side) for x in lengths])
  suppressors = _suppressors(boxes, iou_threshold, rows, columns)

  def is_moving(state):
    kept, previous = state
    return jnp.any(kept != previous)

  def round_of_suppression(state):
    kept, _ = state
    found = jnp.any(suppressors & kept[columns][:, None, :], axis=-1)
    found = jnp.pad(found, ((0, 1), (0, 0)))[of_row]
    return valid & ~jnp.any(found, axis=1), kept

  first = valid, jnp.zeros_like(valid)
  kept, _ = jax.lax.while_loop(is_moving, round_of_suppression, first)
  ends = np.cumsum([-(-x // side) for x in lengths])[:-1]
  groups = zip(jnp.split(kept, ends), lengths)
  return jnp.concatenate([x.reshape(-1)[:length] for x, length in groups])


def _to_tiles(x, lengths, side):
  """Tiles `[t, side, ...]` of x `[n, ...]`; every group fills up its last."""
  groups = jnp.split(x, np.cumsum(lengths)[:-1])
  more = [(0, 0)] * (x.ndim - 1)
  padded = [jnp.pad(x, [(0, -len(x) % side), *more]) for x in groups]
  return jnp.concatenate(padded).reshape(-1, side, *x.shape[1:])


def _tile_pairs(counts):
  """Pairs of a tile and one that may suppress its boxes.

  Args:
    counts: number of tiles of every group.

  Returns:
    rows: `[p]` the tile.
    columns: `[p]` the other, of the same group, not after it.
    of_row: `[t, most]` the pairs of every tile, filled up with p.
  """
  starts = np.cumsum([0, *counts])
  pairs = [
    (start + row, start + column)
    for start, count in zip(starts, counts)
    for row in range(count)
    for column in range(row + 1)
  ]
  rows, columns = np.array(pairs).T
  of_row = np.full((starts[-1], max(counts)), len(pairs))
  for pair, row in enumerate(rows):
    of_row[row, pair - np.searchsorted(rows, row)] = pair
  return rows, columns, of_row


def _suppressors(boxes, iou_threshold, rows, columns):
  """Bool `[p, side, side]`: entry (i, j) is True if j would suppress i."""
  boxes = _sort_corners(boxes)
  ious = jax.vmap(box_ops.pairwise_iou)(boxes[rows], boxes[columns])
  rank = np.arange(boxes.shape[1])
  better = (columns < rows)[:, None, None] | (rank[None, :] < rank[:, None])
  return (ious > _round_down(iou_threshold)) & better


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
