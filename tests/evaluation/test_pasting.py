"""Pasting against recordings, a loop over pixels, and by hand."""

import golden_files
import numpy as np
import pytest

from maskrcnn_jax.evaluation import pasting


@pytest.mark.parametrize(
  'path', golden_files.files('ops_paste_masks*.npz', 'torchvision'), ids=str
)
def test_torchvision(path):
  recorded = golden_files.load(path)
  cases = [name.split('/')[0] for name in recorded if name.endswith('/masks')]
  assert cases
  for case in cases:
    masks = recorded[f'{case}/masks']
    boxes = recorded[f'{case}/boxes'][:, [1, 0, 3, 2]]
    size = tuple(recorded[f'{case}/image_hw'].tolist())
    np.testing.assert_array_equal(
      pasting.expand_boxes(boxes, masks.shape[-1]),
      recorded[f'{case}/expanded_int'][:, [1, 0, 3, 2]],
    )
    pasted = pasting.paste_masks(masks, boxes, size)
    np.testing.assert_array_equal(pasted, recorded[f'{case}/out'] > 0.5)
    np.testing.assert_array_equal(
      pasted.sum(axis=(1, 2)), recorded[f'{case}/area_gt_half']
    )


def test_boxes_outside_the_image_paste_nothing():
  # torchvision raises on the second kind.
  boxes = np.array([[-30, -30, -20, -20], [2, 85, 8, 89]], np.float32)
  pasted = pasting.paste_masks(np.ones((2, 28, 28)), boxes, (64, 80))
  assert pasted.shape == (2, 64, 80)
  assert not pasted.any()


def test_by_hand():
  # 2 cells on 4 pixels: the border adds 2 pixels on each side, and truncation
  # with the last pixel included adds one: rows 2..10 for 4 cells.
  boxes = np.array([[4, 4, 8, 8]], np.float32)
  np.testing.assert_array_equal(
    pasting.expand_boxes(boxes, 2), [[2, 2, 10, 10]]
  )
  pasted = pasting.paste_masks(np.ones((1, 2, 2)), boxes, (12, 12))[0]
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


def test_matches_the_definition():
  rng = np.random.default_rng(0)
  masks = rng.random((20, 7, 7)).astype(np.float32)
  corners = rng.uniform(-10, 30, (20, 2))
  sizes = rng.uniform(0, 25, (20, 2))
  boxes = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
  pasted = pasting.paste_masks(masks, boxes, (24, 31))
  for mask, box, image in zip(masks, boxes, pasted):
    slow = _paste_slowly(mask, box.astype(np.float64), (24, 31))
    np.testing.assert_array_equal(image, slow)


def test_shift_by_whole_pixels_shifts_the_mask():
  rng = np.random.default_rng(1)
  masks = rng.random((5, 28, 28)).astype(np.float32)
  boxes = np.array([[8.5, 10.25, 30.5, 28.75]] * 5, np.float32)
  pasted = pasting.paste_masks(masks, boxes, (48, 48))
  moved = pasting.paste_masks(masks, boxes + np.float32([3, 5] * 2), (48, 48))
  np.testing.assert_array_equal(moved[:, 3:, 5:], pasted[:, :-3, :-5])


def test_resize_keeps_a_plane():
  rows, columns = np.mgrid[:6, :5].astype(np.float32)
  plane = 2 * rows + 3 * columns
  ys, xs = np.linspace(0, 5, 11), np.linspace(0, 4, 7)
  np.testing.assert_allclose(
    pasting.resize_bilinear(plane, ys, xs), 2 * ys[:, None] + 3 * xs, rtol=1e-6
  )


def test_no_masks():
  none = pasting.paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (5, 6))
  assert none.shape == (0, 5, 6)
