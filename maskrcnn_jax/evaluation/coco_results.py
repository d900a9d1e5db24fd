"""Detections as COCO result dicts, in pixels of the original images.

Only here boxes `(y1, x1, y2, x2)` become COCO's `[x, y, width, height]`.
"""

import collections
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from maskrcnn_jax import files
from maskrcnn_jax.evaluation import mask_pasting
from maskrcnn_jax.evaluation.workers import Workers
from maskrcnn_jax.structures import Detections


def image_results(
  found: Detections,
  image_id: int,
  image_size: tuple[int, int],
  category_ids: Mapping[int, int] | None = None,
) -> list[dict]:
  """Results of one image, best first.

  Args:
    found: detections in pixels of the image, without a batch axis or padding.
    image_id: of the results.
    image_size: (height, width).
    category_ids: of the classes that have another id in the annotations.

  Returns:
    Dicts with `image_id`, `category_id`, `bbox`, `score` and, with masks,
    `segmentation` (compressed RLE, `counts` a str).
  """
  image, counts = (found, image_id, image_size), None
  if found.masks is not None:
    counts = mask_pasting.encode_masks(*_mask_inputs(found, image_size))
  return _make_results(image, counts, category_ids or {})


class ResultEncoder:
  """Encodes results batch by batch, their masks in worker processes.

  The device computes the next batch meanwhile. The results, see
  `image_results`, do not depend on the workers.
  """

  def __init__(
    self,
    workers: Workers | None = None,
    max_pending: int = 8,
    category_ids: Mapping[int, int] | None = None,
  ):
    """Starts without results.

    Args:
      workers: encode the masks, and stay the caller's to close; None: this
        process does it.
      max_pending: batches that may wait before `add` blocks.
      category_ids: of the classes that have another id in the annotations.
    """
    self._category_ids = category_ids or {}
    self._workers = workers or Workers(0)
    self._max_pending = max_pending
    self._pending = collections.deque()
    self._results = []

  def add(self, detections: Detections, batch: Mapping) -> None:
    """Adds the detections of a batch; waits for the device.

    Args:
      detections: in input pixels, on the device or the host; `masks` may be
        None.
      batch: `image_ids` `[batch]`, `original_sizes` `[batch, 2]` (height,
        width) of the images as published, `scales` `[batch, 2]` input pixels
        per original pixel (y, x), `valid` `[batch]`: False for filler rows,
        which give no result.
    """
    while len(self._pending) >= self._max_pending:
      self._finish_first()
    images = _split(detections, batch)
    encoded = None
    if detections.masks is not None:
      masks = [_mask_inputs(found, size) for found, _, size in images]
      encoded = self._workers.submit(mask_pasting.encode_images, masks)
    # The masks themselves are no longer needed.
    images = [(found.replace(masks=None), *rest) for found, *rest in images]
    self._pending.append((images, encoded))

  def collect(self) -> list[dict]:
    """The results of all batches so far, in the order they were added."""
    while self._pending:
      self._finish_first()
    return list(self._results)

  def _finish_first(self):
    """Appends the results of the batch that has waited longest."""
    images, encoded = self._pending.popleft()
    counts = [None] * len(images)
    if encoded is not None:
      counts = self._workers.wait(encoded)
    for image, of_image in zip(images, counts):
      self._results += _make_results(image, of_image, self._category_ids)


def _mask_inputs(found, image_size):
  """The arguments of `encode_masks`."""
  return found.masks, found.boxes, image_size, found.mask_pasting


def _split(detections, batch):
  """Detections in its own pixels, id and size of each valid image."""
  # One copy of the whole batch to the host.
  arrays = vars(detections).items()
  detections = detections.replace(
    **{name: np.asarray(x) for name, x in arrays if hasattr(x, 'shape')}
  )
  images = []
  for row in np.flatnonzero(np.asarray(batch['valid'])):
    found = detections.image(int(row))
    boxes = original_boxes(found.boxes, batch['scales'][row])
    image_id = int(batch['image_ids'][row])
    image_size = tuple(map(int, batch['original_sizes'][row]))
    images.append((found.replace(boxes=boxes), image_id, image_size))
  return images


def _make_results(image, counts, category_ids):
  """The results of one image of `_split`; `counts` of its masks, or None."""
  found, image_id, image_size = image
  results = [
    {
      'image_id': image_id,
      'category_id': category_ids.get(class_id, class_id),
      'bbox': box,
      'score': score,
    }
    for class_id, box, score in zip(
      found.classes.tolist(),
      to_xywh(found.boxes).tolist(),
      found.scores.tolist(),
    )
  ]
  if counts is not None:
    for result, text in zip(results, counts):
      result['segmentation'] = {'size': [*image_size], 'counts': text}
  return results


def original_boxes(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """Boxes `[n, 4]` float32 in pixels of the original image.

  Args:
    boxes: `[n, 4]` in input pixels.
    scale: `[2]` input pixels per original pixel, (y, x).
  """
  inverse = 1 / np.asarray(scale, np.float64)
  return (boxes * np.tile(inverse, 2)).astype(np.float32)


def to_xywh(boxes: np.ndarray) -> np.ndarray:
  """COCO's `[n, 4]` of x, y, width, height, for boxes `(y1, x1, y2, x2)`."""
  y1, x1, y2, x2 = boxes.T
  return np.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)


def write_results(results: Sequence[Mapping], path: str | os.PathLike) -> None:
  """Writes a COCO results file, which appears whole or not at all."""
  # One text: in pieces the json module encodes in Python, much slower.
  files.write_text(path, json.dumps(list(results)))
