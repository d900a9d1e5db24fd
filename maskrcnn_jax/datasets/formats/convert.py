"""Conversion of other label formats to what a COCO JSON holds.

So they pass the same checks, and there is a JSON to evaluate with.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from maskrcnn_jax.datasets import images
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import class_names, folders, png_masks, yolo
from maskrcnn_jax.datasets.formats.folders import ImageLabels, LabelledImage
from maskrcnn_jax.errors import UserError

COCO = 'coco'
_READERS = {
  'instance_png': png_masks.read_instances,
  'object_png': png_masks.read_objects,
  'yolo': yolo.read_polygons,
}
FORMATS = (COCO, *_READERS)


def to_coco(
  data_format: str,
  images_dir: str | os.PathLike,
  labels_dir: str | os.PathLike,
  classes: str | None,
  run: Callable[[Callable, Iterable[str]], Iterator] = map,
) -> tuple[dict[str, Any], list[Finding]]:
  """The lists that a COCO JSON of a data set would hold, and the findings.

  Images are numbered from 1 in the order of their names.

  Args:
    data_format: one of `FORMATS` but COCO.
    images_dir: folder of the images.
    labels_dir: folder of their labels.
    classes: see `class_names.read`.
    run: maps a function over names, in order.

  Raises:
    UserError: the format is unknown, a folder or the class names are missing,
      or no image has labels.
  """
  if data_format not in _READERS:
    raise UserError(
      f'--format must be one of {", ".join(FORMATS)}, got {data_format!r}.',
      argument='format',
      given=data_format,
      wanted=FORMATS,
    )
  names = class_names.read(data_format, labels_dir, classes)
  files = folders.find_images(images_dir, labels_dir)
  if data_format == 'instance_png' and os.path.samefile(images_dir, labels_dir):
    raise UserError(
      f'{labels_dir} holds the images: instance PNGs need a folder of their '
      'own.',
      argument='annotations',
      path=labels_dir,
    )
  read = functools.partial(
    read_image,
    reader=_READERS[data_format],
    images_dir=images_dir,
    labels_dir=labels_dir,
    names=names,
  )
  entries, annotations, findings = [], [], []
  for image_id, labels in enumerate(run(read, files), start=1):
    findings += labels.findings
    if labels.size is None:
      continue
    height, width = labels.size
    entry = {'id': image_id, 'file_name': labels.file_name}
    entries.append({**entry, 'height': height, 'width': width})
    for each in labels.objects:
      ids = {'id': len(annotations) + 1, 'image_id': image_id, 'iscrowd': 0}
      annotations.append({**ids, **each})
  if sum(each.kind == 'no_label_file' for each in findings) == len(files):
    raise UserError(
      f'{labels_dir} has no text file for any of {len(files)} images; wanted '
      f'{pathlib.PurePath(files[0]).stem}.txt and so on.',
      argument='annotations',
      path=labels_dir,
    )
  content = {
    'images': entries,
    'annotations': annotations,
    'categories': [{'id': i, 'name': name} for i, name in names.items()],
  }
  return content, findings


def read_image(
  name: str,
  reader: Callable[..., ImageLabels],
  images_dir: str | os.PathLike,
  labels_dir: str | os.PathLike,
  names: Mapping[int, str],
) -> ImageLabels:
  """The labels of an image, or a finding where the image cannot be read.

  Args:
    name: name of the image, relative to the folder of the images.
    reader: of the format, such as `yolo.read_polygons`.
    images_dir: folder of the images.
    labels_dir: folder of the labels.
    names: class names by category id.
  """
  path = os.path.join(images_dir, name)
  try:
    sizes = images.read_sizes(path)
  except ValueError as error:
    message = f'{error}. Replace the file or remove it.'
    finding = Finding('unusable_image', path, None, None, message, 'error')
    return ImageLabels(name, None, (), (finding,))
  return reader(LabelledImage(name, path, sizes, labels_dir, names))
