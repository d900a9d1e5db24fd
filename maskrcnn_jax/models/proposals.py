"""Proposals from the outputs of the region proposal network."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

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
  merged = _candidates(outputs, anchors, image_sizes, options, plus_one, keep)
  k = min(options.post_nms_top_k, merged.scores.shape[1])
  logits, best = jax.lax.top_k(
    jnp.where(merged.valid, merged.scores, -jnp.inf), k
  )
  proposals = Proposals(
    boxes=take_rows(merged.boxes, best),
    scores=jax.nn.sigmoid(logits),  # 0 where not valid.
    valid=logits > -jnp.inf,
  )
  # Approximate joint training: no gradient through the coordinates of proposals
  # (Faster R-CNN, Sec. 3.2).
  return jax.lax.stop_gradient(proposals)


def _candidates(outputs, anchors, image_sizes, options, plus_one, keep):
  """The best anchors, level after level; scores are logits, valid is NMS's."""
  logits, deltas, rows, start = [], [], [], 0
  for level in sorted(anchors):
    scores = outputs.objectness_logits[level]
    most = min(options.pre_nms_top_k or scores.shape[1], scores.shape[1])
    scores, best = jax.lax.top_k(scores, most)
    logits.append(scores)
    deltas.append(take_rows(outputs.box_deltas[level], best))
    rows.append(best + start)
    start += len(anchors[level])
  lengths = [x.shape[1] for x in logits]
  logits, deltas, rows = (
    jnp.concatenate(x, axis=1) for x in (logits, deltas, rows)
  )
  boxes = jnp.concatenate([jnp.asarray(anchors[x]) for x in sorted(anchors)])
  boxes = box_ops.decode(deltas, boxes[rows], plus_one=plus_one)
  # Before clipping, which would make infinite coordinates finite.
  valid = jnp.isfinite(logits) & jnp.all(jnp.isfinite(boxes), axis=-1)
  boxes = box_ops.clip(boxes, image_sizes, plus_one)
  if options.min_size > 0:
    valid &= is_large(boxes, options.min_size, image_sizes, plus_one)
  if options.iou_threshold is not None:
    valid = _kept(boxes, valid, lengths, options, keep)
  boxes = jnp.where(valid[..., None], boxes, 0.0)
  return Proposals(boxes, logits, valid)


def _kept(boxes, valid, lengths, options, keep):
  """Mask `[batch, n]` of NMS within every level, whose boxes are sorted."""
  limits = options.iou_threshold, options.post_nms_top_k
  if keep is None:
    return jax.vmap(lambda *x: nms_ops.keep_sorted(*x, *limits, lengths))(
      boxes, valid
    )
  ends, kept = np.cumsum(lengths)[:-1], []
  for level in zip(*(jnp.split(x, ends, axis=1) for x in (boxes, valid))):
    # Ranks are positive scores without ties.
    n = level[1].shape[1]
    ranks = jnp.broadcast_to(jnp.arange(n, 0.0, -1.0), level[1].shape)
    kept.append(keep(level[0], ranks, level[1], *limits))
  return jnp.concatenate(kept, axis=1)


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
