"""LabelMe: a file `NAME.json` for every image, of polygons and masks in pixels.

Shapes of one label and one `group_id` are one object.
"""

import math
import pathlib

from maskrcnn_jax import files
from maskrcnn_jax.datasets.formats import shapes
from maskrcnn_jax.datasets.formats.collect import (
  Image,
  ImageLabels,
  collect,
  read_entries,
)
from maskrcnn_jax.datasets.formats.source import Content, Source

LOOKS_LIKE = 'NAME.json files with "shapes"'


def matches(source: Source) -> bool:
  """Whether the first JSON file is one of LabelMe."""
  content = source.first_json
  return isinstance(content, dict) and isinstance(content.get('shapes'), list)


def read(source: Source) -> Content:
  """Reads the JSON files of a folder, or one."""
  return collect(source, source.match_files('.json'), read_file)


def read_file(path: pathlib.Path, image: Image) -> ImageLabels:
  """Reads the file of an image."""
  content = files.read_json(path)
  size = image.size(content.get('imageHeight'), content.get('imageWidth'))
  found = read_entries(content['shapes'], _read_shape, size, path)
  objects = shapes.merge_groups(found.objects, size)
  return ImageLabels(size, objects, found.findings)


def _read_shape(shape, size):
  kind, points = shape.get('shape_type') or 'polygon', shape['points']
  if kind == 'polygon':
    found = shapes.polygon(points)
  elif kind == 'circle':
    centre, edge = points
    radius = math.dist(centre, edge)
    found = shapes.ellipse(centre, (radius, radius))
  elif kind == 'mask':
    mask = shapes.decode_png(shape['mask'], size)
    found = shapes.patch(mask, *map(round, points[0]), size)
  else:
    raise shapes.no_mask(kind.removeprefix('oriented_'))
  return [(shape.get('group_id'), shape['label'], found)]
