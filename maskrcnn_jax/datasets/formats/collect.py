"""Labels of single images, assembled as a COCO JSON holds them."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import coco_values, images, masks, workers
from maskrcnn_jax.datasets.findings import Finding, InvalidEntryError
from maskrcnn_jax.datasets.formats import class_names
from maskrcnn_jax.datasets.formats.source import (
  MALFORMED,
  META,
  Content,
  Labels,
  Source,
  passed_over,
)
from maskrcnn_jax.errors import UserError, brief

# Files among labels that no finding names.
_NAMES = (*class_names.FILES, META, 'labelmap.txt')


@dataclasses.dataclass(frozen=True)
class Image:
  """An image whose label is read.

  Attributes:
    path: path of the file.
    sizes: see `images.read_sizes`.
  """

  path: str
  sizes: tuple[tuple[int, int], tuple[int, int]]

  def size(self, height: Any = None, width: Any = None) -> tuple[int, int]:
    """(height, width) of the upright image, or as its label states it.

    Raises:
      InvalidEntryError: the image has another size.
    """
    if height is None or width is None:
      return self.sizes[1]
    height, width = map(coco_values.read_integer, (height, width))
    if (height, width) not in self.sizes:
      raise InvalidEntryError(
        'unusable_image',
        f'the label says {height} x {width} (height x width), the image '
        f'{self.path} is {self.sizes[1][0]} x {self.sizes[1][1]}.',
      )
    return height, width


@dataclasses.dataclass(frozen=True)
class ImageLabels:
  """Labels of an image.

  Attributes:
    size: (height, width) that the objects refer to; None: it cannot be used.
    objects: `segmentation` of COCO and `category_id` or `label`, a name, each.
    findings: problems of the image and its labels.
    upright: the size is that of the image as EXIF rotates it.
  """

  size: tuple[int, int] | None
  objects: Sequence[dict] = ()
  findings: Sequence[Finding] = ()
  upright: bool = True


def read_entries(
  entries: Iterable[Any],
  read: Callable[[Any, tuple[int, int]], Iterable[dict]],
  size: tuple[int, int],
  file: str | os.PathLike,
  noun: str = 'object',
) -> ImageLabels:
  """Objects of the entries of a label; a finding of each that has an error.

  Args:
    entries: of the label.
    read: the objects of an entry in an image of a size.
    size: (height, width).
    file: for findings.
    noun: for findings.
  """
  objects, findings = [], []
  for number, entry in enumerate(entries, start=1):
    try:
      objects += read(entry, size)
      continue
    except InvalidEntryError as error:
      kind, message, severity = error.kind, error.message, error.severity
    except ValueError as error:
      kind, message, severity = 'unusable_mask', f'{error}.', 'warning'
    except MALFORMED as error:
      kind, severity = 'entry', 'warning'
      message = f'is malformed ({type(error).__name__}: {error}).'
    message = f'{noun} {number}: {message}'
    findings.append(Finding(kind, str(file), message, severity))
  return ImageLabels(size, objects, findings)


def collect(
  source: Source,
  labels: Labels,
  read: Callable[[Any, Image], ImageLabels],
  names: Mapping[int, str] | Sequence[str] = (),
  unlabelled: str = 'warning',
) -> Content:
  """The lists of a COCO JSON, and the findings.

  Images are numbered from 1 in the order of their names.

  Args:
    source: the images.
    labels: label of an image by its name, as `read` takes it, and findings.
    read: reads a label; picklable.
    names: class names by category id; or in the order of their numbers from 1,
      for objects with a `label`. Others follow in alphabetical order.
    unlabelled: severity of an image without a label: an `error`, or a `warning`
      and the image is skipped, or a `note` of an image without objects.

  Raises:
    UserError: there is no image, or none has a label.
  """
  labels, findings = labels
  findings = [*findings, *_passed_over(source, labels)]
  if not labels:
    raise UserError(
      f'{source.labels} has no label for any of {len(source.image_names)} '
      f'images, such as {source.image_names[0]}.',
      argument='annotations',
      path=source.labels,
    )
  folders = source.images_dir, source.labels
  call = functools.partial(_read_image, folders, read, unlabelled)
  tasks = ((name, labels.get(name)) for name in source.image_names)
  total = len(source.image_names)
  results = workers.map_images(call, tasks, total, source.num_workers)
  entries, objects = [], []
  for image_id, (name, found) in enumerate(zip(source.image_names, results), 1):
    findings += found.findings
    if found.size is None:
      continue
    height, width = found.size
    entry = {'id': image_id, 'file_name': name, 'height': height}
    entries.append({**entry, 'width': width, 'upright': found.upright})
    objects += ({'image_id': image_id, **each} for each in found.objects)
  if not isinstance(names, Mapping):
    names = _number_labels(source, objects, names, findings)
  annotations = [
    {'id': number, 'iscrowd': 0, **each}
    for number, each in enumerate((x for x in objects if 'label' not in x), 1)
  ]
  categories = [{'id': i, 'name': name} for i, name in names.items()]
  content = {'images': entries, 'annotations': annotations}
  return {**content, 'categories': categories}, findings


def _passed_over(source, labels) -> Iterator[Finding]:
  """Findings on files that are read neither as an image nor as a label."""
  for path in images.walk(source.images_dir):
    yield from passed_over(path)
  if os.path.samefile(source.images_dir, source.labels):
    return
  # Of folders of masks, which name their other files.
  folders = {x for x in labels.values() if isinstance(x, pathlib.Path)}
  for path in source.files.values():
    is_known = str(path) in source.used or path.name in _NAMES
    if not is_known and folders.isdisjoint(path.parents):
      message = 'is no label of an image in this format.'
      yield Finding('file_passed_over', str(path), message)


def _number_labels(source, objects, declared, findings) -> dict[int, str]:
  """Class names by id; replaces labels by ids, except of unlisted classes."""
  given = source.numbers
  if source.classes:
    given = class_names.read(source.classes)
  # Tools do without a name if there is but one class.
  only = None if any(each['label'] for each in objects) else 'object'
  if given and len(given) == 1:
    (only,) = given.values()
  for each in objects:
    each['label'] = each['label'] or only
  found = {each['label'] for each in objects} - {None}
  names = given or dict(
    enumerate([*declared, *sorted(found.difference(declared))], 1)
  )
  ids = {name: category_id for category_id, name in names.items()}
  for each in objects:
    if each['label'] in ids:
      each['category_id'] = ids[each.pop('label')]
      continue
    known = '--classes' if source.classes else 'the classes to train on'
    kind = 'unlisted_class'
    message = f'an object is of class {each["label"]!r}, not among {known}.'
    if each['label'] is None:
      kind, message = 'class_name', 'an object has no class, and others do.'
    findings.append(Finding(kind, str(source.labels), message))
  if not given:
    text = ','.join(names.values())
    message = f'classes are numbered from 1: {text}. --classes sets the order.'
    finding = Finding('numbered_classes', str(source.labels), message, 'note')
    findings.append(finding)
  return names


def _read_image(folders, read, unlabelled, name, label) -> ImageLabels:
  """The labels of an image, its objects with box and area; see `collect`."""
  images_dir, labels_dir = folders
  path = os.path.join(images_dir, name)
  try:
    image = Image(path, images.read_sizes(path))
  except ValueError as error:
    message = f'{error}. Replace the file or remove it.'
    finding = Finding('unusable_image', path, message, 'error')
    return ImageLabels(None, findings=(finding,))
  if label is None:
    ends = {
      'note': 'no objects.',
      'warning': 'the image is skipped.',
      'error': 'an image without objects needs an empty one.',
    }
    message = f'has no label in {labels_dir}: {ends[unlabelled]}'
    finding = Finding('missing_label', path, message, unlabelled)
    size = image.sizes[1] if unlabelled == 'note' else None
    return ImageLabels(size, findings=(finding,))
  file = str(label) if isinstance(label, pathlib.Path) else path
  try:
    labels = read(label, image)
    found = read_entries(labels.objects, _measure, labels.size, file)
  except InvalidEntryError as error:
    return ImageLabels(None, findings=(error.finding(file),))
  except (ValueError, *MALFORMED) as error:
    finding = Finding('unusable_label', file, f'{error}.', 'error')
    return ImageLabels(None, findings=(finding,))
  return dataclasses.replace(
    found,
    findings=(*labels.findings, *found.findings),
    upright=labels.size == image.sizes[1],
  )


def _measure(entry, size) -> list[dict]:
  """An object with its box within the image and its area in pixels."""
  label = entry.get('label')
  label = str(label) if type(label) in (int, float) else label
  if label is not None and (not isinstance(label, str) or not label.strip()):
    message = f'the label is {brief(label)}.'
    raise InvalidEntryError('class_name', message, 'warning')
  if label is not None:
    entry = {**entry, 'label': label.strip()}
  segmentation = entry['segmentation']
  if isinstance(segmentation, dict):
    box = coco_mask.toBbox(segmentation).tolist()
    area = int(coco_mask.area(segmentation))
  else:
    encoded = masks.read_segmentation(segmentation, *size)
    area = int(coco_mask.area(encoded))
    corners = np.concatenate([np.reshape(x, (-1, 2)) for x in segmentation])
    first, last = np.clip(
      [corners.min(axis=0), corners.max(axis=0)], 0, size[::-1]
    )
    box = [*first.tolist(), *(last - first).tolist()]
  return [{**entry, 'bbox': box, 'area': area}]
