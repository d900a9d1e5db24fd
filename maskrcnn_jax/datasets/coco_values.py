"""Values of COCO entries that exporters write in other ways.

Numbers may be texts or floats without a fraction, fields null, polygons flat or
in pairs. What can be meant in one way only is taken, with a note for every kind
and field; all else stays for the checks of the reader.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.errors import brief

_NUMBER = re.compile(
  r'\s*[-+]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][-+]?\d{1,3})?\s*', re.ASCII
)
_INTEGERS = ('id', 'image_id', 'category_id', 'height', 'width')
_NULLABLE = ('iscrowd', 'ignore', 'area', 'bbox', 'segmentation', 'name')
_FLAGS = {'true': 1, 'false': 0}
_MESSAGES = {
  'number_format': (
    '{field!r} is no plain number in {count} of the {entries}, such as '
    '{given}: read as one.'
  ),
  'polygon_nesting': (
    'the segmentation is not a list of lists x, y, x, y, ... in {count} of the '
    '{entries}, such as {given}: read as polygons.'
  ),
  'ignored_region': (
    '"ignore" is set in {count} of the {entries}: they count as crowd regions, '
    'neither learnt from nor scored.'
  ),
  'unnamed_category': '{count} of the {entries} have no name but their id.',
}


def read_number(value: Any) -> Any:
  """The number that a text is; any other value as it is."""
  if isinstance(value, str) and _NUMBER.fullmatch(value):
    text = value.strip()
    return int(text) if text.lstrip('+-').isdecimal() else float(text)
  return value


def read_integer(value: Any) -> Any:
  """The integer that a text or a float is; any other value as it is."""
  number = read_number(value)
  if type(number) is float and number.is_integer() and abs(number) < 2**53:
    return int(number)
  return number if type(number) is int else value


def parse_number(text: str, read: Callable = read_number) -> int | float:
  """The number that a text is, or with `read_integer` the integer.

  Python's own `float` and `int` also take `0_1`, digits of other scripts and
  `nan`.

  Raises:
    ValueError: it is none.
  """
  number = read(text)
  if isinstance(number, str):
    raise ValueError(f'{brief(text)} is no plain number')
  return number


class Reader:
  """Reads the entries of a file, and counts what it took in other ways."""

  def __init__(self):
    self._taken = {}

  def read(self, entry: dict, entries: str) -> dict:
    """The entry with values as COCO writes them; itself if it has these.

    Args:
      entry: of the list `entries`.
      entries: `images`, `annotations`, `categories` or `results`.
    """
    changes = {}
    for key in _INTEGERS:
      if key in entry:
        changes[key] = read_integer(entry[key])
    if entries in ('annotations', 'results'):
      for key, read in _FIELDS.items():
        if key in entry:
          changes[key] = read(entry[key])
    elif entries == 'categories' and entry.get('name') in (None, ''):
      self._count('unnamed_category', 'name', entry, entries)
    changes = {k: v for k, v in changes.items() if v is not entry[k]}
    for key, value in changes.items():
      kind = 'number_format'
      if key == 'segmentation' and _is_nested_otherwise(entry[key], value):
        kind = 'polygon_nesting'
      self._count(kind, key, entry, entries)
    is_crowd = changes.get('iscrowd', entry.get('iscrowd'))
    if entries == 'annotations' and is_ignored(entry) and not is_crowd:
      self._count('ignored_region', 'ignore', entry, entries)
      changes['iscrowd'] = 1
    nulls = [key for key in _NULLABLE if key in entry and entry[key] is None]
    if nulls or changes:
      entry = {k: v for k, v in entry.items() if k not in nulls} | changes
    return entry

  def _count(self, kind, field, entry, entries):
    key = kind, entries, field
    count, first = self._taken.get(key, (0, entry))
    self._taken[key] = count + 1, first

  def notes(self, file: str) -> list[Finding]:
    """A note for every kind and field; ids are those of the first entry."""
    notes = []
    for (kind, entries, field), (count, first) in self._taken.items():
      given = brief(first.get(field))
      words = {'field': field, 'count': count, 'entries': entries}
      message = _MESSAGES[kind].format(**words, given=given)
      is_image = entries == 'images'
      is_object = entries in ('annotations', 'results')
      image_id = read_integer(first.get('id' if is_image else 'image_id'))
      annotation_id = read_integer(first.get('id')) if is_object else None
      notes.append(
        Finding(kind, file, message, 'note', image_id, annotation_id)
      )
    return notes


def _read_flag(value):
  if type(value) is bool:
    return int(value)
  if isinstance(value, str):
    value = _FLAGS.get(value.strip().lower(), value)
  return read_integer(value)


def is_ignored(entry: dict) -> bool:
  """Whether an annotation is of a region that is to be ignored."""
  flag = _read_flag(entry.get('ignore', 0))
  return type(flag) in (int, float) and flag != 0


def _read_numbers(values, read=read_number, kinds=frozenset((int, float))):
  """A list with its texts read as numbers; itself if it has none."""
  if not isinstance(values, list) or set(map(type, values)) <= kinds:
    return values
  return _if_changed(values, map(read, values))


def _if_changed(values, read) -> list:
  read = list(read)
  return read if any(a is not b for a, b in zip(read, values)) else values


def _read_segmentation(value):
  """Polygons as flat lists, run lengths as integers; else the value itself."""
  if isinstance(value, dict):
    keys = [key for key in ('size', 'counts') if key in value]
    parts = {k: _read_numbers(value[k], read_integer, {int}) for k in keys}
    same = all(parts[key] is value[key] for key in keys)
    return value if same else {**value, **parts}
  if not isinstance(value, list) or not value:
    return value
  polygons = value
  if len(value) > 5 and len(value) % 2 == 0 and _are_numbers(value):
    polygons = [value]
  elif _are_points(value):
    polygons = [_flatten(value)]
  elif any(map(_are_points, value)):
    polygons = [_flatten(x) if _are_points(x) else x for x in value]
  return _if_changed(polygons, map(_read_numbers, polygons))


def _is_nested_otherwise(before, after) -> bool:
  """Whether polygons were written in another nesting."""
  if isinstance(before, dict):
    return False
  return len(before) != len(after) or any(
    isinstance(x, list) and len(x) != len(y) for x, y in zip(before, after)
  )


def _are_numbers(values) -> bool:
  """Whether all values are numbers or texts that are."""
  return all(type(read_number(value)) in (int, float) for value in values)


def _are_points(values) -> bool:
  """Whether a value is a list of three or more pairs of numbers."""
  return (
    isinstance(values, list)
    and len(values) > 2
    and all(
      isinstance(x, list) and len(x) == 2 and _are_numbers(x) for x in values
    )
  )


def _flatten(points: Sequence) -> list:
  return [value for point in points for value in point]


_FIELDS = {
  'score': read_number,
  'iscrowd': _read_flag,
  'area': read_number,
  'bbox': _read_numbers,
  'segmentation': _read_segmentation,
}
