"""Sizes in the headers of image files, read without a decoder."""

import contextlib
import re
import struct

# Of a JPEG segment; between segments and in image data others mean nothing.
_MARKER = re.compile(rb'\xff+([^\x00\xff\xd0-\xd7])')


def stored_size(encoded: bytes) -> tuple[int, int] | None:
  """(height, width) by the header of a JPEG, PNG, GIF, BMP or WebP file.

  None for other formats and truncated headers, which decoders refuse.
  """
  try:
    if encoded.startswith(b'\xff\xd8\xff'):
      return _jpeg_size(encoded)
    if encoded.startswith(b'\x89PNG'):
      return struct.unpack_from('>II', encoded, 16)[::-1]
    if encoded.startswith(b'GIF8'):
      return struct.unpack_from('<HH', encoded, 6)[::-1]
    if encoded.startswith(b'BM'):
      is_old = struct.unpack_from('<I', encoded, 14)[0] == 12
      width, height = struct.unpack_from(
        '<HH' if is_old else '<ii', encoded, 18
      )
      return abs(height), abs(width)
    if encoded.startswith(b'RIFF') and encoded[8:12] == b'WEBP':
      return _webp_size(encoded)
  except struct.error:
    pass
  return None


def jpeg_scans(encoded: bytes) -> int:
  """Passes over the image of a JPEG file, previews and videos apart; or 0."""
  scans = 0
  if encoded.startswith(b'\xff\xd8'):
    with contextlib.suppress(struct.error):
      for code, _ in _jpeg_segments(encoded):
        scans += code == 0xDA
  return scans


def _jpeg_size(encoded):
  """From the frame header, which may follow segments of any length."""
  for code, position in _jpeg_segments(encoded):
    if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
      return struct.unpack_from('>HH', encoded, position + 3)
    if code == 0xDA:  # Image data before a frame header.
      break
  return None


def _jpeg_segments(encoded):
  """Yields code and begin of each segment before the end of the image."""
  position = 2
  while (found := _MARKER.search(encoded, position)) and found[1] != b'\xd9':
    position = found.end()
    yield found[1][0], position
    if found[1] not in (b'\x01', b'\xd8'):  # These have no length.
      position += struct.unpack_from('>H', encoded, position)[0]


def png_data_bytes(encoded: bytes) -> int:
  """Compressed bytes of image data in a PNG file; 0 for other files."""
  total, position = 0, 8
  if encoded.startswith(b'\x89PNG'):
    with contextlib.suppress(struct.error):
      while position < len(encoded):
        length, kind = struct.unpack_from('>I4s', encoded, position)
        total += length if kind == b'IDAT' else 0
        position += 12 + length
  return total


def gif_pixels(encoded: bytes) -> int:
  """Pixels of all frames of a GIF file."""
  total, position = 0, 13

  def skip_colors(flags, position):
    return position + (3 * 2 ** (1 + (flags & 7)) if flags & 0x80 else 0)

  with contextlib.suppress(IndexError, struct.error):
    position = skip_colors(encoded[10], position)
    while encoded[position] != 0x3B:
      if encoded[position] == 0x2C:
        width, height, flags = struct.unpack_from('<HHB', encoded, position + 5)
        total += height * width
        position = skip_colors(flags, position + 10) + 1
      else:  # An extension: its kind.
        position += 2
      while encoded[position]:
        position += 1 + encoded[position]
      position += 1
  return total


def _webp_size(encoded):
  """From the first chunk, of one of three kinds."""
  kind = encoded[12:16]
  if kind == b'VP8X':
    sides = encoded[24:27], encoded[27:30]
    width, height = (int.from_bytes(x, 'little') + 1 for x in sides)
  elif kind == b'VP8L':
    (bits,) = struct.unpack_from('<I', encoded, 21)
    width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
  else:
    width, height = (
      side & 0x3FFF for side in struct.unpack_from('<HH', encoded, 26)
    )
  return height, width
