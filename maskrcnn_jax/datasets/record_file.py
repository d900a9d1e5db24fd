"""TFRecord files, scanned without reading images and masks.

A TFRecord file is a chain of frames: the length of a record (8 bytes, little
endian), the length's masked CRC-32C (4), the record, its CRC (4). A record is a
`tf.train.Example`, a protobuf map from names to lists. The file is mapped into
memory, so that only the frames and a few small features leave the disk.
"""

import mmap
import os
import struct
from collections.abc import Iterator

from maskrcnn_jax.errors import UserError

_HEADER_BYTES, _FOOTER_BYTES = 12, 4
FRAME_BYTES = _HEADER_BYTES + _FOOTER_BYTES
_REMEDY = 'Prepare or copy it again.'


def scan(path: str) -> Iterator[tuple[int, int, int, int, int]]:
  """Yields offset, length, image id, height and width of every record.

  Raises:
    UserError: the file is truncated or corrupt, or a record lacks its size, its
      id or the masks of its objects; names file and byte.
  """
  for data, offset, length, features in _records(path):
    yield offset, length, *_read_sizes(data, features, path, offset)


def scan_objects(
  path: str,
) -> Iterator[tuple[list[int], list[str], list[int]]]:
  """Yields class ids, class names and category ids of every record's objects.

  Names and category ids are [] where a record has none.

  Raises:
    UserError: the file is truncated or corrupt; names file and byte.
  """
  for data, _, _, features in _records(path):
    labels, names, categories = (
      list(_values(data, *features.get(f'image/object/class/{x}', (0, 0))))
      for x in ('label', 'text', 'category_id')
    )
    yield labels, [x.decode(errors='replace') for x in names], categories


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
        problem = (
          f'is truncated: {len(header)} bytes are left where a record should '
          'begin.'
        )
        raise _error(f'{problem} {_REMEDY}', path, offset)
      length, crc = struct.unpack('<QI', header)
      end = begin + length
      if crc != masked_crc32c(header[:8]):
        problem = (
          'is corrupt, compressed or not a TFRecord file: the checksum of the '
          'record length is wrong.'
        )
        raise _error(f'{problem} {_REMEDY}', path, offset)
      if end + _FOOTER_BYTES > size:
        problem = (
          f'is truncated: a record of {length} bytes begins there, and '
          f'{size - begin} bytes follow.'
        )
        raise _error(f'{problem} {_REMEDY}', path, offset)
      try:
        features = dict(_features(data, begin, end))
      except (IndexError, ValueError) as error:
        raise _error('is not a tf.train.Example.', path, offset) from error
      yield data, offset, length, features
      offset = end + _FOOTER_BYTES


def _error(message, path, offset, image_id=None) -> UserError:
  """The error on a record whose frame begins at an offset."""
  return UserError(
    f'{path} at byte {offset} {message}', path=path, item=image_id, given=offset
  )


def _crc_table():
  table = []
  for value in range(256):
    for _ in range(8):
      value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    table.append(value)
  return table


_CRC_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
  """The checksum of TFRecord frames; meant for a few bytes."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
  crc ^= 0xFFFFFFFF
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _read_sizes(data, features, path, offset):
  """Image id, height and width; checks that objects have masks."""
  numbers = []
  for name in ('image/source_id', 'image/height', 'image/width'):
    value = _first(data, *features.get(name, (0, 0)))
    try:
      numbers.append(int(value))
    except (TypeError, ValueError):
      message = f'has {value!r} as {name}, which must be an integer.'
      raise _error(message, path, offset) from None
  if not -(2**63) <= numbers[0] < 2**63:
    message = f'has the image/source_id {numbers[0]}, which is over 64 bits.'
    raise _error(message, path, offset)
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


def _varint(data, position):
  """A protobuf number and the position after it."""
  value = shift = 0
  while True:
    byte = data[position]
    position += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, position
    shift += 7


def _fields(data, position, end):
  """Yields (field number, begin, end) of the length-delimited fields."""
  while position < end:
    tag, position = _varint(data, position)
    if tag & 7 != 2:
      raise ValueError('Not a length-delimited field.')
    length, position = _varint(data, position)
    if position + length > end:
      raise ValueError('A field runs over the end.')
    yield tag >> 3, position, position + length
    position += length


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
      tag, position = _varint(data, position)
      if kind == 1:  # bytes_list
        length, position = _varint(data, position)
        shown = length if most_bytes is None else min(length, most_bytes)
        yield data[position : position + shown]
        position += length
      elif tag & 7 == 2:  # int64_list, packed
        length, position = _varint(data, position)
        last = position + length
        while position < last:
          value, position = _varint(data, position)
          yield value
      else:
        value, position = _varint(data, position)
        yield value
