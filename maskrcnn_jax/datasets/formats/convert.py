"""Conversion of other label formats to what a COCO JSON holds.

So they pass the same checks, and there is a JSON to evaluate with.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from maskrcnn_jax.datasets import images, workers
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import png_masks, yolo
from maskrcnn_jax.datasets.formats.labels import ImageLabels, LabelledImage
from maskrcnn_jax.errors import UserError, invalid

COCO = 'coco'
_READERS = {
  'instance_png': png_masks.read_instances,
  'object_png': png_masks.read_objects,
  'yolo': yolo.read_polygons,
}
FORMATS = (COCO, *_READERS)
# Files with YOLO's class names, in the folder of the labels or the two above.
_NAME_FILES = ('data.yaml', 'data.yml', 'classes.txt', 'obj.names')


def to_coco(
  data_format: str,
  images_dir: str | os.PathLike,
  labels_dir: str | os.PathLike,
  classes: str | None,
  num_workers: int | None = None,
) -> tuple[dict[str, Any], list[Finding]]:
  """The lists that a COCO JSON of a data set would hold, and the findings.

  Images are numbered from 1 in the order of their names.

  Args:
    data_format: one of `FORMATS` but COCO.
    images_dir: folder of the images.
    labels_dir: folder of their labels.
    classes: see `read_class_names`.
    num_workers: processes; by default one per core.

  Raises:
    UserError: the format is unknown, a folder or the class names are missing,
      or no image has labels.
  """
  if data_format not in _READERS:
    raise invalid('format', data_format, f'one of {", ".join(FORMATS)}')
  names = read_class_names(data_format, labels_dir, classes)
  files = _find_images(images_dir, labels_dir)
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
  tasks = ((name,) for name in files)
  results = workers.map_images(read, tasks, len(files), num_workers)
  for image_id, labels in enumerate(results, start=1):
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
  reader: Callable[[LabelledImage], ImageLabels],
  images_dir: str | os.PathLike,
  labels_dir: str | os.PathLike,
  names: Mapping[int, str],
) -> ImageLabels:
  """The labels of an image, or a finding where the image cannot be read.

  Args:
    name: of the image, relative to the folder of the images.
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
    finding = Finding('unusable_image', path, message, 'error')
    return ImageLabels(name, None, (), (finding,))
  return reader(LabelledImage(name, path, sizes, labels_dir, names))


def _find_images(images_dir, labels_dir) -> list[str]:
  """Names of all images in a folder and below, relative to it, in order.

  Folders named `masks` are skipped, and that of the labels if it lies inside.
  """
  for path in (images_dir, labels_dir):
    if not os.path.isdir(path):
      raise UserError(f'{path} is not a folder.', path=path)
  root = pathlib.Path(images_dir).resolve()
  labels = pathlib.Path(labels_dir).resolve()
  names = []
  for path in images.find_in_folder(root):
    name = path.relative_to(root)
    is_label = labels != root and labels in path.parents
    if not is_label and png_masks.FOLDER not in name.parts[:-1]:
      names.append(name.as_posix())
  if not names:
    raise UserError(
      f'{images_dir} holds no image ({", ".join(images.ENDINGS)}).',
      path=images_dir,
    )
  return names


def read_class_names(
  data_format: str, labels_dir: str | os.PathLike, classes: str | None
) -> dict[int, str]:
  """Class names by category id: from 0 for YOLO, else from 1.

  Args:
    data_format: one of `FORMATS` but COCO.
    labels_dir: folder of YOLO's text files; name files are searched there.
    classes: names joined by commas, or a file: one name a line, or YAML with
      `names`. None: masks are of one class, and YOLO has a name file.

  Raises:
    UserError: there are no names, or a file cannot be read.
  """
  first = 0 if data_format == 'yolo' else 1
  if classes is None:
    if first:
      return {first: 'object'}
    classes = _find_name_file(labels_dir)
  if os.path.isfile(classes):
    names = _read_name_file(pathlib.Path(classes))
  else:
    names = classes.split(',')
  if not isinstance(names, Mapping):
    names = dict(enumerate(names))
  # Numbers in files are YOLO's, from 0.
  names = {int(k) + first: str(name).strip() for k, name in names.items()}
  if not names or not all(names.values()):
    raise invalid('classes', classes, 'names')
  return names


def _find_name_file(labels_dir) -> str:
  folder = pathlib.Path(labels_dir).resolve()
  for place in (folder, *list(folder.parents)[:2]):
    for name in _NAME_FILES:
      if (place / name).is_file():
        return str(place / name)
  raise UserError(
    f'There are no class names: neither {labels_dir} nor the two folders above '
    f'it hold one of {", ".join(_NAME_FILES)}. Give the file, or the names '
    'joined by commas, with --classes.',
    argument='classes',
    path=labels_dir,
    wanted=_NAME_FILES,
  )


def _read_name_file(path: pathlib.Path):
  text = path.read_text(encoding='utf-8')
  if path.suffix not in ('.yaml', '.yml'):
    return [line.strip() for line in text.splitlines() if line.strip()]
  try:
    content = yaml.safe_load(text)
  except yaml.YAMLError as error:
    raise UserError(f'{path} is not a YAML file: {error}', path=path) from error
  names = content.get('names') if isinstance(content, Mapping) else None
  if not isinstance(names, list | Mapping):
    raise UserError(
      f'{path} must have a list or a mapping `names`.', path=path, item='names'
    )
  return names
