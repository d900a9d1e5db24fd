"""Table of the label formats: a module and a row for each."""

from maskrcnn_jax.datasets.formats import instance_png, object_png, yolo
from maskrcnn_jax.datasets.formats.source import Content, Source
from maskrcnn_jax.errors import invalid

COCO = 'coco'
_READERS = {
  'instance_png': instance_png.read,
  'object_png': object_png.read,
  'yolo': yolo.read,
}
FORMATS = (COCO, *_READERS)


def to_coco(data_format: str, source: Source) -> Content:
  """The lists that a COCO JSON of a data set would hold, and the findings.

  Args:
    data_format: one of `FORMATS` but COCO.
    source: images and labels.

  Raises:
    UserError: the format is unknown, a folder or the class names are missing,
      or no image has labels.
  """
  if data_format not in _READERS:
    raise invalid('format', data_format, f'one of {", ".join(FORMATS)}')
  return _READERS[data_format](source)
