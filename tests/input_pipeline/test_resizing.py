"""Images that NumPy fits into a canvas have the bits of tf.data's."""

import numpy as np
import pytest
import tensorflow as tf

from maskrcnn_jax.input_pipeline import resizing, single_images, transforms


def draw(rng, size):
  return rng.integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize('seed', range(4))
def test_pixels_of_tensorflow(seed):
  rng = np.random.default_rng(seed)
  for _ in range(20):
    before, after = (2 ** rng.uniform(0, 9, (2, 2))).astype(int).tolist()
    image = draw(rng, before)
    expected = tf.image.resize(tf.cast(image, tf.float32), after)
    resized = resizing.resize(image, tuple(after))
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized, expected, f'{before} to {after}')


def test_pixels_between_two_by_hand():
  # Centres at -0.25, 0.25, 0.75 and 1.25 of the original.
  image = np.float32([[[0], [100]]])
  resized = resizing.resize(image, (1, 4))
  np.testing.assert_array_equal(resized[0, :, 0], [0, 25, 75, 100])


@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('image_dtype', ['uint8', 'float32'])
def test_rows_of_a_batch(image_dtype, exact):
  rng = np.random.default_rng(0)
  options = resizing.ResizeOptions((60, 90), exact_sizes=exact)
  for size in [
    (1, 1),
    (2, 700),
    (61, 130),
    (96, 64),
    *rng.integers(1, 300, (20, 2)),
  ]:
    image = draw(rng, size)
    canvas = (64, 96) if size[0] < size[1] else (96, 64)
    fit = resizing.fit_size(canvas, options)
    row = single_images.fit_image(image, canvas, fit, image_dtype, options)
    expected = transforms.resize(
      {'image': tf.constant(image)}, canvas, fit, tf.constant(False), options
    )
    pixels = transforms.finish_image(expected.pop('image'), image_dtype)
    expected['images'] = transforms.pad_image(pixels, tf.constant(canvas))
    assert row.keys() == expected.keys()
    for name, value in expected.items():
      assert row[name].dtype == value.dtype.as_numpy_dtype
      np.testing.assert_array_equal(row[name], value, name)
