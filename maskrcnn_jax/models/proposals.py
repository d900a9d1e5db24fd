"""Proposals from the outputs of the region proposal network."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from maskrcnn_jax.models.heads import RPNOutputs
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import nms as nms_ops
from maskrcnn_jax.structures import Proposals


@dataclasses.dataclass(frozen=True)
class ProposalOptions:
  """Number of proposals, and the NMS between them.

  Attributes:
    pre_nms_top_k: number of anchors per level, by score, that enter NMS; None:
      all, as in NVIDIA's system, which is slow on large canvases.
    post_nms_top_k: number of proposals per image after NMS.
    iou_threshold: NMS IoU threshold, within each level; None: no NMS.
    min_size: proposals with a side below it, in input pixels, are dropped, as
      are those whose centre is outside the image; 0 keeps all.
  """

  pre_nms_top_k: int | None = 1000
  post_nms_top_k: int = 1000
  iou_threshold: float | None = 0.7
  min_size: float = 0.0


def propose(
  outputs: RPNOutputs,
  anchors: Mapping[int, jax.Array],
  image_sizes: jax.Array,
  options: ProposalOptions,
  plus_one: bool = True,
  keep: Callable[..., jax.Array] | None = None,
) -> Proposals:
  """Proposals with the highest scores of every image, over all levels.

  The anchors of a level with the highest scores are decoded, clipped to the
  image and go through NMS; then the best of all levels are kept. A box or score
  that is not finite is dropped.

  Args:
    outputs: RPN head outputs by level.
    anchors: `[num_anchors, 4]` by level.
    image_sizes: `[batch, 2]`, the part of the canvas that is image.
    options: see `ProposalOptions`.
    plus_one: whether a box from a to b has the side b - a + 1.
    keep: see `operations.Operations`.

  Returns:
    Proposals `[batch, n]`, highest score first, without gradient; n is
    `post_nms_top_k` or the number of candidates if that is less.

  Faster R-CNN, Sec. 3.3; FPN, Sec. 4.1.
  """
  per_level = [
    _level_proposals(
      outputs.objectness_logits[level],
      outputs.box_deltas[level],
      jnp.asarray(anchors[level]),
      image_sizes,
      options,
      plus_one,
      keep,
    )
    for level in sorted(anchors)
  ]
  merged = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *per_level)
  k = min(options.post_nms_top_k, merged.scores.shape[1])
  _, best = jax.lax.top_k(jnp.where(merged.valid, merged.scores, -jnp.inf), k)
  proposals = jax.tree.map(functools.partial(take_rows, indices=best), merged)
  scores = jnp.where(proposals.valid, jax.nn.sigmoid(proposals.scores), 0.0)
  # Approximate joint training: no gradient through the coordinates of proposals
  # (Faster R-CNN, Sec. 3.2).
  return jax.lax.stop_gradient(proposals.replace(scores=scores))


def _level_proposals(
  logits, deltas, anchors, image_sizes, options, plus_one, keep
):
  """Proposals of one level, with logits as scores."""
  k = min(options.pre_nms_top_k or logits.shape[1], logits.shape[1])
  logits, best = jax.lax.top_k(logits, k)
  boxes = box_ops.decode(
    take_rows(deltas, best), anchors[best], plus_one=plus_one
  )
  # Before clipping, which would make infinite coordinates finite.
  valid = jnp.isfinite(logits) & jnp.all(jnp.isfinite(boxes), axis=-1)
  boxes = box_ops.clip(boxes, image_sizes, plus_one)
  if options.min_size > 0:
    valid &= is_large(boxes, options.min_size, image_sizes, plus_one)
  if options.iou_threshold is None:
    return _zero_invalid(Proposals(boxes, logits, valid))
  num_outputs = min(k, options.post_nms_top_k)
  if keep is not None:
    # They are sorted: ranks are positive scores without ties.
    ranks = jnp.broadcast_to(jnp.arange(k, 0.0, -1.0), logits.shape)
    kept = keep(boxes, ranks, valid, options.iou_threshold, num_outputs)
    return _zero_invalid(Proposals(boxes, logits, kept))
  kept, kept_valid = jax.vmap(
    lambda b, s, v: nms_ops.nms(b, s, v, options.iou_threshold, num_outputs)
  )(boxes, logits, valid)
  boxes, logits = take_rows(boxes, kept), take_rows(logits, kept)
  return _zero_invalid(Proposals(boxes, logits, kept_valid))


def is_large(
  boxes: jax.Array, min_size: float, image_sizes: jax.Array, plus_one: bool
) -> jax.Array:
  """Mask of boxes with large sides and a centre inside the image.

  Args:
    boxes: `[batch, n, 4]`.
    min_size: smallest side in pixels; at least 1 with `plus_one`.
    image_sizes: `[batch, 2]`.
    plus_one: whether a box from a to b has the side b - a + 1.

  Returns:
    `[batch, n]` bool.
  """
  sides = boxes[..., 2:] - boxes[..., :2] + float(plus_one)
  centers = boxes[..., :2] + 0.5 * sides
  smallest = max(min_size, 1.0) if plus_one else min_size
  inside = centers < image_sizes[:, None] if plus_one else True
  return jnp.all((sides >= smallest) & inside, axis=-1)


def take_rows(x: jax.Array, indices: jax.Array) -> jax.Array:
  """Rows `[batch, k, ...]` of x `[batch, n, ...]` at indices `[batch, k]`."""
  indices = indices.reshape(indices.shape + (1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, indices, axis=1)


def _zero_invalid(proposals):
  boxes = jnp.where(proposals.valid[..., None], proposals.boxes, 0.0)
  return proposals.replace(boxes=boxes)
