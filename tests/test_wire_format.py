"""Numbers and checksums of TensorFlow's files, by hand."""

import pytest

from maskrcnn_jax import wire_format


def _unmasked(data):
  rotated = (wire_format.masked_crc32c(data) - 0xA282EAD8) & 0xFFFFFFFF
  return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


@pytest.mark.parametrize(
  'data, expected',
  [
    # The check value of CRC-32C, and the examples of RFC 3720, B.4.
    (b'123456789', 0xE3069283),
    (b'', 0),
    (bytes(32), 0x8A9136AA),
    (b'\xff' * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
  ],
)
def test_published_checksums(data, expected):
  assert _unmasked(data) == expected


@pytest.mark.parametrize('size', [63, 64, 65, 66, 127, 1000, 4097])
def test_checksums_of_many_bytes_follow_the_definition(size):
  data = bytes(7 * i % 251 for i in range(size))
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
  assert _unmasked(data) == crc ^ 0xFFFFFFFF


def test_numbers():
  # 300 is 10 0101100 in groups of 7 bits, the lowest first.
  assert wire_format.varint(b'x\xac\x02y', 1) == (300, 3)
  assert wire_format.varint(b'\x7f', 0) == (127, 1)
  with pytest.raises(ValueError):
    wire_format.varint(b'\x80' * 11, 0)
  with pytest.raises(IndexError):
    wire_format.varint(b'\x80', 0)
