"""Reader of COCO instances files, used by every command that takes one.

`inspect` parses a file and returns each problem as a `Finding`; `load` raises
if there is an error among them. What would lose a whole image or makes ids
ambiguous is an error; an object that cannot be used is skipped with a warning.
"""

import collections
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
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
  lists: Sequence[str] = LISTS,
) -> CocoDataset:
  """Reads a COCO file, which must have no error.

  Args:
    annotations_file: COCO JSON.
    images_dir: if given, every image file must exist there.
    captions_file: COCO JSON whose annotations hold a `caption`.
    lists: top-level lists to read; those of COCO's test images have no
      `annotations`.

  Raises:
    UserError: the file is not JSON or lacks one of the lists.
    InvalidDataError: an entry is malformed, an id is ambiguous, or an image
      file is missing.
  """
  dataset = inspect(annotations_file, images_dir, lists)
  raise_errors(dataset.findings)
  return add_captions(dataset, captions_file)


def inspect(
  annotations_file: str | os.PathLike,
  images_dir: str | os.PathLike | None = None,
  lists: Sequence[str] = LISTS,
) -> CocoDataset:
  """Reads what can be used of a COCO file, errors as findings; see `load`."""
  file = os.fspath(annotations_file)
  return parse(read_lists(file, lists), file, images_dir)


def parse(
  content: Mapping[str, Sequence[dict]],
  file: str,
  images_dir: str | os.PathLike | None = None,
  findings: Sequence[Finding] = (),
) -> CocoDataset:
  """Parses the lists of a COCO file, errors as findings.

  Args:
    content: the lists of `LISTS`; missing ones count as empty.
    file: path of the file, for findings.
    images_dir: see `load`.
    findings: earlier findings on the content, which come first.
  """
  findings = list(findings)
  categories = _parse_categories(content, file, findings)
  images = _parse_images(content, file, images_dir, findings)
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


def read_lists(
  file: str | os.PathLike, lists: Sequence[str] = LISTS
) -> dict[str, list]:
  """Reads top-level lists of a COCO file without their checks; see `load`."""
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
  """The finding on an image of a COCO file whose own file is missing."""
  path = os.path.join(images_dir, image.file_name)
  if os.path.isfile(path):
    return None
  message = (
    f'{path} does not exist. Add the file or remove the image from the JSON.'
  )
  return Finding('missing_image', file, message, 'error', image.image_id)


def is_number(value: Any) -> bool:
  """Whether a JSON value is a number that is finite as a float."""
  # A JSON may hold integers of any length.
  return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_box(value: Any) -> bool:
  """Whether a JSON value is a list of four finite numbers."""
  return (
    isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
  )


def _parse_categories(content, file, findings) -> dict[int, Category]:
  """Categories by class id."""
  found = {}
  offset = class_offset(_ids(content, 'categories'))
  for entry in _objects(content, 'categories', file, findings):
    name, category_id = entry.get('name'), entry.get('id')
    try:
      _check_id(category_id, 'category', name, 0, _MAX_CLASS_ID - 1)
      class_id = category_id + offset
      if class_id in found:
        raise InvalidEntryError(
          'duplicate_category_id',
          f'category id {category_id} is used twice ({found[class_id].name!r} '
          f'and {name!r}). Renumber one.',
        )
    except InvalidEntryError as error:
      findings.append(error.finding(file))
    else:
      name = str(entry.get('name', category_id))
      found[class_id] = Category(name, category_id)
  if offset:
    message = (
      'has a category 0: class ids start at 1 (0 is the background), so class '
      'i is category i - 1. Results carry the category ids of the file.'
    )
    findings.append(Finding('ids_from_0', file, message, 'note'))
  return found


def _parse_images(content, file, images_dir, findings) -> dict[int, CocoImage]:
  """Image entries by id."""
  found = {}
  for entry in _objects(content, 'images', file, findings):
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
  _check_id(image_id, 'image', name, -(2**63), 2**63 - 1)
  if image_id in found:
    raise InvalidEntryError(
      'duplicate_image_id',
      f'image id {image_id} is used twice ({found[image_id].file_name!r} and '
      f'{name!r}). Renumber one.',
    )
  if not isinstance(name, str) or not name:
    message = f'file_name must be a non-empty string, got {name!r}.'
    raise InvalidEntryError('image_entry', message)
  for side in ('height', 'width'):
    if not _is_int(entry.get(side), 1, 2**20):
      message = f'{side} must be a number of pixels, got {entry.get(side)!r}.'
      raise InvalidEntryError('image_entry', message)
  return CocoImage(image_id, name, entry['height'], entry['width'])


def _check_id(given, what, name, low, high) -> None:
  """Raises if the id of a category or an image is not an integer in a range."""
  if not _is_int(given, low, high):
    remedy = f'Renumber all, here and as {what}_id of every annotation.'
    raise InvalidEntryError(
      f'{what}_id',
      f'{what} id {given!r} ({name!r}) must be an integer from {low} to '
      f'{high}. {_integer_instead(given, f"{what}_id", remedy)}',
    )


def _group(content, file, images, categories, findings):
  """Annotation entries by image id, without those that cannot be used.

  What refers to an invalid image or category is skipped silently: that entry
  has its own finding.
  """
  grouped = collections.defaultdict(list)
  known = {category.category_id for category in categories.values()}
  invalid_images = _ids(content, 'images') - images.keys()
  invalid_categories = _ids(content, 'categories') - known
  offset = class_offset(_ids(content, 'categories'))
  seen = set()
  for entry in _objects(content, 'annotations', file, findings):
    annotation_id, image_id, category_id = (
      _hashable(entry.get(key)) for key in ('id', 'image_id', 'category_id')
    )
    try:
      if annotation_id is not None and annotation_id in seen:
        message = 'the annotation id is used twice. Give each object its own.'
        raise InvalidEntryError('duplicate_annotation_id', message)
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
  remedy = 'Correct the annotation or add what it refers to.'
  if image_id not in images:
    remedy = _integer_instead(image_id, 'image_id', remedy)
    message = f'the JSON has no such image. {remedy}'
    raise InvalidEntryError('unknown_image', message, 'warning')
  if type(category_id) is not int or category_id not in known:
    ids = [str(each) for each in sorted(known)]
    ids = ids if len(ids) < 12 else [*ids[:10], '..', ids[-1]]
    raise InvalidEntryError(
      'unknown_category',
      f'category_id {category_id!r} is not among the categories '
      f'({", ".join(ids)}). '
      f'{_integer_instead(category_id, "category_id", remedy)}',
    )


def _objects(content, name, file, findings) -> Iterator[dict]:
  """The entries of a list that are JSON objects; others become findings."""
  for number, entry in enumerate(content.get(name, ())):
    if isinstance(entry, dict):
      yield entry
    else:
      message = (
        f'entry {number} (from 0) of {name!r} must be an object, got '
        f'{str(entry)[:40]!r}. Remove it.'
      )
      findings.append(Finding('entry', file, message, 'error'))


def _ids(content, name) -> set:
  entries = content.get(name, ())
  return {_hashable(x.get('id')) for x in entries if isinstance(x, dict)}


def _hashable(value):
  """An id to look up; a list or an object, which is none, as a string."""
  return str(value) if isinstance(value, (list, dict)) else value


def _is_int(value, low, high) -> bool:
  return type(value) is int and low <= value <= high


def _integer_instead(given, key: str, remedy: str) -> str:
  """The remedy for an id that is a string; else another remedy."""
  if not isinstance(given, str):
    return remedy
  text, value = f'here and as {key!r} of every annotation', given.strip()
  if value.isdecimal():
    return f'Write {int(value)} without quotes, {text}.'
  return f'Give each entry an integer, {text}; a name belongs in another field.'
