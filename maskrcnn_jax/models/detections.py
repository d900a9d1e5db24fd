"""Detections from the outputs of the box head."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models.heads import BoxOutputs
from maskrcnn_jax.models.proposals import is_large, take_rows
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import nms as nms_ops
from maskrcnn_jax.structures import Detections, Proposals

NMS = ('class', 'all', 'mask')
PASTINGS = ('whole_pixels', 'continuous')
# Boxes that overlap more have nearly the same features, so that a mask head
# cannot tell the objects in them apart.
CANDIDATES_IOU = 0.8
_CANDIDATES = 3


@dataclasses.dataclass(frozen=True)
class DetectionOptions:
  """Thresholds and limits of the detections of an image.

  Attributes:
    max_detections: number of detections per image.
    score_threshold: detections with this score or a lower one are dropped.
    iou_threshold: NMS IoU threshold.
    min_size: detections with a side below it, in input pixels, are dropped; 0
      keeps all.
    nms: `'class'`: by the IoU of boxes within each class; `'all'`: whatever
      their class; `'mask'`: by the IoU of masks within each class. The last
      ends outside of the model, see `evaluation.mask_nms`, which gives
      candidates: three times as many, whose boxes differ by `CANDIDATES_IOU`.
    mask_pasting: rule by which masks are pasted into an image: 'whole_pixels'
      (Detectron, torchvision) or 'continuous' (Detectron2), see
      `evaluation.mask_pasting`.
  """

  max_detections: int = 100
  score_threshold: float = 0.0
  iou_threshold: float = 0.5
  min_size: float = 0.0
  nms: str = 'class'
  mask_pasting: str = 'whole_pixels'

  def __post_init__(self):
    if self.nms not in NMS:
      wanted = f'one of {", ".join(NMS)}'
      raise invalid('model.detections.nms', self.nms, wanted)
    if self.mask_pasting not in PASTINGS:
      wanted = f'one of {", ".join(PASTINGS)}'
      raise invalid('model.detections.mask_pasting', self.mask_pasting, wanted)
    if self.max_detections < 1:
      name = 'model.detections.max_detections'
      raise invalid(name, self.max_detections, 'at least 1')
    for name in ('score_threshold', 'iou_threshold'):
      if not 0 <= getattr(self, name) <= 1:
        given = getattr(self, name)
        raise invalid(f'model.detections.{name}', given, 'from 0 to 1')

  @property
  def num_outputs(self) -> int:
    """Number of detections that the model gives for an image."""
    return self.max_detections * (_CANDIDATES if self.nms == 'mask' else 1)


def select_detections(
  outputs: BoxOutputs,
  proposals: Proposals,
  image_sizes: jax.Array,
  options: DetectionOptions,
  weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
  plus_one: bool = True,
  keep: Callable[..., jax.Array] | None = None,
) -> Detections:
  """Detections with the highest scores of every image, after NMS.

  A proposal with a score or a box that is not finite gives none.

  Args:
    outputs: box head outputs for the proposals.
    proposals: `[batch, num_proposals]`.
    image_sizes: `[batch, 2]`.
    options: see `DetectionOptions`.
    weights: weights of the box deltas, (dy, dx, dh, dw).
    plus_one: whether a box from a to b has the side b - a + 1.
    keep: see `operations.Operations`.

  Returns:
    `[batch, options.num_outputs]`, highest score first, masks None.

  Fast R-CNN, Sec. 3.1; the default thresholds are Habana's.
  """
  scores = jax.nn.softmax(outputs.class_logits)[..., 1:]
  anchors = proposals.boxes[:, :, None]
  boxes = box_ops.decode(
    outputs.box_deltas[:, :, 1:],
    jnp.broadcast_to(anchors, (*scores.shape, 4)),
    weights,
    plus_one,
  )  # [batch, num_proposals, num_classes - 1, 4]
  # Before clipping, which would make infinite coordinates finite.
  finite = jnp.all(jnp.isfinite(scores), axis=-1)
  finite &= jnp.all(jnp.isfinite(boxes), axis=(-2, -1))
  boxes = box_ops.clip(boxes, image_sizes[:, None], plus_one)
  valid = (proposals.valid & finite)[..., None]
  valid &= scores > options.score_threshold
  if options.min_size > 0:
    flat = boxes.reshape(boxes.shape[0], -1, 4)
    large = is_large(flat, options.min_size, image_sizes, plus_one)
    valid = valid & large.reshape(valid.shape)
  if keep is not None:
    return _select_kept(boxes, scores, valid, options, keep)
  return jax.vmap(lambda *x: _select(*x, options))(boxes, scores, valid)


def _select(boxes, scores, valid, options):
  """Detections of one image from `[n, classes]` candidates."""
  threshold, num_classes = options.iou_threshold, scores.shape[1]
  if options.nms == 'mask':
    threshold = max(threshold, CANDIDATES_IOU)
  candidates = boxes, scores, valid
  if options.nms == 'all':  # Of one class.
    candidates = (
      boxes.reshape(-1, 1, 4),
      *(x.reshape(-1, 1) for x in (scores, valid)),
    )
  rows, classes, kept = nms_ops.classwise_nms(
    *candidates, threshold, options.num_outputs
  )
  if options.nms == 'all':
    rows, classes = rows // num_classes, rows % num_classes
  return Detections(
    boxes=jnp.where(kept[:, None], boxes[rows, classes], 0.0),
    scores=jnp.where(kept, scores[rows, classes], 0.0),
    classes=jnp.where(kept, classes + 1, 0).astype(jnp.int32),
    masks=None,
    valid=kept,
    mask_pasting=options.mask_pasting,
  )


def _select_kept(boxes, scores, valid, options, keep):
  """Detections of a batch from `[batch, n, classes]` candidates, by a mask."""
  batch, n, num_classes = scores.shape
  limits = options.iou_threshold, options.max_detections
  flat = [x.reshape(batch, -1, *x.shape[3:]) for x in (boxes, scores, valid)]
  if options.nms == 'all':
    kept = keep(*flat, *limits)
  else:  # A group per image and class.
    by_class = (jnp.swapaxes(x, 1, 2) for x in (boxes, scores, valid))
    kept = keep(*(x.reshape(-1, n, *x.shape[3:]) for x in by_class), *limits)
    kept = jnp.swapaxes(kept.reshape(batch, num_classes, n), 1, 2)
  boxes, scores, kept = *flat[:2], kept.reshape(batch, -1)
  k = min(options.max_detections, scores.shape[1])
  scores, best = jax.lax.top_k(jnp.where(kept, scores, -1.0), k)
  found = scores >= 0.0
  classes = jax.lax.rem(best, jnp.full_like(best, num_classes)) + 1
  rows = Detections(
    boxes=jnp.where(found[..., None], take_rows(boxes, best), 0.0),
    scores=jnp.where(found, scores, 0.0),
    classes=jnp.where(found, classes, 0),
    masks=None,
    valid=found,
  )
  missing = options.max_detections - k
  return jax.tree.map(
    lambda x: jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)), rows
  )
