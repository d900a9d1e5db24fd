"""TFRecord files, scanned without reading images and masks.

A TFRecord file is a chain of frames: the length of a record (8 bytes, little
endian), the length's masked CRC-32C (4), the record, its CRC (4). A record is a
`tf.train.Example`, a protobuf map from names to lists. The file is mapped into
memory, so that only the frames and a few small features leave the disk.
"""

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator, Sequence

from maskrcnn_jax import wire_format
from maskrcnn_jax.datasets.coco_values import parse_number, read_integer
from maskrcnn_jax.errors import UserError

_HEADER_BYTES, _FOOTER_BYTES = 12, 4
FRAME_BYTES = _HEADER_BYTES + _FOOTER_BYTES
_REMEDY = 'Prepare or copy it again.'
# Ranges of the numbers that every record has.
_NUMBERS = {
  'image/source_id': (-(2**63), 2**63),
  'image/height': (1, 2**31),
  'image/width': (1, 2**31),
}


def scan(path: str) -> Iterator[tuple[int, int, int, int, int]]:
  """Yields offset, length, image id, height and width of every record.

  Raises:
    UserError: the file is truncated or corrupt, or a record lacks its size, its
      id or the masks of its objects; names file and byte.
  """
  for data, offset, length, features in _records(path):
    with _parsing(path, offset):
      sizes = _read_sizes(data, features, path, offset)
    yield offset, length, *sizes


def scan_objects(
  path: str,
) -> Iterator[tuple[list[int], list[str], list[int], list[int]]]:
  """Yields class ids, names, category ids and crowd flags of every record.

  All but the class ids are [] where a record has none.

  Raises:
    UserError: the file is truncated or corrupt; names file and byte.
  """
  for data, offset, _, features in _records(path):
    with _parsing(path, offset):
      labels, names, categories, crowds = (
        list(_values(data, *features.get(f'image/object/{x}', (0, 0))))
        for x in ('class/label', 'class/text', 'class/category_id', 'is_crowd')
      )
      names = [bytes(x).decode(errors='replace') for x in names]
    yield labels, names, categories, crowds


def trained_classes(paths: Sequence[str]) -> list[set[int]]:
  """Classes of the objects of every record that are no crowds."""
  return [
    {x for i, x in enumerate(labels) if i >= len(crowds) or not crowds[i]}
    for path in paths
    for labels, _, _, crowds in scan_objects(path)
  ]


def _records(path):
  """Yields the mapped file, and offset, length and features of every record.

  Features are begin and end in the file by name.
  """
  size, offset = os.path.getsize(path), 0
  if not size:  # Empty files cannot be mapped.
    return
  with (
    open(path, 'rb') as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
  ):
    while offset < size:
      begin = offset + _HEADER_BYTES
      header = data[offset:begin]
      if begin > size:
        raise _error(
          f'is truncated: {len(header)} bytes are left where a record should '
          f'begin. {_REMEDY}',
          path,
          offset,
        )
      length, crc = struct.unpack('<QI', header)
      end = begin + length
      if crc != wire_format.masked_crc32c(header[:8]):
        raise _error(
          'is corrupt, compressed or not a TFRecord file: the checksum of the '
          f'record length is wrong. {_REMEDY}',
          path,
          offset,
        )
      if end + _FOOTER_BYTES > size:
        raise _error(
          f'is truncated: a record of {length} bytes begins there, and '
          f'{size - begin} bytes follow. {_REMEDY}',
          path,
          offset,
        )
      with _parsing(path, offset):
        features = dict(_features(data, begin, end))
      yield data, offset, length, features
      offset = end + _FOOTER_BYTES


def _error(message, path, offset, image_id=None) -> UserError:
  """The error on a record whose frame begins at an offset."""
  return UserError(
    f'{path} at byte {offset} {message}', path=path, item=image_id, given=offset
  )


@contextlib.contextmanager
def _parsing(path, offset):
  """Turns the errors of malformed protobuf into a `UserError`."""
  try:
    yield
  except UserError:
    raise
  except (IndexError, KeyError, TypeError, ValueError) as error:
    raise _error('is not a tf.train.Example.', path, offset) from error


def _read_sizes(data, features, path, offset):
  """Image id, height and width; checks that objects have masks."""
  numbers = []
  for name, (low, high) in _NUMBERS.items():
    value = _first(data, *features.get(name, (0, 0)))
    try:
      if isinstance(value, bytes):
        value = parse_number(value.decode(), read_integer)
      numbers.append(int(value))
      is_valid = low <= numbers[-1] < high
    except (TypeError, ValueError):
      is_valid = False
    if not is_valid:
      raise _error(
        f'has {value!r} as {name}, which must be an integer of {low} or more '
        f'and less than {high}.',
        path,
        offset,
        *numbers[:1],
      )
  labels, masks = (
    _first(data, *features.get(f'image/object/{name}', (0, 0)))
    for name in ('class/label', 'mask')
  )
  if labels is not None and masks is None:
    message = (
      f'(image {numbers[0]}) has objects and no image/object/mask. Prepare the '
      'records with masks.'
    )
    raise _error(message, path, offset, numbers[0])
  return numbers


def _fields(data, position, end):
  """Yields (field number, begin, end) of the length-delimited fields."""
  while position < end:
    tag, position = wire_format.varint(data, position)
    if tag & 7 != 2:
      raise ValueError('Not a length-delimited field.')
    length, position = wire_format.varint(data, position)
    last = _within(position + length, end)
    yield tag >> 3, position, last
    position = last


def _within(position, end):
  if position > end:
    raise ValueError('A field runs over the end.')
  return position


def _features(data, begin, end):
  """Yields name and (begin, end) of every feature of a tf.train.Example."""
  for _, *features in _fields(data, begin, end):
    for _, *entry in _fields(data, *features):
      found = {number: place for number, *place in _fields(data, *entry)}
      first, last = found[1]
      yield data[first:last].decode(), found.get(2, (0, 0))


def _first(data, begin, end):
  """First value of a bytes or int64 feature; None if it is empty.

  Of bytes no more than 64 are read: masks only have to exist.
  """
  return next(_values(data, begin, end, most_bytes=64), None)


def _values(data, begin, end, most_bytes=None):
  """Yields the values of a bytes or int64 feature.

  Floats are not needed, and read as if they were integers.
  """
  for kind, position, list_end in _fields(data, begin, end):
    while position < list_end:
      tag, position = wire_format.varint(data, position)
      if kind == 1:  # bytes_list
        length, position = wire_format.varint(data, position)
        last = _within(position + length, list_end)
        shown = length if most_bytes is None else min(length, most_bytes)
        yield data[position : position + shown]
        position = last
      elif tag & 7 == 2:  # int64_list, packed
        length, position = wire_format.varint(data, position)
        last = _within(position + length, list_end)
        while position < last:
          value, position = wire_format.varint(data, position)
          yield value
      else:
        value, position = wire_format.varint(data, position)
        yield value
