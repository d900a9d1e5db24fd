"""CVAT XML 1.1: one file for all images or for a video, shapes in pixels.

Shapes of one label and one `group_id` are one object, as in CVAT's own COCO
export.
"""

import collections
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.parsers import expat

from maskrcnn_jax.datasets.coco_values import parse_number, read_integer
from maskrcnn_jax.datasets.formats import shapes
from maskrcnn_jax.datasets.formats.collect import (
  Image,
  ImageLabels,
  collect,
  read_entries,
)
from maskrcnn_jax.datasets.formats.source import Content, Source
from maskrcnn_jax.errors import UserError

LOOKS_LIKE = 'an .xml file with <annotations>'


def matches(source: Source) -> bool:
  """Whether there is an XML file of CVAT."""
  found = [x for x in source.files.values() if x.suffix.lower() == '.xml']
  return len(found) == 1 and _read_xml(found[0]).tag == 'annotations'


def read(source: Source) -> Content:
  """Reads an XML file, or the only one of a folder."""
  path = source.one_file('.xml')
  root = _read_xml(path)
  names = [each.text or '' for each in root.iterfind('.//labels/label/name')]
  labels = source.match((*each, path) for each in _images(root))
  return collect(source, labels, read_entry, names)


def _images(root) -> Iterator[tuple[str, tuple]]:
  """Name of every image or frame; its height, width and shapes."""
  for image in root.iter('image'):
    size = (image.attrib[side] for side in ('height', 'width'))
    parts = [(x.tag, dict(x.attrib)) for x in image if x.tag != 'tag']
    yield image.attrib['name'], (*size, parts)
  frames = collections.defaultdict(list)
  for track in root.iter('track'):
    for shape in track:
      if shape.get('outside') != '1':
        # A track has what its shapes have in common: label and group.
        attributes = {**track.attrib, **shape.attrib}
        frame = parse_number(shape.attrib['frame'], read_integer)
        frames[frame].append((shape.tag, attributes))
  # As CVAT names the pictures of a video.
  for number, parts in sorted(frames.items()):
    yield f'frame_{number:06d}.PNG', (None, None, parts)


def read_entry(entry: tuple, image: Image) -> ImageLabels:
  """Reads the shapes of an image."""
  height, width, parts = entry
  size = image.size(height, width)
  found = read_entries(parts, _read_shape, size, image.path)
  objects = shapes.merge_groups(found.objects, size)
  return ImageLabels(size, objects, found.findings)


def _read_shape(shape, size):
  kind, values = shape

  def numbers(*names):
    return [parse_number(values[name]) for name in names]

  if kind == 'polygon':
    corners = [point.split(',') for point in values['points'].split(';')]
    found = shapes.polygon(corners)
  elif kind == 'ellipse':
    turned = parse_number(values.get('rotation', '0'))
    found = shapes.ellipse(numbers('cx', 'cy'), numbers('rx', 'ry'), turned)
  elif kind == 'mask':
    left, top, width, height = (
      parse_number(values[name], read_integer)
      for name in ('left', 'top', 'width', 'height')
    )
    if height > size[0] or width > size[1]:
      message = f'a mask of {height} x {width} is too large.'
      raise shapes.skip('unusable_mask', message)
    runs = [parse_number(x, read_integer) for x in values['rle'].split(',')]
    mask = shapes.decode_runs(runs, height, width)
    found = shapes.patch(mask, left, top, size)
  else:
    raise shapes.no_mask(kind)
  group = values.get('group_id', '0')
  return [(None if group == '0' else group, values['label'], found)]


def _read_xml(path) -> ElementTree.Element:
  """The root of an XML file without a document type, so without entities."""
  builder = ElementTree.TreeBuilder()
  parser = expat.ParserCreate()
  parser.StartElementHandler = builder.start
  parser.EndElementHandler = builder.end
  parser.CharacterDataHandler = builder.data
  parser.StartDoctypeDeclHandler = _refuse_document_type
  try:
    with open(path, 'rb') as file:
      parser.ParseFile(file)
  # Also of an unknown encoding.
  except (expat.ExpatError, LookupError, ValueError) as error:
    raise UserError(f'{path} is not read: {error}', path=path) from error
  return builder.close()


def _refuse_document_type(*_):
  raise UserError('it has a document type, which may define entities.')
