"""Reader of COCO instances files, used by every command that takes one.

`parse` returns each problem as a `Finding`; `load` raises if there is an error
among them. What would lose a whole image or makes ids ambiguous is an error; an
object that cannot be used is skipped with a warning.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

from maskrcnn_jax import files
from maskrcnn_jax.datasets import coco_values
from maskrcnn_jax.datasets.categories import (
  Category,
  class_offset,
  ids_far_beyond,
)
from maskrcnn_jax.datasets.findings import (
  Finding,
  InvalidEntryError,
  collected,
  raise_errors,
)
from maskrcnn_jax.datasets.images import check_size
from maskrcnn_jax.errors import UserError, brief

LISTS = ('images', 'annotations', 'categories')
_MAX_CLASS_ID = 2**31 - 1
_LONGEST_NAME = 4096


@dataclasses.dataclass(frozen=True)
class CocoImage:
  """An image entry of a COCO file, its id and size checked.

  Where EXIF rotates an image and both have the size, `upright` says if the
  rotated one is meant: entries of other formats have it; of COCO's it is None
  until a `survey`.
  """

  image_id: int
  file_name: str
  height: int
  width: int
  upright: bool | None = None


@dataclasses.dataclass(frozen=True)
class CocoDataset:
  """A COCO file, checked as far as possible without reading images."""

  annotations_file: str
  images: tuple[CocoImage, ...]  # In the order of the file.
  # Entries by image id, all of known categories, values as `coco_values` reads
  # them; with a `class_id` where it differs from the `category_id`.
  annotations: dict[int, list[dict]]
  categories: dict[int, Category]  # By class id.
  findings: tuple[Finding, ...]  # Skipped entries and notes.
  captions: dict[int, list[str]] = dataclasses.field(default_factory=dict)

  @property
  def class_names(self) -> dict[int, str]:
    """Names by class id, 1 or more."""
    return {class_id: each.name for class_id, each in self.categories.items()}

  @property
  def category_names(self) -> dict[int, str]:
    """Names by category id."""
    return {each.category_id: each.name for each in self.categories.values()}

  def ignored_classes(self) -> set[int]:
    """Classes whose crowds are all objects that are to be ignored."""
    ignored, others = set(), set()
    for entry in itertools.chain.from_iterable(self.annotations.values()):
      if entry.get('iscrowd'):
        group = ignored if coco_values.is_ignored(entry) else others
        group.add(entry.get('class_id', entry['category_id']))
    return ignored - others


def load(
  annotations_file: str | os.PathLike,
  captions_file: str | os.PathLike | None = None,
  lists: Sequence[str] = LISTS,
) -> CocoDataset:
  """Reads a COCO file, which must have no error.

  Args:
    annotations_file: COCO JSON.
    captions_file: COCO JSON whose annotations hold a `caption`.
    lists: top-level lists to read; COCO's test images lack `annotations`.

  Raises:
    UserError: the file is not JSON or lacks one of the lists.
    InvalidDataError: an entry is malformed.
  """
  file = os.fspath(annotations_file)
  dataset = parse(read_lists(file, lists), file)
  raise_errors(dataset.findings)
  return add_captions(dataset, captions_file)


def parse(
  content: Mapping[str, Sequence[dict]],
  file: str,
  findings: Sequence[Finding] = (),
) -> CocoDataset:
  """Parses lists of a COCO file, errors as findings; see `load`.

  Args:
    content: lists by name; missing ones count as empty.
    file: path of the file.
    findings: earlier ones, which come first.
  """
  findings, categories, images = list(findings), {}, {}
  reader = coco_values.Reader()
  offset = class_offset(_ids(content, 'categories'))
  for entry in _entries(content, 'categories', file, findings, reader):
    with collected(findings, file):
      category_id = entry.get('id')
      name = entry.get('name', category_id)
      name = category_id if name == '' else name
      _check_id(category_id, 'category', name, 0, _MAX_CLASS_ID - 1)
      if category_id + offset in categories:
        other = categories[category_id + offset].name
        raise _duplicate('category', category_id, other, name)
      name = name if isinstance(name, str) else brief(name)
      if len(name) > _LONGEST_NAME:
        raise InvalidEntryError('category_name', f'{brief(name)} is too long.')
      categories[category_id + offset] = Category(name, category_id)
  if offset:
    message = (
      'has a category 0: class ids start at 1 (0 is the background), so class '
      'i is category i - 1. Results carry the category ids of the file.'
    )
    findings.append(Finding('ids_from_0', file, message, 'note'))
  if beyond := ids_far_beyond(each.category_id for each in categories.values()):
    message = (
      f'the category ids {_listed(beyond)} are far beyond the number of '
      f'classes ({len(categories)}), and a model has an output for every '
      'number up to the largest. Renumber the categories from 1, here and as '
      'category_id of every annotation.'
    )
    findings.append(Finding('huge_category_ids', file, message, 'error'))
  for entry in _entries(content, 'images', file, findings, reader):
    with collected(findings, file, _hashable(entry.get('id'))):
      image = _parse_image(entry, images)
      images[image.image_id] = image
  annotations = _group(content, file, findings, images, categories, reader)
  findings += reader.notes(file)
  return CocoDataset(
    file, tuple(images.values()), annotations, categories, tuple(findings)
  )


def read_lists(
  file: str | os.PathLike, lists: Sequence[str] = LISTS
) -> dict[str, list]:
  """Reads top-level lists of a COCO file without their checks; see `load`."""
  return pick_lists(files.read_json(file), file, lists)


def pick_lists(
  content: object, file: str | os.PathLike, lists: Sequence[str] = LISTS
) -> dict[str, list]:
  """The lists in the content of a JSON file; see `read_lists`."""
  for key in lists:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
      message = f'{file} is not a COCO file: it has no list {key!r}.'
      raise UserError(message, path=file, item=key)
  return {key: content[key] for key in lists}


def add_captions(
  dataset: CocoDataset, captions_file: str | os.PathLike | None
) -> CocoDataset:
  """The data set with the captions of a file, if any; see `load`."""
  if captions_file is None:
    return dataset
  captions = collections.defaultdict(list)
  content = read_lists(captions_file, ('annotations',))
  for number, entry in enumerate(content['annotations']):
    try:
      captions[entry['image_id']].append(entry['caption'] + '')
    except (TypeError, KeyError):
      message = f'{captions_file}: entry {number} is no caption: {brief(entry)}'
      raise UserError(message, path=captions_file, item=number) from None
  return dataclasses.replace(dataset, captions=dict(captions))


def _parse_image(entry, found) -> CocoImage:
  image_id, name = entry.get('id'), entry.get('file_name')
  _check_id(image_id, 'image', name, -(2**63), 2**63 - 1)
  if image_id in found:
    raise _duplicate('image', image_id, found[image_id].file_name, name)
  if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
    message = f'file_name must be the name of a file, got {brief(name)}.'
    raise InvalidEntryError('image_entry', message)
  size = [entry.get(side) for side in ('height', 'width')]
  try:
    if not all(_is_int(side, 0, 2**31) for side in size):
      raise UserError(f'height and width must be pixels, got {brief(size)}')
    check_size(*size)
  except UserError as error:
    raise InvalidEntryError('image_entry', f'{error}.') from error
  upright = entry.get('upright')
  upright = upright if isinstance(upright, bool) else None
  return CocoImage(image_id, name, *size, upright)


def _check_id(given, what, name, low, high) -> None:
  if not _is_int(given, low, high):
    remedy = f'Renumber all, here and as {what}_id of every annotation.'
    message = (
      f'{what} id {brief(given)} ({brief(name)}) must be an integer from {low} '
      f'to {high}. {_integer_instead(given, f"{what}_id", remedy)}'
    )
    raise InvalidEntryError(f'{what}_id', message)


def _duplicate(what, given, first, second) -> InvalidEntryError:
  message = f'{what} id {given} is of {brief(first)} and {brief(second)}.'
  return InvalidEntryError(f'duplicate_{what}_id', message)


def _group(content, file, findings, images, categories, reader):
  """Annotation entries by image id, without those that cannot be used.

  What refers to an invalid entry is skipped: that has its own finding.
  """
  grouped, seen = collections.defaultdict(list), set()
  known = {each.category_id: i for i, each in categories.items()}
  listed = _listed(sorted(known))
  invalid_images = _ids(content, 'images') - images.keys()
  invalid_categories = _ids(content, 'categories') - known.keys()
  for entry in _entries(content, 'annotations', file, findings, reader):
    annotation_id, image_id, category_id = (
      _hashable(entry.get(key)) for key in ('id', 'image_id', 'category_id')
    )
    with collected(findings, file, image_id, annotation_id):
      if annotation_id is not None and annotation_id in seen:
        message = 'the annotation id is used twice. Give each object its own.'
        raise InvalidEntryError('duplicate_annotation_id', message)
      if isinstance(entry.get('id'), (list, dict)):
        raise InvalidEntryError('annotation_id', 'the id must be an integer.')
      if image_id in invalid_images or category_id in invalid_categories:
        continue
      seen.add(annotation_id)
      _check_references(image_id, category_id, images, known, listed)
      if known[category_id] != category_id:
        entry = {**entry, 'class_id': known[category_id]}
      grouped[image_id].append(entry)
  return dict(grouped)


def _check_references(image_id, category_id, images, known, listed) -> None:
  """Raises if an annotation refers to an unknown image or category."""
  remedy = 'Correct the annotation or add what it refers to.'
  if image_id not in images:
    remedy = _integer_instead(image_id, 'image_id', remedy)
    message = f'the JSON has no such image. {remedy}'
    raise InvalidEntryError('unknown_image', message, 'warning')
  if type(category_id) is not int or category_id not in known:
    remedy = _integer_instead(category_id, 'category_id', remedy)
    message = f'{brief(category_id)} is not among ({listed}). {remedy}'
    raise InvalidEntryError('unknown_category', message)


def _listed(ids: Sequence[int]) -> str:
  ids = [*ids[:10], '..'] if len(ids) > 11 else ids
  return ', '.join(map(str, ids))


def _entries(content, name, file, findings, reader) -> Iterator[dict]:
  """The entries of a list that are JSON objects; others become findings."""
  for number, entry in enumerate(content.get(name, ())):
    with collected(findings, file):
      if not isinstance(entry, dict):
        message = f'entry {number} (from 0) of {name!r} must be an object, got '
        raise InvalidEntryError('entry', f'{message}{brief(entry)}. Remove it.')
      yield reader.read(entry, name)


def _ids(content, name) -> set:
  entries = content.get(name, ())
  ids = (x.get('id') for x in entries if isinstance(x, dict))
  return {_hashable(coco_values.read_integer(x)) for x in ids}


def _hashable(value):
  """An id to look up; a list or an object, which is none, as a string."""
  return brief(value) if isinstance(value, (list, dict)) else value


def _is_int(value, low, high) -> bool:
  return type(value) is int and low <= value <= high


def _integer_instead(given, key: str, remedy: str) -> str:
  """The remedy for an id that is a text; else another remedy."""
  if not isinstance(given, str):
    return remedy
  text = f'here and as {key!r} of every annotation'
  return f'Give each entry an integer, {text}; a name belongs in another field.'
