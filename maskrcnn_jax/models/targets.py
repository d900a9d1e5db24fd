"""Training targets of the heads: labels, box deltas and masks."""

import dataclasses
import math
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models.proposals import take_rows
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import masks as mask_ops
from maskrcnn_jax.ops.matching import (
  MatchingOptions,
  match,
  select_balanced,
  select_top,
)
from maskrcnn_jax.structures import Instances, Proposals, SampledRois


def _check_positive(options, section, **limits) -> None:
  for name, most in limits.items():
    given = getattr(options, name)
    if given is not None and not 0 < given <= most:
      wanted = 'above 0' + f', at most {most}' * (most < math.inf)
      raise invalid(f'model.{section}.{name}', given, wanted)


@dataclasses.dataclass(frozen=True)
class RPNTargetOptions:
  """Matching and sampling of anchors for the region proposal network.

  Attributes:
    matching: thresholds and low-quality matches; the defaults are Habana's.
    num_samples: number of anchors per image in the objectness loss.
    positive_fraction: largest share of positives among them.
  """

  matching: MatchingOptions = MatchingOptions(
    positive_iou=0.7, negative_iou=0.3, low_quality_matches='one'
  )
  num_samples: int = 256
  positive_fraction: float = 0.5

  def __post_init__(self):
    limits = {'num_samples': math.inf, 'positive_fraction': 1}
    _check_positive(self, 'rpn_targets', **limits)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
  """Matching and sampling of RoIs for the box and mask heads.

  Attributes:
    matching: thresholds; by default Habana's, where an IoU of exactly 0.5 is
      neither foreground nor background.
    num_rois: number of RoIs per image.
    foreground_fraction: largest share of foreground among them.
    fill_up: if background is too scarce for `num_rois`, more foreground and
      RoIs between the thresholds fill up (Habana); otherwise padding does.
    num_mask_rois: largest number of foreground RoIs per image that the mask
      head learns from, a random subset; None: all of them, as published. The
      cost of the mask head is that of the largest number, and few images have
      `num_rois * foreground_fraction` foreground RoIs.
  """

  matching: MatchingOptions = MatchingOptions(
    positive_iou=0.5, negative_iou=0.5, positive_strict=True
  )
  num_rois: int = 512
  foreground_fraction: float = 0.25
  fill_up: bool = True
  num_mask_rois: int | None = None

  def __post_init__(self):
    limits = dict.fromkeys(('num_rois', 'num_mask_rois'), math.inf)
    _check_positive(self, 'sampling', **limits, foreground_fraction=1)

  @property
  def num_foreground(self) -> int:
    """Largest number of foreground RoIs of an image; their rows come first."""
    return int(self.num_rois * self.foreground_fraction)

  @property
  def num_mask_rows(self) -> int:
    """Rows per image of the mask head, with padding."""
    return min(self.num_foreground, self.num_mask_rois or self.num_foreground)


@flax.struct.dataclass
class RPNTargets:
  """Targets of the region proposal network, by level.

  Attributes:
    labels: `[batch, num_anchors]` int32 per level: 1 positive, 0 negative, -1
      not sampled.
    matched: `[batch, num_anchors]` bool per level: matched to an instance,
      sampled or not.
    box_deltas: `[batch, num_anchors, 4]` per level; zeros where not matched.
  """

  labels: dict[int, jax.Array]
  matched: dict[int, jax.Array]
  box_deltas: dict[int, jax.Array]


def rpn_targets(
  anchors: Mapping[int, jax.Array],
  instances: Instances,
  valid: jax.Array,
  key: jax.Array,
  options: RPNTargetOptions,
) -> RPNTargets:
  """RPN targets of every anchor of a batch.

  Args:
    anchors: `[num_anchors, 4]` by level.
    instances: ground truth.
    valid: `[batch]` bool; no anchor is sampled in an invalid image.
    key: key that samples anchors, or `[batch]` keys, one per image.
    options: see `RPNTargetOptions`.

  Faster R-CNN, Sec. 3.1.2 and 3.1.3. Deltas are coded without `plus_one` in
  both families, though Habana decodes its proposals with it.
  """
  levels = sorted(anchors)
  ends = np.cumsum([len(anchors[level]) for level in levels])
  boxes = jnp.concatenate([jnp.asarray(anchors[level]) for level in levels])
  keys = key if key.shape else jax.random.split(key, len(instances.boxes))

  def one_image(instance_boxes, instance_valid, image_valid, key):
    matches = match(boxes, instance_boxes, instance_valid, options.matching)
    priorities = jax.random.uniform(key, matches.labels.shape)
    sampled = sample_labels(matches.labels, priorities, options)
    sampled = jnp.where(image_valid, sampled, -1)
    matched = matches.labels == 1
    deltas = box_ops.encode(instance_boxes[matches.indices], boxes)
    deltas = jnp.where(matched[:, None], deltas, 0.0)
    return sampled, matched & image_valid, deltas

  found = jax.vmap(one_image)(instances.boxes, instances.valid, valid, keys)
  parts = [dict(zip(levels, jnp.split(x, ends[:-1], axis=1))) for x in found]
  return jax.lax.stop_gradient(RPNTargets(*parts))


def draw_priorities(
  key: jax.Array,
  shape: tuple[int, int],
  part: tuple[jax.Array, int] | None = None,
) -> jax.Array:
  """Random priorities `[batch, n]` of candidates, uniform in [0, 1).

  Args:
    key: one key, or `[batch]` keys, one per image.
    shape: of the priorities.
    part: (i, count): these images are the rows i, i + count, ... of a batch
      that is `count` times as large, whose priorities they get.
  """
  if key.shape:
    return jax.vmap(jax.random.uniform, (0, None))(key, shape[1:])
  if part is None:
    return jax.random.uniform(key, shape)
  index, count = part
  return jax.random.uniform(key, (shape[0], count, shape[1]))[:, index]


def sample_labels(
  labels: jax.Array, priorities: jax.Array, options: RPNTargetOptions
) -> jax.Array:
  """Labels `[n]` of one image with -1 where the anchor is not sampled."""
  positive, negative = select_balanced(
    labels == 1,
    labels == 0,
    priorities,
    options.num_samples,
    int(options.num_samples * options.positive_fraction),
  )
  return jnp.where(positive, 1, jnp.where(negative, 0, -1))


def sample_rois(
  proposals: Proposals,
  instances: Instances,
  priorities: jax.Array,
  options: SamplingOptions,
) -> SampledRois:
  """RoIs to train the heads on, sampled from proposals and instances.

  The boxes of the instances are appended to the proposals, so that there is
  foreground from the first step. Padding is never sampled.

  Args:
    proposals: `[batch, num_proposals]`.
    instances: `[batch, num_instances]`.
    priorities: `[batch, num_proposals + num_instances]`; candidates with the
      highest are sampled. Random numbers make the sample random.
    options: see `SamplingOptions`.

  Returns:
    `[batch, num_rois]`: foreground in the order of the proposals (of their
    priorities with `num_mask_rois`), fill-up, background, then padding
    where there are too few candidates.

  Fast R-CNN, Sec. 2.3.
  """
  boxes = jnp.concatenate([proposals.boxes, instances.boxes], axis=1)
  valid = jnp.concatenate([proposals.valid, instances.valid], axis=1)

  def one_image(boxes, valid, instance_boxes, instance_valid, priorities):
    matches = match(boxes, instance_boxes, instance_valid, options.matching)
    foreground, background = select_balanced(
      (matches.labels == 1) & valid,
      (matches.labels == 0) & valid,
      priorities,
      options.num_rois,
      options.num_foreground,
    )
    rank = jnp.where(foreground, 3, jnp.where(background, 1, 0))
    if options.fill_up:
      left = valid & (rank == 0) & (matches.labels != 0)
      missing = options.num_rois - jnp.sum(rank > 0, dtype=jnp.int32)
      filler = select_top(left, priorities, options.num_rois, missing)
      rank = jnp.where(filler, 2, rank)
    # top_k takes the lower index first among equals: the proposals' order.
    rank, rows = jax.lax.top_k(rank, min(options.num_rois, rank.shape[0]))
    if options.num_mask_rois is not None:
      rank, rows = _shuffle_foreground(rank, rows, priorities, options)
    return rows, matches.indices[rows], rank

  rows, indices, rank = jax.vmap(one_image)(
    boxes, valid, instances.boxes, instances.valid, priorities
  )
  foreground = rank >= 2
  indices = jnp.where(foreground, indices, 0)
  classes = take_rows(instances.classes, indices)
  boxes = take_rows(boxes, rows)
  return SampledRois(
    boxes=jnp.where((rank > 0)[..., None], boxes, 0.0),
    classes=jnp.where(foreground, classes, 0),
    instance_indices=indices,
    valid=rank > 0,
  )


def _shuffle_foreground(rank, rows, priorities, options):
  """Sorts the foreground by priority, so that its first rows are random."""
  num = min(options.num_foreground, rank.shape[0])
  drawn = jnp.where(rank[:num] >= 2, priorities[rows[:num]], -jnp.inf)
  _, order = jax.lax.top_k(drawn, num)
  return [x.at[:num].set(x[order]) for x in (rank, rows)]


def mask_rois(rois: SampledRois, options: SamplingOptions) -> SampledRois:
  """The RoIs that the mask head learns from; only foreground is valid.

  Args:
    rois: `[batch, num_rois]` of `sample_rois`, foreground first.
    options: see `SamplingOptions`.

  Returns:
    `[batch, num_mask_rows]`.
  """
  rois = rois.first(options.num_mask_rows)
  return rois.replace(valid=rois.valid & (rois.classes > 0))


@jax.named_scope('box_targets')
def roi_box_targets(
  rois: SampledRois,
  instances: Instances,
  weights: tuple[float, float, float, float],
  plus_one: bool,
) -> jax.Array:
  """Box deltas `[batch, num_rois, 4]` to the instances; 0 on background."""
  boxes = take_rows(instances.boxes, rois.instance_indices)
  deltas = box_ops.encode(boxes, rois.boxes, weights, plus_one)
  foreground = (rois.classes > 0) & rois.valid
  return jnp.where(foreground[..., None], deltas, 0.0)


@jax.named_scope('mask_targets')
def mask_targets(
  rois: SampledRois, instances: Instances, size: int, threshold: float | None
) -> jax.Array:
  """Mask targets: the part of its instance's mask that each RoI covers.

  Args:
    rois: foreground RoIs `[batch, n]`; values of other rows are meaningless.
    instances: instances with masks cropped to their boxes.
    size: side of the targets.
    threshold: cells of at least this value are 1, others 0; None: left soft.

  Returns:
    `[batch, n, size, size]` in [0, 1].
  """
  cut = jax.vmap(lambda *x: mask_ops.crop_masks(*x, size=size))(
    instances.masks, instances.boxes, rois.boxes, rois.instance_indices
  )
  if threshold is None:
    return jnp.clip(cut, 0.0, 1.0)
  return (cut >= threshold).astype(jnp.float32)
