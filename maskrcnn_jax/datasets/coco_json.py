"""Reader of COCO instances files, used by every command that takes one.

`inspect` parses a file and returns each problem as a `Finding`; `load` raises
if there is an error among them. What would lose a whole image or makes ids
ambiguous is an error; an object that cannot be used is skipped with a warning.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from maskrcnn_jax.datasets.categories import Category, class_offset
from maskrcnn_jax.datasets.findings import (
  Finding,
  InvalidEntryError,
  raise_errors,
)
from maskrcnn_jax.errors import UserError

LISTS = ('images', 'annotations', 'categories')
_MAX_CLASS_ID = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class CocoImage:
  """An image entry of a COCO file, its id and size checked."""

  image_id: int
  file_name: str
  height: int
  width: int


@dataclasses.dataclass(frozen=True)
class CocoDataset:
  """A COCO file, checked as far as possible without reading images.

  Attributes:
    annotations_file: path of the file.
    images: image entries in the order of the file.
    annotations: annotation entries by image id, all of known categories; with
      a `class_id` where it differs from the `category_id`.
    categories: categories by class id.
    findings: skipped entries and notes.
    captions: captions by image id.
  """

  annotations_file: str
  images: tuple[CocoImage, ...]
  annotations: dict[int, list[dict]]
  categories: dict[int, Category]
  findings: tuple[Finding, ...]
  captions: dict[int, list[str]] = dataclasses.field(default_factory=dict)

  @property
  def class_names(self) -> dict[int, str]:
    """Names by class id, 1 or more."""
    return {class_id: each.name for class_id, each in self.categories.items()}


def load(
  annotations_file: str | os.PathLike,
  images_dir: str | os.PathLike | None = None,
  captions_file: str | os.PathLike | None = None,
) -> CocoDataset:
  """Reads a COCO instances file without errors.

  Args:
    annotations_file: COCO JSON with `images`, `annotations`, `categories`.
    images_dir: if given, every image file must exist there.
    captions_file: COCO JSON whose annotations hold a `caption`.

  Raises:
    UserError: the file is not a COCO file.
    InvalidDataError: an entry is malformed, an id is ambiguous, or an image
      file is missing.
  """
  dataset = inspect(annotations_file, images_dir)
  raise_errors(dataset.findings)
  return add_captions(dataset, captions_file)


def load_images(annotations_file: str | os.PathLike) -> CocoDataset:
  """Reads the images and categories of a COCO file without errors.

  The files of COCO's test images have no annotations.

  Args:
    annotations_file: COCO JSON with `images` and `categories`.

  Raises:
    UserError: see `load`.
  """
  file = os.fspath(annotations_file)
  dataset = parse(read_lists(file, ('images', 'categories')), file)
  raise_errors(dataset.findings)
  return dataset


def inspect(
  annotations_file: str | os.PathLike,
  images_dir: str | os.PathLike | None = None,
) -> CocoDataset:
  """Reads what can be used of a COCO instances file, errors as findings.

  Args:
    annotations_file: see `load`.
    images_dir: see `load`.

  Raises:
    UserError: the file is not a COCO file.
  """
  file = os.fspath(annotations_file)
  return parse(read_lists(file, LISTS), file, images_dir)


def parse(
  content: Mapping[str, Sequence[dict]],
  file: str,
  images_dir: str | os.PathLike | None = None,
  findings: Sequence[Finding] = (),
) -> CocoDataset:
  """Parses the lists of a COCO file, errors as findings.

  Args:
    content: lists `images`, `categories` and, if any, `annotations`.
    file: path of the file, for findings.
    images_dir: see `load`.
    findings: earlier findings on the content, which come first.
  """
  findings = list(findings)
  categories = _parse_categories(content['categories'], file, findings)
  images = _parse_images(content['images'], file, images_dir, findings)
  annotations = _group(content, file, images, categories, findings)
  return CocoDataset(
    file, tuple(images.values()), annotations, categories, tuple(findings)
  )


def add_captions(
  dataset: CocoDataset, captions_file: str | os.PathLike | None
) -> CocoDataset:
  """The data set with the captions of a file, if any; see `load`."""
  if captions_file is None:
    return dataset
  captions = collections.defaultdict(list)
  for entry in read_lists(captions_file, ('annotations',))['annotations']:
    captions[entry['image_id']].append(entry['caption'])
  return dataclasses.replace(dataset, captions=dict(captions))


def load_categories(annotations_file: str | os.PathLike) -> dict[int, Category]:
  """Reads the categories of a COCO file, by class id.

  Args:
    annotations_file: COCO JSON with `categories`.

  Raises:
    UserError: see `load`.
  """
  file, findings = os.fspath(annotations_file), []
  entries = read_lists(file, ('categories',))['categories']
  categories = _parse_categories(entries, file, findings)
  raise_errors(findings)
  return categories


def read_lists(
  file: str | os.PathLike, lists: Sequence[str] = LISTS
) -> dict[str, list]:
  """Reads top-level lists of a COCO file, without checking their entries.

  Raises:
    UserError: the file is not JSON or lacks one of the lists.
  """
  try:
    content = json.loads(pathlib.Path(file).read_bytes())
  except OSError as error:
    raise UserError(f'{file} cannot be read: {error}', path=file) from error
  except ValueError as error:
    raise UserError(f'{file} is not a JSON file: {error}', path=file) from error
  for key in lists:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
      raise UserError(
        f'{file} is not a COCO file: it has no list {key!r}.',
        path=file,
        item=key,
      )
  return {key: content[key] for key in lists}


def find_missing(
  image: CocoImage, images_dir: str | os.PathLike, file: str
) -> Finding | None:
  """The finding on an image whose file does not exist, else None.

  Args:
    image: the image entry.
    images_dir: folder that its file name is relative to.
    file: the COCO file.
  """
  path = os.path.join(images_dir, image.file_name)
  if os.path.isfile(path):
    return None
  message = (
    f'{path} does not exist. Add the file or remove the image from the JSON.'
  )
  return Finding('missing_image', file, image.image_id, None, message, 'error')


def is_number(value: Any) -> bool:
  """Whether a JSON value is a number that is finite as a float."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:  # A JSON may hold integers of any length.
    return False


def is_box(value: Any) -> bool:
  """Whether a JSON value is a list of four finite numbers."""
  return (
    isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
  )


def _parse_categories(entries, file, findings) -> dict[int, Category]:
  """Categories by class id."""
  found = {}
  offset = class_offset(_ids(entries))
  for entry in _objects(entries, 'categories', file, findings):
    try:
      class_id, category = _parse_category(entry, offset, found)
    except InvalidEntryError as error:
      findings.append(error.finding(file))
    else:
      found[class_id] = category
  if offset:
    message = (
      'has a category 0: class ids start at 1 (0 is the background), so class '
      'i is category i - 1. Results carry the category ids of the file.'
    )
    findings.append(Finding('ids_from_0', file, None, None, message, 'note'))
  return found


def _parse_category(entry, offset, found) -> tuple[int, Category]:
  category_id, name = entry.get('id'), entry.get('name')
  if isinstance(category_id, str):
    raise InvalidEntryError(
      'category_id',
      f'category id {category_id!r} ({name!r}) is a string. '
      + _integer_instead(category_id, 'category_id'),
      'error',
    )
  if not _is_int(category_id, 0, _MAX_CLASS_ID - 1):
    raise InvalidEntryError(
      'category_id',
      f'category id {category_id!r} ({name!r}) must be an integer from 0. '
      'Renumber the categories.',
      'error',
    )
  class_id = category_id + offset
  if class_id in found:
    raise InvalidEntryError(
      'duplicate_category_id',
      f'category id {category_id} is used twice ({found[class_id].name!r} and '
      f'{name!r}). Renumber one.',
      'error',
    )
  return class_id, Category(str(entry.get('name', category_id)), category_id)


def _parse_images(entries, file, images_dir, findings) -> dict[int, CocoImage]:
  """Image entries by id."""
  found = {}
  for entry in _objects(entries, 'images', file, findings):
    try:
      image = _parse_image(entry, found)
    except InvalidEntryError as error:
      findings.append(error.finding(file, entry.get('id')))
      continue
    missing = images_dir is not None and find_missing(image, images_dir, file)
    if missing:
      findings.append(missing)
    else:
      found[image.image_id] = image
  return found


def _parse_image(entry, found) -> CocoImage:
  image_id, name = entry.get('id'), entry.get('file_name')
  if isinstance(image_id, str):
    raise InvalidEntryError(
      'image_id',
      f'image id {image_id!r} is a string and must be an integer. '
      + _integer_instead(image_id, 'image_id'),
      'error',
    )
  if not _is_int(image_id, -(2**63), 2**63 - 1):
    raise InvalidEntryError(
      'image_id',
      f'image id {image_id!r} must be an integer of up to 64 bits. Renumber '
      'the images, here and in the annotations.',
      'error',
    )
  if image_id in found:
    raise InvalidEntryError(
      'duplicate_image_id',
      f'image id {image_id} is used twice ({found[image_id].file_name!r} and '
      f'{name!r}). Renumber one.',
      'error',
    )
  if not isinstance(name, str) or not name:
    message = f'file_name must be a non-empty string, got {name!r}.'
    raise InvalidEntryError('image_entry', message, 'error')
  for side in ('height', 'width'):
    if not _is_int(entry.get(side), 1, 2**20):
      message = f'{side} must be a number of pixels, got {entry.get(side)!r}.'
      raise InvalidEntryError('image_entry', message, 'error')
  return CocoImage(image_id, name, entry['height'], entry['width'])


def _group(content, file, images, categories, findings):
  """Annotation entries by image id, without those that cannot be used.

  What refers to an invalid image or category is skipped silently: that entry
  has its own finding.
  """
  grouped = collections.defaultdict(list)
  known = {category.category_id for category in categories.values()}
  invalid_images = _ids(content['images']) - images.keys()
  invalid_categories = _ids(content['categories']) - known
  offset = class_offset(_ids(content['categories']))
  seen = set()
  entries = content.get('annotations', ())
  for entry in _objects(entries, 'annotations', file, findings):
    annotation_id, image_id, category_id = (
      _hashable(entry.get(key)) for key in ('id', 'image_id', 'category_id')
    )
    try:
      if annotation_id is not None and annotation_id in seen:
        message = 'the annotation id is used twice. Give each object its own.'
        raise InvalidEntryError('duplicate_annotation_id', message, 'error')
      if image_id in invalid_images or category_id in invalid_categories:
        continue
      seen.add(annotation_id)
      _check_references(image_id, category_id, images, known)
    except InvalidEntryError as error:
      findings.append(error.finding(file, image_id, annotation_id))
      continue
    if offset:
      entry = {**entry, 'class_id': category_id + offset}
    grouped[image_id].append(entry)
  return dict(grouped)


def _check_references(image_id, category_id, images, known) -> None:
  """Raises if an annotation refers to an unknown image or category."""
  if image_id not in images:
    message = f'the JSON has no such image. {_remedy(image_id, images)}'
    raise InvalidEntryError('unknown_image', message)
  if isinstance(category_id, str):
    message = f'category_id {category_id!r} is a string. '
    message += _integer_instead(category_id, 'category_id')
    raise InvalidEntryError('unknown_category', message, 'error')
  if type(category_id) is not int or category_id not in known:
    ids = [str(each) for each in sorted(known)]
    ids = ids if len(ids) < 12 else [*ids[:10], '..', ids[-1]]
    message = (
      f'category_id {category_id!r} is not among the categories '
      f'({", ".join(ids)}). {_remedy(category_id, known)}'
    )
    raise InvalidEntryError('unknown_category', message, 'error')


def _objects(entries, name, file, findings) -> Iterator[dict]:
  """The entries of a list that are JSON objects; others become findings."""
  for number, entry in enumerate(entries):
    if isinstance(entry, dict):
      yield entry
    else:
      message = (
        f'entry {number} (from 0) of {name!r} must be an object, got '
        f'{str(entry)[:40]!r}. Remove it.'
      )
      findings.append(Finding('entry', file, None, None, message, 'error'))


def _ids(entries) -> set:
  return {
    _hashable(entry.get('id')) for entry in entries if isinstance(entry, dict)
  }


def _hashable(value):
  """An id to look up; a list or an object, which is none, as a string."""
  return str(value) if isinstance(value, (list, dict)) else value


def _is_int(value, low, high) -> bool:
  return type(value) is int and low <= value <= high


def _integer_instead(given: str, key: str) -> str:
  """The remedy for an id that is a string."""
  given = given.strip()
  if given.isdecimal():
    return (
      f'Write {int(given)} without quotes, here and as {key!r} of every '
      'annotation.'
    )
  return (
    f'Give each entry an integer, here and as {key!r} of every annotation; a '
    'name belongs in another field.'
  )


def _remedy(given, known: Collection[int]) -> str:
  """The remedy for an id that is not known."""
  if isinstance(given, str) and given.isdecimal() and int(given) in known:
    return f'It is a string: write {int(given)} without quotes.'
  return 'Correct the annotation or add what it refers to.'
