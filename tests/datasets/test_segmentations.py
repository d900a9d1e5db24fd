"""Masks as polygons, run lengths and PNG files."""

import fractions
import io
import itertools

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


@pytest.mark.parametrize(
  'polygon, area',
  [
    (SQUARE, 16.0),
    (SQUARE[::-1], 16.0),
    ([x + 1e8 for x in SQUARE], 16.0),  # Far away.
    ([0, 0, 3, 0, 0, 4], 6.0),
    ([0, 0, 1, 1, 2, 2], 0.0),
    (BOW_TIE, 0.0),  # Its lobes wind in opposite ways.
    ([], 0.0),
  ],
)
def test_area_by_hand(polygon, area):
  assert masks.polygon_area(polygon) == area


@pytest.mark.parametrize(
  'polygon, crossing',
  [
    (SQUARE, None),
    (BOW_TIE, (2.0, 2.0)),
    ([0, 0, 8, 4, 8, 0, 0, 4], (4.0, 2.0)),
    (SQUARE * 2, None),  # Twice around: edges lie on each other.
    ([*SQUARE, *SQUARE[:2]], None),  # Closed by its first corner.
    ([0, 0, 4, 0, 4, 4, 2, 0, 0, 4], None),  # A corner touches an edge.
    ([0, 0, 1, 1], None),
    ([3, 3] * 4, None),
    ([], None),
  ],
)
def test_crossings_by_hand(polygon, crossing):
  assert masks.find_crossing(polygon) == crossing


def test_an_area_surrounded_twice_is_not_in_the_mask():
  assert masks.find_crossing(STAR)
  mask = coco_mask.decode(coco_mask.frPyObjects([STAR], 100, 100))[..., 0]
  assert not mask[52, 50]  # The middle.
  assert mask[25, 50]  # The upper point.


def test_crossings_agree_with_exact_arithmetic():
  rng = np.random.default_rng(0)
  found = set()
  for _ in range(300):
    polygon = rng.integers(0, 9, 2 * rng.integers(3, 8)).tolist()
    expected = _crosses(polygon)
    assert (masks.find_crossing(polygon) is not None) == expected, polygon
    found.add(expected)
  assert found == {True, False}


def test_a_crossing_lies_on_two_edges():
  rng = np.random.default_rng(1)
  for _ in range(50):
    polygon = rng.random(2 * 9) * 100
    crossing = masks.find_crossing(polygon)
    if crossing is None:
      continue
    corners = polygon.reshape(-1, 2)
    around = zip(corners, np.roll(corners, -1, axis=0))
    distances = sorted(
      np.linalg.norm(a - crossing)
      + np.linalg.norm(b - crossing)
      - np.linalg.norm(a - b)
      for a, b in around
    )
    np.testing.assert_allclose(distances[:2], 0, atol=1e-9)


def test_too_many_edges_side_by_side_are_not_searched():
  with pytest.raises(UserError):
    masks.find_crossing([0, 0, 100, 100] * 2000)


def test_an_image_of_more_pixels_than_32_bits_count_has_no_mask():
  with pytest.raises(UserError):
    masks.read_segmentation([SQUARE], 2**17, 2**17)


def test_a_long_polygon_is_searched_to_its_end():
  angles = np.linspace(0, 2 * np.pi, 50_000, endpoint=False)
  points = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * 100
  assert masks.find_crossing(points.ravel()) is None
  points[[49_000, 49_001]] = points[[49_001, 49_000]]
  x, y = masks.find_crossing(points.ravel())
  np.testing.assert_allclose([x, y], points[49_000], atol=1.0)


def _crosses(polygon):
  """By fractions: two edges share one inner point, and are not parallel."""
  values = [fractions.Fraction(value) for value in polygon]
  corners = list(zip(values[::2], values[1::2]))
  edges = list(zip(corners, corners[1:] + corners[:1]))
  return any(
    _share_inner_point(*a, *b) for a, b in itertools.combinations(edges, 2)
  )


def _share_inner_point(a, b, c, d):
  """Solves a + s (b - a) = c + t (d - c) for s and t inside (0, 1)."""
  u, v = (b[0] - a[0], b[1] - a[1]), (d[0] - c[0], d[1] - c[1])
  w = (c[0] - a[0], c[1] - a[1])
  determinant = u[1] * v[0] - u[0] * v[1]
  if determinant == 0:
    return False
  s = (w[1] * v[0] - w[0] * v[1]) / determinant
  t = (u[0] * w[1] - u[1] * w[0]) / determinant
  return 0 < s < 1 and 0 < t < 1
