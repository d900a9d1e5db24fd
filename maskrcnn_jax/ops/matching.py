"""Matching of boxes to instances by IoU, and balanced sampling of matches."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskrcnn_jax.ops import boxes as box_ops

# IoUs computed at a time, 4 MiB: they stay in the cache of a CPU, and all but
# the two finest levels are still a single step for an accelerator.
_PAIRS_AT_ONCE = 2**20


@dataclasses.dataclass(frozen=True)
class MatchingOptions:
  """Thresholds at which a box matches an instance.

  Attributes:
    positive_iou: a box is positive from this IoU on.
    negative_iou: a box is negative below this IoU; between the two it is
      ignored.
    positive_strict: a positive box needs an IoU above `positive_iou`.
    low_quality_matches: boxes that are positive even below `positive_iou`, so
      that every instance has one. 'none': no box. 'one': the first of the boxes
      with the largest IoU, even at IoU 0; it is matched to that instance, or to
      the first of several with the same box.
      'all': all boxes with the largest IoU, and each stays with the instance
      that it overlaps most (torchvision's `allow_low_quality_matches`). An
      instance that overlaps no box has none; there it would make every box
      positive.
  """

  positive_iou: float = 0.7
  negative_iou: float = 0.3
  positive_strict: bool = False
  low_quality_matches: str = 'none'

  def __post_init__(self):
    if self.low_quality_matches not in ('none', 'one', 'all'):
      raise ValueError(
        "low_quality_matches must be 'none', 'one' or 'all', got "
        f'{self.low_quality_matches!r}.'
      )


class Matches(NamedTuple):
  """Matches of a set of boxes.

  Attributes:
    labels: `[n]` int32, 1 positive, 0 negative, -1 ignored.
    indices: `[n]` int32, instance that a positive box is matched to; of other
      boxes the instance with the largest IoU, 0 where there is none.
    ious: `[n]`, the largest IoU with an instance.
  """

  labels: jax.Array
  indices: jax.Array
  ious: jax.Array


def match(
  levels: Sequence[jax.Array],
  instance_boxes: jax.Array,
  instance_valid: jax.Array,
  options: MatchingOptions,
) -> list[Matches]:
  """Matches the boxes of one image to its instances, level by level.

  Low-quality matches need the best box over all levels; even so, only a part of
  the IoUs of one level is in memory at a time.

  Args:
    levels: boxes `[n, 4]` of each level; a single entry without a pyramid.
    instance_boxes: `[m, 4]`, m at least 1.
    instance_valid: `[m]` bool; padded instances match nothing.
    options: see `MatchingOptions`.

  Returns:
    The matches of each level. Without any instance all boxes are negative.

  Faster R-CNN (Ren et al. 2015), Sec. 3.1.2.
  """
  if instance_boxes.ndim != 2 or instance_boxes.shape[0] == 0:
    raise ValueError(
      'instance_boxes must be [m, 4] with m >= 1 (pad with invalid rows), got '
      f'{instance_boxes.shape}.'
    )
  overlaps = [
    _overlaps(boxes, instance_boxes, instance_valid) for boxes in levels
  ]
  results = [_match_by_threshold(overlap, options) for overlap in overlaps]
  if options.low_quality_matches == 'one':
    return _match_best(results, overlaps, instance_valid)
  if options.low_quality_matches == 'all':
    best = jnp.stack([overlap.instance_ious for overlap in overlaps])
    best = jnp.max(best, axis=0)
    return [
      _match_all_best(result, boxes, instance_boxes, instance_valid, best)
      for result, boxes in zip(results, levels)
    ]
  return results


class _Overlaps(NamedTuple):
  """Largest IoUs of a level; -1 where there is no valid instance.

  Attributes:
    ious: `[n]`, a box's largest IoU.
    indices: `[n]` int32, the first instance with that IoU.
    instance_ious: `[m]`, an instance's largest IoU.
    instance_positions: `[m]` int32, the first box with that IoU.
  """

  ious: jax.Array
  indices: jax.Array
  instance_ious: jax.Array
  instance_positions: jax.Array


def _overlaps(boxes, instance_boxes, instance_valid):
  num_boxes, num_instances = boxes.shape[0], instance_boxes.shape[0]
  chunks = _chunks(num_boxes, instance_boxes, instance_valid)
  size = chunks[1].shape[1]

  def visit(carry, chunk):
    best, indices = carry
    start, chunk_boxes, chunk_valid = chunk
    ious = _masked_ious(chunk_boxes, chunk_valid, boxes)  # [size, n]
    largest = jnp.max(ious, axis=0)
    first = start + _first_equal(ious, largest[None, :], axis=0)
    better = largest > best
    carry = (
      jnp.where(better, largest, best),
      jnp.where(better, first, indices),
    )
    instance_best = jnp.max(ious, axis=1)
    positions = _first_equal(ious, instance_best[:, None], axis=1)
    return carry, (instance_best, positions)

  nothing = (jnp.full(num_boxes, -1.0), jnp.zeros(num_boxes, jnp.int32))
  starts = size * jnp.arange(chunks[0].shape[0], dtype=jnp.int32)
  (best, indices), (instance_best, positions) = jax.lax.scan(
    visit, nothing, (starts, *chunks)
  )
  return _Overlaps(
    best,
    indices,
    instance_best.reshape(-1)[:num_instances],
    positions.reshape(-1)[:num_instances],
  )


def _chunks(num_boxes, instance_boxes, instance_valid):
  """Instances in chunks: boxes `[chunks, size, 4]`, valid `[chunks, size]`."""
  num_instances = instance_boxes.shape[0]
  num_chunks = -(-num_instances * num_boxes // _PAIRS_AT_ONCE)
  num_chunks = min(max(num_chunks, 1), num_instances)
  size = -(-num_instances // num_chunks)
  padding = -num_instances % size
  instance_boxes = jnp.pad(instance_boxes, ((0, padding), (0, 0)))
  instance_valid = jnp.pad(instance_valid, (0, padding))
  return instance_boxes.reshape(-1, size, 4), instance_valid.reshape(-1, size)


def _masked_ious(instance_boxes, instance_valid, boxes):
  """IoUs `[m, n]`; -1, below all others, for padded instances."""
  ious = box_ops.pairwise_iou(instance_boxes, boxes)
  ious = jnp.where(instance_valid[:, None], ious, -1.0)
  # In different loops the same IoU may differ in its last bit; the barrier
  # makes XLA compute it once, so that ties stay ties.
  return jax.lax.optimization_barrier(ious)


def _first_equal(values, target, axis):
  """Index (int32) of the first value that equals the target."""
  # Much faster on a CPU than argmax.
  indices = jax.lax.broadcasted_iota(jnp.int32, values.shape, axis)
  indices = jnp.where(values == target, indices, values.shape[axis] - 1)
  return jnp.min(indices, axis=axis)


def _match_by_threshold(overlaps, options):
  best = overlaps.ious
  if options.positive_strict:
    positive = best > options.positive_iou
  else:
    positive = best >= options.positive_iou
  negative = best < options.negative_iou
  labels = jnp.where(positive, 1, jnp.where(negative, 0, -1))
  labels = labels.astype(jnp.int32)
  return Matches(labels, overlaps.indices, jnp.maximum(best, 0.0))


def _match_best(results, overlaps, instance_valid):
  """Matches each instance to the first of its best boxes over all levels."""
  # argmax takes the first of equals: the lowest level.
  best_level = jnp.argmax(
    jnp.stack([overlap.instance_ious for overlap in overlaps]), axis=0
  )
  num_instances = instance_valid.shape[0]
  instances = jnp.arange(num_instances, dtype=jnp.int32)
  matched = []
  for level, (result, overlap) in enumerate(zip(results, overlaps)):
    num_boxes = result.labels.shape[0]
    claims = instance_valid & (best_level == level)
    # A position past the end is dropped.
    positions = jnp.where(claims, overlap.instance_positions, num_boxes)
    owners = jnp.full(num_boxes, num_instances, jnp.int32)
    owners = owners.at[positions].min(instances, mode='drop')
    owned = owners < num_instances
    labels = jnp.where(owned, 1, result.labels)
    indices = jnp.where(owned, owners, result.indices)
    matched.append(result._replace(labels=labels, indices=indices))
  return matched


def _match_all_best(result, boxes, instance_boxes, instance_valid, best):
  """Makes the best boxes of every instance positive, all ties included."""
  chunks = _chunks(boxes.shape[0], instance_boxes, instance_valid)
  best = jnp.pad(best, (0, chunks[1].size - best.size), constant_values=-2.0)

  def visit(is_best, chunk):
    chunk_boxes, chunk_valid, chunk_best = chunk
    ious = _masked_ious(chunk_boxes, chunk_valid, boxes)
    # Without overlap all boxes tie at 0.
    counts = chunk_valid & (chunk_best > 0.0)
    ties = (ious == chunk_best[:, None]) & counts[:, None]
    return is_best | jnp.any(ties, axis=0), None

  is_best, _ = jax.lax.scan(
    visit,
    jnp.zeros(boxes.shape[0], bool),
    (*chunks, best.reshape(chunks[1].shape)),
  )
  return result._replace(labels=jnp.where(is_best, 1, result.labels))


def select_balanced(
  positive: jax.Array,
  negative: jax.Array,
  priorities: jax.Array,
  num: int,
  max_positive: int,
) -> tuple[jax.Array, jax.Array]:
  """Samples up to `max_positive` positives, and negatives up to `num` in all.

  Args:
    positive: `[n]` bool, candidates.
    negative: `[n]` bool, candidates; never both.
    priorities: `[n]`, finite; candidates with the highest are sampled, of equal
      ones the lower index. Random numbers make the sample random.
    num: number to sample; fewer if there are too few candidates.
    max_positive: largest number of positives.

  Returns:
    positive: `[n]` bool, the sampled positives.
    negative: `[n]` bool, the sampled negatives.

  Fast R-CNN (Girshick 2015), Sec. 2.3; Faster R-CNN, Sec. 3.1.3.
  """
  selected_positive = _select_top(
    positive, priorities, min(max_positive, num), jnp.int32(num)
  )
  rest = num - jnp.sum(selected_positive, dtype=jnp.int32)
  selected_negative = _select_top(negative, priorities, num, rest)
  return selected_positive, selected_negative


def _select_top(candidates, priorities, max_count, count):
  """Bool `[n]`: the `count` (traced, <= max_count) best candidates."""
  max_count = min(max_count, candidates.shape[0])
  _, indices = jax.lax.top_k(
    jnp.where(candidates, priorities, -jnp.inf), max_count
  )
  chosen = candidates[indices] & (jnp.arange(max_count) < count)
  return jnp.zeros_like(candidates).at[indices].set(chosen)
