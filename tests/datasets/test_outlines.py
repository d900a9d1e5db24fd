"""Polygons of masks, read back by pycocotools."""

import numpy as np
import pytest

from maskrcnn_jax.datasets import masks, outlines


def fill(part, size):
  """Mask of a part, by pycocotools."""
  rings = [part.outline, *part.holes]
  outer, *holes = (
    masks.decode_segmentation([ring.reshape(-1).tolist()], *size)
    for ring in rings
  )
  for hole in holes:
    outer = outer & ~hole
  return outer


def count_parts(mask):
  """Number of parts that touch at sides, by flooding."""
  left, count = mask.copy(), 0
  while left.any():
    count += 1
    stack = [tuple(np.argwhere(left)[0])]
    while stack:
      y, x = stack.pop()
      if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and left[y, x]:
        left[y, x] = False
        stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
  return count


@pytest.mark.parametrize('seed', range(40))
def test_all_corners_give_the_mask_back(seed):
  rng = np.random.default_rng(seed)
  size = tuple(rng.integers(1, 25, 2).tolist())
  mask = rng.random(size) < rng.choice([0.2, 0.5, 0.8, 0.95])
  parts = outlines.find_parts(mask)
  assert len(parts) == count_parts(mask)
  again = np.zeros(size, int)
  for part in parts:
    again += fill(part, size)
  np.testing.assert_array_equal(again, mask)


def test_nested_rings_by_hand():
  mask = np.zeros((9, 11), bool)
  mask[1:8, 1:8] = True
  mask[2:7, 2:7] = False
  mask[4, 4] = True
  ring, dot = outlines.find_parts(mask)
  assert sorted(map(tuple, ring.outline)) == [(1, 1), (1, 8), (8, 1), (8, 8)]
  (hole,) = ring.holes
  assert sorted(map(tuple, hole)) == [(2, 2), (2, 7), (7, 2), (7, 7)]
  assert dot.outline.tolist() == [[4, 4], [5, 4], [5, 5], [4, 5]]
  assert not dot.holes
  assert outlines.find_parts(np.zeros((3, 4), bool)) == []


def test_tolerance_leaves_corners_out():
  y, x = np.mgrid[:80, :80]
  mask = np.hypot(y - 40, x - 40) < 30
  mask &= np.hypot(y - 45, x - 40) > 10
  (exact,) = outlines.find_parts(mask)
  (simple,) = outlines.find_parts(mask, tolerance=0.75)
  assert len(simple.outline) < len(exact.outline) / 2
  again = fill(simple, mask.shape)
  assert np.sum(again & mask) / np.sum(again | mask) > 0.97
  rings = (simple.outline, *simple.holes), (exact.outline, *exact.holes)
  for ring, whole in zip(*rings, strict=True):
    assert {*map(tuple, ring)} <= {*map(tuple, whole)}
    following = np.roll(ring, -1, axis=0)
    for corner in whole:
      nearest = min(
        outlines._distances(corner[None], a, b)[0]
        for a, b in zip(ring, following)
      )
      assert nearest <= 0.75
  (square,) = outlines.find_parts(np.ones((5, 6), bool), tolerance=9.0)
  assert len(square.outline) == 4


def test_run_lengths_anywhere_in_an_image():
  mask = np.zeros((50, 70), bool)
  mask[20:30, 40:60] = True
  mask[24, 50] = False
  (part,) = outlines.of_run_lengths(masks.encode_run_lengths(mask))
  np.testing.assert_array_equal(fill(part, mask.shape), mask)
  assert len(part.holes) == 1
  empty = masks.encode_run_lengths(np.zeros((4, 5), bool))
  assert outlines.of_run_lengths(empty) == []
