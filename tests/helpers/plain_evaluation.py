"""The plain way to score detections, to compare with.

Every mask is pasted into a picture of the size of the image and encoded by
pycocotools, which scores everything in one process.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import coco as coco_api
from pycocotools import cocoeval
from pycocotools import mask as coco_mask

from maskrcnn_jax.evaluation import mask_pasting


def encode_masks(
  masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> list[str]:
  """The compressed run lengths of the pictures of masks."""
  return [
    coco_mask.encode(np.asfortranarray(picture, np.uint8))['counts'].decode()
    for picture in mask_pasting.paste_masks(masks, boxes, image_size)
  ]


def score(
  truth: Mapping, results: Sequence[Mapping], image_ids: Sequence[int]
) -> list[float]:
  """The 12 numbers of the boxes, then those of the masks.

  Args:
    truth: a COCO dataset.
    results: COCO result dicts with boxes and masks.
    image_ids: the images that count.
  """
  numbers = []
  with contextlib.redirect_stdout(io.StringIO()):
    for kind, other in (('bbox', 'segmentation'), ('segm', 'bbox')):
      known = coco_api.COCO()
      known.dataset = truth
      known.createIndex()
      # A mask is scored by its own area only where there is no box.
      own = [{k: v for k, v in r.items() if k != other} for r in results]
      evaluation = cocoeval.COCOeval(known, known.loadRes(own), kind)
      evaluation.params.imgIds = list(image_ids)
      evaluation.evaluate()
      evaluation.accumulate()
      evaluation.summarize()
      numbers += evaluation.stats.tolist()
  return numbers
