"""Pastes masks that live on a box into an image, on the host, in NumPy.

This is the rule the published numbers were made with: a mask is padded by one
cell of zeros, its box grows by as much, the corners of the grown box are
truncated to whole pixels, both included, and the mask is resized to them
bilinearly and cut at 0.5. `ops.masks.paste_masks` is the same rule on a device.
Only the pixels of the box that lie in the image are ever computed.
"""

from collections.abc import Iterator

import numpy as np


def expand_boxes(boxes: np.ndarray, mask_size: int) -> np.ndarray:
  """Whole-pixel boxes that hold masks padded by one cell on every side.

  Args:
    boxes: `[n, 4]` in pixels of the image.
    mask_size: cells along a side of a mask, without the padding.

  Returns:
    `[n, 4]` int64 rows and columns `(y1, x1, y2, x2)`, the last ones included;
    they may lie outside the image.
  """
  boxes = np.asarray(boxes, np.float32)
  scale = np.float32((mask_size + 2) / mask_size)
  half_sizes = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5)
  centers = boxes[:, :2] + half_sizes
  half_sizes = half_sizes * scale
  corners = np.concatenate([centers - half_sizes, centers + half_sizes], axis=1)
  return np.trunc(corners).astype(np.int64)


def resize_bilinear(
  mask: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
  """Samples of a mask on a grid, by bilinear interpolation.

  Args:
    mask: `[height, width]` float32.
    rows: `[h]` where to sample; 0 is the centre of the first row. Beyond the
      centres of the border cells the border repeats.
    columns: `[w]` likewise.

  Returns:
    `[h, w]` float32.
  """
  lower, upper, weights = _neighbours(columns, mask.shape[1])
  mask = mask[:, lower] * (1 - weights) + mask[:, upper] * weights
  lower, upper, weights = _neighbours(rows, mask.shape[0])
  weights = weights[:, None]
  return mask[lower] * (1 - weights) + mask[upper] * weights


def _neighbours(positions, length):
  """Indices of the cells beside each position, and the second one's weight."""
  lower = np.clip(np.floor(positions), 0, length - 1)
  weights = np.clip(positions - lower, 0, 1).astype(np.float32)
  lower = lower.astype(np.int64)
  return lower, np.minimum(lower + 1, length - 1), weights


def paste_crops(
  masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, int, int]]:
  """The part of the image that each mask may cover, mask by mask.

  Args:
    masks: `[n, size, size]` float probabilities over the boxes.
    boxes: `[n, 4]` in pixels of the image.
    image_size: (height, width) of the image.

  Yields:
    `[h, w]` bool, and the row and the column of its first pixel in the image;
    h or w is 0 where the box lies outside.
  """
  if not len(masks):
    return
  padded = np.pad(np.asarray(masks, np.float32), ((0, 0), (1, 1), (1, 1)))
  for mask, box in zip(padded, expand_boxes(boxes, masks.shape[-1]).tolist()):
    top, rows = _cells(box[0], box[2], image_size[0], len(mask))
    left, columns = _cells(box[1], box[3], image_size[1], len(mask))
    yield resize_bilinear(mask, rows, columns) > 0.5, top, left


def _cells(first, last, length, num_cells):
  """First pixel of a side that is in the image, and every pixel's cell."""
  size = max(last - first + 1, 1)
  start = min(max(first, 0), length)
  stop = max(min(last + 1, length), start)
  pixels = np.arange(start - first, stop - first)
  return start, (pixels + 0.5) * (num_cells / size) - 0.5


def paste_masks(
  masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> np.ndarray:
  """Masks of the size of the image.

  Args:
    masks: `[n, size, size]` float probabilities over the boxes.
    boxes: `[n, 4]` in pixels of the image.
    image_size: (height, width) of the image.

  Returns:
    `[n, height, width]` bool.
  """
  pasted = np.zeros((len(masks), *image_size), bool)
  crops = paste_crops(masks, boxes, image_size)
  for image, (crop, top, left) in zip(pasted, crops):
    image[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
  return pasted
