"""What is wrong with one entry of a COCO file, and what to do about it.

Every function returns the kind and the message of a finding, or None; that of
annotations also its severity, the others find errors only.
"""

from collections.abc import Collection, Mapping
from typing import Any

_MAX_CLASS_ID = 2**31 - 1


def of_category(
  entry: Mapping[str, Any], names: Mapping[int, str], offset: int
) -> tuple[str, str] | None:
  """What is wrong with an entry of `categories`.

  Args:
    entry: of the json.
    names: of the classes before it, by class id.
    offset: class id minus category id, see `annotations.class_offset`.
  """
  category_id, name = entry.get('id'), entry.get('name')
  if isinstance(category_id, str):
    return 'category_id', (
      f'category id {category_id!r} ({name!r}) is a text. '
      + _number_instead(category_id, 'category_id')
    )
  if not _is_int(category_id, 0, _MAX_CLASS_ID - 1):
    return 'category_id', (
      f'category id {category_id!r} ({name!r}) must be a whole number from 0. '
      'Renumber the categories.'
    )
  if category_id + offset in names:
    return 'duplicate_category_id', (
      f'category id {category_id} is there twice '
      f'({names[category_id + offset]!r} and {name!r}). Renumber one.'
    )
  return None


def of_image(
  entry: Mapping[str, Any], file_names: Mapping[int, str]
) -> tuple[str, str] | None:
  """What is wrong with an entry of `images`.

  Args:
    entry: of the json.
    file_names: of the images before it, by image id.
  """
  image_id, name = entry.get('id'), entry.get('file_name')
  if isinstance(image_id, str):
    return 'image_id', (
      f'image id {image_id!r} is a text and must be a whole number. '
      + _number_instead(image_id, 'image_id')
    )
  if not _is_int(image_id, -(2**63), 2**63 - 1):
    return 'image_id', (
      f'image id {image_id!r} must be a whole number of up to 64 bits. '
      'Renumber the images, here and in the annotations.'
    )
  if image_id in file_names:
    return 'duplicate_image_id', (
      f'image id {image_id} is there twice ({file_names[image_id]!r} and '
      f'{name!r}). Give every image its own.'
    )
  if not isinstance(name, str) or not name:
    return 'image_entry', f'file_name must be a text, got {name!r}.'
  for side in ('height', 'width'):
    if not _is_int(entry.get(side), 1, 2**20):
      return 'image_entry', (
        f'{side} must be a number of pixels, got {entry.get(side)!r}.'
      )
  return None


def of_annotation(
  annotation_id: Any,
  image_id: Any,
  category_id: Any,
  seen: Collection[Any],
  images: Collection[int],
  categories: Collection[int],
) -> tuple[str, str, str] | None:
  """What is wrong with the ids of an annotation.

  Args:
    annotation_id: may be missing (None).
    image_id: of its image.
    category_id: of its category.
    seen: annotation ids before it.
    images: ids of all sound images.
    categories: ids of all sound categories.
  """
  if annotation_id is not None and annotation_id in seen:
    message = 'the annotation id is there twice. Give every object its own.'
    return 'duplicate_annotation_id', message, 'error'
  if image_id not in images:
    message = f'the json has no such image. {_remedy(image_id, images)}'
    return 'unknown_image', message, 'warning'
  if isinstance(category_id, str):
    message = f'category_id {category_id!r} is a text. '
    message += _number_instead(category_id, 'category_id')
    return 'unknown_category', message, 'error'
  if type(category_id) is not int or category_id not in categories:
    message = (
      f'category_id {category_id!r} is not among the categories '
      f'({_shorten(sorted(categories))}). {_remedy(category_id, categories)}'
    )
    return 'unknown_category', message, 'error'
  return None


def _is_int(value, low, high):
  return type(value) is int and low <= value <= high


def _number_instead(text: str, key: str) -> str:
  """What to write instead of an id that is a text."""
  text = text.strip()
  if text.isdecimal():
    return (
      f'Write the number {int(text)} without quotes, here and as {key!r} of '
      'every annotation.'
    )
  return (
    f'Give each a whole number, here and as {key!r} of every annotation; a '
    'name belongs into another field.'
  )


def _remedy(given, known: Collection[int]) -> str:
  """What to do about an id that is not known."""
  if isinstance(given, str) and given.isdecimal() and int(given) in known:
    return f'It is a text: write the number {int(given)} without quotes.'
  return 'Correct the annotation or add what it refers to.'


def _shorten(ids):
  texts = [str(value) for value in ids]
  return ', '.join(texts if len(texts) < 12 else [*texts[:10], '..', texts[-1]])
