"""Table of the label formats: a module and a row for each.

A module has `LOOKS_LIKE` (what `matches` looks for), `matches(source)` and
`read(source)`, which returns the lists of a COCO JSON and findings.
"""

from maskrcnn_jax.datasets.formats import (
  cityscapes,
  coco,
  cvat,
  cvat_coco,
  instance_png,
  label_studio,
  labelme,
  object_png,
  roboflow,
  supervisely,
  via,
  voc,
  yolo,
)
from maskrcnn_jax.datasets.formats.source import Content, Source
from maskrcnn_jax.errors import UserError, invalid

AUTO, COCO = 'auto', 'coco'
# Formats of one JSON that lists its images; others take all of a folder.
OF_COCO = (COCO, 'cvat_coco', 'roboflow')
_FORMATS = {
  COCO: coco,
  'cvat_coco': cvat_coco,
  'roboflow': roboflow,
  'labelme': labelme,
  'cvat': cvat,
  'label_studio': label_studio,
  'via': via,
  'supervisely': supervisely,
  'voc': voc,
  'cityscapes': cityscapes,
  'instance_png': instance_png,
  'object_png': object_png,
  'yolo': yolo,
}
# Formats that look like another one, too.
_SPECIAL = {'cvat_coco': 'coco', 'roboflow': 'coco', 'voc': 'instance_png'}
FORMATS = (AUTO, *_FORMATS)


def read(data_format: str, source: Source) -> Content:
  """The lists of a COCO JSON of a data set, and the findings.

  Args:
    data_format: one of `FORMATS` but `auto`.
    source: images and labels.

  Raises:
    UserError: a folder or the class names are missing, or no image has labels.
  """
  return _FORMATS[data_format].read(source)


def find_format(data_format: str, source: Source) -> str:
  """A format by its name; for `auto` the one that labels look like.

  Raises:
    UserError: the format is unknown, or labels look like none or several.
  """
  if data_format not in FORMATS:
    raise invalid('format', data_format, f'one of {", ".join(FORMATS)}')
  if data_format != AUTO:
    return data_format
  found = [name for name, each in _FORMATS.items() if each.matches(source)]
  found = [x for x in found if x not in [_SPECIAL.get(y) for y in found]]
  if len(found) == 1:
    return found[0]
  if found:
    message = (
      f'{source.labels} may be {" or ".join(found)}: choose by --format.'
    )
  else:
    looked_for = (f'  {k}: {x.LOOKS_LIKE}' for k, x in _FORMATS.items())
    message = '\n'.join(
      [f'{source.labels} has labels of no known format:', *looked_for]
    )
  raise UserError(
    message, argument='format', path=source.labels, given=found, wanted=FORMATS
  )
