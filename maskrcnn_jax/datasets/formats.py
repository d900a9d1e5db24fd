"""Data sets in other formats than COCO's, as what a COCO json holds.

So they pass the same checks, and there is a json to evaluate with.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import yaml

from maskrcnn_jax.datasets import folders, mask_pngs, yolo
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.folders import ImageAnnotations
from maskrcnn_jax.errors import UserError

COCO = 'coco'
_READERS = {
  'instance_png': mask_pngs.read_instances,
  'object_png': mask_pngs.read_objects,
  'yolo': yolo.read_polygons,
}
FORMATS = (COCO, *_READERS)
# Where YOLO's class names are looked for, in the folder of the text files and
# the two above.
_NAME_FILES = ('data.yaml', 'data.yml', 'classes.txt', 'obj.names')
_DEFAULT_CLASS = 'object'


def read(
  data_format: str,
  images_dir: str | os.PathLike,
  annotations_dir: str | os.PathLike,
  classes: str | None,
  run: Callable[[Callable, Iterable[str]], Iterator],
) -> tuple[dict[str, Any], list[Finding]]:
  """What a COCO json of a data set would hold, and what is wrong with it.

  Images are numbered from 1 in the order of their names.

  Args:
    data_format: one of `FORMATS` but COCO.
    images_dir: folder of the images.
    annotations_dir: folder of their annotations.
    classes: see `class_names`.
    run: results of a function for names, in order; `map` will do.

  Raises:
    ValueError: there is no such format, a folder or the class names are
      missing, or no image has annotations.
  """
  if data_format not in _READERS:
    raise UserError(
      f'--format must be one of {", ".join(FORMATS)}, got {data_format!r}.'
    )
  names = class_names(data_format, annotations_dir, classes)
  files = folders.find_images(images_dir, annotations_dir)
  if data_format == 'instance_png' and os.path.samefile(
    images_dir, annotations_dir
  ):
    raise UserError(
      f'{annotations_dir} holds the images: their PNGs of numbers need a '
      'folder of their own.'
    )
  reader = functools.partial(
    read_image,
    reader=_READERS[data_format],
    images_dir=images_dir,
    annotations_dir=annotations_dir,
    class_names=names,
  )
  images, annotations, findings = [], [], []
  for image_id, found in enumerate(run(reader, files), start=1):
    findings += found.findings
    if found.size is None:
      continue
    height, width = found.size
    entry = {'id': image_id, 'file_name': found.file_name}
    images.append({**entry, 'height': height, 'width': width})
    for each in found.objects:
      number = len(annotations) + 1
      entry = {'id': number, 'image_id': image_id, 'iscrowd': 0}
      annotations.append({**entry, **each})
  _check_any(findings, files, annotations_dir)
  content = {
    'images': images,
    'annotations': annotations,
    'categories': [{'id': i, 'name': name} for i, name in names.items()],
  }
  return content, findings


def read_image(
  name: str,
  reader: Callable[..., ImageAnnotations],
  images_dir: str | os.PathLike,
  annotations_dir: str | os.PathLike,
  class_names: Mapping[int, str],
) -> ImageAnnotations:
  """The objects of an image, or a finding where it cannot be read.

  Args:
    name: of the image, relative to the folder of the images.
    reader: of the format, such as `yolo.read_polygons`.
    images_dir: folder of the images.
    annotations_dir: folder of their annotations.
    class_names: by category id.
  """
  path = os.path.join(images_dir, name)
  try:
    sizes = folders.read_sizes(path)
  except ValueError as error:
    message = f'{error}. Replace the file or take it away.'
    finding = Finding('unusable_image', path, None, None, message, 'error')
    return ImageAnnotations(name, None, (), (finding,))
  return reader(name, path, sizes, annotations_dir, class_names)


def class_names(
  data_format: str, annotations_dir: str | os.PathLike, classes: str | None
) -> dict[int, str]:
  """Class names by category id: from 0 for YOLO, else from 1.

  Args:
    data_format: one of `FORMATS` but COCO.
    annotations_dir: of YOLO's text files; names are looked for there.
    classes: names joined by commas, or a file: a name a line, or YAML with
      `names`; None: masks are of one class, and YOLO has such a file.

  Raises:
    ValueError: there are no names, or a file cannot be read.
  """
  first = 0 if data_format == 'yolo' else 1
  if classes is None:
    if first:
      return {first: _DEFAULT_CLASS}
    classes = _find_names(annotations_dir)
  if os.path.isfile(classes):
    names = _read_names(pathlib.Path(classes))
  else:
    names = classes.split(',')
  if not isinstance(names, Mapping):
    names = dict(enumerate(names, start=first))
  elif first:
    # YOLO's numbers are from 0.
    names = {int(number) + first: name for number, name in names.items()}
  names = {int(number): str(name).strip() for number, name in names.items()}
  if not names or not all(names.values()):
    raise UserError(f'--classes must be names, got {classes!r}.')
  return names


def _find_names(annotations_dir) -> str:
  folder = pathlib.Path(annotations_dir).resolve()
  for place in (folder, *list(folder.parents)[:2]):
    for name in _NAME_FILES:
      if (place / name).is_file():
        return str(place / name)
  raise UserError(
    f'There are no class names: neither {annotations_dir} nor the two folders '
    f'above have one of {", ".join(_NAME_FILES)}. Name the file, or the names '
    'joined by commas, with --classes.'
  )


def _read_names(path: pathlib.Path):
  text = path.read_text(encoding='utf-8')
  if path.suffix not in ('.yaml', '.yml'):
    return [line.strip() for line in text.splitlines() if line.strip()]
  try:
    content = yaml.safe_load(text)
  except yaml.YAMLError as error:
    raise UserError(f'{path} is no YAML file: {error}') from error
  names = content.get('names') if isinstance(content, Mapping) else None
  if not isinstance(names, list | Mapping):
    raise UserError(f'{path} must have a list or numbers of `names`.')
  return names


def _check_any(findings, files, annotations_dir) -> None:
  """Raises if no image has a text file: it is the wrong folder."""
  missing = [each for each in findings if each.kind == 'no_label_file']
  if len(missing) == len(files):
    raise UserError(
      f'{annotations_dir} has no text file for any of {len(files)} images; '
      f'wanted {pathlib.PurePath(files[0]).stem}.txt and so on.'
    )
