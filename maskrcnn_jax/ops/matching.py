"""Matches boxes to instances by IoU, and selects a balanced subset to learn."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskrcnn_jax.ops import boxes as box_ops


@dataclasses.dataclass(frozen=True)
class MatchingOptions:
  """When a box stands for an instance.

  Attributes:
    positive_iou: a box is positive from this IoU on.
    negative_iou: a box is negative below this IoU; between the two it is
      ignored.
    positive_strict: `positive_iou` itself does not suffice.
    forced: what is done for instances that no box fits. 'none': nothing.
      'one': the first of the boxes with the largest IoU is positive and
      belongs to the instance, even at IoU 0; of several instances that claim a
      box the first gets it. 'ties': all boxes with the largest IoU are
      positive, and each stays with the instance that it overlaps most
      (torchvision's low-quality matches).
  """

  positive_iou: float = 0.7
  negative_iou: float = 0.3
  positive_strict: bool = False
  forced: str = 'none'

  def __post_init__(self):
    if self.forced not in ('none', 'one', 'ties'):
      raise ValueError(
        f"forced must be 'none', 'one' or 'ties', got {self.forced!r}."
      )


class Matches(NamedTuple):
  """What a set of boxes stands for.

  Attributes:
    labels: `[n]` int32, 1 positive, 0 negative, -1 ignored.
    indices: `[n]` int32, the instance a positive box belongs to; for the
      others the instance they overlap most, 0 where there is none.
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

  Forced matches look for the best box over all levels; still no more than the
  IoUs of one level exist at a time.

  Args:
    levels: boxes `[n_l, 4]`; one entry where there are no levels.
    instance_boxes: `[m, 4]`, m at least 1.
    instance_valid: `[m]` bool; padded instances match nothing.
    options: thresholds and forced matches.

  Returns:
    The matches of each level. Without any instance all boxes are negative.

  Faster R-CNN (Ren et al. 2015), Sec. 3.1.2.
  """
  if instance_boxes.ndim != 2 or instance_boxes.shape[0] == 0:
    raise ValueError(
      'instance_boxes must be [m, 4] with m >= 1 (pad with invalid rows), got '
      f'{instance_boxes.shape}.'
    )
  results = []
  best_ious = []
  best_positions = []
  for boxes in levels:
    ious = _masked_ious(boxes, instance_boxes, instance_valid)  # [n_l, m]
    results.append(_match_by_threshold(ious, options))
    best_ious.append(jnp.max(ious, axis=0))
    best_positions.append(jnp.argmax(ious, axis=0))
  if options.forced == 'one':
    return _force_one(results, best_ious, best_positions, instance_valid)
  if options.forced == 'ties':
    best = jnp.max(jnp.stack(best_ious), axis=0)
    return [
      _force_ties(result, boxes, instance_boxes, instance_valid, best)
      for result, boxes in zip(results, levels)
    ]
  return results


def _masked_ious(boxes, instance_boxes, instance_valid):
  """IoUs `[n, m]`; -1, which is below all others, for padded instances."""
  ious = box_ops.pairwise_iou(boxes, instance_boxes)
  return jnp.where(instance_valid[None, :], ious, -1.0)


def _match_by_threshold(ious, options):
  best = jnp.max(ious, axis=1)
  indices = jnp.argmax(ious, axis=1).astype(jnp.int32)
  if options.positive_strict:
    positive = best > options.positive_iou
  else:
    positive = best >= options.positive_iou
  negative = best < options.negative_iou
  labels = jnp.where(positive, 1, jnp.where(negative, 0, -1))
  return Matches(labels.astype(jnp.int32), indices, jnp.maximum(best, 0.0))


def _force_one(results, best_ious, best_positions, instance_valid):
  """Gives each instance the first of its best boxes over all levels."""
  # argmax takes the first of equals: the lowest level.
  best_level = jnp.argmax(jnp.stack(best_ious), axis=0)
  num_instances = instance_valid.shape[0]
  forced = []
  for level, result in enumerate(results):
    num_boxes = result.labels.shape[0]
    claims = instance_valid & (best_level == level)
    # A position past the end is dropped.
    positions = jnp.where(claims, best_positions[level], num_boxes)
    owners = jnp.full(num_boxes, num_instances, jnp.int32)
    owners = owners.at[positions].min(
      jnp.arange(num_instances, dtype=jnp.int32), mode='drop'
    )
    owned = owners < num_instances
    forced.append(
      result._replace(
        labels=jnp.where(owned, 1, result.labels),
        indices=jnp.where(owned, owners, result.indices),
      )
    )
  return forced


def _force_ties(result, boxes, instance_boxes, instance_valid, best):
  """Makes every box positive that is an instance's best, with all ties."""
  ious = _masked_ious(boxes, instance_boxes, instance_valid)
  is_best = jnp.any((ious == best) & instance_valid, axis=1)
  return result._replace(labels=jnp.where(is_best, 1, result.labels))


def select_balanced(
  positive: jax.Array,
  negative: jax.Array,
  priorities: jax.Array,
  num: int,
  max_positive: int,
) -> tuple[jax.Array, jax.Array]:
  """Selects some positives, then negatives until there are `num` in all.

  Args:
    positive: `[n]` bool, candidates.
    negative: `[n]` bool, candidates; never both.
    priorities: `[n]` finite; the candidates with the highest are taken, at
      equality the lower index. Random numbers make the selection random.
    num: number to select; fewer where there are too few candidates.
    max_positive: at most this many positives.

  Returns:
    positive: `[n]` bool, the selected positives.
    negative: `[n]` bool, the selected negatives.

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
