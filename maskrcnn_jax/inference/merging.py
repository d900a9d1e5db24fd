"""What several views of an image show, as one list without doubles."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from maskrcnn_jax.ops import nms as nms_ops
from maskrcnn_jax.structures import Detections


def merge(
  parts: Sequence[Detections],
  iou_threshold: float,
  max_detections: int | None = None,
) -> Detections:
  """The best of all parts, after NMS within each class over their union.

  Of several views of an object the one with the highest score gives score, box
  and mask; nothing is averaged.

  Args:
    parts: at least one, all in pixels of the same image, valid rows only.
    iou_threshold: see `ops.nms.nms`.
    max_detections: keep only so many; None: all.

  Returns:
    Detections of the image, best first.
  """
  union = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  kept = []
  for label in np.unique(union.classes):
    rows = np.flatnonzero(union.classes == label)
    kept.append(
      rows[_keep(union.boxes[rows], union.scores[rows], iou_threshold)]
    )
  rows = np.sort(np.concatenate(kept)) if kept else np.zeros(0, int)
  rows = rows[np.argsort(-union.scores[rows], kind='stable')][:max_detections]
  return jax.tree.map(lambda x: x[rows], union)


def _keep(boxes, scores, iou_threshold) -> np.ndarray:
  """Rows of one class that NMS keeps."""
  count = len(boxes)
  # Powers of two, so that few lengths are ever compiled.
  padding = (1 << (count - 1).bit_length()) - count
  rows, kept = _nms(
    np.pad(boxes, ((0, padding), (0, 0))),
    np.pad(scores, (0, padding)),
    np.arange(count + padding) < count,
    iou_threshold,
  )
  return np.asarray(rows)[np.asarray(kept)]


@functools.partial(jax.jit, static_argnames='iou_threshold')
def _nms(boxes, scores, valid, iou_threshold):
  # The form that takes memory linear in the boxes: thousands are usual here.
  rows, _, kept = nms_ops.classwise_nms(
    boxes[:, None],
    scores[:, None],
    valid[:, None],
    iou_threshold,
    max_outputs=len(boxes),
  )
  return rows, kept
