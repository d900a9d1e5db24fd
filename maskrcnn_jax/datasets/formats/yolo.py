"""YOLO polygons: a text file for every image.

A line is an object: its class, then x and y of every corner as fractions of the
image's width and height. An image without a file has no objects.
"""

import numpy as np

from maskrcnn_jax.datasets import masks
from maskrcnn_jax.datasets.findings import Finding, InvalidEntryError
from maskrcnn_jax.datasets.formats.labels import ImageLabels, LabelledImage

# Programs that write these files round, some of them over the border.
_TOLERANCE = 0.01


def read_polygons(image: LabelledImage) -> ImageLabels:
  """Reads the text file of an image, `STEM.txt`."""
  _, size = image.sizes
  label = image.find_label('.txt')
  if label is None:
    message = f'has no text file in {image.labels_dir}: no objects.'
    finding = Finding('no_label_file', image.path, message, 'note')
    return ImageLabels(image.name, size, (), (finding,))
  objects, findings = [], []
  text = label.read_text(encoding='utf-8', errors='replace')
  for number, line in enumerate(text.splitlines(), start=1):
    if not line.strip():
      continue
    try:
      objects.append(_read_line(line.split(), size, image.class_names))
    except InvalidEntryError as error:
      error.message = f'line {number}: {error.message}'
      findings.append(error.finding(str(label)))
  return ImageLabels(image.name, size, objects, findings)


def _read_line(words, size, class_names) -> dict:
  try:
    class_id, *corners = map(float, words)
  except ValueError:
    raise _skip(f'must be numbers, got {" ".join(words)[:40]!r}.') from None
  if class_id not in class_names:
    raise InvalidEntryError(
      'category_id',
      f'class {words[0]} is not among the names, which are for '
      f'{min(class_names)} to {max(class_names)}. Correct the line or add the '
      'name.',
    )
  if len(corners) == 4:
    message = 'is a box (x, y, width, height): there is no mask to train on.'
    raise _skip(message, 'box_without_mask')
  if len(corners) < 6 or len(corners) % 2:
    raise _skip(
      f'a polygon is x y x y ... of three corners or more, got {len(corners)} '
      'numbers.'
    )
  # Also true of NaN.
  outside = [x for x in corners if not (-_TOLERANCE <= x <= 1 + _TOLERANCE)]
  if outside:
    raise _skip(
      f'coordinates must be fractions from 0 to 1, got {outside[0]:g}; are '
      'these pixels?'
    )
  return _make_object(int(class_id), np.clip(corners, 0.0, 1.0), size)


def _skip(message, kind='unusable_polygon') -> InvalidEntryError:
  return InvalidEntryError(kind, message, 'warning')


def _make_object(category_id, fractions, size) -> dict:
  corners = fractions.reshape(-1, 2) * size[::-1]
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
