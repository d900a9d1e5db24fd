"""LabelMe: a file `NAME.json` for every image, of polygons and masks in pixels.

Shapes of one label and one `group_id` are one object.
"""

import math
import pathlib
from collections.abc import Iterator

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
  return collect(source, source.match(_named(source)), read_file)


def _named(source) -> Iterator[tuple]:
  """Image, path and file of every label: of one name, or as the label says."""
  for name, path in source.files.items():
    if path.suffix.lower() == '.json':
      image = f'{name[:-5]}.*'
      if source.find_image(image) is None:
        content = files.read_json(path)
        image = content.get('imagePath', image)
      yield image, path, path


def read_file(path: pathlib.Path, image: Image) -> ImageLabels:
  """Reads the file of an image."""
  content = files.read_json(path)
  size = image.size(content.get('imageHeight'), content.get('imageWidth'))
  found = read_entries(content['shapes'], _read_shape, size, path)
  objects = shapes.merge_groups(found.objects, size)
  return ImageLabels(size, objects, found.findings)


def _read_shape(shape, size):
  kind = shape.get('shape_type') or 'polygon'
  points = shapes.read_points(shape['points'])
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
