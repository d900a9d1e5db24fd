"""Where what was found in a part of an image lies in the image."""

import numpy as np
import pytest

from maskrcnn_jax.inference import views
from maskrcnn_jax.structures import Detections

ONE = np.ones(2, np.float32)


def make_found(boxes, masks=None):
  """The valid rows of a view."""
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  count = len(boxes)
  return Detections(
    boxes=boxes,
    scores=np.linspace(0.9, 0.1, count, dtype=np.float32),
    classes=np.arange(1, count + 1, dtype=np.int32),
    masks=masks,
    valid=np.ones(count, bool),
  )


def blank(height, width):
  return np.zeros((height, width, 3), np.uint8)


def test_the_whole_image_only_undoes_the_scale():
  rng = np.random.default_rng(0)
  boxes = rng.uniform(0, 100, (7, 4)).astype(np.float32)
  masks = rng.random((7, 28, 28), np.float32)
  view = views.View(blank(60, 80))
  scales = np.float32([1.7, 1.3])
  back = view.to_image(make_found(boxes, masks), scales, (60, 80))
  expected = (boxes / np.float64([1.7, 1.3, 1.7, 1.3])).astype(np.float32)
  np.testing.assert_allclose(back.boxes, expected, rtol=1e-6)
  np.testing.assert_array_equal(back.masks, masks)
  assert back.valid.all() and back.boxes.dtype == np.float32


def test_a_mirrored_view():
  # 30 columns: what lies 5 to 12 from the left was 18 to 25 in the image.
  view = views.View(blank(20, 30), mirrored=True)
  mask = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
  back = view.to_image(make_found([[2, 5, 9, 12]], mask), ONE, (20, 30))
  assert back.boxes.tolist() == [[2, 18, 9, 25]]
  assert back.masks.tolist() == [[[2, 1, 0], [5, 4, 3]]]
  pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
  seen = views.View(pixels, mirrored=True).seen()
  np.testing.assert_array_equal(seen[:, 0], pixels[:, 29])
  np.testing.assert_array_equal(views.View(pixels).seen(), pixels)


def test_a_tile_of_a_reduced_image():
  # Pixels 40.. and 100.. of the image at a quarter of its size.
  view = views.View(blank(20, 30), start=(40, 100), reduced=4)
  back = view.to_image(make_found([[1, 2, 11, 12]]), ONE * 2, (1000, 1000))
  assert back.boxes.tolist() == [[162, 404, 182, 424]]


def test_a_reduced_image_is_no_larger_than_the_image():
  # 41 rows, halved to 21: the last one covers a single row.
  view = views.View(blank(21, 30), reduced=2)
  back = view.to_image(make_found([[10, 0, 21, 30]]), ONE, (41, 60))
  assert back.boxes.tolist() == [[20, 0, 41, 60]]


@pytest.mark.parametrize(
  'box, is_whole',
  [
    ([10, 10, 30, 40], True),
    ([0, 10, 30, 40], True),  # The image ends there as well.
    ([10, 0, 30, 40], False),
    ([10, 3.9, 30, 40], False),
    ([10, 4.0, 30, 40], True),
    ([10, 10, 42.1, 40], False),
    ([10, 10, 42.0, 40], True),
    ([10, 10, 30, 60], True),
  ],
)
def test_what_a_side_cuts_is_left_out(box, is_whole):
  # The image goes on to the left and below.
  view = views.View(blank(50, 60), start=(0, 7), margins=(0, 4, 8, 0))
  assert view.is_cut_out
  found = make_found([box, [20, 20, 30, 30]], np.zeros((2, 28, 28), np.float32))
  back = view.to_image(found, ONE, (500, 67))
  assert back.classes.tolist() == ([1, 2] if is_whole else [2])
  assert len(back.masks) == len(back.scores) == len(back.valid) == 1 + is_whole


def test_a_mirrored_tile_is_cut_at_the_same_side():
  view = views.View(blank(50, 60), margins=(0, 0, 0, 4), mirrored=True)
  # At the left of what the network sees is the right of the tile.
  back = view.to_image(make_found([[5, 1, 9, 9]]), ONE, (50, 100))
  assert not len(back.boxes)
  back = view.to_image(make_found([[5, 51, 9, 60]]), ONE, (50, 100))
  assert back.boxes.tolist() == [[5, 0, 9, 9]]


def test_nothing_found():
  view = views.View(blank(5, 6), start=(1, 2), mirrored=True)
  back = view.to_image(make_found([]), ONE, (50, 60))
  assert back.boxes.shape == (0, 4) and back.masks is None


def test_augment():
  view = views.View(blank(5, 6), start=(1, 2))
  found = list(views.augment(view, (1.0, 2.0), mirror=True))
  assert [(v.scale, v.mirrored) for v in found] == [
    (1.0, False),
    (1.0, True),
    (2.0, False),
    (2.0, True),
  ]
  assert {v.start for v in found} == {(1, 2)}
  assert list(views.augment(view, (1.0,), mirror=False)) == [view]
