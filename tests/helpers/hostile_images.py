"""Small image files that claim much, take long, or are not to be opened."""

import io
import os
import struct
import zlib

from PIL import Image


def chunk(kind, data):
  """A chunk of a PNG file."""
  checksum = zlib.crc32(kind + data)
  size = len(data)
  return struct.pack(f'>I4s{size}sI', size, kind, data, checksum)


def png(height, width, more=b'', data=b''):
  """A PNG of one bit per pixel."""
  header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
  data = zlib.compress(data or bytes((width // 8 + 2) * min(height, 99)))
  chunks = chunk(b'IHDR', header) + more + chunk(b'IDAT', data)
  return b'\x89PNG\r\n\x1a\n' + chunks + chunk(b'IEND', b'')


def claiming(kind, place, sides, form):
  """A small image file whose header claims other sides."""
  stream = io.BytesIO()
  Image.new('RGB', (20, 20)).save(stream, kind)
  content = bytearray(stream.getvalue())
  if kind == 'JPEG':
    place += content.index(b'\xff\xc0')
  struct.pack_into(form, content, place, *sides)
  return bytes(content)


def many_scans():
  """A JPEG whose last scan comes again and again."""
  stream = io.BytesIO()
  Image.new('L', (2000, 2000)).save(stream, 'JPEG', progressive=True)
  content = stream.getvalue()
  begin, end = content.rindex(b'\xff\xda'), content.rindex(b'\xff\xd9')
  return content[:end] + content[begin:end] * 2000 + content[end:]


_INFLATED = zlib.compress(bytes(2**27))
ALL = {
  'png': lambda: png(60_000, 60_000),
  'long': lambda: png(2**30, 1),
  'no_side': lambda: png(0, 5),
  'text': lambda: png(9, 9, chunk(b'zTXt', b'a\0\0' + _INFLATED)),
  'profile': lambda: png(9, 9, chunk(b'iCCP', b'a\0\0' + _INFLATED)),
  'more_data': lambda: png(9, 9, data=os.urandom(2**17)),
  'jpeg': lambda: claiming('JPEG', 5, (65_000, 65_000), '>HH'),
  'scans': many_scans,
  'bmp': lambda: claiming('BMP', 18, (60_000, -60_000), '<ii'),
  'gif': lambda: claiming('GIF', 6, (65_535, 65_535), '<HH'),
  'webp': lambda: claiming('WEBP', 21, (2**28 - 1,), '<I'),
  'ppm': lambda: b'P6 100000 100000 255\n',
  'tiff': lambda: claiming('TIFF', 18, (2**30,), '<I'),
  'eps': lambda: b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n',
  'psd': lambda: b'8BPS' + bytes(68),
  'dds': lambda: b'DDS ' + bytes(124),
  'pcx': lambda: b'\x0a\x05\x01\x08' + bytes(124),
}
