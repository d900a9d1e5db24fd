"""Photometric distortion of an image inside tf.data.

The parts and their ranges are those of SSD (Liu et al. 2016, Sec. 3.6), in the
order of mmdetection's PhotoMetricDistortion, except that values are clipped to
0..255 after every part that can leave that range.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from maskrcnn_jax.input_pipeline.augment import PERMUTATIONS, Colors

_FIELDS = [field.name for field in dataclasses.fields(Colors)]
NUM_FIELDS = len(_FIELDS)


def as_vector(colors: Colors) -> np.ndarray:
  """The fields of a draw in their order, `[NUM_FIELDS]` float32."""
  return np.float32(dataclasses.astuple(colors))


def distort(image, colors):
  """Changes the colours of an image.

  Args:
    image: `[h, w, 3]` float32 RGB in 0..255.
    colors: `[NUM_FIELDS]` float32, see `as_vector`.

  Returns:
    `[h, w, 3]` float32 in 0..255.
  """
  values = tf.unstack(tf.ensure_shape(colors, [NUM_FIELDS]))
  values = dict(zip(_FIELDS, values))
  is_first = values['contrast_first'] > 0.0

  def contrast(image, here):
    factor = values['contrast']
    is_on = here & (factor != 1.0)
    return tf.cond(is_on, lambda: _clip(image * factor), lambda: image)

  def permute(image):
    order = tf.gather(
      tf.constant(PERMUTATIONS), tf.cast(values['permutation'], tf.int32)
    )
    # A product with a matrix of ones and zeros is faster than to gather.
    matrix = tf.one_hot(order, 3, axis=0)
    return tf.reshape(tf.reshape(image, [-1, 3]) @ matrix, tf.shape(image))

  def apply(name, neutral, change, image):
    is_on = values[name] != neutral
    return tf.cond(is_on, lambda: change(image, values[name]), lambda: image)

  image = apply('brightness', 0.0, lambda x, by: _clip(x + by), image)
  image = contrast(image, is_first)
  # Both kernels work in HSV, whatever the scale of the values.
  image = apply(
    *('saturation', 1.0),
    lambda x, by: tf.raw_ops.AdjustSaturation(images=x, scale=by),
    image,
  )
  image = apply(
    'hue', 0.0, lambda x, by: tf.raw_ops.AdjustHue(images=x, delta=by), image
  )
  image = contrast(image, ~is_first)
  image = apply('permutation', 0.0, lambda x, _: permute(x), image)
  return tf.ensure_shape(image, [None, None, 3])


def _clip(image):
  return tf.clip_by_value(image, 0.0, 255.0)
