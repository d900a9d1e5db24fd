"""Reads and checks COCO instances files; every problem becomes a `Finding`.

What would lose a whole image or makes ids ambiguous is an error; an object that
cannot be used is left out and counted.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from maskrcnn_jax.datasets import entry_problems
from maskrcnn_jax.datasets.findings import Finding, raise_errors
from maskrcnn_jax.errors import UserError


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
    annotations: the entries of every image id, of known classes; with a
      `class_id` where that is not the `category_id`.
    class_names: name by class id; ids are 1 or more, see `class_offset`.
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
  return check_coco(content, file, images_dir, captions_file)


def check_coco(
  content: Mapping[str, Sequence[dict]],
  file: str,
  images_dir: str | os.PathLike | None = None,
  captions_file: str | os.PathLike | None = None,
  findings: Sequence[Finding] = (),
) -> CocoDataset:
  """Checks what a COCO instances file holds, as `load_coco`.

  Args:
    content: lists `images`, `annotations` and `categories`.
    file: it is of, or will be, for errors.
    images_dir: see `load_coco`.
    captions_file: see `load_coco`.
    findings: of those who made the content.

  Raises:
    ValueError: as `load_coco`, or one of the findings is an error.
  """
  dataset = _inspect(content, file, images_dir, findings)
  raise_errors(dataset.findings)
  captions = collections.defaultdict(list)
  if captions_file is not None:
    for entry in _read_json(captions_file, ('annotations',))['annotations']:
      captions[entry['image_id']].append(entry['caption'])
  return dataclasses.replace(dataset, captions=dict(captions))


def inspect_coco(
  annotations_file: str | os.PathLike,
  images_dir: str | os.PathLike | None = None,
) -> CocoDataset:
  """What can be used of a COCO instances file; errors are among its findings.

  Args:
    annotations_file: see `load_coco`.
    images_dir: see `load_coco`.

  Raises:
    ValueError: if the file is no COCO file at all.
  """
  file = os.fspath(annotations_file)
  content = _read_json(file, ('images', 'annotations', 'categories'))
  return _inspect(content, file, images_dir)


def _inspect(content, file, images_dir, findings=()):
  findings = list(findings)
  class_names = _class_names(content['categories'], file, findings)
  found = _images(content['images'], file, images_dir, findings)
  grouped = _group(content, file, found, class_names, findings)
  return CocoDataset(
    file, tuple(found.values()), grouped, class_names, {}, tuple(findings)
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


def class_offset(category_ids: Iterable[int]) -> int:
  """What is added to category ids to get class ids.

  Class 0 is the background. Of a file that has a category 0, all ids move up by
  one; results carry those of the file.
  """
  return int(0 in category_ids)


def find_missing(
  image: CocoImage, images_dir: str | os.PathLike, file: str
) -> Finding | None:
  """What is found if the file of an image is not there.

  Args:
    image: its entry.
    images_dir: folder that its name is relative to.
    file: the json that names it.
  """
  path = os.path.join(images_dir, image.file_name)
  if os.path.isfile(path):
    return None
  message = (
    f'there is no {path}. Add the file or take the image out of the json.'
  )
  return Finding('missing_image', file, image.image_id, None, message, 'error')


def _read_json(file, keys):
  try:
    content = json.loads(pathlib.Path(file).read_bytes())
  except OSError as error:
    raise UserError(f'{file} cannot be read: {error}') from error
  except ValueError as error:
    raise UserError(f'{file} is no json file: {error}') from error
  for key in keys:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
      raise UserError(f'{file} is no COCO file: it needs a list {key!r}.')
  return content


def _entries(entries, name, file, findings):
  """The entries of a list that are objects of the json."""
  for number, entry in enumerate(entries):
    if isinstance(entry, dict):
      yield entry
    else:
      message = (
        f'entry {number} (from 0) of {name!r} must be an object with fields, '
        f'got {str(entry)[:40]!r}. Remove it.'
      )
      findings.append(Finding('entry', file, None, None, message, 'error'))


def _class_names(entries, file, findings):
  """Names by class id."""
  names = {}
  offset = class_offset(_ids(entries))
  for entry in _entries(entries, 'categories', file, findings):
    problem = entry_problems.of_category(entry, names, offset)
    if problem:
      kind, message = problem
      findings.append(Finding(kind, file, None, None, message, 'error'))
    else:
      class_id = entry['id'] + offset
      names[class_id] = str(entry.get('name', entry['id']))
  if offset:
    message = (
      'has a category 0: classes are counted from 1 (0 is the background), so '
      'class i is category i - 1. Results carry the ids of the file.'
    )
    findings.append(Finding('ids_from_0', file, None, None, message, 'note'))
  return names


def _images(entries, file, images_dir, findings):
  """Checked image entries by id."""
  found = {}
  file_names = {}
  for entry in _entries(entries, 'images', file, findings):
    problem = entry_problems.of_image(entry, file_names)
    if problem:
      kind, message = problem
      image_id = entry.get('id')
      findings.append(Finding(kind, file, image_id, None, message, 'error'))
      continue
    image = CocoImage(
      entry['id'], entry['file_name'], entry['height'], entry['width']
    )
    missing = images_dir is not None and find_missing(image, images_dir, file)
    if missing:
      findings.append(missing)
    else:
      found[image.image_id] = image
      file_names[image.image_id] = image.file_name
  return found


def _group(content, file, found, class_names, findings):
  """Annotation entries by image id; leaves out those that cannot be used.

  What refers to an image or a category that was found wrong is left out without
  a word: that one has its finding.
  """
  grouped = collections.defaultdict(list)
  wrong_images = _ids(content['images']) - found.keys()
  offset = class_offset(_ids(content['categories']))
  known = {class_id - offset for class_id in class_names}
  wrong_classes = _ids(content['categories']) - known
  seen = set()
  entries = content['annotations']
  for entry in _entries(entries, 'annotations', file, findings):
    annotation_id, image_id, category_id = (
      _hashable(entry.get(key)) for key in ('id', 'image_id', 'category_id')
    )
    problem = entry_problems.of_annotation(
      annotation_id, image_id, category_id, seen, found, known
    )
    is_excused = image_id in wrong_images or category_id in wrong_classes
    if is_excused and problem[0] != 'duplicate_annotation_id':
      continue
    seen.add(annotation_id)
    if problem:
      kind, message, severity = problem
      findings.append(
        Finding(kind, file, image_id, annotation_id, message, severity)
      )
      continue
    if offset:
      entry = {**entry, 'class_id': category_id + offset}
    grouped[image_id].append(entry)
  return dict(grouped)


def _ids(entries):
  """The ids of entries that have one."""
  return {
    _hashable(entry.get('id')) for entry in entries if isinstance(entry, dict)
  }


def _hashable(value):
  """An id to look up; a list or an object, which is none, as a text."""
  return str(value) if isinstance(value, (list, dict)) else value
