"""The plain way to score detections, to compare with.

Every mask is pasted into a picture of the size of the image and encoded by
pycocotools, which scores everything in one process.
"""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import coco as coco_api
from pycocotools import cocoeval
from pycocotools import mask as coco_mask

from maskrcnn_jax.evaluation import mask_pasting
from maskrcnn_jax.evaluation.coco_results import ResultEncoder


def to_results(
  detections, image_ids, original_sizes, scales, valid
) -> list[dict]:
  """COCO results of one batch, see `ResultEncoder`."""
  encoder = ResultEncoder()
  batch = {'image_ids': image_ids, 'original_sizes': original_sizes}
  encoder.add(detections, {**batch, 'scales': scales, 'valid': valid})
  return encoder.collect()


def encode_masks(
  masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> list[str]:
  """The compressed run lengths of the pictures of masks."""
  return [
    coco_mask.encode(np.asfortranarray(picture, np.uint8))['counts'].decode()
    for picture in mask_pasting.paste_masks(masks, boxes, image_size)
  ]


def encode_mask(mask: np.ndarray) -> dict:
  """COCO's compressed run lengths of a picture, as json has them."""
  rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
  return {'size': list(rle['size']), 'counts': rle['counts'].decode()}


def encode_box(box: Sequence[int], size: tuple[int, int]) -> dict:
  """`encode_mask` of a box `[x, y, width, height]` of ones."""
  x, y, width, height = box
  mask = np.zeros(size, np.uint8)
  mask[y : y + height, x : x + width] = 1
  return encode_mask(mask)


def write_truth(folder, truth: Mapping):
  """Writes a COCO dataset and returns the path of the file."""
  path = folder / 'truth.json'
  path.write_text(json.dumps(truth))
  return path


def crop_mask(mask, box, mask_size=112):
  """The mask crop of a training batch, but for rounding, of a mask `[h, w]`."""
  for axis, length in enumerate(mask.shape):
    grid = (length - 1) / length
    points = np.linspace(box[axis] * grid, box[axis + 2] * grid, mask_size)
    lower = np.clip(np.floor(points).astype(int), 0, length - 2)
    weights = np.clip(points - lower, 0, 1)[:, None].astype(np.float32)
    lines = np.moveaxis(np.asarray(mask, np.float32), axis, 0)
    lines = lines[lower] * (1 - weights) + lines[lower + 1] * weights
    mask = np.moveaxis(lines, 0, axis)
  return mask


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
