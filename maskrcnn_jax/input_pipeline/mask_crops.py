"""Mask crops: masks cut to the boxes of their objects, straight from PNG files.

Masks are as large as their image, and are decoded one at a time: only the part
that the crop samples is kept.
"""

import tensorflow as tf

from maskrcnn_jax.input_pipeline import decode

OUTSIDE = -1  # In a pixel map: the canvas shows no pixel of the image here.


def crop_masks(encoded, image_size, boxes, rows, columns, mask_size: int):
  """Masks of the canvas, cut to the boxes and resized bilinearly.

  The values of `tf.image.crop_and_resize` of full-size masks with boxes divided
  by the canvas: Habana divides by the size but samples on a grid of size - 1.

  Args:
    encoded: `[n]` PNG files, not 0 on the object.
    image_size: `[2]` int32 (height, width) of the masks.
    boxes: `[n, 4]` in pixels of the canvas.
    rows: `[height]` int32, row of the masks for each row of the canvas.
    columns: `[width]` int32.
    mask_size: side of the crops.

  Returns:
    `[n, mask_size, mask_size]` float32 in 0..1.
  """
  ys, y_weights = _samples(boxes[:, 0], boxes[:, 2], rows, mask_size)
  xs, x_weights = _samples(boxes[:, 1], boxes[:, 3], columns, mask_size)
  (top, height, ys), (left, width, xs) = (
    _enclose(ys, y_weights),
    _enclose(xs, x_weights),
  )

  def sample(values):
    """The pixels that one crop samples, transposed."""
    png, begin, size, ys, xs = values
    part = tf.slice(decode.decode_mask(png, image_size), begin, size)
    # Gathering is fast along the first axis only.
    return tf.gather(tf.transpose(tf.gather(part, ys)), xs)

  side = 2 * mask_size
  samples = tf.map_fn(
    sample,
    (encoded, tf.stack([top, left], 1), tf.stack([height, width], 1), ys, xs),
    fn_output_signature=tf.TensorSpec([side, side], tf.uint8),
    parallel_iterations=1,  # One decoded mask at a time.
  )
  return _interpolate(samples > 0, y_weights, x_weights, mask_size)


def crop_patch(patch, corner, box, canvas, mask_size: int):
  """The crop of one mask of which only a part is there; see `crop_masks`.

  Args:
    patch: `[h, w]` bool, at least one pixel; outside of it there is nothing.
    corner: (y, x) of the patch on the canvas.
    box: `[4]` in pixels of the canvas.
    canvas: `[2]` int32 (height, width).
    mask_size: side of the crop.

  Returns:
    `[mask_size, mask_size]` float32 in 0..1.
  """
  # Both axes at once: what costs time here is the number of operations.
  indices, weights, shown = _points(
    *(box[:2], box[2:], tf.reshape(canvas, [2, 1]), mask_size)
  )
  indices -= tf.stack(corner)[:, None]
  inside = tf.clip_by_value(indices, 0, tf.shape(patch)[:, None] - 1)
  weights = tf.where(shown & (inside == indices), weights, 0.0)
  samples = tf.gather(tf.cast(patch, tf.uint8), inside[0])
  samples = tf.gather(tf.transpose(samples), inside[1])
  return _interpolate(samples > 0, weights[0], weights[1], mask_size)[0]


def _interpolate(samples, y_weights, x_weights, mask_size: int):
  """Crops of the sampled pixels, `[..., x, y]` bool, and their weights."""
  # The two neighbors of a point get their own axis.
  samples = tf.reshape(samples, [-1, 2, mask_size, 2, mask_size])
  x_weights = tf.reshape(x_weights, [-1, 2, mask_size, 1, 1])
  y_weights = tf.reshape(y_weights, [-1, 1, 1, 2, mask_size])
  values = tf.cast(samples, tf.float32) * (y_weights * x_weights)
  values = values[:, :, :, 0] + values[:, :, :, 1]
  return tf.transpose(values[:, 0] + values[:, 1], [0, 2, 1])


def _samples(starts, ends, pixels, mask_size: int):
  """Sampled pixels and weights along one axis, `[n, 2 * mask_size]` each.

  The first half are the lower neighbors of the sampled points, the second half
  the upper ones; weights are 0 outside the image.
  """
  length = tf.size(pixels)
  neighbors, weights, inside = _points(starts, ends, length, mask_size)
  indices = tf.gather(pixels, tf.clip_by_value(neighbors, 0, length - 1))
  shown = inside & (indices != OUTSIDE)
  return tf.maximum(indices, 0), tf.where(shown, weights, 0.0)


def _points(starts, ends, length, mask_size: int):
  """Neighbors, weights and places inside, `[n, 2 * mask_size]` each.

  Args:
    starts: `[n]` float32, of boxes along an axis.
    ends: `[n]` float32.
    length: int32 of the axis, scalar or `[n, 1]`.
    mask_size: side of the crops.
  """
  size = tf.cast(length, tf.float32)
  # Times the reciprocal, as TensorFlow's graph optimizer makes of a division;
  # a last bit here is 1e-4 of a pixel at the far end of a large canvas.
  starts, ends = starts[:, None] * (1.0 / size), ends[:, None] * (1.0 / size)
  steps = (ends - starts) * (size - 1.0) / (mask_size - 1)
  points = starts * (size - 1.0) + tf.range(mask_size, dtype=tf.float32) * steps
  lower, upper = tf.floor(points), tf.math.ceil(points)
  weight = points - lower
  inside = (points >= 0.0) & (points <= size - 1.0)
  neighbors = tf.cast(tf.concat([lower, upper], axis=1), tf.int32)
  weights = tf.concat([1.0 - weight, weight], axis=1)
  return neighbors, weights, tf.tile(inside, [1, 2])


def _enclose(indices, weights):
  """Smallest range with all weighted indices: start, length, indices in it.

  Returns `[n]`, `[n]` and `[n, 2 * mask_size]`; indices without a weight are
  clipped into the range.
  """
  counts = weights > 0.0
  last = tf.reduce_max(tf.where(counts, indices, 0), axis=1)
  first = tf.reduce_min(tf.where(counts, indices, last[:, None]), axis=1)
  inside = tf.clip_by_value(indices, first[:, None], last[:, None])
  return first, last - first + 1, inside - first[:, None]
