"""YOLO polygons: a text file `NAME.txt` for every image.

A line is an object: its class, then x and y of every corner as fractions of the
image's width and height. An image without a file has no objects.
"""

import functools
import pathlib
from collections.abc import Mapping

import numpy as np

from maskrcnn_jax.datasets.findings import InvalidEntryError
from maskrcnn_jax.datasets.formats import class_names
from maskrcnn_jax.datasets.formats.source import (
  Content,
  Image,
  ImageLabels,
  Source,
  collect,
)

# Programs that write these files round, some of them over the border.
_TOLERANCE = 0.01


def read(source: Source) -> Content:
  """Reads text files; the category of class i is i, from 0."""
  labels = source.label_files('.txt')
  names = class_names.read(source.classes or class_names.find(source.labels), 0)
  read_file = functools.partial(read_polygons, names=names)
  return collect(source, labels, read_file, names, unlabelled='note')


def read_polygons(
  path: pathlib.Path, image: Image, names: Mapping[int, str]
) -> ImageLabels:
  """Reads a text file, in fractions of the upright image."""
  _, size = image.sizes
  objects, findings = [], []
  text = path.read_text(encoding='utf-8-sig', errors='replace')
  for number, line in enumerate(text.splitlines(), start=1):
    if not line.strip():
      continue
    try:
      objects.append(_read_line(line.split(), size, names))
    except InvalidEntryError as error:
      error.message = f'line {number}: {error.message}'
      findings.append(error.finding(str(path)))
  return ImageLabels(size, objects, findings)


def _read_line(words, size, names) -> dict:
  try:
    class_id, *corners = map(float, words)
  except ValueError:
    raise _skip(f'must be numbers, got {" ".join(words)[:40]!r}.') from None
  if class_id not in names:
    raise InvalidEntryError(
      'category_id',
      f'class {words[0]} is not among the names, which are for '
      f'{min(names)} to {max(names)}. Correct the line or add the name.',
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
  corners = np.clip(corners, 0.0, 1.0).reshape(-1, 2) * size[::-1]
  return {
    'category_id': int(class_id),
    'segmentation': [corners.reshape(-1).tolist()],
  }


def _skip(message, kind='unusable_polygon') -> InvalidEntryError:
  return InvalidEntryError(kind, message, 'warning')
