"""Numbers and checksums as TensorFlow's files have them, without TensorFlow."""

import functools
import operator

import numpy as np


def varint(data, position: int) -> tuple[int, int]:
  """A number of a protobuf, of at most 64 bits, and the position after it.

  Args:
    data: bytes, or a file that is mapped into memory.
    position: of the number.

  Raises:
    ValueError: it is longer.
    IndexError: the data end in it.
  """
  value = 0
  for shift in range(0, 70, 7):
    byte = data[position]
    position += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, position
  raise ValueError('a number has over 64 bits')


def _crc_table(num_bits):
  """Checksums of all numbers of so many bits."""
  table = np.arange(2**num_bits, dtype=np.uint32)
  for _ in range(num_bits):
    table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), 0)
  return table.astype(np.uint32)


_CRC = _crc_table(16)
# These bytes take the checksum from 0 to its initial value, all ones.
_CRC_START = b'Td\x1fd'
_FEW_BYTES = 64  # Whose checksum is computed byte by byte.


def masked_crc32c(data: bytes) -> int:
  """The checksum of TensorFlow's files: a masked CRC-32C."""
  if len(data) > _FEW_BYTES:
    crc = _crc_of_rows(data)
  else:
    crc = 0xFFFFFFFF
    for byte in data:
      crc = int(_CRC[((crc ^ byte) & 0xFF) << 8]) ^ (crc >> 8)
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_of_rows(data) -> int:
  """The checksum of many bytes, before it is inverted and masked.

  The data are cut into rows whose checksums are computed together. As a
  checksum is linear, that of two rows is the sum of the first one's, advanced
  by a row of zeros, and the second one's.
  """
  data = _CRC_START + data
  width = 2 ** max(len(data).bit_length() // 2, 1)
  rows = np.zeros(-(-len(data) // width) * width, np.uint8)
  rows[-len(data) :] = np.frombuffer(data, np.uint8)
  crc = np.zeros(len(rows) // width, np.uint32)
  # What becomes of each bit of a checksum.
  advance = np.uint32(1) << np.arange(32, dtype=np.uint32)
  columns = np.ascontiguousarray(rows.view('<u2').reshape(len(crc), -1).T)
  for column in columns:
    crc = _CRC[(crc ^ column) & 0xFFFF] ^ (crc >> 16)
    advance = _CRC[advance & 0xFFFF] ^ (advance >> 16)
  value, advance = 0, advance.tolist()
  for row in crc.tolist():
    bits = (x for bit, x in enumerate(advance) if value >> bit & 1)
    value = functools.reduce(operator.xor, bits, row)
  return value
