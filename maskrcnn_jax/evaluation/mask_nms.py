"""Non-maximum suppression by masks as they are pasted into the image.

Objects that cross, or lie in each other's corner, share a box but few pixels;
NMS by boxes drops all but one of them.
"""

from collections.abc import Mapping

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.evaluation import coco_results, mask_pasting
from maskrcnn_jax.structures import Detections


def keep(
  found: Detections,
  image_size: tuple[int, int],
  iou_threshold: float,
  max_detections: int | None = None,
) -> np.ndarray:
  """Rows of the detections that NMS within each class keeps, best first.

  Args:
    found: valid rows only, in pixels of the image; of equal scores the first
      one is better. Masks without a pixel neither suppress nor are suppressed.
    image_size: (height, width) of the image.
    iou_threshold: a mask is suppressed if its IoU with a kept one of its class
      and of a higher score is above it.
    max_detections: largest number to keep; None: all.
  """
  counts = mask_pasting.encode_masks(
    found.masks, found.boxes, image_size, found.mask_pasting
  )
  order, kept = np.argsort(-found.scores, kind='stable'), []
  for label in np.unique(found.classes):
    rows = order[found.classes[order] == label]
    masks = [
      {'size': [*image_size], 'counts': counts[row].encode()} for row in rows
    ]
    overlaps = coco_mask.iou(masks, masks, [0] * len(masks)) > iou_threshold
    chosen = []
    for number in range(len(rows)):
      if not np.any(overlaps[number, chosen]):
        chosen.append(number)
    kept.append(rows[chosen])
  is_kept = np.zeros(len(order), bool)
  is_kept[np.concatenate([*kept, np.zeros(0, int)])] = True
  return order[is_kept[order]][:max_detections]


def suppress(
  detections: Detections,
  batch: Mapping[str, np.ndarray],
  iou_threshold: float,
  max_detections: int,
) -> Detections:
  """The detections of a batch, `valid` False for those not kept.

  Args:
    detections: see `coco_results.ResultEncoder.add`, also for `batch`.
    iou_threshold: see `keep`, also for `max_detections`.
  """
  valid = np.array(detections.valid)
  for row in np.flatnonzero(np.asarray(batch['valid'])):
    places = np.flatnonzero(valid[row])
    found = detections.image(int(row))
    boxes = coco_results.original_boxes(found.boxes, batch['scales'][row])
    size = tuple(map(int, batch['original_sizes'][row]))
    rows = keep(found.replace(boxes=boxes), size, iou_threshold, max_detections)
    valid[row] = False
    valid[row, places[rows]] = True
  return detections.replace(valid=valid)
