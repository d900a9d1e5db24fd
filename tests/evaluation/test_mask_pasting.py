"""Pasted masks against recordings, loops over pixels, pycocotools; by hand."""

import golden_files
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax.evaluation import mask_edges
from maskrcnn_jax.evaluation import mask_pasting as op


def paste_every_pixel(masks, boxes, image_size):
  """Oracle in float32: resizes every mask to all pixels of its box."""
  size = masks.shape[-1]
  padded = np.pad(np.asarray(masks, np.float32), ((0, 0), (1, 1), (1, 1)))
  boxes = np.asarray(boxes, np.float32)
  half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5)
  centers = boxes[:, :2] + half
  half = half * np.float32((size + 2) / size)
  first, last = (
    np.trunc(x).astype(int) for x in (centers - half, centers + half)
  )
  pictures = np.zeros((len(masks), *image_size), bool)
  for picture, mask, low, high in zip(pictures, padded, first, last):
    (rows, lower, upper, down), (columns, left, right, across) = (
      _neighbors(low[axis], high[axis], image_size[axis], size + 2)
      for axis in range(2)
    )
    values = mask[:, left] * (1 - across) + mask[:, right] * across
    down = down[:, None]
    values = values[lower] * (1 - down) + values[upper] * down
    picture[rows, columns] = values > 0.5
  return pictures


def _neighbors(first, last, length, num_cells):
  """Pixels of one side in the image, the cells beside each, and a weight."""
  start, stop = max(first, 0), max(min(last + 1, length), 0)
  pixels = np.arange(start - first, stop - first)
  positions = (pixels + 0.5) * (num_cells / max(last - first + 1, 1)) - 0.5
  lower = np.clip(np.floor(positions), 0, num_cells - 1)
  weights = np.clip(positions - lower, 0, 1).astype(np.float32)
  lower = lower.astype(int)
  upper = np.minimum(lower + 1, num_cells - 1)
  return slice(start, max(stop, start)), lower, upper, weights


# The oracle of other tests is tested as well.
both = pytest.mark.parametrize('paste', [op.paste_masks, paste_every_pixel])


def random_boxes(rng, count, low, high, least, most):
  corners = rng.uniform(low, high, (count, 2))
  sides = rng.uniform(least, most, (count, 2))
  return np.concatenate([corners, corners + sides], 1)


@both
@pytest.mark.parametrize(
  'path', golden_files.files('ops_paste_masks*.npz', 'torchvision'), ids=str
)
def test_torchvision(path, paste):
  recorded = golden_files.load(path)
  cases = [name.split('/')[0] for name in recorded if name.endswith('/masks')]
  assert cases
  for case in cases:
    masks = recorded[f'{case}/masks']
    boxes = recorded[f'{case}/boxes'][:, [1, 0, 3, 2]]
    size = tuple(recorded[f'{case}/image_hw'].tolist())
    np.testing.assert_array_equal(
      mask_edges.expand_boxes(boxes, masks.shape[-1]),
      recorded[f'{case}/expanded_int'][:, [1, 0, 3, 2]],
    )
    pasted = paste(masks, boxes, size)
    np.testing.assert_array_equal(pasted, recorded[f'{case}/out'] > 0.5)
    np.testing.assert_array_equal(
      pasted.sum(axis=(1, 2)), recorded[f'{case}/area_gt_half']
    )


@both
@pytest.mark.parametrize(
  'box, image_size',
  [
    ([-30, -30, -20, -20], (64, 80)),
    ([2, 85, 8, 89], (64, 80)),  # torchvision raises on this one.
    *(([first, 0, first + 1, 1], (1, 1)) for first in (-9, 9)),
    *(([0, first, 1, first + 1], (1, 1)) for first in (-9, 9)),
  ],
)
def test_boxes_outside_the_image_hold_nothing(paste, box, image_size):
  pasted = paste(np.ones((1, 28, 28)), np.float32([box]), image_size)
  assert pasted.shape == (1, *image_size)
  assert not pasted.any()


@both
def test_by_hand(paste):
  # 2 cells on 4 pixels: the border adds 2 pixels on each side, and truncation
  # with the last pixel included adds one: rows 2..10 for 4 cells.
  boxes = np.array([[4, 4, 8, 8]], np.float32)
  assert mask_edges.expand_boxes(boxes, 2).tolist() == [[2, 2, 10, 10]]
  pasted = paste(np.ones((1, 2, 2)), boxes, (12, 12))[0]
  # Along a line through the middle, 0.5 is reached where a cell of ones meets
  # the border of zeros, at 9 / 4 = 2.25 pixels: row 4 is the first inside.
  assert np.flatnonzero(pasted[6]).tolist() == [4, 5, 6, 7, 8]
  assert np.flatnonzero(pasted[:, 6]).tolist() == [4, 5, 6, 7, 8]


@both
def test_shift_by_whole_pixels_shifts_the_mask(paste):
  rng = np.random.default_rng(1)
  masks = rng.random((5, 28, 28)).astype(np.float32)
  boxes = np.array([[8.5, 10.25, 30.5, 28.75]] * 5, np.float32)
  pasted = paste(masks, boxes, (48, 48))
  moved = paste(masks, boxes + np.float32([3, 5] * 2), (48, 48))
  np.testing.assert_array_equal(moved[:, 3:, 5:], pasted[:, :-3, :-5])


def _blobs(rng, count, size=28):
  """Probabilities as smooth as those of a mask head."""
  coarse = rng.normal(0, 3, (count, 4, 4))
  positions = np.linspace(0, 2.999, size)
  cells = positions.astype(int)
  weights = (positions - cells)[:, None]
  rows = coarse[:, cells] * (1 - weights) + coarse[:, cells + 1] * weights
  rows = rows.transpose(0, 2, 1)
  logits = rows[:, cells] * (1 - weights) + rows[:, cells + 1] * weights
  return (1 / (1 + np.exp(-logits))).astype(np.float32)


def _near_half(rng, count):
  """Probabilities that only rounding keeps apart from 0.5."""
  steps = rng.integers(-3, 4, (count, 28, 28))
  return (0.5 + steps * 2.0**-25).astype(np.float32)


def _flat(rng, count):
  """Blobs so flat that they cross 0.5 over several rows of a large box."""
  return (0.5 + (_blobs(rng, count) - 0.5) * 1e-5).astype(np.float32)


def _with_nan(rng, count):
  masks = _blobs(rng, count)
  masks[rng.random(masks.shape) < 0.1] = np.nan
  return masks


MAKERS = {
  'blobs': _blobs,
  'noise': lambda rng, count: rng.random((count, 28, 28)).astype(np.float32),
  'bits': lambda rng, count: rng.random((count, 28, 28)) > 0.5,
  'half': lambda rng, count: np.full((count, 28, 28), 0.5, np.float32),
  'ones': lambda rng, count: np.ones((count, 28, 28), np.float16),
  'tiny': lambda rng, count: rng.random((count, 3, 3)).astype(np.float32),
  'near_half': _near_half,
  'flat': _flat,
  'nan': _with_nan,
}


@pytest.mark.parametrize('maker', MAKERS)
@pytest.mark.parametrize(
  'image_size, sides',
  [
    ((45, 52), 70),
    ((1, 1), 4),
    ((200, 3), 300),
    ((3, 170), 12),
    ((700, 90), 900),
  ],
)
def test_every_pixel_is_that_of_the_oracle(maker, image_size, sides):
  rng = np.random.default_rng(image_size)
  masks = MAKERS[maker](rng, 40)
  corners = rng.uniform(-0.5, 1, (40, 2)) * sides
  boxes = np.concatenate([corners, corners + rng.random((40, 2)) * sides], 1)
  boxes[0] = [-9, -9, image_size[0] + 9, image_size[1] + 9]  # All of the image.
  boxes[1] = [0, 0, *image_size]
  boxes[2] = [-sides, 1, 2 * sides, 2]  # A column, far beyond both ends.
  boxes[3, 2:] = boxes[3, :2]  # Empty.
  boxes[4, 2:] = boxes[4, :2] - 5  # Turned over.
  boxes[5] = [*image_size, *np.add(image_size, 30)]  # From the last corner on.
  boxes[6] = np.round(boxes[6])
  with np.errstate(invalid='ignore'):
    pasted = op.paste_masks(masks, boxes, image_size)
    expected = paste_every_pixel(masks, boxes, image_size)
  np.testing.assert_array_equal(pasted, expected)


def test_edges_are_where_the_pixels_change():
  rng = np.random.default_rng(5)
  masks = rng.random((9, 28, 28)).astype(np.float32)
  boxes = random_boxes(rng, 9, -5, 20, 2, 30)
  owners, pixels = mask_edges.find_edges(masks, boxes, (30, 25))
  for index, image in enumerate(op.paste_masks(masks, boxes, (30, 25))):
    changes = np.flatnonzero(np.diff(image.T.reshape(-1), prepend=False))
    np.testing.assert_array_equal(pixels[owners == index], changes)


def test_a_mask_does_not_depend_on_the_others():
  rng = np.random.default_rng(6)
  masks, boxes = _blobs(rng, 12), random_boxes(rng, 12, -5, 40, 2, 30)
  together = op.paste_masks(masks, boxes, (48, 64))
  for mask, box, expected in zip(masks, boxes, together):
    alone = op.paste_masks(mask[None], box[None], (48, 64))[0]
    np.testing.assert_array_equal(alone, expected)


@pytest.mark.parametrize(
  'lengths, text',
  [
    ([3], '3'),
    ([0, 15], '0?'),
    # 16 would look negative in five bits: a second character says it is not.
    ([0, 16], '0`0'),
    ([9, 32], '9P1'),
    # The fourth length is 4 less than the second, 11100 in five bits.
    ([1, 7, 2, 3], '172L'),
  ],
)
def test_compressed_run_lengths_by_hand(lengths, text):
  assert op.compress(np.array(lengths), np.array([len(lengths)])) == [text]


def test_compressed_numbers_of_all_sizes():
  rng = np.random.default_rng(0)
  num_runs = rng.integers(1, 40, 50)
  bits = rng.integers(0, 22, num_runs.sum())
  lengths = rng.integers(0, 2**bits, endpoint=True)
  texts = op.compress(lengths, num_runs)
  for text, run in zip(texts, np.split(lengths, np.cumsum(num_runs)[:-1])):
    size = [int(sum(run)), 1]
    whole = {'size': size, 'counts': run.tolist()}
    assert text == coco_mask.frPyObjects(whole, *size)['counts'].decode()


@pytest.mark.parametrize('seed', range(4))
def test_encoding_equals_pycocotools_on_pasted_masks(seed):
  rng = np.random.default_rng(seed)
  masks = rng.random((30, 28, 28)).astype(np.float32)
  masks[:10] = 1.0  # Whole boxes, so that runs go on over the columns.
  masks[29] = 0.0
  boxes = random_boxes(rng, 30, -20, 40, 0, 60)
  boxes[0] = [-9, -9, 60, 70]  # The whole image.
  boxes[1] = [-9, 10, 60, 20]  # Whole columns.
  boxes[2] = [-9, 40, 60, 70]  # Whole columns to the end.
  boxes[3] = [90, 90, 99, 99]  # Outside.
  pasted = paste_every_pixel(masks, boxes, (45, 52)).astype(np.uint8)
  expected = [coco_mask.encode(np.asfortranarray(x))['counts'] for x in pasted]
  encoded = op.encode_masks(masks, boxes, (45, 52))
  assert encoded == [counts.decode() for counts in expected]


def test_no_masks():
  none = np.zeros((0, 28, 28), np.float32), np.zeros((0, 4)), (5, 6)
  assert op.paste_masks(*none).shape == (0, 5, 6)
  assert op.encode_masks(*none) == []
  one = np.ones((1, 28, 28)), np.array([[0, 0, 9, 9]]), (9, 9)
  images = op.encode_images([one, none, one])
  assert images == [op.encode_masks(*one), [], images[0]]
