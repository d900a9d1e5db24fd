"""Detections -> COCO result dicts in pixels of the original images.

The door where boxes `(y1, x1, y2, x2)` become COCO's `[x, y, width, height]`.
A mask is pasted by `evaluation.pasting` and run-length encoded straight from
the pixels of its box, so the cost does not grow with the image.
"""

import collections
import concurrent.futures
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.evaluation import pasting
from maskrcnn_jax.structures import Detections


def to_coco_results(
  detections: Detections,
  image_ids: np.ndarray,
  original_sizes: np.ndarray,
  scales: np.ndarray,
  valid: np.ndarray,
) -> list[dict]:
  """Results of a batch, image by image, best first.

  Args:
    detections: of the batch, in input pixels; `masks` may be None.
    image_ids: `[batch]` int64.
    original_sizes: `[batch, 2]` (height, width) of the images as published.
    scales: `[batch, 2]` input pixels per original pixel, (y, x).
    valid: `[batch]` bool; a filler row gives no result.

  Returns:
    Dicts with `image_id`, `category_id` (the class), `bbox`, `score` and, with
    masks, `segmentation` (compressed RLE, `counts` a str).
  """
  results = []
  for row in np.flatnonzero(np.asarray(valid)):
    found = detections.image(int(row))
    boxes = original_boxes(found.boxes, scales[row])
    image_size = tuple(int(side) for side in original_sizes[row])
    segmentations = [None] * len(boxes)
    if found.masks is not None:
      segmentations = encode_masks(found.masks, boxes, image_size)
    for box, class_id, score, segmentation in zip(
      to_xywh(boxes).tolist(), found.classes, found.scores, segmentations
    ):
      result = {
        'image_id': int(image_ids[row]),
        'category_id': int(class_id),
        'bbox': box,
        'score': float(score),
      }
      if segmentation is not None:
        result['segmentation'] = segmentation
      results.append(result)
  return results


def original_boxes(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """Boxes in pixels of the original image.

  Args:
    boxes: `[n, 4]` in input pixels.
    scale: `[2]` input pixels per original pixel, (y, x).

  Returns:
    `[n, 4]` float32.
  """
  inverse = 1 / np.asarray(scale, np.float64)
  return (boxes * np.tile(inverse, 2)).astype(np.float32)


def to_xywh(boxes: np.ndarray) -> np.ndarray:
  """COCO's `[n, 4]` of x, y, width, height, for boxes `(y1, x1, y2, x2)`."""
  y1, x1, y2, x2 = boxes.T
  return np.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)


def encode_masks(
  masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> list[dict]:
  """Compressed RLEs of pasted masks.

  Args:
    masks: `[n, size, size]` float probabilities over the boxes.
    boxes: `[n, 4]` in pixels of the image.
    image_size: (height, width) of the image.

  Returns:
    n dicts of `size` and `counts`, the same that pycocotools makes of the
    full-size masks.
  """
  height, width = image_size
  if not len(masks):
    return []
  uncompressed = [
    {'size': [height, width], 'counts': _run_lengths(*crop, image_size)}
    for crop in pasting.paste_crops(masks, boxes, image_size)
  ]
  encoded = coco_mask.frPyObjects(uncompressed, height, width)
  return [
    {'size': [height, width], 'counts': rle['counts'].decode('ascii')}
    for rle in encoded
  ]


def _run_lengths(crop, top, left, image_size):
  """Lengths of the runs of 0 and 1 down the columns of the whole image."""
  height, width = image_size
  # A column of the crop starts and ends in the background, so every flip has
  # its place between two pixels.
  columns = np.zeros((crop.shape[1], crop.shape[0] + 2), bool)
  columns[:, 1:-1] = crop.T
  places = np.flatnonzero(columns[:, 1:] != columns[:, :-1])
  column, row = np.divmod(places, crop.shape[0] + 1)
  flips = (left + column) * height + top + row
  # A run from the last row goes on in the first row of the next column: the
  # flip off and the flip on are at the same place and cancel.
  same = np.flatnonzero(flips[1:] == flips[:-1])
  if same.size:
    flips = np.delete(flips, np.concatenate([same, same + 1]))
  end = height * width
  if flips.size and flips[-1] == end:
    flips = flips[:-1]
  return np.diff(np.concatenate([[0], flips, [end]])).tolist()


class ResultEncoder:
  """Encodes the results of a batch while the device computes the next.

  A thread does the work: it gives way to the device while it waits for it, and
  100 detections of a 640x480 image cost it about 15 ms. A second thread gains
  nothing, since the interpreter runs one at a time.
  """

  def __init__(self, max_workers: int = 1, max_pending: int = 4):
    """Starts the threads.

    Args:
      max_workers: number of threads.
      max_pending: batches that may wait; `add` blocks beyond that, so memory
        stays bounded.
    """
    self._executor = concurrent.futures.ThreadPoolExecutor(max_workers)
    self._max_pending = max_pending
    self._pending = collections.deque()
    self._results = []

  def add(self, detections: Detections, batch: Mapping) -> None:
    """Takes the detections of a batch.

    Args:
      detections: arrays of the device or of the host.
      batch: with `image_ids`, `original_sizes`, `scales` and `valid`.
    """
    while len(self._pending) >= self._max_pending:
      self._results.extend(self._pending.popleft().result())
    keys = ('image_ids', 'original_sizes', 'scales', 'valid')
    rows = {key: np.asarray(batch[key]) for key in keys}
    self._pending.append(self._executor.submit(_encode, detections, rows))

  def collect(self) -> list[dict]:
    """The results of all batches so far, in the order they were added."""
    while self._pending:
      self._results.extend(self._pending.popleft().result())
    return list(self._results)

  def finish(self) -> list[dict]:
    """The results of all batches; ends the threads."""
    try:
      return self.collect()
    finally:
      self._executor.shutdown(cancel_futures=True)


def _encode(detections, rows):
  """`to_coco_results`, after one copy of the detections to the host."""
  arrays = {
    name: None if array is None else np.asarray(array)
    for name, array in vars(detections).items()
  }
  return to_coco_results(Detections(**arrays), **rows)


def write_results(results: Sequence[Mapping], path: str | os.PathLike) -> None:
  """Writes a COCO results file; a reader never sees half of it.

  Args:
    results: of `to_coco_results`.
    path: of the json file; its folder is made if missing.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(
    'w', dir=path.parent, prefix=f'.{path.name}.', delete=False
  ) as file:
    try:
      json.dump(list(results), file)
      file.close()
      # The mode an ordinary open would give, where the temporary is private.
      mask = os.umask(0)
      os.umask(mask)
      os.chmod(file.name, 0o666 & ~mask)
      os.replace(file.name, path)
    except BaseException:
      file.close()
      os.unlink(file.name)
      raise
