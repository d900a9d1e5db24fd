import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import masks


def test_png_round_trip():
  mask = np.random.default_rng(0).random((7, 11)) > 0.5
  opened = Image.open(io.BytesIO(masks.encode_mask(mask)))
  assert opened.mode == 'L'
  np.testing.assert_array_equal(np.asarray(opened), mask)


def test_masks_are_compressed_by_a_fast_level():
  # What the others write decodes half as fast. The first two bits of the second
  # byte of zlib's data, behind 41 bytes of PNG: 0 and 1 are the fast ones.
  content = masks.encode_mask(np.zeros((480, 640), bool))
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


def test_parts_of_a_polygon_are_joined_and_degenerate_parts_dropped():
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


def test_uncompressed_run_lengths_by_hand():
  rle = {'size': [2, 3], 'counts': [1, 3, 2]}  # Column after column.
  np.testing.assert_array_equal(
    masks.decode_segmentation(rle, 2, 3), [[0, 1, 0], [1, 1, 0]]
  )


@pytest.mark.parametrize(
  'segmentation, message',
  [
    (None, 'must be a list'),
    ([], 'must be a list'),
    ('5d', 'must be a list'),
    ([[0, 0, 1, 1]], 'three corners'),
    ([[0, 0, 1, 1, 2]], 'odd length'),
    ([[0, 0, 1, 1, float('nan'), 2]], 'coordinate nan'),
    ([[0, 0, 1, 1, 'a', 2]], "coordinate 'a'"),
    ([3, 4, 5], 'a polygon must be'),
    ([[0, 0, 1, 1, 10**400, 2]], 'a polygon has the coordinate 10'),
    ({'counts': [100]}, 'size None'),
    ({'size': 100, 'counts': [100]}, 'are for size 100'),
    ({'size': [5, 20], 'counts': [100]}, 'are for size'),
    ({'size': [10, 10], 'counts': [50, 49]}, 'add up to 99'),
    ({'size': [10, 10], 'counts': [101, -1]}, 'lengths of runs'),
    ({'size': [10, 10], 'counts': ''}, 'add up to 0'),
    ({'size': [10, 10], 'counts': '0'}, 'add up to 0'),
    ({'size': [10, 10], 'counts': '\u00e4'}, 'the character'),
    ({'size': [10, 10], 'counts': 'P'}, 'in the middle'),
  ],
)
def test_unusable_segmentations_say_why(segmentation, message):
  with pytest.raises(ValueError, match=message):
    masks.decode_segmentation(segmentation, 10, 10)
