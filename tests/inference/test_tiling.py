"""Tiles: they cover the image, and every object is whole in one of them."""

import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax.inference import merging, tiling, views
from maskrcnn_jax.structures import Detections

OPTIONS = tiling.TileOptions()


def test_places_by_hand():
  assert tiling.place_tiles(100, 100, 0.25) == [0]
  assert tiling.place_tiles(30, 100, 0.25) == [0]
  assert tiling.place_tiles(101, 100, 0.25) == [0, 1]
  assert tiling.place_tiles(175, 100, 0.25) == [0, 75]
  assert tiling.place_tiles(176, 100, 0.25) == [0, 38, 76]
  assert tiling.place_tiles(250, 100, 0.0) == [0, 75, 150]


def test_places_cover_with_enough_overlap():
  rng = np.random.default_rng(0)
  for _ in range(300):
    tile, length = rng.integers(32, 200), rng.integers(1, 2000)
    overlap = rng.uniform(0.1, 0.7)
    places = tiling.place_tiles(int(length), int(tile), overlap)
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
  (view,) = tiling.cut_tiles(image, (40, 64), OPTIONS)
  np.testing.assert_array_equal(view.pixels, image)
  assert not view.is_cut_out
  assert (view.start, view.reduced) == ((0, 0), 1)


def test_tiles_show_the_pixels_of_their_places():
  image = np.random.default_rng(0).integers(0, 256, (131, 150, 3), np.uint8)
  levels = {1: image}
  for reduced in (2, 4):
    levels[reduced] = np.asarray(
      Image.fromarray(levels[reduced // 2]).reduce(2)
    )
  tiles = list(tiling.cut_tiles(image, (50, 60), OPTIONS))
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


def test_halving_is_the_mean_of_four():
  image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
  *_, last = tiling.cut_tiles(image, (32, 48), OPTIONS)
  means = image.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
  np.testing.assert_allclose(last.pixels, means, atol=0.51)


def test_as_many_levels_as_wanted():
  image = np.zeros((131, 150, 3), np.uint8)
  for levels in (0, 1, 2, 7):
    options = tiling.TileOptions(levels=levels)
    seen = {t.reduced for t in tiling.cut_tiles(image, (50, 60), options)}
    assert seen == {1, 2, 4} - {2 << i for i in range(levels, 3)}


def perfect(view, objects, seen_share=0.25):
  """What a perfect detector finds in a view.

  Args:
    view: of an image.
    objects: `[n, 4]` boxes in pixels of the image; all of different classes.
    seen_share: an object is found if so much of its area is in the view, and
      then as far as it is.
  """
  height, width = view.pixels.shape[:2]
  boxes = objects / view.reduced - np.tile(view.start, 2)
  shown = np.clip(boxes, 0, [height, width, height, width])
  areas = [
    np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), 1) for b in (boxes, shown)
  ]
  rows = np.flatnonzero(areas[1] >= seen_share * areas[0])
  # Two pixels are the least that anybody sees.
  rows = rows[np.min(shown[rows, 2:] - shown[rows, :2], axis=1) >= 2]
  # What is cut looks the surer the less is missing.
  scores = (areas[1] / areas[0])[rows] * 0.9
  return Detections(
    boxes=shown[rows].astype(np.float32),
    scores=scores.astype(np.float32),
    classes=(rows + 1).astype(np.int32),
    masks=None,
    valid=np.ones(len(rows), bool),
  )


def draw_objects(rng, image_size, count, sides):
  """`[count, 4]` boxes inside an image, with sides in a range."""
  lengths = np.exp(rng.uniform(*np.log(sides), (count, 2)))
  lengths = np.minimum(lengths, image_size)
  starts = rng.uniform(0, np.array(image_size) - lengths)
  return np.concatenate([starts, starts + lengths], axis=1)


def test_short_objects_are_whole_in_the_image_itself():
  rng = np.random.default_rng(5)
  image = np.zeros((700, 900, 3), np.uint8)
  tile = (160, 192)
  least = min(tile) * (OPTIONS.overlap - 2 * OPTIONS.margin)
  objects = draw_objects(rng, image.shape[:2], 500, (2, least))
  found = set()
  for view in tiling.cut_tiles(image, tile, OPTIONS):
    if view.reduced == 1:
      seen = perfect(view, objects, seen_share=1.0)
      back = view.to_image(seen, np.ones(2, np.float32), image.shape[:2])
      found |= set(back.classes.tolist())
  assert found == set(range(1, 501))


def test_every_object_comes_out_once_and_whole():
  rng = np.random.default_rng(6)
  image = np.zeros((700, 1100, 3), np.uint8)
  objects = draw_objects(rng, image.shape[:2], 200, (16, 900))
  parts = [
    view.to_image(
      perfect(view, objects), np.ones(2, np.float32), image.shape[:2]
    )
    for view in tiling.cut_tiles(image, (160, 192), OPTIONS)
  ]
  merged = merging.merge(parts, 0.5)
  order = np.argsort(merged.classes)
  assert merged.classes[order].tolist() == list(range(1, 201))
  np.testing.assert_allclose(merged.boxes[order], objects, atol=1e-3)


def test_without_the_rule_pieces_would_come_out():
  """The cut is what the margins are for: the same without them has doubles."""
  image = np.zeros((700, 1100, 3), np.uint8)
  rng = np.random.default_rng(6)
  objects = draw_objects(rng, image.shape[:2], 200, (16, 900))
  parts = []
  for view in tiling.cut_tiles(image, (160, 192), OPTIONS):
    bare = views.View(view.pixels, view.start, view.reduced)
    parts.append(
      bare.to_image(
        perfect(view, objects), np.ones(2, np.float32), image.shape[:2]
      )
    )
  assert len(merging.merge(parts, 0.5).classes) > 250


@pytest.mark.parametrize(
  'options',
  [
    {'size': 31},
    {'levels': -1},
    {'overlap': 0.8},
    {'overlap': 0.1, 'margin': 0.06},
  ],
)
def test_options_that_cannot_work(options):
  with pytest.raises(ValueError, match='tiles must be'):
    tiling.TileOptions(**options)
