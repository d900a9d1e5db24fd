"""Supervisely: `DATASET/ann/NAME.EXT.json` for `DATASET/img/NAME.EXT`.

The project's `meta.json` numbers the classes, if there is one.
"""

import pathlib
import re

from maskrcnn_jax import files
from maskrcnn_jax.datasets.formats import shapes
from maskrcnn_jax.datasets.formats.collect import (
  Image,
  ImageLabels,
  collect,
  read_entries,
)
from maskrcnn_jax.datasets.formats.source import META, Content, Source, parsed

LOOKS_LIKE = 'NAME.EXT.json files with "objects" and "size"'


def matches(source: Source) -> bool:
  """Whether the first JSON file is one of Supervisely."""
  content = source.first_json
  return isinstance(content, dict) and {'objects', 'size'} <= content.keys()


def read(source: Source) -> Content:
  """Reads the JSON files of a project or a data set."""
  named = [
    (re.sub('(^|/)ann/', r'\1img/', name)[: -len('.json')], path, path)
    for name, path in source.files.items()
    if path.suffix == '.json' and path.name != META
  ]
  return collect(source, source.match(named), read_file, _class_names(source))


def _class_names(source) -> list[str]:
  folder = pathlib.Path(source.labels).resolve()
  for path in (each / META for each in (folder, *list(folder.parents)[:2])):
    if path.is_file():
      with parsed(path):
        classes = files.read_json(path)['classes']
        return [str(each['title']) for each in classes]
  return []


def read_file(path: pathlib.Path, image: Image) -> ImageLabels:
  """Reads the file of an image."""
  content = files.read_json(path)
  size = image.size(content['size']['height'], content['size']['width'])
  return read_entries(content['objects'], _read_object, size, path)


def _read_object(entry, size):
  kind = entry.get('geometryType')
  if kind == 'bitmap':
    left, top = entry['bitmap']['origin']
    mask = shapes.decode_png(entry['bitmap']['data'], size)
    found = shapes.patch(mask, left, top, size)
  elif kind == 'polygon':
    holes = [shapes.polygon(x) for x in entry['points'].get('interior', ())]
    outline = shapes.polygon(entry['points']['exterior'])
    found = shapes.with_holes(outline, holes, size)
  else:
    raise shapes.no_mask(str(kind))
  return [{'label': entry['classTitle'], 'segmentation': found}]
