"""Draws and places the augmentation of an example, and warps its image.

The draw and its coordinates come from NumPy (`augment`, `placement`), pixels
are moved by TensorFlow, inside tf.data, whose threads do not wait for Python.
`cutting` does the same for masks and boxes.
"""

import numpy as np
import tensorflow as tf

from maskrcnn_jax.input_pipeline import augment, photometric, placement

# TensorFlow resizes an image three times as fast as a part of it.
_WHOLE = 3
# Placement and objects as `_arrange` returns them, name -> type and shape.
ARRANGED = {
  'size': (tf.int32, [2]),
  'upright': (tf.int32, [3]),  # Turns, vertical, horizontal.
  'window': (tf.int32, [4]),  # Part of the upright image that is resized.
  'is_resized_whole': (tf.bool, []),  # And cut afterwards.
  'scaled': (tf.int32, [2]),  # Size of the window then.
  'offset': (tf.int32, [2]),  # First pixel of it that is shown.
  'start': (tf.float32, [2]),  # Place in it of the corner of the canvas.
  'step': (tf.float32, [2]),  # Its pixels for each of the canvas.
  'rotation': (tf.float32, [8]),
  'colors': (tf.float32, [photometric.NUM_FIELDS]),
  # Pixels of the stored image that are shown: along both axes, or, where images
  # are rotated, a map.
  'y_pixels': (tf.int32, [None]),
  'x_pixels': (tf.int32, [None]),
  'pixels': (tf.int32, [None, None]),
  'rows': (tf.int32, [None]),
  'boxes': (tf.float32, [None, 4]),
  'whole': (tf.bool, [None]),
  'regions': (tf.int32, [None, 4]),
}


def arrange(seed, flip, image_size, boxes, fit, options):
  """Draws the augmentation of an example and places it.

  Args:
    seed: `[2]` int64, the key of the example.
    flip: scalar bool.
    image_size: `[2]` int32.
    boxes: `[n, 4]`, as fractions of the image.
    fit: `[2]` int32, the size that an image may fill.
    options: `transforms.TransformOptions`.

  Returns:
    A dict for `warp_image` and `cutting.cut_objects`; its `size` is that of the
    image on the canvas.
  """

  def arrange_arrays(seed, flip, image_size, boxes, fit):
    draw = augment.draw(seed, flip, options.augment)
    placed = placement.place(draw, image_size, fit)
    found = as_arrays(placed, boxes, options)
    return [found[name] for name in ARRANGED]

  values = tf.numpy_function(
    arrange_arrays,
    [seed, flip, image_size, boxes, fit],
    [dtype for dtype, _ in ARRANGED.values()],
  )
  return {
    name: tf.ensure_shape(value, shape)
    for value, (name, (_, shape)) in zip(values, ARRANGED.items())
  }


def as_arrays(placed: placement.Placement, boxes, options):
  """A placement and the objects that it shows, as arrays by name.

  Args:
    placed: size and place of the image.
    boxes: `[n, 4]`, as fractions of the image.
    options: `transforms.TransformOptions`.
  """
  half_pixel = options.resize.half_pixel_masks
  y_pixels, x_pixels = placement.nearest_pixels(placed, half_pixel)
  pixels = np.zeros([0, 0])
  if options.augment.rotation:
    pixels = placement.source_pixels(placed, half_pixel)
  draw, step = placed.draw, placed.step
  margin = np.maximum(step, 1.0) + 1.0
  first = np.floor(placed.offset * step - margin)
  last = np.ceil((placed.offset + placed.size) * step + margin)
  first, last = (np.clip(x, 0, placed.crop[2:]) for x in (first, last))
  is_whole = np.prod(placed.scaled) <= _WHOLE * np.prod(placed.size)
  if is_whole:
    first, last = np.zeros(2), placed.crop[2:]
  rows, boxes, whole, regions = placement.shown_objects(placed, boxes)
  found = {
    'size': placed.size,
    'upright': [draw.turns, draw.vertical, draw.horizontal],
    'window': np.concatenate([placed.crop[:2] + first, last - first]),
    'is_resized_whole': is_whole,
    'scaled': placed.scaled,
    'offset': placed.offset,
    'start': placed.offset * step - first,
    'step': step,
    'rotation': _projection(placed),
    'colors': photometric.as_vector(draw.colors),
    'y_pixels': y_pixels,
    'x_pixels': x_pixels,
    'pixels': pixels,
    'rows': rows,
    'boxes': boxes,
    'whole': whole,
    'regions': regions,
  }
  return {
    name: np.asarray(value, ARRANGED[name][0].as_numpy_dtype)
    for name, value in found.items()
  }


def _projection(placed):
  """The rotation for tf.raw_ops.ImageProjectiveTransformV3."""
  # It maps indices of pixels, which are half less than their centres.
  ys, xs = placement.rotated(
    placed, np.array([0.5, 0.5, 1.5]), np.array([0.5, 1.5, 0.5]), backward=True
  )
  rows = [[x[1] - x[0], x[2] - x[0], x[0] - 0.5] for x in (xs, ys)]
  return [*rows[0], *rows[1], 0.0, 0.0]


def warp_image(image, arranged, options: augment.AugmentOptions):
  """Turns, mirrors, crops, resizes, rotates and recolours an image.

  An enlarged image is interpolated bilinearly; a reduced one is antialiased by
  a triangle filter, as by Pillow, which Detectron2 uses. Colours are changed
  where there are fewer pixels, before or after.

  Args:
    image: `[h, w, 3]` uint8.
    arranged: see `arrange`.
    options: what may have been drawn; the other steps are left out.

  Returns:
    `[height, width, 3]` float32 in 0..255.
  """
  turns, vertical, horizontal = tf.unstack(arranged['upright'])
  if options.quarter_turns:
    image = tf.image.rot90(image, turns)
  image = _mirror(image, vertical, 0) if options.vertical_flip else image
  image = _mirror(image, horizontal, 1)
  y, x, height, width = tf.unstack(arranged['window'])
  image = tf.cast(image[y : y + height, x : x + width], tf.float32)
  is_reduced = tf.reduce_max(arranged['step']) > 1.0

  def recolored(image, now):
    colors = arranged['colors']
    return tf.cond(
      now, lambda: photometric.distort(image, colors), lambda: image
    )

  if options.photometric:
    image = recolored(image, ~is_reduced)
  geometry = (arranged['size'], arranged['start'], arranged['step'])
  whole = (arranged['scaled'], arranged['offset'], arranged['size'])

  def enlarge():
    return tf.cond(
      arranged['is_resized_whole'],
      lambda: _enlarge(image, *whole),
      lambda: _enlarge_part(image, *geometry),
    )

  image = tf.cond(is_reduced, lambda: _reduce(image, *geometry), enlarge)
  if options.photometric:
    image = recolored(image, is_reduced)
  if options.rotation:
    image = _rotate(image, arranged['rotation'])
  return tf.ensure_shape(image, [None, None, 3])


def _mirror(image, does, axis):
  return tf.cond(does > 0, lambda: tf.reverse(image, [axis]), lambda: image)


def _enlarge(image, scaled, offset, size):
  """A part of a bilinearly resized image, from an offset on."""
  image = tf.image.resize(image, scaled, tf.image.ResizeMethod.BILINEAR)
  return tf.slice(image, tf.pad(offset, [[0, 1]]), tf.concat([size, [3]], 0))


def _enlarge_part(image, size, start, step):
  """Bilinear interpolation of an image whose border goes on beyond it.

  Args:
    image: `[h, w, 3]` float32, a part of the whole one.
    size: `[2]` int32 of the result.
    start: `[2]` float32, place in the image of the result's corner.
    step: `[2]` float32, pixels of the image for each of the result.
  """
  image = tf.pad(image, [[1, 1], [1, 1], [0, 0]], 'SYMMETRIC')
  # Indices in the larger image of the first and the last pixel.
  first = start + 0.5 * step + 0.5
  last = first + tf.cast(size - 1, tf.float32) * step
  box = tf.concat([first, last], 0)
  box /= tf.cast(tf.tile(tf.shape(image)[:2], [2]) - 1, tf.float32)
  return tf.image.crop_and_resize(image[None], box[None], [0], size)[0]


def _reduce(image, size, start, step):
  """An antialiased image; see `_enlarge_part` for the arguments."""
  return tf.raw_ops.ScaleAndTranslate(
    images=image[None],
    size=size,
    scale=1.0 / step,
    translation=-start / step,
    kernel_type='triangle',
    antialias=True,
  )[0]


def _rotate(image, projection):
  """A rotated image, whose corners get the mean colour."""
  mean = tf.reduce_mean(image, axis=[0, 1])
  rotated = tf.raw_ops.ImageProjectiveTransformV3(
    images=(image - mean)[None],
    transforms=projection[None],
    output_shape=tf.shape(image)[:2],
    fill_value=0.0,
    interpolation='BILINEAR',
    fill_mode='CONSTANT',
  )[0]
  return rotated + mean
