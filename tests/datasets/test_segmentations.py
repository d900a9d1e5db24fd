"""Masks as polygons, run lengths and PNG files."""

import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import masks
from maskrcnn_jax.errors import UserError, brief

SQUARE = [1, 2, 5, 2, 5, 6, 1, 6]
BOW_TIE = [0, 0, 4, 4, 4, 0, 0, 4]
STAR = [50, 5, 78, 90, 5, 38, 95, 38, 22, 90]  # Five corners, every other one.


def test_png_round_trip():
  mask = np.random.default_rng(0).random((7, 11)) > 0.5
  opened = Image.open(io.BytesIO(masks.encode_png(mask)))
  assert opened.mode == 'L'
  np.testing.assert_array_equal(np.asarray(opened), mask)


def test_masks_are_compressed_by_a_fast_level():
  # What the others write decodes half as fast. The first two bits of the second
  # byte of zlib's data, behind 41 bytes of PNG: 0 and 1 are the fast ones.
  content = masks.encode_png(np.zeros((480, 640), bool))
  assert content[37:41] == b'IDAT'
  assert content[42] >> 6 <= 1
  assert len(content) < 3000


def test_square_polygon_by_hand():
  polygon = [1, 2, 4, 2, 4, 5, 1, 5]
  expected = np.zeros((6, 8), bool)
  expected[2:5, 1:4] = True
  np.testing.assert_array_equal(
    masks.decode_segmentation([polygon], 6, 8), expected
  )


def test_parts_of_a_polygon_are_joined_without_degenerate_ones():
  parts = [[0, 0, 2, 0, 2, 2, 0, 2], [4, 4, 6, 4, 6, 6, 4, 6], [1, 1, 5, 5]]
  mask = masks.decode_segmentation(parts, 8, 8)
  assert mask.sum() == 8


@pytest.mark.parametrize('density', [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_agree_with_pycocotools(density):
  rng = np.random.default_rng(1)
  for height, width in [(1, 1), (5, 9), (90, 41), (300, 200)]:
    mask = rng.random((height, width)) < density
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    for counts in (rle['counts'], rle['counts'].decode()):
      decoded = masks.decode_segmentation(
        {'size': [height, width], 'counts': counts}, height, width
      )
      np.testing.assert_array_equal(decoded, mask)


def test_numbers_are_encoded_as_one_by_one():
  numbers = np.random.default_rng(2).integers(0, 5, (9, 13)) * 300
  encoded = masks.encode_numbers(numbers)
  assert encoded.keys() == {300, 600, 900, 1200}
  for number, runs in encoded.items():
    np.testing.assert_array_equal(coco_mask.decode(runs), numbers == number)


def test_a_photo_is_no_mask_of_numbers():
  with pytest.raises(UserError):
    masks.encode_numbers(np.arange(2**18).reshape(512, 512))


def test_uncompressed_run_lengths_by_hand():
  rle = {'size': [2, 3], 'counts': [1, 3, 2]}  # Column after column.
  np.testing.assert_array_equal(
    masks.decode_segmentation(rle, 2, 3), [[0, 1, 0], [1, 1, 0]]
  )


@pytest.mark.parametrize(
  'segmentation, given',
  [
    (None, 'NoneType'),
    ([], 'list'),
    ('5d', "'5d'"),
    ([[0, 0, 1, 1]], 'three corners'),
    ([[0, 0, 1, 1, 2]], '[0, 0, 1, 1, 2]'),
    ([[0, 0, 1, 1, float('nan'), 2]], 'nan'),
    ([[0, 0, 1, 1, 'a', 2]], "'a'"),
    ([3, 4, 5], '3 values'),
    ([[0, 0, 1, 1, 10**400, 2]], '1000'),
    ({'counts': [100]}, 'size None'),
    ({'size': 100, 'counts': [100]}, 'size 100'),
    ({'size': [5, 20], 'counts': [100]}, 'size [5, 20]'),
    ({'size': [10, 10], 'counts': [50, 49]}, '99'),
    ({'size': [10, 10], 'counts': [101, -1]}, 'counts'),
    ({'size': [10, 10], 'counts': ''}, '0 pixels'),
    ({'size': [10, 10], 'counts': '0'}, '0 pixels'),
    ({'size': [10, 10], 'counts': '\u00e4'}, "'\u00e4'"),
    ({'size': [10, 10], 'counts': 'P'}, 'counts'),
    ({'size': [10, 10], 'counts': 'o' * 300_000}, '32 bits'),
    ({'size': [10, 10], 'counts': [2**63, -(2**63)]}, 'up to 100'),
    ({'size': [10, 10], 'counts': [10**4299] * 20}, 'up to 100'),
    ({'size': [10, 10], 'counts': [100.0]}, 'up to 100'),
    ({'size': ['10', '10'], 'counts': [100]}, "size ['10', '10']"),
    *(([[0, 0, x, 0, x, x]], brief(x)) for x in (1e8, 1e9, -4e8, 2**31)),
    ([[0, 0, 1e6, 0] * 9], 'longer'),
  ],
)
def test_unusable_segmentations_say_what_was_given(segmentation, given):
  with pytest.raises(UserError) as error:
    masks.decode_segmentation(segmentation, 10, 10)
  assert given in str(error.value)


def test_an_image_of_more_pixels_than_32_bits_count_has_no_mask():
  with pytest.raises(UserError):
    masks.read_segmentation([SQUARE], 2**17, 2**17)
