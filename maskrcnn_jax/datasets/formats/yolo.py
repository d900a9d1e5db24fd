"""YOLO polygons: a text file `NAME.txt` for every image.

A line is an object: its class, then x and y of every corner as fractions of the
image's width and height. An image without a file has no objects.
"""

import functools
import pathlib
from collections.abc import Mapping

import numpy as np

from maskrcnn_jax import files as file_lib
from maskrcnn_jax.datasets.coco_values import read_number
from maskrcnn_jax.datasets.findings import InvalidEntryError
from maskrcnn_jax.datasets.formats import class_names, shapes
from maskrcnn_jax.datasets.formats.collect import (
  Image,
  ImageLabels,
  collect,
  read_entries,
)
from maskrcnn_jax.datasets.formats.source import Content, Source

LOOKS_LIKE = 'NAME.txt for the image NAME.jpg, of lines of numbers'
# Programs that write these files round, some of them over the border.
_TOLERANCE = 0.01


def matches(source: Source) -> bool:
  """Whether a text file of an image begins with numbers, or all are empty."""
  files = source.match_files('.txt')[0].values()
  for path in files:
    with path.open('rb') as file:
      lines = file_lib.decode_text(file.read(1000), 'replace').splitlines()
    words = lines[0].split() if lines else []
    if words:
      return len(words) > 4 and all(map(_is_number, words[:5]))
  return bool(files)


def read(source: Source) -> Content:
  """Reads text files; the category of class i is i, from 0."""
  labels = source.match_files('.txt')
  names = class_names.read(source.classes or class_names.find(source.labels), 0)
  read_file = functools.partial(read_polygons, names=names)
  return collect(source, labels, read_file, names, unlabelled='note')


def read_polygons(
  path: pathlib.Path, image: Image, names: Mapping[int, str]
) -> ImageLabels:
  """Reads a text file, in fractions of the upright image."""
  text = file_lib.decode_text(path.read_bytes(), 'replace')
  read_line = functools.partial(_read_line, names=names)
  return read_entries(text.splitlines(), read_line, image.size(), path, 'line')


def _read_line(line, size, names) -> list[dict]:
  words = line.split()
  if not words:
    return []
  if not all(map(_is_number, words)):
    message = f'must be numbers, got {line[:40]!r}.'
    raise shapes.skip('unusable_polygon', message)
  class_id, *corners = map(read_number, words)
  if class_id not in names:
    raise InvalidEntryError(
      'category_id',
      f'class {words[0]} is not among the names, which are for '
      f'{min(names)} to {max(names)}. Correct the line or add the name.',
    )
  if len(corners) == 4:
    raise shapes.no_mask('box')
  if len(corners) % 2:
    message = f'a polygon is x y x y ..., got {len(corners)} numbers.'
    raise shapes.skip('unusable_polygon', message)
  outside = [x for x in corners if not (-_TOLERANCE <= x <= 1 + _TOLERANCE)]
  if outside:
    raise shapes.skip(
      'unusable_polygon',
      f'coordinates must be fractions from 0 to 1, got {outside[0]:g}; are '
      'these pixels?',
    )
  points = np.clip(corners, 0.0, 1.0).reshape(-1, 2).tolist()
  found = shapes.polygon(points, size[::-1])
  return [{'category_id': int(class_id), 'segmentation': found}]


def _is_number(text) -> bool:
  return not isinstance(read_number(text), str)
