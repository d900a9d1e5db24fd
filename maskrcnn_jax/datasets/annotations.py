"""Reads and checks COCO instances files; every problem becomes a `Finding`.

What would lose a whole image or makes ids ambiguous is an error; an object that
cannot be used is left out and counted.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

_MAX_CLASS_ID = 2**31 - 1
_LISTED_ERRORS = 10


@dataclasses.dataclass(frozen=True)
class Finding:
  """A problem of a data set.

  Attributes:
    kind: a short name to count by, such as `zero_area_box`.
    file: the annotation or image file.
    image_id: id of the image, or None.
    annotation_id: id of the object, or None.
    message: what is wrong and what to do.
    severity: `error` (nothing is written), `skipped` (the object is left out)
      or `note` (nothing is lost).
  """

  kind: str
  file: str
  image_id: Any
  annotation_id: Any
  message: str
  severity: str = 'skipped'

  def __str__(self) -> str:
    place = [self.file]
    if self.image_id is not None:
      place.append(f'image {self.image_id!r}')
    if self.annotation_id is not None:
      place.append(f'annotation {self.annotation_id!r}')
    return f'{", ".join(place)}: {self.message}'


@dataclasses.dataclass(frozen=True)
class CocoImage:
  """An image entry of a COCO file, its ids and sizes checked."""

  image_id: int
  file_name: str
  height: int
  width: int


@dataclasses.dataclass(frozen=True)
class CocoDataset:
  """A COCO file, checked as far as is possible without reading images.

  Attributes:
    annotations_file: where it was read from.
    images: in the order of the file.
    annotations: the entries of every image id, with known, positive classes.
    class_names: name by class id; ids are 1 or more.
    captions: texts by image id.
    findings: what is left out and what was noted.
  """

  annotations_file: str
  images: tuple[CocoImage, ...]
  annotations: dict[int, list[dict]]
  class_names: dict[int, str]
  captions: dict[int, list[str]]
  findings: tuple[Finding, ...]


def load_coco(
  annotations_file: str | os.PathLike,
  images_dir: str | os.PathLike | None = None,
  captions_file: str | os.PathLike | None = None,
) -> CocoDataset:
  """Reads and checks a COCO instances file.

  Args:
    annotations_file: COCO json with `images`, `annotations`, `categories`.
    images_dir: if given, every image file must be there.
    captions_file: COCO json whose annotations hold a `caption`.

  Raises:
    ValueError: if the file is no COCO file, an id is ambiguous or out of range,
      or an image file is missing; lists the first few.
  """
  file = os.fspath(annotations_file)
  content = _read_json(file, ('images', 'annotations', 'categories'))
  findings = []
  class_names = _class_names(content['categories'], file, findings)
  found = _images(content['images'], file, images_dir, findings)
  grouped = _group(content['annotations'], file, found, class_names, findings)
  raise_errors(findings)
  captions = collections.defaultdict(list)
  if captions_file is not None:
    for entry in _read_json(captions_file, ('annotations',))['annotations']:
      captions[entry['image_id']].append(entry['caption'])
  return CocoDataset(
    file,
    tuple(found.values()),
    grouped,
    class_names,
    dict(captions),
    tuple(findings),
  )


def load_images(annotations_file: str | os.PathLike) -> CocoDataset:
  """Reads and checks the images and categories of a COCO file alone.

  The files of COCO's test images have no annotations.

  Args:
    annotations_file: COCO json with `images` and `categories`.

  Raises:
    ValueError: as `load_coco`.
  """
  file = os.fspath(annotations_file)
  content = _read_json(file, ('images', 'categories'))
  findings = []
  class_names = _class_names(content['categories'], file, findings)
  found = _images(content['images'], file, None, findings)
  raise_errors(findings)
  return CocoDataset(
    file, tuple(found.values()), {}, class_names, {}, tuple(findings)
  )


def raise_errors(findings: Sequence[Finding]) -> None:
  """Raises a ValueError that lists the errors among the findings, if any."""
  errors = [finding for finding in findings if finding.severity == 'error']
  if not errors:
    return
  lines = [f'  {error.kind}: {error}' for error in errors[:_LISTED_ERRORS]]
  if len(errors) > _LISTED_ERRORS:
    lines.append(f'  and {len(errors) - _LISTED_ERRORS} more.')
  noun = 'error' if len(errors) == 1 else 'errors'
  raise ValueError('\n'.join([f'{len(errors)} {noun} in the data:', *lines]))


def _read_json(file, keys):
  try:
    content = json.loads(pathlib.Path(file).read_bytes())
  except OSError as error:
    raise ValueError(f'{file} cannot be read: {error}') from error
  except ValueError as error:
    raise ValueError(f'{file} is no json file: {error}') from error
  for key in keys:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
      raise ValueError(f'{file} is no COCO file: it needs a list {key!r}.')
  return content


def _is_int(value, low, high):
  return type(value) is int and low <= value <= high


def _class_names(entries, file, findings):
  names = {}
  for entry in entries:
    class_id = entry.get('id')
    if not _is_int(class_id, 1, _MAX_CLASS_ID):
      message = (
        f'category id {class_id!r} ({entry.get("name")!r}) must be a whole '
        'number from 1; 0 is the background. Renumber the categories.'
      )
      findings.append(
        Finding('category_id', file, None, None, message, 'error')
      )
    elif class_id in names:
      message = f'category id {class_id} is there twice. Renumber one.'
      findings.append(
        Finding('category_id', file, None, None, message, 'error')
      )
    else:
      names[class_id] = str(entry.get('name', class_id))
  return names


def _images(entries, file, images_dir, findings):
  """Checked image entries by id."""
  found = {}
  for entry in entries:
    problem = _image_problem(entry, found, images_dir)
    if problem:
      kind, message = problem
      image_id = entry.get('id')
      findings.append(Finding(kind, file, image_id, None, message, 'error'))
    else:
      found[entry['id']] = CocoImage(
        entry['id'], entry['file_name'], entry['height'], entry['width']
      )
  return found


def _image_problem(entry, found, images_dir):
  """Kind and message of what is wrong with an image entry, or None."""
  image_id, name = entry.get('id'), entry.get('file_name')
  if not _is_int(image_id, -(2**63), 2**63 - 1):
    return 'image_id', (
      f'image id {image_id!r} must be a whole number of up to 64 bits. '
      'Renumber the images, here and in the annotations.'
    )
  if image_id in found:
    return 'duplicate_image_id', (
      f'image id {image_id} is there twice ({found[image_id].file_name!r} and '
      f'{name!r}). Give every image its own.'
    )
  if not isinstance(name, str) or not name:
    return 'image_entry', f'file_name must be a text, got {name!r}.'
  for side in ('height', 'width'):
    if not _is_int(entry.get(side), 1, 2**20):
      return 'image_entry', (
        f'{side} must be a number of pixels, got {entry.get(side)!r}.'
      )
  if images_dir is not None and not os.path.isfile(
    os.path.join(images_dir, name)
  ):
    return 'missing_image', (
      f'there is no {os.path.join(images_dir, name)}. Add the file or take the '
      'image out of the json.'
    )
  return None


def _group(entries, file, found, class_names, findings):
  """Annotation entries by image id; leaves out those that cannot be used."""
  grouped = collections.defaultdict(list)
  seen = set()
  for entry in entries:
    annotation_id, image_id = entry.get('id'), entry.get('image_id')
    class_id = entry.get('category_id')
    kind = None
    if annotation_id is not None and annotation_id in seen:
      kind, severity = 'duplicate_annotation_id', 'error'
      message = 'the annotation id is there twice. Give every object its own.'
    elif image_id not in found:
      kind, severity = 'unknown_image', 'skipped'
      message = 'the json has no such image.'
    elif type(class_id) is not int or class_id not in class_names:
      kind, severity = 'category_id', 'error'
      message = (
        f'category_id {class_id!r} is not among the categories '
        f'({_shorten(sorted(class_names))}). Correct the annotation or add '
        'the category.'
      )
    seen.add(annotation_id)
    if kind is None:
      grouped[image_id].append(entry)
    else:
      findings.append(
        Finding(kind, file, image_id, annotation_id, message, severity)
      )
  return dict(grouped)


def _shorten(ids):
  texts = [str(value) for value in ids]
  return ', '.join(texts if len(texts) < 12 else [*texts[:10], '..', texts[-1]])
