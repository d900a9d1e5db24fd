"""Crops of encoded masks equal those of whole masks, bit by bit."""

import functools

import example_records
import numpy as np
import plain_rows
import pytest
import tensorflow as tf

from maskrcnn_jax.input_pipeline import mask_crops

CANVAS = (96, 128)


@functools.cache
def cropper(mask_size):
  """`mask_crops.crop_masks` as a graph without known shapes."""
  signature = [
    tf.TensorSpec([None], tf.string),
    tf.TensorSpec([2], tf.int32),
    plain_rows.BOXES,
    *plain_rows.MAPS,
  ]

  @tf.function(input_signature=signature, autograph=False)
  def crop(*arguments):
    return mask_crops.crop_masks(*arguments, mask_size)

  return crop


def assert_same(masks, boxes, rows, columns, mask_size):
  """Compares with the oracle; returns the crops."""
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  encoded = [example_records.png(mask) for mask in masks]
  actual = cropper(mask_size)(
    tf.constant(encoded, tf.string), masks.shape[1:], boxes, rows, columns
  )
  expected = plain_rows.crop_masks(masks, boxes, rows, columns, mask_size)
  np.testing.assert_array_equal(actual, expected)
  return actual.numpy()


def maps(original, resized, flip=False):
  rows, columns = (
    plain_rows.nearest(*sides) for sides in zip(original, resized, CANVAS)
  )
  if flip:
    shown = columns != plain_rows.OUTSIDE
    columns = np.where(shown, original[1] - 1 - columns, columns)
  return rows, columns.astype(np.int32)


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize(
  'original, resized',
  [((60, 80), (96, 128)), ((173, 91), (96, 50)), ((7, 128), (7, 128))],
)
def test_random_masks_and_boxes(original, resized, flip):
  rng = np.random.default_rng(0)
  count = 40
  # Speckled, full and empty masks; of any value but 0.
  masks = (rng.random([count, *original]) < rng.random([count, 1, 1])) * 1
  masks[::5] = 1
  masks[1::5] = 0
  masks = np.uint8(masks * rng.integers(1, 256, [count, 1, 1]))
  sides = np.tile(resized, 2)
  boxes = np.sort(rng.random([count, 2, 2]), axis=1).reshape(count, 4) * sides
  boxes[::3] = np.round(boxes[::3])
  # Over every border, and far outside.
  boxes[4] = [-5, -3, resized[0] + 4, resized[1] + 9]
  boxes[7] = [resized[0] - 2, 0, resized[0] + 30, 5]
  boxes[9] = [1e5, 1e5, 2e5, 2e5]
  boxes[12] = [0, 0, *resized]
  assert_same(masks, boxes, *maps(original, resized, flip), 28)


def test_no_masks():
  masks = np.zeros([0, 60, 80], np.uint8)
  crops = assert_same(masks, [], *maps((60, 80), CANVAS), 14)
  assert crops.shape == (0, 14, 14)


def test_a_half_by_hand():
  masks = np.zeros([1, 4, 4], np.uint8)
  masks[0, :, 2:] = 1
  pixels = np.arange(4, dtype=np.int32)
  crops = assert_same(masks, [[0, 0, 4, 4]], pixels, pixels, 4)
  # On a grid of size - 1 the points of a whole mask are its pixels.
  np.testing.assert_array_equal(crops[0], masks[0])


@pytest.mark.parametrize('shape', [(60, 79), (61, 80), (80, 60), (120, 40)])
def test_masks_of_another_size_are_rejected(shape):
  masks = np.ones([1, *shape], np.uint8)
  with pytest.raises(tf.errors.InvalidArgumentError):
    mask_crops.crop_masks(
      tf.constant([example_records.png(masks[0])]),
      tf.constant([60, 80]),
      tf.constant([[1.0, 1.0, 20.0, 20.0]]),
      *map(tf.constant, maps((60, 80), CANVAS)),
      14,
    )
