"""Masks in an image against recordings, a loop over pixels, and by hand."""

import golden_files
import numpy as np
import pytest

from maskrcnn_jax.benchmarks import plain_evaluation
from maskrcnn_jax.evaluation import mask_edges

# The plain way is what others are compared with, so it is tested too.
both_ways = pytest.mark.parametrize(
  'fill', [mask_edges.fill, plain_evaluation.paste_masks]
)


@both_ways
@pytest.mark.parametrize(
  'path', golden_files.files('ops_paste_masks*.npz', 'torchvision'), ids=str
)
def test_torchvision(path, fill):
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
    pasted = fill(masks, boxes, size)
    np.testing.assert_array_equal(pasted, recorded[f'{case}/out'] > 0.5)
    np.testing.assert_array_equal(
      pasted.sum(axis=(1, 2)), recorded[f'{case}/area_gt_half']
    )


@both_ways
def test_boxes_outside_the_image_hold_nothing(fill):
  # torchvision raises on the second kind.
  boxes = np.array([[-30, -30, -20, -20], [2, 85, 8, 89]], np.float32)
  pasted = fill(np.ones((2, 28, 28)), boxes, (64, 80))
  assert pasted.shape == (2, 64, 80)
  assert not pasted.any()


@both_ways
@pytest.mark.parametrize('first', [-9, 9])
@pytest.mark.parametrize('axis', [0, 1])
def test_all_boxes_outside_an_image_of_one_pixel(fill, axis, first):
  box = np.array([0, 0, 1, 1], np.float32)
  box[axis::2] += first
  assert not fill(np.ones((1, 28, 28)), box[None], (1, 1)).any()


@both_ways
def test_by_hand(fill):
  # 2 cells on 4 pixels: the border adds 2 pixels on each side, and truncation
  # with the last pixel included adds one: rows 2..10 for 4 cells.
  boxes = np.array([[4, 4, 8, 8]], np.float32)
  np.testing.assert_array_equal(
    mask_edges.expand_boxes(boxes, 2), [[2, 2, 10, 10]]
  )
  pasted = fill(np.ones((1, 2, 2)), boxes, (12, 12))[0]
  # Along a line through the middle, 0.5 is reached where a cell of ones meets
  # the border of zeros, at 9 / 4 = 2.25 pixels: row 4 is the first inside.
  assert np.flatnonzero(pasted[6]).tolist() == [4, 5, 6, 7, 8]
  assert np.flatnonzero(pasted[:, 6]).tolist() == [4, 5, 6, 7, 8]


def _paste_slowly(mask, box, image_size):
  """The definition, pixel by pixel."""
  size = mask.shape[0]
  padded = np.zeros((size + 2, size + 2))
  padded[1:-1, 1:-1] = mask
  first, last = [], []
  for low, high in ((box[0], box[2]), (box[1], box[3])):
    half = (high - low) / 2
    first.append(int(low + half - half * (size + 2) / size))
    last.append(int(low + half + half * (size + 2) / size))
  image = np.zeros(image_size, bool)
  for y in range(image_size[0]):
    for x in range(image_size[1]):
      if not (first[0] <= y <= last[0] and first[1] <= x <= last[1]):
        continue
      value = 0.0
      weights = []
      for pixel, low, high in zip((y, x), first, last):
        place = (pixel - low + 0.5) * (size + 2) / (high - low + 1) - 0.5
        place = min(max(place, 0), size + 1)
        cell = min(int(place), size)
        weights.append({cell: cell + 1 - place, cell + 1: place - cell})
      for row, row_weight in weights[0].items():
        for column, column_weight in weights[1].items():
          value += row_weight * column_weight * padded[row, column]
      image[y, x] = value > 0.5
  return image


@both_ways
def test_matches_the_definition(fill):
  rng = np.random.default_rng(0)
  masks = rng.random((20, 7, 7)).astype(np.float32)
  corners = rng.uniform(-10, 30, (20, 2))
  sizes = rng.uniform(0, 25, (20, 2))
  boxes = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
  pasted = fill(masks, boxes, (24, 31))
  for mask, box, image in zip(masks, boxes, pasted):
    slow = _paste_slowly(mask, box.astype(np.float64), (24, 31))
    np.testing.assert_array_equal(image, slow)


@both_ways
def test_shift_by_whole_pixels_shifts_the_mask(fill):
  rng = np.random.default_rng(1)
  masks = rng.random((5, 28, 28)).astype(np.float32)
  boxes = np.array([[8.5, 10.25, 30.5, 28.75]] * 5, np.float32)
  pasted = fill(masks, boxes, (48, 48))
  moved = fill(masks, boxes + np.float32([3, 5] * 2), (48, 48))
  np.testing.assert_array_equal(moved[:, 3:, 5:], pasted[:, :-3, :-5])


@both_ways
def test_no_masks(fill):
  none = fill(np.zeros((0, 28, 28)), np.zeros((0, 4)), (5, 6))
  assert none.shape == (0, 5, 6)


def _blobs(rng, count, size=28):
  """Probabilities that change from cell to cell as those of a mask head do."""
  coarse = rng.normal(0, 3, (count, 4, 4))
  places = np.linspace(0, 2.999, size)
  cells = places.astype(int)
  weights = (places - cells)[:, None]
  rows = coarse[:, cells] * (1 - weights) + coarse[:, cells + 1] * weights
  rows = rows.transpose(0, 2, 1)
  logits = rows[:, cells] * (1 - weights) + rows[:, cells + 1] * weights
  return (1 / (1 + np.exp(-logits))).astype(np.float32)


def _near_half(rng, count, size=28):
  """Probabilities that only rounding keeps apart from 0.5."""
  steps = rng.integers(-3, 4, (count, size, size))
  return (0.5 + steps * 2.0**-25).astype(np.float32)


def _flat(rng, count, size=28):
  """Blobs so flat that they cross 0.5 over several rows of a large box."""
  return (0.5 + (_blobs(rng, count, size) - 0.5) * 1e-5).astype(np.float32)


def _broken(rng, count, size=28):
  masks = _blobs(rng, count, size)
  masks[rng.random(masks.shape) < 0.1] = np.nan
  return masks


@pytest.mark.parametrize(
  'make',
  [
    _blobs,
    lambda rng, count: rng.random((count, 28, 28)).astype(np.float32),
    lambda rng, count: rng.random((count, 28, 28)) > 0.5,
    lambda rng, count: np.full((count, 28, 28), 0.5, np.float32),
    lambda rng, count: np.ones((count, 28, 28), np.float16),
    lambda rng, count: rng.random((count, 3, 3)).astype(np.float32),
    _near_half,
    _flat,
    _broken,
  ],
  ids=[
    'blobs',
    'noise',
    'bits',
    'half',
    'ones',
    'tiny',
    'near_half',
    'flat',
    'nan',
  ],
)
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
def test_every_pixel_is_that_of_the_plain_way(make, image_size, sides):
  rng = np.random.default_rng(image_size)
  masks = make(rng, 40)
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
    filled = mask_edges.fill(masks, boxes, image_size)
    pasted = plain_evaluation.paste_masks(masks, boxes, image_size)
  np.testing.assert_array_equal(filled, pasted)


def test_edges_are_where_the_pixels_change():
  rng = np.random.default_rng(5)
  masks = rng.random((9, 28, 28)).astype(np.float32)
  corners = rng.uniform(-5, 20, (9, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(2, 30, (9, 2))], 1)
  owners, pixels = mask_edges.find_edges(masks, boxes, (30, 25))
  filled = mask_edges.fill(masks, boxes, (30, 25))
  for index, image in enumerate(filled):
    down = image.T.reshape(-1)
    before = np.concatenate([[False], down[:-1]])
    np.testing.assert_array_equal(
      pixels[owners == index], np.flatnonzero(down != before)
    )


def test_a_mask_does_not_depend_on_the_others():
  rng = np.random.default_rng(6)
  masks = _blobs(rng, 12)
  corners = rng.uniform(-5, 40, (12, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(2, 30, (12, 2))], 1)
  together = mask_edges.fill(masks, boxes, (48, 64))
  for index in range(12):
    one = slice(index, index + 1)
    alone = mask_edges.fill(masks[one], boxes[one], (48, 64))[0]
    np.testing.assert_array_equal(alone, together[index])
