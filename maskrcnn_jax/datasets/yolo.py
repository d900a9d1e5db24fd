"""Polygons as YOLO writes them: a text file for every image.

A line is an object: its class, then x and y of every corner as shares of the
image's width and height. An image without a file has no objects.
"""

import math
import os
from collections.abc import Mapping

import numpy as np

from maskrcnn_jax.datasets import folders, masks
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.folders import ImageAnnotations

# Programs that write these files round, some of them over the border.
_TOLERANCE = 0.01


class _UnusableError(Exception):
  """A line to leave out; its arguments are a kind and a message."""


def read_polygons(
  name: str,
  path: str,
  sizes: folders.Sizes,
  annotations_dir: str | os.PathLike,
  class_names: Mapping[int, str],
) -> ImageAnnotations:
  """The objects of an image by its text file.

  Args:
    name: of the image, relative to the folder of the images.
    path: of the image.
    sizes: see `folders.read_sizes`.
    annotations_dir: of the text files, with the names of the images.
    class_names: by category id, from 0.
  """
  _, size = sizes
  labels = folders.beside(name, annotations_dir, '.txt')
  if labels is None:
    message = f'has no text file in {annotations_dir}: no objects.'
    finding = Finding('no_label_file', path, None, None, message, 'note')
    return ImageAnnotations(name, size, (), (finding,))
  objects, findings = [], []
  text = labels.read_text(encoding='utf-8', errors='replace')
  for number, line in enumerate(text.splitlines(), start=1):
    if not line.strip():
      continue
    try:
      objects.append(_read_line(line.split(), size, class_names))
    except _UnusableError as error:
      kind, message = error.args
      severity = 'error' if kind == 'category_id' else 'warning'
      message = f'line {number}: {message}'
      findings.append(Finding(kind, str(labels), None, None, message, severity))
  return ImageAnnotations(name, size, objects, findings)


def _read_line(words, size, class_names) -> dict:
  try:
    values = [float(word) for word in words]
  except ValueError:
    raise _UnusableError(
      'unusable_polygon', f'must be numbers, got {" ".join(words)[:40]!r}.'
    ) from None
  if values[0] not in class_names:
    known = f'{min(class_names)} to {max(class_names)}'
    raise _UnusableError(
      'category_id',
      f'class {words[0]} is not among the names, which are for {known}. '
      'Correct the line or add the name.',
    )
  shares = values[1:]
  if len(shares) == 4:
    raise _UnusableError(
      'box_without_mask',
      'is a box (x, y, width, height): there is no mask to learn from.',
    )
  if len(shares) < 6 or len(shares) % 2:
    raise _UnusableError(
      'unusable_polygon',
      f'a polygon is x y x y ... of three corners or more, got {len(shares)} '
      'numbers.',
    )
  outside = [
    x for x in shares if not (-_TOLERANCE <= x <= 1 + _TOLERANCE)
  ]  # Also what is not a number.
  if outside or not all(map(math.isfinite, shares)):
    raise _UnusableError(
      'unusable_polygon',
      f'coordinates must be shares from 0 to 1, got {outside[0]:g}; are these '
      'pixels?',
    )
  return _make_object(int(values[0]), np.clip(shares, 0.0, 1.0), size)


def _make_object(category_id, shares, size) -> dict:
  corners = shares.reshape(-1, 2) * size[::-1]
  polygon = corners.reshape(-1).tolist()
  x1, y1 = corners.min(axis=0).tolist()
  x2, y2 = corners.max(axis=0).tolist()
  mask = masks.decode_segmentation([polygon], *size)
  return {
    'category_id': category_id,
    'bbox': [x1, y1, x2 - x1, y2 - y1],
    'area': int(np.count_nonzero(mask)),
    'segmentation': [polygon],
  }
