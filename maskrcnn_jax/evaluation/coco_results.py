"""Detections -> COCO result dicts in pixels of the original images.

The door where boxes `(y1, x1, y2, x2)` become COCO's `[x, y, width, height]`.
"""

import collections
import concurrent.futures
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from maskrcnn_jax.evaluation import run_lengths
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
      counts = run_lengths.encode_masks(found.masks, boxes, image_size)
      segmentations = [{'size': [*image_size], 'counts': c} for c in counts]
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


class ResultEncoder:
  """Encodes the results of a batch while the device computes the next.

  A thread does the work: it gives way to the device while it waits for it, and
  100 detections of a 640x480 image cost it about 3 ms. A second thread gains
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
