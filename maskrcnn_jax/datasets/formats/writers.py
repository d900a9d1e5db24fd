"""Labels of any format written as a COCO JSON, or as files of LabelMe or YOLO.

Only objects that `prepare` keeps are written.
"""

import base64
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax import files
from maskrcnn_jax.datasets import (
  coco_json,
  examples,
  labelled,
  masks,
  prepare,
)
from maskrcnn_jax.datasets.findings import Finding, collected, raise_errors
from maskrcnn_jax.datasets.formats import convert
from maskrcnn_jax.datasets.formats.shapes import skip
from maskrcnn_jax.datasets.formats.source import Source
from maskrcnn_jax.errors import UserError, invalid

_FILES = {'labelme': '.json', 'yolo': '.txt'}  # One for every image.
FORMATS = ('coco', *_FILES)


def write(
  images_dir: str | os.PathLike,
  annotations_file: str | os.PathLike,
  output: str | os.PathLike,
  to: str = 'coco',
  data_format: str = convert.AUTO,
  classes: str | None = None,
  num_workers: int | None = None,
) -> prepare.Summary:
  """Writes labels in another format; nothing that exists is overwritten.

  Args:
    images_dir, annotations_file: see `prepare.prepare`.
    output: the JSON, or a folder of LabelMe's or YOLO's files.
    to: one of `FORMATS`.
    data_format, classes: see `prepare.prepare`.
    num_workers: processes; by default one per core.

  Raises:
    FileExistsError: the output exists.
    InvalidDataError: there is an error in the labels.
    UserError: an argument is wrong.
  """
  if to not in FORMATS:
    raise invalid('to', to, f'records or one of {", ".join(FORMATS)}')
  if os.path.exists(output):
    raise FileExistsError(f'{output} exists: remove it or choose another.')
  start = time.monotonic()
  source = Source(images_dir, annotations_file, classes, num_workers)
  data_format = convert.find_format(data_format, source)
  file = os.fspath(annotations_file)
  _, dataset = labelled.read_entries(source, data_format, file)
  raise_errors(dataset.findings)
  findings = list(dataset.findings)
  kept = {
    image: list(_usable(image, dataset, findings)) for image in dataset.images
  }
  if to == 'coco':
    files.write_text(output, json.dumps(_coco(dataset, kept)))
  else:
    with files.new_folder(output) as folder:
      _write_files(folder, dataset, kept, to, images_dir, output, findings)
  entries = [entry for each in kept.values() for entry in each]
  return prepare.Summary(
    files=(os.fspath(output),),
    num_images=len(kept),
    num_empty=sum(not each for each in kept.values()),
    num_objects=len(entries),
    num_crowd=sum(entry['iscrowd'] for entry in entries),
    findings=findings,
    seconds=time.monotonic() - start,
    data_format=data_format,
  )


def _usable(image, dataset, findings) -> Iterator[dict]:
  """The annotations of an image that `prepare` keeps, all fields set."""
  for entry in dataset.annotations.get(image.image_id, ()):
    ids = image.image_id, entry.get('id')
    with collected(findings, dataset.annotations_file, *ids):
      found = examples.read_object(entry, image)
      yield {
        'image_id': image.image_id,
        'category_id': entry['category_id'],
        'iscrowd': int(found.is_crowd),
        'bbox': found.box,
        'area': found.area,
        'segmentation': entry['segmentation'],
      }


def _coco(dataset, kept) -> dict:
  """COCO's lists; annotations are numbered from 1."""
  entries = [entry for each in kept.values() for entry in each]
  return {
    'images': [
      {
        'id': image.image_id,
        'file_name': image.file_name,
        'height': image.height,
        'width': image.width,
        **({'upright': True} if image.upright else {}),
      }
      for image in kept
    ],
    'annotations': [{'id': i, **each} for i, each in enumerate(entries, 1)],
    'categories': [
      {'id': each.category_id, 'name': each.name}
      for each in dataset.categories.values()
    ],
  }


def _write_files(
  folder, dataset, kept, to, images_dir, output, findings
) -> None:
  """Writes a file for every image, and YOLO's names of classes."""
  names = {x.category_id: x.name for x in dataset.categories.values()}
  if to == 'yolo':
    names = {number: one_line(name) for number, name in names.items()}
    files.write_text(folder / 'classes.txt', '\n'.join(names.values()) + '\n')
  for image, entries in kept.items():
    name = pathlib.PurePosixPath(image.file_name).with_suffix(_FILES[to])
    path = files.inside(folder, str(name))
    if path.exists():
      message = f'two images are called {name.stem}, so would be their files.'
      raise UserError(message, path=image.file_name, item=image.image_id)
    written = []
    for entry in entries:
      with collected(findings, image.file_name, image.image_id):
        if entry['iscrowd']:
          raise skip('crowd', f'a crowd region is no object of {to}.')
        written.append((names[entry['category_id']], entry['segmentation']))
    if to == 'labelme':
      photo = os.path.join(images_dir, image.file_name)
      place = os.path.dirname(os.path.join(output, name))
      text = labelme_text(image, written, os.path.relpath(photo, place))
    else:
      text = yolo_text(image, written, list(names.values()), findings)
    files.write_text(path, text)


def one_line(name: str) -> str:
  """A class name as YOLO's list has it, with a name a line."""
  return ' '.join(name.split())


def labelme_text(
  image: coco_json.CocoImage,
  written: Sequence[tuple[str, Any]],
  image_path: str,
) -> str:
  """LabelMe's file of an image; parts of one object share a group.

  Args:
    image: its size is used.
    written: class name and segmentation, polygons or run lengths, of each
      object.
    image_path: of the image, relative to the file.
  """
  shapes = []
  for number, (label, segmentation) in enumerate(written, start=1):
    common = {'label': label, 'group_id': None, 'flags': {}}
    if isinstance(segmentation, dict):
      size = image.height, image.width
      mask = masks.decode_segmentation(segmentation, *size)
      box = coco_mask.toBbox(masks.encode_run_lengths(mask))
      left, top, width, height = map(int, box)
      png = masks.encode_png(mask[top : top + height, left : left + width])
      shapes.append(
        {
          **common,
          'shape_type': 'mask',
          'points': [[left, top], [left + width - 1, top + height - 1]],
          'mask': base64.b64encode(png).decode(),
        }
      )
      continue
    common['group_id'] = number if len(segmentation) > 1 else None
    for polygon in segmentation:
      points = np.reshape(polygon, (-1, 2)).tolist()
      shapes.append({**common, 'shape_type': 'polygon', 'points': points})
  return json.dumps(
    {
      'version': '5.5.0',
      'flags': {},
      'shapes': shapes,
      'imagePath': image_path,
      'imageData': None,
      'imageHeight': image.height,
      'imageWidth': image.width,
    }
  )


def yolo_text(
  image: coco_json.CocoImage,
  written: Sequence[tuple[str, Any]],
  names: Sequence[str],
  findings: list[Finding],
) -> str:
  """YOLO's file of an image, of objects that are one polygon.

  Args:
    image: see `labelme_text`, also for the objects.
    names: of all classes, in the order of their numbers.
    findings: takes a warning for every other object.
  """
  lines = []
  for label, segmentation in written:
    if isinstance(segmentation, dict) or len(segmentation) > 1:
      message = 'an object is not one polygon: not written for YOLO.'
      what = 'not_one_polygon', image.file_name, message, 'warning'
      findings.append(Finding(*what, image.image_id))
      continue
    points = np.reshape(segmentation[0], (-1, 2)) / (image.width, image.height)
    numbers = (f'{x:.6f}' for x in points.clip(0, 1).reshape(-1))
    lines.append(' '.join([str(names.index(label)), *numbers]) + '\n')
  return ''.join(lines)
