"""Drawn pictures, pixel by pixel."""

import numpy as np
import pytest
from found import make_found
from matplotlib import ft2font
from PIL import Image
from plain_evaluation import crop_mask

from maskrcnn_jax import fonts, visualize
from maskrcnn_jax.evaluation import mask_pasting
from maskrcnn_jax.structures import Instances


def test_nothing_to_draw_is_the_image():
  image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  picture = visualize.draw(image, make_found([]))
  np.testing.assert_array_equal(picture, image)
  low = make_found([[5, 5, 20, 20]], scores=[0.4])
  np.testing.assert_array_equal(visualize.draw(image, low), image)
  assert visualize.draw(image, low, min_score=0.3).any()
  padding = low.replace(valid=np.zeros(1, bool))
  picture = visualize.draw(image, padding, min_score=0.0)
  np.testing.assert_array_equal(picture, image)


def test_tracks_keep_their_color_and_are_named():
  image = np.zeros((60, 90, 3), np.uint8)
  a, b = [5, 5, 30, 30], [20, 50, 55, 80]
  # The order of the scores, and so the places, have changed.
  first, second = (
    visualize.draw(image, make_found(boxes), None, 0, track_ids=np.array(ids))
    for boxes, ids in (([a, b], [7, 9]), ([b, a], [9, 7]))
  )
  for corner in ((29, 29), (54, 79)):
    np.testing.assert_array_equal(first[corner], second[corner])
  assert (first[29, 29] != first[54, 79]).any()
  # Another number, another label; no track, no box.
  other = visualize.draw(image, make_found([a]), track_ids=np.array([8]))
  alone = visualize.draw(image, make_found([a]), track_ids=np.array([7]))
  assert (other != alone).any()
  none = visualize.draw(image, make_found([a]), track_ids=np.array([0]))
  assert not none.any()


@pytest.mark.parametrize(
  'thickness, outer',
  [
    (1, np.s_[10:30, 20:45]),  # Inside the box.
    (2, np.s_[9:31, 19:46]),  # Centered on the edge.
  ],
)
def test_lines_lie_at_the_edge(thickness, outer):
  picture = np.zeros((50, 60, 3), np.uint8)
  box = np.array([10, 20, 30, 45])
  visualize._draw_box(picture, box, np.array([255, 0, 0]), thickness)
  expected = np.zeros((50, 60), bool)
  expected[outer] = True
  expected[11:29, 21:44] = False
  np.testing.assert_array_equal(picture[..., 0] == 255, expected)
  assert not picture[..., 1:].any()


@pytest.mark.parametrize('thickness', [1, 2])
def test_boxes_that_leave_the_picture(thickness):
  picture = np.zeros((20, 20, 3), np.uint8)
  visualize._draw_box(picture, np.array([-5, -5, 40, 9]), np.ones(3), thickness)
  columns = np.flatnonzero(picture[..., 0].any(axis=0))
  assert columns.tolist() == [8, 9][:thickness]
  before = picture.copy()
  for box in ([-9, -9, -3, -3], [30, 30, 40, 40]):
    visualize._draw_box(picture, np.array(box), np.ones(3), thickness)
  np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize('enlarge', [1, 3])
def test_mask_covers_what_evaluation_counts(enlarge):
  rng = np.random.default_rng(2)
  masks = (rng.random((1, 28, 28)) + np.eye(28)).astype(np.float32)
  boxes = np.array([[40.3, 30.6, 90.2, 110.9]])
  image = np.zeros((130, 140, 3), np.uint8)
  with_mask = visualize.draw(
    image, make_found(boxes, masks=masks), enlarge=enlarge
  )
  without = visualize.draw(image, make_found(boxes), enlarge=enlarge)
  assert with_mask.shape == (130 * enlarge, 140 * enlarge, 3)
  changed = (with_mask != without).any(axis=-1)
  pasted = mask_pasting.paste_masks(masks, boxes, (130, 140))[0]
  pasted = pasted.repeat(enlarge, 0).repeat(enlarge, 1)
  # Lines and the label cover some of the mask.
  bare = ~without.any(axis=-1)
  np.testing.assert_array_equal(changed & bare, pasted & bare)


def test_mask_is_blended_with_a_solid_border():
  picture = np.full((9, 9, 3), 100, np.uint8)
  mask = np.zeros((9, 9), bool)
  mask[2:7, 2:7] = True
  visualize._draw_mask(picture, mask, np.array([200.0, 0.0, 100.0]))
  assert picture[4, 4].tolist() == [140, 60, 100]
  assert picture[2, 4].tolist() == picture[6, 6].tolist() == [200, 0, 100]
  assert picture[1, 4].tolist() == [100, 100, 100]


def test_masks_are_recovered_from_their_crops():
  masks = np.zeros((2, 96, 128), bool)
  masks[0, 10:50, 20:90] = True
  masks[0, 10:30, 20:40] = False
  rows, columns = np.mgrid[:96, :128] + 0.5
  masks[1] = (rows - 70) ** 2 + (columns - 100) ** 2 < 20**2
  boxes = np.array([[10, 20, 50, 90], [50, 80, 90, 120]], np.float32)
  for mask, box in zip(masks, boxes):
    crop = crop_mask(mask, box)
    for values in (crop, np.rint(crop * 255).astype(np.uint8)):
      back = visualize.uncrop_mask(values, box, (96, 128))
      assert (back != mask).sum() <= 0.01 * mask.sum()


def test_resize_keeps_a_plane():
  rows, columns = np.mgrid[:6, :5].astype(np.float32)
  plane = 2 * rows + 3 * columns
  ys, xs = np.linspace(0, 5, 11), np.linspace(0, 4, 7)
  np.testing.assert_allclose(
    visualize._resize_bilinear(plane, ys, xs),
    2 * ys[:, None] + 3 * xs,
    rtol=1e-6,
  )


def test_draw_instances_skips_padding():
  image = np.zeros((64, 64, 3), np.uint8)
  instances = Instances(
    boxes=np.float32([[8, 8, 40, 40], [0, 0, 0, 0]]),
    classes=np.int32([1, 0]),
    masks=np.full((2, 112, 112), 255, np.uint8),
    valid=np.array([True, False]),
  )
  picture = visualize.draw_instances(image, instances, {1: 'disc'})
  covered = picture.any(axis=-1)
  assert covered[10:38, 10:38].all()
  assert not covered[42:].any() and not covered[:, 42:].any()
  empty = instances.replace(valid=np.zeros(2, bool))
  np.testing.assert_array_equal(visualize.draw_instances(image, empty), image)


def test_names():
  assert visualize._name(np.int32(2), ['background', 'a', 'b']) == 'b'
  assert visualize._name(2, {2: 'b'}) == 'b'
  assert visualize._name(7, {2: 'b'}) == visualize._name(7, ['a']) == '7'
  assert visualize._name(7, None) == '7'


def _labels(*labels):
  """A black picture with labels, one below another."""
  picture = np.zeros((60 * len(labels), 400, 3), np.uint8)
  boxes = np.float32([[60 * i + 30, 0, 60 * i + 59, 399] for i in range(9)])
  colors = [np.full(3, 200)] * len(labels)
  boxes = boxes[: len(labels)]
  return visualize._draw_labels(picture, boxes, labels, colors)


def test_names_of_any_script_are_drawn(caplog):
  # Boxes in place of letters would be equal.
  for one, other in (('café', 'cafè'), ('машина', 'собака'), ('חתול', 'כלבי')):
    assert visualize._name(1, {1: one}) == one
    assert (_labels(one) != _labels(other)).any()
  assert not caplog.records


def test_a_name_that_no_font_has_is_drawn_with_its_id(monkeypatch, caplog):
  monkeypatch.setattr(fonts, '_warned', [])
  monkeypatch.setattr(fonts, '_has_glyph', str.isascii)
  names = {3: '自行车', 4: 'é 2'}
  assert visualize._name(3, names) == '??? (3)'
  assert visualize._name(4, names) == '? 2 (4)'
  (record,) = caplog.records
  assert '自行车' in record.getMessage()


def test_the_characters_of_a_font():
  path = fonts.find_fonts()[0]
  listed = ft2font.FT2Font(path).get_charmap()
  # Some that the other layout composes, and marks without a width.
  chars = [*map(chr, range(0x21, 0x400, 5)), *'自ĊאшῼḂ', '\u0350', '\u0301']
  for char in filter(str.isprintable, chars):
    assert fonts._draws(path, char) == (ord(char) in listed), char
  assert not fonts._draws('no/font.ttf', 'a')


def test_a_font_of_the_system_is_used(monkeypatch):
  """Where one has the characters; a label may need several."""
  searched = {'é': None, '自': '/fonts/cjk.otf'}
  monkeypatch.setattr(fonts, '_search', searched.get)
  monkeypatch.setattr(fonts, '_draws', lambda path, char: char in '自1')
  monkeypatch.setattr(fonts, '_truetype', lambda path, size: fonts._default(15))
  runs, _ = fonts._layout('a自1\nb', 15)
  assert [text for _, text, _ in runs] == ['a', '自1 ', 'b']
  starts = [start for start, *_ in runs]
  assert starts == sorted(starts) and starts[1] > 0
  height, width = fonts.measure('a自1\nb', 15)
  assert width > starts[-1] and height > 8


def test_labels_stay_in_the_picture_and_apart():
  size, picture_size = (12, 40), (100, 100)
  taken = []
  for box in [[0, 90, 30, 99], [0, 90, 30, 99], [80, -20, 120, 30]]:
    place = visualize._place_label(np.array(box), size, picture_size, taken)
    assert min(place) >= 0
    assert place[2] <= 100 and place[3] <= 100
    assert not any(visualize._overlap(place, other) for other in taken)
    taken.append(place)


def test_labels_of_small_objects_are_small():
  def label_height(boxes):
    picture = np.zeros((1800, 1800, 3), np.uint8)
    boxes = np.float32(boxes)
    labels, colors = ['a'] * len(boxes), [np.full(3, 200)] * len(boxes)
    drawn = visualize._draw_labels(picture, boxes, labels, colors)
    return np.flatnonzero(drawn.any(axis=(1, 2))).size

  one = label_height([[800, 800, 1400, 1400]])
  assert 40 <= one <= 60
  few = [[x, x, x + 30, x + 30] for x in (500, 900)]
  assert label_height(few) <= 2 * 20


def test_without_room_the_better_label_is_on_top():
  # The picture is one label high: both have to stand in the same place.
  picture = np.zeros((14, 60, 3), np.uint8)
  boxes = np.float32([[0, 0, 14, 30], [0, 2, 14, 32]])
  colors = [np.array([250, 0, 0]), np.array([0, 250, 0])]
  drawn = visualize._draw_labels(picture, boxes, ['aaaa', 'bbbb'], colors)
  assert (drawn[1, 1:10] == [250, 0, 0]).all()


def test_lines_of_large_pictures_are_thicker():
  large, small = np.float32([[0, 0, 900, 900]]), np.float32([[0, 0, 30, 30]])
  thickness = [
    visualize._thickness((side, 9999), boxes)
    for side in (200, 480, 2000)
    for boxes in (large, small)
  ]
  assert thickness == [1, 1, 2, 2, 5, 2]


def test_colors_of_many_instances_differ():
  colors = np.array([visualize._color(index) for index in range(20)])
  distances = np.abs(colors[:, None] - colors[None]).sum(axis=-1)
  assert distances[~np.eye(20, dtype=bool)].min() > 40


def test_tiny_picture_and_float_image():
  image = np.full((3, 4, 3), 300.0, np.float32)
  picture = visualize.draw(image, make_found([[0, 0, 3, 4]]))
  assert picture.shape == (3, 4, 3) and picture.dtype == np.uint8


def test_save_png(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
  path = tmp_path / 'pictures' / 'a.png'
  visualize.save_png(path, picture)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
