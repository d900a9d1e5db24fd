"""Views: tiles cover the image, each object is whole in one; merging is NMS."""

import dataclasses

import jax
import numpy as np
import pytest
import slow_boxes
from found import make_found
from PIL import Image
from tiny_checkpoint import assert_same

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import views

OPTIONS = views.TileOptions()
ONE = np.ones(2, np.float32)


def blank(height, width):
  return np.zeros((height, width, 3), np.uint8)


def test_the_whole_image_only_undoes_the_scale():
  rng = np.random.default_rng(0)
  boxes = rng.uniform(0, 100, (7, 4)).astype(np.float32)
  masks = rng.random((7, 28, 28), np.float32)
  view = views.View(blank(60, 80))
  scales = np.float32([1.7, 1.3])
  back = view.to_image(make_found(boxes, masks=masks), scales, (60, 80))
  expected = (boxes / np.float64([1.7, 1.3, 1.7, 1.3])).astype(np.float32)
  np.testing.assert_allclose(back.boxes, expected, rtol=1e-6)
  np.testing.assert_array_equal(back.masks, masks)
  assert back.valid.all() and back.boxes.dtype == np.float32


def test_a_mirrored_view():
  # 30 columns: what lies 5 to 12 from the left was 18 to 25 in the image.
  view = views.View(blank(20, 30), mirrored=True)
  mask = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
  back = view.to_image(make_found([[2, 5, 9, 12]], masks=mask), ONE, (20, 30))
  assert back.boxes.tolist() == [[2, 18, 9, 25]]
  assert back.masks.tolist() == [[[2, 1, 0], [5, 4, 3]]]
  pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
  back = view.to_image(make_found([]), ONE, (20, 30))
  assert back.boxes.shape == (0, 4) and back.masks is None
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
def test_detections_at_a_cut_side_are_dropped(box, is_whole):
  # The image goes on to the left and below.
  view = views.View(blank(50, 60), start=(0, 7), margins=(0, 4, 8, 0))
  assert view.is_cut_out
  found = make_found(
    [box, [20, 20, 30, 30]], masks=np.zeros((2, 28, 28), np.float32)
  )
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


def test_tile_starts_by_hand():
  starts = {30: [0], 100: [0], 101: [0, 1], 175: [0, 75], 176: [0, 38, 76]}
  assert {n: views.tile_starts(n, 100, 0.25) for n in starts} == starts
  assert views.tile_starts(250, 100, 0.0) == [0, 75, 150]


def test_tile_starts_cover_the_side_with_enough_overlap():
  rng = np.random.default_rng(0)
  for _ in range(300):
    tile, length = rng.integers(32, 200), rng.integers(1, 2000)
    overlap = rng.uniform(0.1, 0.7)
    places = views.tile_starts(int(length), int(tile), overlap)
    assert places[0] == 0 and places[-1] == max(length - tile, 0)
    steps = np.diff(places)
    if len(steps):
      assert steps.max() - steps.min() <= 1  # Evenly.
      assert tile - steps.max() >= overlap * tile
      # One less would not do.
      step = tile - np.ceil(overlap * tile)
      assert (len(places) - 2) * step < length - tile


def test_a_small_image_is_one_view_of_itself():
  image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  (view,) = views.cut_tiles(image, (40, 64), OPTIONS)
  np.testing.assert_array_equal(view.pixels, image)
  assert not view.is_cut_out
  assert (view.start, view.reduced) == ((0, 0), 1)


def test_tiles_hold_the_pixels_at_their_start():
  image = np.random.default_rng(0).integers(0, 256, (131, 150, 3), np.uint8)
  levels = {1: image}
  for n in (2, 4):
    levels[n] = np.asarray(Image.fromarray(levels[n // 2]).reduce(2))
  tiles = list(views.cut_tiles(image, (50, 60), OPTIONS))
  for tile in tiles:
    (top, left), (height, width) = tile.start, tile.pixels.shape[:2]
    level = levels[tile.reduced]
    expected = level[top : top + height, left : left + width]
    np.testing.assert_array_equal(tile.pixels, expected)
    assert (height, width) == tuple(np.minimum((50, 60), level.shape[:2]))
    inner = (
      top > 0,
      left > 0,
      *np.less((top + height, left + width), level.shape[:2]),
    )
    assert [m > 0 for m in tile.margins] == list(inner)
  assert [t.reduced for t in tiles] == sorted(t.reduced for t in tiles)
  assert sum(t.reduced == 4 for t in tiles) == 1 and not tiles[-1].is_cut_out


def test_halving_is_the_mean_of_four_pixels():
  image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
  *_, last = views.cut_tiles(image, (32, 48), OPTIONS)
  means = image.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
  np.testing.assert_allclose(last.pixels, means, atol=0.51)


def test_number_of_levels():
  for levels in (0, 1, 2, 7):
    options = views.TileOptions(levels=levels)
    tiles = views.cut_tiles(blank(131, 150), (50, 60), options)
    seen = {tile.reduced for tile in tiles}
    assert seen == {1, 2, 4} - {2 << i for i in range(levels, 3)}


def perfect(view, objects, seen_share=0.25):
  """Detections of a perfect detector in a view.

  Args:
    view: of an image.
    objects: `[n, 4]` boxes in pixels of the image; all of different classes.
    seen_share: an object is found if so much of its area is in the view, and
      then that part of it.
  """
  height, width = view.pixels.shape[:2]
  boxes = objects / view.reduced - np.tile(view.start, 2)
  shown = np.clip(boxes, 0, [height, width, height, width])
  areas = [
    np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), 1) for b in (boxes, shown)
  ]
  rows = np.flatnonzero(areas[1] >= seen_share * areas[0])
  # At least two pixels wide and high.
  rows = rows[np.min(shown[rows, 2:] - shown[rows, :2], axis=1) >= 2]
  # The less is cut off, the higher the score.
  scores = (areas[1] / areas[0])[rows] * 0.9
  return make_found(shown[rows], scores, rows + 1)


def draw_objects(rng, image_size, count, sides):
  """`[count, 4]` boxes inside an image, with sides in a range."""
  lengths = np.exp(rng.uniform(*np.log(sides), (count, 2)))
  lengths = np.minimum(lengths, image_size)
  starts = rng.uniform(0, np.array(image_size) - lengths)
  return np.concatenate([starts, starts + lengths], axis=1)


def test_short_objects_are_whole_in_the_image_itself():
  rng = np.random.default_rng(5)
  size, tile = (700, 900), (160, 192)
  least = min(tile) * (OPTIONS.overlap - 2 * OPTIONS.margin)
  objects = draw_objects(rng, size, 500, (2, least))
  found = set()
  for view in views.cut_tiles(blank(*size), tile, OPTIONS):
    if view.reduced == 1:
      seen = perfect(view, objects, seen_share=1.0)
      found |= set(view.to_image(seen, ONE, size).classes.tolist())
  assert found == set(range(1, 501))


def test_every_object_is_found_once_and_whole():
  size = (700, 1100)
  objects = draw_objects(np.random.default_rng(6), size, 200, (16, 900))
  tiles = list(views.cut_tiles(blank(*size), (160, 192), OPTIONS))
  parts = [tile.to_image(perfect(tile, objects), ONE, size) for tile in tiles]
  merged = views.merge(parts, 0.5)
  order = np.argsort(merged.classes)
  assert merged.classes[order].tolist() == list(range(1, 201))
  np.testing.assert_allclose(merged.boxes[order], objects, atol=1e-3)
  # Without margins they are found in pieces.
  tiles = [dataclasses.replace(x, margins=(0.0,) * 4) for x in tiles]
  parts = [tile.to_image(perfect(tile, objects), ONE, size) for tile in tiles]
  assert len(views.merge(parts, 0.5).classes) > 250


@pytest.mark.parametrize(
  'argument, options',
  [
    ('tile.size', {'size': 31}),
    ('tile.levels', {'levels': -1}),
    ('tile.overlap', {'overlap': 0.8}),
    ('tile.overlap', {'overlap': 0.1, 'margin': 0.06}),
  ],
)
def test_wrong_tile_options(argument, options):
  with pytest.raises(UserError) as error:
    views.TileOptions(**options)
  assert error.value.argument == argument
  assert error.value.given == next(iter(options.values()))


def draw_found(rng, count, num_classes=3, side=60):
  corners = rng.uniform(0, side, (count, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], 1)
  return make_found(
    boxes,
    rng.random(count),
    rng.integers(1, num_classes + 1, count),
    rng.random((count, 4, 4), np.float32),
  )


def slow_merge(union, threshold):
  """Rows that greedy NMS within each class keeps, best first."""
  kept = []
  for label in set(union.classes.tolist()):
    kept += slow_boxes.greedy_nms(
      union.boxes, union.scores, union.classes == label, threshold
    )
  return sorted(kept, key=lambda row: -union.scores[row])


def test_the_best_view_of_an_object_is_kept_with_its_mask():
  masks = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 2, 2))
  low = make_found([[0, 0, 10, 10]], [0.6], [1], masks[:1])
  high = make_found(
    [[0, 1, 10, 11], [0, 0, 10, 10]], [0.9, 0.5], [1, 2], masks[1:]
  )
  merged = views.merge([low, high], 0.5)
  assert merged.boxes.tolist() == [[0, 1, 10, 11], [0, 0, 10, 10]]
  np.testing.assert_allclose(merged.scores, [0.9, 0.5])
  assert merged.classes.tolist() == [1, 2]
  np.testing.assert_array_equal(merged.masks, masks[1:])


def test_merging_is_nms_within_each_class_over_the_union():
  rng = np.random.default_rng(1)
  for threshold in (0.3, 0.5):
    parts = [draw_found(rng, count) for count in (13, 0, 30, 1)]
    union = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    rows = slow_merge(union, threshold)
    expected = jax.tree.map(lambda x, rows=rows: x[rows], union)
    assert_same(views.merge(parts, threshold), expected)


def test_merging_again_changes_nothing():
  merged = views.merge([draw_found(np.random.default_rng(2), 40)], 0.5)
  assert_same(views.merge([merged, merged], 0.5), merged)
  few = views.merge([merged], 0.5, max_detections=4)
  np.testing.assert_array_equal(few.scores, merged.scores[:4])


def test_merging_without_detections_or_masks():
  nothing = make_found([], [], [])
  merged = views.merge([nothing, nothing], 0.5)
  assert merged.boxes.shape == (0, 4) and merged.masks is None
  one = make_found([[0, 0, 4, 4]], [0.5], [7])
  assert views.merge([nothing, one], 0.5).classes.tolist() == [7]


def test_few_lengths_are_compiled():
  before = views._nms._cache_size()
  rng = np.random.default_rng(4)
  for count in range(33, 65):
    part = draw_found(rng, count, num_classes=1)
    views.merge([part], 0.37)
  assert views._nms._cache_size() == before + 1
