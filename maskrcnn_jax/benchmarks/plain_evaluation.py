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


def paste_masks(
  masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> np.ndarray:
  """Pictures of masks that live on boxes, every pixel of a box computed.

  A mask is padded by one cell of zeros, its box grows by as much, the corners
  of the grown box are truncated to whole pixels, both included, and the mask is
  resized to them bilinearly and cut at 0.5.

  Args:
    masks: `[n, size, size]` float probabilities over the boxes.
    boxes: `[n, 4]` in pixels of the image.
    image_size: (height, width) of the image.

  Returns:
    `[n, height, width]` bool.
  """
  size = masks.shape[-1]
  padded = np.pad(np.asarray(masks, np.float32), ((0, 0), (1, 1), (1, 1)))
  boxes = np.asarray(boxes, np.float32)
  half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5)
  centers = boxes[:, :2] + half
  half = half * np.float32((size + 2) / size)
  first, last = (
    np.trunc(x).astype(int) for x in (centers - half, centers + half)
  )
  pictures = np.zeros((len(masks), *image_size), bool)
  for picture, mask, low, high in zip(pictures, padded, first, last):
    (rows, lower, upper, down), (columns, left, right, across) = (
      _neighbours(low[axis], high[axis], image_size[axis], size + 2)
      for axis in range(2)
    )
    values = mask[:, left] * (1 - across) + mask[:, right] * across
    down = down[:, None]
    values = values[lower] * (1 - down) + values[upper] * down
    picture[rows, columns] = values > 0.5
  return pictures


def _neighbours(first, last, length, num_cells):
  """The pixels of a side in the image, the cells beside each, a weight."""
  start, stop = max(first, 0), max(min(last + 1, length), 0)
  pixels = np.arange(start - first, stop - first)
  places = (pixels + 0.5) * (num_cells / max(last - first + 1, 1)) - 0.5
  lower = np.clip(np.floor(places), 0, num_cells - 1)
  weights = np.clip(places - lower, 0, 1).astype(np.float32)
  lower = lower.astype(int)
  upper = np.minimum(lower + 1, num_cells - 1)
  return slice(start, max(stop, start)), lower, upper, weights


def encode_masks(
  masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> list[str]:
  """The compressed run lengths of the pictures of masks."""
  return [
    coco_mask.encode(np.asfortranarray(picture, np.uint8))['counts'].decode()
    for picture in paste_masks(masks, boxes, image_size)
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
