"""VIA (VGG Image Annotator): one JSON for all images, shapes in pixels.

Angles are in radians.
The class is the attribute of a region. Regions without any attribute are of one
class, as in the balloon data set.
"""

import math

from maskrcnn_jax import files
from maskrcnn_jax.datasets.coco_values import read_number
from maskrcnn_jax.datasets.formats import shapes
from maskrcnn_jax.datasets.formats.collect import (
  Image,
  ImageLabels,
  collect,
  read_entries,
)
from maskrcnn_jax.datasets.formats.source import Content, Source

LOOKS_LIKE = 'a JSON of images with "filename" and "regions"'
# The attribute that names the class where a region has several.
_CLASS_KEYS = ('class', 'label', 'name', 'type', 'category')


def matches(source: Source) -> bool:
  """Whether there is a JSON file, or a project, of VIA."""
  entries = _entries(source.first_json)
  return bool(entries) and all(
    isinstance(x, dict) and {'filename', 'regions'} <= x.keys() for x in entries
  )


def read(source: Source) -> Content:
  """Reads a JSON file, or the only one of a folder."""
  path = source.one_file('.json')
  named = (
    (each['filename'], each['regions'], path)
    for each in _entries(files.read_json(path))
  )
  return collect(source, source.match(named), read_regions)


def _entries(content) -> list:
  if not isinstance(content, dict):
    return []
  content = content.get('_via_img_metadata', content)
  return list(content.values())


def read_regions(regions: list | dict, image: Image) -> ImageLabels:
  """Reads the regions of an image, a list or (VIA 1) an object."""
  if isinstance(regions, dict):
    regions = list(regions.values())
  return read_entries(regions, _read_region, image.size(), image.path)


def _read_region(region, size):
  shape = region['shape_attributes']
  kind = shape['name']
  if kind in ('polygon', 'polyline'):
    # VIA draws a polyline open, but labels an area with it.
    x, y = shape['all_points_x'], shape['all_points_y']
    found = shapes.polygon(list(zip(x, y, strict=True)))
  elif kind == 'circle':
    found = shapes.ellipse((shape['cx'], shape['cy']), (shape['r'],) * 2)
  elif kind == 'ellipse':
    radii = shape['rx'], shape['ry']
    degrees = math.degrees(read_number(shape.get('theta', 0)))
    found = shapes.ellipse((shape['cx'], shape['cy']), radii, degrees)
  else:
    raise shapes.no_mask({'rect': 'rectangle'}.get(kind, kind))
  name = _class_name(region.get('region_attributes') or {})
  return [{'label': name, 'segmentation': found}]


def _class_name(attributes) -> str | None:
  if len(attributes) > 1:
    keys = {key.lower(): key for key in attributes}
    found = [keys[key] for key in _CLASS_KEYS if key in keys]
    if not found:
      raise shapes.skip(
        'class_name',
        f'which of the attributes {", ".join(attributes)} is the class? Call '
        'it class.',
      )
    attributes = {found[0]: attributes[found[0]]}
  for value in attributes.values():
    if isinstance(value, dict):  # Check boxes.
      chosen = [str(name) for name, is_set in value.items() if is_set]
      value = chosen[0] if len(chosen) == 1 else ''
    if not str(value).strip():
      raise shapes.skip('class_name', 'has not exactly one class.')
    return str(value).strip()
  return None
