"""Detections as labels, to correct in a tool and to train on again.

`crops/NAME/001-CLASS.png` is the part of the image in an object's box, its mask
as alpha; `masks/NAME/CLASS/001.png` a mask of the size of the image, 0 and 255;
`labels.json` a COCO JSON; `labelme/NAME.json` and `yolo/NAME.txt` are files of
those programs. Masks without holes are polygons of all their parts, others are
run lengths, or LabelMe's masks; YOLO has the outline of the largest part. Masks
without a pixel, and classes without a name, are no labels.
"""

import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax import files as files_lib
from maskrcnn_jax import visualize
from maskrcnn_jax.datasets import coco_json, outlines
from maskrcnn_jax.datasets.formats import writers
from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.inference import browse
from maskrcnn_jax.inference.image_files import ImageFile
from maskrcnn_jax.structures import Detections

KINDS = ('crops', 'masks', 'coco', 'labelme', 'yolo')
COCO_FILE, YOLO_CLASSES = 'labels.json', 'yolo/classes.txt'
# Pixels between a mask and its polygon: steps of one pixel become straight.
_TOLERANCE = 0.75
_LONGEST_NAME = 40  # Of a class in the name of a file.


def output_names(files: Sequence[ImageFile], save: Sequence[str]) -> list[str]:
  """Names of the files, and with a slash of folders, relative to the output.

  Args:
    files: all images.
    save: some of `KINDS`.

  Raises:
    UserError: a kind is unknown, or two images would have the same labels.
  """
  if {*save} - {*KINDS}:
    raise invalid('save', save, f'some of {", ".join(KINDS)}')
  names = [COCO_FILE] * ('coco' in save) + [YOLO_CLASSES] * ('yolo' in save)
  taken = {name.casefold() for name in names}
  for file in files:
    for kind in save:
      if kind == 'coco':
        continue
      name = _name(kind, file)
      if name.casefold() in taken:
        raise UserError(
          f'--save {kind} would write {name} for {file.path} and for another '
          'file: rename one of the images.',
          argument='save',
          path=file.path,
          given=kind,
        )
      taken.add(name.casefold())
      names.append(name)
  return names


def _name(kind, file: ImageFile) -> str:
  if kind in ('crops', 'masks'):
    return f'{kind}/{pathlib.PurePath(file.picture).stem}/'
  ending = '.json' if kind == 'labelme' else '.txt'
  return f'{kind}/{pathlib.PurePath(file.name).with_suffix(ending).as_posix()}'


def check_names(class_names: Mapping[int, str], save: Sequence[str]) -> None:
  """Raises a `UserError` if labels need class names, and there are none."""
  needed = [kind for kind in ('coco', 'labelme', 'yolo') if kind in save]
  if needed and not class_names:
    raise UserError(
      f'--save {needed[0]} needs class names, and the checkpoint has none: '
      'give a COCO json that has them as --annotations.',
      argument='save',
      given=needed[0],
    )


def write_image(
  folder: pathlib.Path,
  file: ImageFile,
  image: np.ndarray,
  found: Detections,
  class_names: Mapping[int, str],
  save: Sequence[str],
) -> list[dict]:
  """Writes the files of one image.

  Args:
    folder: the output.
    file: the image.
    image: `[height, width, 3]` uint8.
    found: detections to write, in pixels of the image.
    class_names: by class id.
    save: see `output_names`.

  Returns:
    The objects as COCO's annotations, without an id and with their class as
    `category_id`; none unless label files are wanted.
  """
  if not save or found.masks is None:
    return []
  runs = found.run_lengths(image.shape[:2])
  safe_names = _for_files(class_names)
  for number, runs_of_one in enumerate(runs, start=1):
    class_id = int(found.classes[number - 1])
    name = safe_names.get(class_id, str(class_id))
    if 'masks' in save:
      mask = 255 * coco_mask.decode(runs_of_one)
      path = folder / _name('masks', file) / name / f'{number:03d}.png'
      visualize.save_png(path, mask)
    if 'crops' in save:
      crop = _crop(image, runs_of_one, found.boxes[number - 1])
      path = folder / _name('crops', file) / f'{number:03d}-{name}.png'
      visualize.save_png(path, crop)
  if not {'coco', 'labelme', 'yolo'} & {*save}:
    return []
  rows = [
    row
    for row, class_id in enumerate(found.classes.tolist())
    if class_id in class_names and coco_mask.area(runs[row])
  ]
  names = [class_names[int(found.classes[row])] for row in rows]
  parts = [outlines.of_run_lengths(runs[row], _TOLERANCE) for row in rows]
  segmentations = [
    runs[row]
    if any(part.holes for part in each)
    else [_flat(part.outline) for part in each]
    for row, each in zip(rows, parts)
  ]
  about = coco_json.CocoImage(file.image_id, file.name, *image.shape[:2])
  if 'labelme' in save:
    path = folder / _name('labelme', file)
    photo = os.path.relpath(file.path, path.parent)
    text = writers.labelme_text(about, [*zip(names, segmentations)], photo)
    files_lib.write_text(path, text)
  if 'yolo' in save:
    largest = [
      (writers.one_line(name), [_flat(each[0].outline)])
      for name, each in zip(names, parts)
    ]
    lines = writers.yolo_text(about, largest, _yolo_names(class_names), [])
    files_lib.write_text(folder / _name('yolo', file), lines)
  return [
    {
      'image_id': file.image_id,
      'category_id': int(found.classes[row]),
      'iscrowd': 0,
      'bbox': coco_mask.toBbox(runs[row]).tolist(),
      'area': int(coco_mask.area(runs[row])),
      'segmentation': segmentation,
      'score': float(found.scores[row]),
    }
    for row, segmentation in zip(rows, segmentations)
  ]


def _flat(outline) -> list[float]:
  return outline.reshape(-1).tolist()


def _crop(image, runs, box) -> np.ndarray:
  """The pixels of a box, `[h, w, 4]` uint8."""
  alpha = 255 * coco_mask.decode(runs)
  y1, x1 = np.floor(np.maximum(box[:2], 0)).astype(int)
  y2, x2 = np.maximum(np.ceil(box[2:]).astype(int), [y1 + 1, x1 + 1])
  part = slice(y1, y2), slice(x1, x2)
  return np.concatenate([image[part], alpha[part][..., None]], axis=-1)


def _for_files(class_names: Mapping[int, str]) -> dict[int, str]:
  """Class names that are safe names of files and folders, each of one class.

  A name that another class has, also on systems that take upper and lower case
  for the same, or that is the number of a class, ends in its own number.
  """
  safe, taken = {}, set()
  for class_id, name in class_names.items():
    name = re.sub(r'[^\w -]', '_', writers.one_line(name))[:_LONGEST_NAME]
    name = name.strip() or '_'
    while name.casefold() in taken or name.isdecimal():
      name += f'-{class_id}'
    taken.add(name.casefold())
    safe[class_id] = name
  return safe


def _yolo_names(class_names: Mapping[int, str]) -> list[str]:
  return [
    writers.one_line(class_names[class_id]) for class_id in sorted(class_names)
  ]


def write_yolo_classes(
  folder: pathlib.Path, class_names: Mapping[int, str]
) -> None:
  """Writes the class names, one a line in the order of YOLO's numbers."""
  text = '\n'.join(_yolo_names(class_names)) + '\n'
  files_lib.write_text(folder / YOLO_CLASSES, text)


def coco_parts(
  images: Iterable[dict], objects: Iterable[list[dict]], categories: list[dict]
) -> Iterator[str]:
  """Yields the parts of the text of a COCO JSON.

  Args:
    images: entries of all images.
    objects: annotations of each image, by `write_image`.
    categories: entries of all categories.
  """
  yield '{"images": [\n'
  yield from browse.separated(map(json.dumps, images), ',\n')
  yield '\n],\n"annotations": [\n'
  entries, numbers = itertools.chain.from_iterable(objects), itertools.count(1)
  texts = (json.dumps({'id': next(numbers), **each}) for each in entries)
  yield from browse.separated(texts, ',\n')
  yield f'\n],\n"categories": {json.dumps(categories)}}}\n'
