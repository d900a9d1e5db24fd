"""Matching of boxes to instances by IoU, and balanced sampling of matches."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskrcnn_jax.ops import boxes as box_ops

# IoUs computed at a time, 4 MiB: they stay in the cache of a CPU.
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
  boxes: jax.Array,
  instance_boxes: jax.Array,
  instance_valid: jax.Array,
  options: MatchingOptions,
) -> Matches:
  """Matches the boxes of one image to its instances.

  Args:
    boxes: `[n, 4]`; no gradient flows to them or to the instances.
    instance_boxes: `[m, 4]`, m at least 1.
    instance_valid: `[m]` bool; padded instances match nothing.
    options: see `MatchingOptions`.

  Returns:
    The matches. Without any instance all boxes are negative.

  Faster R-CNN (Ren et al. 2015), Sec. 3.1.2.
  """
  if instance_boxes.ndim != 2 or instance_boxes.shape[0] == 0:
    raise ValueError(
      'instance_boxes must be [m, 4] with m >= 1 (pad with invalid rows), got '
      f'{instance_boxes.shape}.'
    )
  arguments = jax.lax.stop_gradient((boxes, instance_boxes, instance_valid))
  if options.low_quality_matches == 'all':
    # It compares IoUs of two passes, which must be equal to the last bit.
    overlaps = _overlaps_in_parts(*arguments)
    result = _match_by_threshold(overlaps, options)
    return _match_all_best(result, *arguments, overlaps.instance_ious)
  overlaps = jax.lax.platform_dependent(
    *arguments, cpu=_overlaps_in_parts, default=_overlaps_at_once
  )
  result = _match_by_threshold(overlaps, options)
  if options.low_quality_matches == 'one':
    return _match_best(result, overlaps, instance_valid)
  return result


class _Overlaps(NamedTuple):
  """Largest IoUs; -1 where there is no valid instance.

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


def _overlaps_at_once(boxes, instance_boxes, instance_valid):
  """`_Overlaps` by two reductions, whose IoUs accelerators never store."""
  # Two matrices: one that both reductions shared would be stored.
  by_box = box_ops.pairwise_iou(boxes, instance_boxes)
  by_box = jnp.where(instance_valid, by_box, -1.0)
  by_instance = box_ops.pairwise_iou(instance_boxes, boxes)
  by_instance = jnp.where(instance_valid[:, None], by_instance, -1.0)
  return _Overlaps(*_first_largest(by_box), *_first_largest(by_instance))


def _first_largest(values):
  """Largest value of each row `[..., n]`, and its first index."""

  def larger(one, other):
    (value, index), (other_value, other_index) = one, other
    is_first = (value == other_value) & (index < other_index)
    is_chosen = (value > other_value) | is_first
    return (
      jnp.where(is_chosen, value, other_value),
      jnp.where(is_chosen, index, other_index),
    )

  axis = values.ndim - 1
  indices = jax.lax.broadcasted_iota(jnp.int32, values.shape, axis)
  initial = jnp.float32(-jnp.inf), jnp.int32(values.shape[axis])
  return jax.lax.reduce((values, indices), initial, larger, (axis,))


def _overlaps_in_parts(boxes, instance_boxes, instance_valid):
  """`_Overlaps` of some boxes at a time, which fit into the cache of a CPU."""
  parts = _parts(boxes, instance_boxes)
  num_parts, _, size = parts.shape

  def visit(carry, part):
    best, positions = carry
    start, coordinates = part
    ious = _masked_ious(instance_boxes, instance_valid, coordinates)
    largest = jnp.max(ious, axis=0)
    indices = _first_equal(ious, largest[None, :], axis=0)
    instance_best = jnp.max(ious, axis=1)
    first = start + _first_equal(ious, instance_best[:, None], axis=1)
    better = instance_best > best
    carry = (
      jnp.where(better, instance_best, best),
      jnp.where(better, first, positions),
    )
    return carry, (largest, indices)

  num_instances = instance_boxes.shape[0]
  nothing = (
    jnp.full(num_instances, -2.0),
    jnp.zeros(num_instances, jnp.int32),
  )
  starts = size * jnp.arange(num_parts, dtype=jnp.int32)
  of_instances, of_boxes = jax.lax.scan(visit, nothing, (starts, parts))
  of_boxes = (x.reshape(-1)[: boxes.shape[0]] for x in of_boxes)
  return _Overlaps(*of_boxes, *of_instances)


def _parts(boxes, instance_boxes):
  """Boxes in equal parts `[parts, 4, size]`, the last filled up with zeros.

  A coordinate of all boxes lies side by side, as `_masked_ious` needs it.
  """
  num_boxes, num_instances = boxes.shape[0], instance_boxes.shape[0]
  num_parts = -(-num_instances * num_boxes // _PAIRS_AT_ONCE)
  num_parts = min(max(num_parts, 1), num_boxes)
  size = -(-num_boxes // num_parts)
  boxes = jnp.pad(boxes, ((0, -num_boxes % size), (0, 0)))
  return jnp.swapaxes(boxes.reshape(-1, size, 4), 1, 2)


def _masked_ious(instance_boxes, instance_valid, coordinates):
  """IoUs `[m, n]` with boxes `[4, n]`; -1, below all others, for padding."""
  # Three times as fast on a CPU as with strided columns of `[n, 4]`.
  boxes = jnp.stack([coordinates[i] for i in range(4)], axis=-1)
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


def _match_best(result, overlaps, instance_valid):
  """Matches each instance to the first of its best boxes."""
  num_boxes, num_instances = len(result.labels), len(instance_valid)
  instances = jnp.arange(num_instances, dtype=jnp.int32)
  # A position past the end is dropped.
  positions = jnp.where(instance_valid, overlaps.instance_positions, num_boxes)
  owners = jnp.full(num_boxes, num_instances, jnp.int32)
  owners = owners.at[positions].min(instances, mode='drop')
  owned = owners < num_instances
  labels = jnp.where(owned, 1, result.labels)
  indices = jnp.where(owned, owners, result.indices)
  return result._replace(labels=labels, indices=indices)


def _match_all_best(result, boxes, instance_boxes, instance_valid, best):
  """Makes the best boxes of every instance positive, all ties included."""
  # Without overlap all boxes tie at 0.
  counts = instance_valid & (best > 0.0)

  def is_best(coordinates):
    ious = _masked_ious(instance_boxes, instance_valid, coordinates)
    return jnp.any((ious == best[:, None]) & counts[:, None], axis=0)

  found = jax.lax.map(is_best, _parts(boxes, instance_boxes)).reshape(-1)
  labels = jnp.where(found[: boxes.shape[0]], 1, result.labels)
  return result._replace(labels=labels)


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
  most = min(max_positive, num)
  selected_positive = select_top(positive, priorities, most, most)
  rest = num - jnp.sum(selected_positive, dtype=jnp.int32)
  return selected_positive, select_top(negative, priorities, num, rest)


def select_top(
  candidates: jax.Array,
  priorities: jax.Array,
  max_count: int,
  count: jax.Array | int,
) -> jax.Array:
  """Candidates with the highest priorities, of equal ones the lower index.

  Args:
    candidates: `[n]` bool.
    priorities: `[n]`, finite.
    max_count: upper limit of `count`.
    count: number to select; fewer if there are too few candidates.

  Returns:
    `[n]` bool.
  """
  priorities = jnp.where(candidates, priorities, -jnp.inf)
  values, indices = jax.lax.top_k(
    priorities, min(max_count, candidates.shape[0])
  )
  # Compared with the last one that is selected; a scatter of marks is slower.
  is_last = jnp.arange(len(values)) == jnp.minimum(count, len(values)) - 1
  value = jnp.max(values, where=is_last, initial=-jnp.inf)
  index = jnp.max(indices, where=is_last, initial=-1)
  before = jnp.arange(candidates.shape[0]) <= index
  above = (priorities > value) | ((priorities == value) & before)
  return candidates & above & (count > 0)
