"""Augmented images, masks and boxes beside a slow oracle."""

import functools

import example_records
import numpy as np
import pytest
import slow_augment
import tensorflow as tf

from maskrcnn_jax.input_pipeline import (
  augment,
  cutting,
  order,
  placement,
  transforms,
  warp,
)

CANVAS = (64, 96)
MASK_SIZE = 28
CASES = {
  'short_edges': {'short_edges': (32, 48, 60)},
  'large jitter': {'scale_range': (0.1, 2.0)},
  'standard jitter': {'scale_range': (0.8, 1.25)},
  'flips and turns': {'vertical_flip': True, 'quarter_turns': True},
  'rotation': {'rotation': 30.0},
  'crop': {'crop': 0.4},
  'crop in pixels': {
    'short_edges': (32, 48, 60),
    'crop_short_edges': (40, 50),
    'crop_sides': (24, 45),
  },
  'photometric': {'photometric': True},
  'together': {
    'scale_range': (0.3, 2.0),
    'vertical_flip': True,
    'quarter_turns': True,
    'rotation': 15.0,
    'crop': 0.6,
    'photometric': True,
  },
}


def example(seed):
  """An image with objects of irregular shape, some of them tiny."""
  rng = np.random.default_rng(seed)
  size = tuple(rng.integers(20, 90, 2).tolist())
  image, _, masks = example_records.rectangles(*size, 6, seed)
  smooth = np.repeat(np.repeat(image, 3, 0), 3, 1)[: size[0], : size[1]]
  masks &= rng.random(masks.shape) < 0.7
  masks[5] = 0
  masks[5][tuple(rng.integers(0, size))] = 1
  boxes = [slow_augment.tight_box(mask) for mask in masks]
  return smooth, np.array(boxes, np.float64), masks


def arrange(drawn, size, boxes, **options):
  placed = placement.place(drawn, size, CANVAS)
  options = transforms.TransformOptions(
    augment=augment.AugmentOptions(**options)
  )
  return warp.as_arrays(placed, boxes / np.array(size * 2), options)


def cut(arranged, masks, hidden=None, **options):
  """`cutting.cut_objects` as arrays, of whole masks."""
  encoded = [example_records.png(masks[row]) for row in arranged['rows']]
  encoded = tf.constant(encoded, tf.string)
  cutter = make_cutter(augment.AugmentOptions(**options), hidden is not None)
  hidden = np.zeros(CANVAS, bool) if hidden is None else hidden
  found = cutter(encoded, masks.shape[1:], arranged, hidden)
  return {name: value.numpy() for name, value in found.items()}


@functools.cache
def make_cutter(options, is_hidden):
  """As inside tf.data, where no shape is known: a last digit depends on it."""
  arranged = {
    name: tf.TensorSpec(shape, dtype)
    for name, (dtype, shape) in warp.ARRANGED.items()
  }
  size = tf.TensorSpec([2], tf.int32)
  hidden = tf.TensorSpec([None, None], tf.bool)
  encoded = tf.TensorSpec([None], tf.string)

  @tf.function(input_signature=[encoded, size, arranged, hidden])
  def cut_objects(encoded, image_size, arranged, hidden):
    return cutting.cut_objects(
      *(encoded, image_size, arranged, tf.shape(hidden), MASK_SIZE, options),
      hidden if is_hidden else None,
      with_cover=True,
    )

  return cut_objects


@pytest.mark.parametrize('name', CASES)
def test_images_equal_the_oracle(name):
  options = augment.AugmentOptions(**CASES[name])
  for number in range(12):
    image, boxes, _ = example(number)
    seed = order.example_seed(1, 0, 0, number)
    drawn = augment.draw(seed, number % 2 == 0, options)
    arranged = arrange(drawn, image.shape[:2], boxes, **CASES[name])
    found = warp.warp_image(image, arranged, options)
    expected = slow_augment.warp_image(image, drawn, CANVAS)
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert difference.max() < 0.5, (number, drawn)


@pytest.mark.parametrize('name', CASES)
def test_objects_equal_the_oracle(name):
  options = augment.AugmentOptions(**CASES[name])
  total = 0
  for number in range(12):
    image, boxes, masks = example(number)
    seed = order.example_seed(2, 0, 0, number)
    drawn = augment.draw(seed, number % 2 == 0, options)
    arranged = arrange(drawn, image.shape[:2], boxes, **CASES[name])
    found = cut(arranged, masks, **CASES[name])
    numbers, expected, full, crops = slow_augment.warp_objects(
      *(boxes, masks, drawn, image.shape[:2], CANVAS, CANVAS, MASK_SIZE, None)
    )
    sampled = crops.any(axis=(1, 2))
    kept = found['kept']
    np.testing.assert_array_equal(
      arranged['rows'][kept], np.array(numbers, int)[sampled]
    )
    np.testing.assert_allclose(
      found['boxes'][kept], expected[sampled], atol=1e-4
    )
    difference = found['masks'][kept].astype(int) - crops[sampled]
    assert np.abs(difference).max(initial=0) <= 1
    cover = np.any([x for x, s in zip(full, sampled) if s], axis=0)
    np.testing.assert_array_equal(
      found['cover'], np.broadcast_to(cover, CANVAS)
    )
    assert not found['is_empty'].any()
    total += kept.sum()
  assert total > 30


def test_hidden_objects_equal_the_oracle():
  total = 0
  for number in range(12):
    image, boxes, masks = example(number)
    rng = np.random.default_rng(number)
    hidden = np.zeros(CANVAS, bool)
    y, x = rng.integers(0, [40, 60])
    hidden[y : y + 24, x : x + 36] = True
    drawn = augment.draw(
      order.example_seed(3, 0, 0, number),
      False,
      augment.AugmentOptions(scale_range=(0.5, 1.5)),
    )
    arranged = arrange(drawn, image.shape[:2], boxes)
    found = cut(arranged, masks, hidden, occluded_move=1e9)
    numbers, expected, _, crops = slow_augment.warp_objects(
      *(boxes, masks, drawn, image.shape[:2], CANVAS, CANVAS, MASK_SIZE),
      hidden,
    )
    sampled = crops.any(axis=(1, 2))
    kept = found['kept']
    np.testing.assert_array_equal(
      arranged['rows'][kept], np.array(numbers, int)[sampled]
    )
    np.testing.assert_allclose(
      found['boxes'][kept], expected[sampled], atol=1e-4
    )
    difference = found['masks'][kept].astype(int) - crops[sampled]
    assert np.abs(difference).max(initial=0) <= 1
    total += kept.sum()
  assert total > 30


@pytest.mark.parametrize(
  'hidden_columns, kept',
  [
    (10, True),  # The box moves by 10.
    (11, True),  # By 11, but 9 x 40 = 360 pixels are left.
    (12, True),  # 320 pixels.
    (13, False),  # 280 pixels.
    (20, False),  # None.
  ],
)
def test_the_rule_for_hidden_objects_by_hand(hidden_columns, kept):
  mask = np.zeros((1, *CANVAS), np.uint8)
  mask[0, 10:50, 30:50] = 1
  hidden = np.zeros(CANVAS, bool)
  hidden[:, 30 : 30 + hidden_columns] = True
  box = np.array([[10.0, 30.0, 50.0, 50.0]])
  arranged = arrange(augment.Draw(), CANVAS, box)
  found = cut(arranged, mask, hidden)
  assert found['kept'].tolist() == [kept]
  if kept:
    left = [10, 30 + hidden_columns, 50, 50]
    np.testing.assert_array_equal(found['boxes'], [left])
  # Without the limits every remaining pixel is an object.
  found = cut(arranged, mask, hidden, occluded_area=0)
  assert found['kept'].tolist() == [hidden_columns < 20]


def test_a_small_object_stays_if_its_box_hardly_moves():
  mask = np.zeros((1, *CANVAS), np.uint8)
  mask[0, 10:18, 30:38] = 1
  hidden = np.zeros(CANVAS, bool)
  hidden[:, 30:37] = True
  box = np.array([[10.0, 30.0, 18.0, 38.0]])
  arranged = arrange(augment.Draw(), CANVAS, box)
  found = cut(arranged, mask, hidden)
  assert found['kept'].tolist() == [True]
  assert found['boxes'].tolist() == [[10, 37, 18, 38]]
  assert not cut(arranged, mask, hidden, occluded_move=6.0)['kept'].any()


def test_corners_of_pixels():
  # torchvision's masks: pixel i shows the pixel at floor(i * step).
  placed = placement.place(augment.Draw(scale=1.0), (30, 45), CANVAS)
  shown = placement.source_pixels(placed, half_pixel=False)
  ys = np.arange(64) * 30 // 64
  xs = (np.arange(96) * (45 / 96)).astype(int)
  np.testing.assert_array_equal(shown, ys[:, None] * 45 + xs)


def test_an_object_that_is_not_cut_keeps_its_annotated_box():
  mask = np.zeros((1, 40, 60), np.uint8)
  mask[0, 12:20, 22:41] = 1
  box = np.array([[11.7, 21.6, 20.2, 40.9]])  # As of a polygon.
  found = cut(arrange(augment.Draw(), (40, 60), box), mask)
  np.testing.assert_allclose(found['boxes'], box * 1.6, rtol=1e-6)
  # Of 96 x 144 pixels the right third is cut off, and with it the object.
  found = cut(arrange(augment.Draw(scale=1.5), (40, 60), box), mask)
  assert found['boxes'].tolist() == [[29, 53, 48, 96]]
