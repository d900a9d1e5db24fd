"""Decoding of a parsed record into an example: pixels and objects.

An example is a dict: `image` [h, w, 3] uint8, `boxes` [n, 4] normalised,
`classes` [n] int32 and `masks` [n], PNG files as they are in the record.
"""

import numpy as np
import tensorflow as tf
from absl import logging

from maskrcnn_jax.datasets import image_headers, images
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline.faults import ObjectFault


def decode_image(encoded, accurate_jpeg: bool = False):
  """RGB pixels, `[h, w, 3]` uint8, of a checked JPEG, PNG, GIF or BMP.

  Args:
    encoded: the bytes of the file.
    accurate_jpeg: decode a JPEG to the pixels of Pillow, torchvision and
      Detectron2; False: to those of TensorFlow's default, as Habana and NVIDIA.
  """
  # Grey is repeated and alpha dropped by the decoders.
  if not accurate_jpeg:
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)
  return tf.cond(
    tf.io.is_jpeg(encoded),
    lambda: tf.io.decode_jpeg(encoded, 3, dct_method='INTEGER_ACCURATE'),
    lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
  )


def check_image(encoded: bytes, height: int, width: int) -> bool:
  """Checks the header of a record's image; True.

  Raises:
    UserError: it is over the budget, or has more pixels than the record states.
  """
  # Outside of graphs TensorFlow passes an array.
  encoded = np.asarray(encoded, object).item()
  size = images.check_encoded(encoded)
  # TensorFlow knows JPEG XL too, whose size is not checked.
  if size is None:
    raise UserError('is no JPEG, PNG, GIF, BMP or WebP file')
  # It decodes all frames before it returns the first.
  if encoded.startswith(b'GIF'):
    images.check_size(1, image_headers.gif_pixels(encoded))
  if size[0] * size[1] > int(height) * int(width):
    raise UserError(
      f'is {size[0]} x {size[1]}, the record says {height} x {width}',
      given=size,
      wanted=(height, width),
    )
  return True


def decode_mask(png, image_size):
  """A mask from a PNG of the image's size, `[h, w]` uint8, 0 outside."""
  # Width and height in the header, before anything is decoded.
  sides = tf.io.decode_raw(
    tf.strings.substr(png, 16, 8), tf.int32, little_endian=False
  )
  pixels = tf.reduce_prod(tf.cast(image_size, tf.int64))
  limit = tf.cast(tf.minimum(2**16 + 9 * pixels, 2**31 - 1), tf.int32)
  check = tf.debugging.Assert(
    tf.reduce_all(sides[::-1] == image_size)
    & (tf.strings.substr(png, 1, 3) == 'PNG')
    # Data beyond the last row takes time too.
    & (tf.strings.length(png) <= limit),
    ['A mask is no PNG of the image size.'],
  )
  with tf.control_dependencies([check]):
    return tf.squeeze(tf.io.decode_png(png, channels=1), axis=2)


def mask_faults(encoded, image_size):
  """Fault of each mask, `[n]` int32 codes of `ObjectFault`.

  Slow, in Python: only for records with a mask that `decode_mask` rejects.
  """

  def fault(png):
    size = image_headers.stored_size(png) if png[1:4] == b'PNG' else None
    if size not in (None, tuple(image_size)):
      return ObjectFault.OTHER_SIZE_MASK
    try:
      decode_mask(png, image_size)
    except tf.errors.OpError:
      return ObjectFault.UNUSABLE_MASK
    return ObjectFault.NONE

  return np.array([fault(png) for png in encoded], np.int32)


def object_faults(record):
  """Fault of each class and box, `[n]` int32 codes of `ObjectFault`.

  Crowds, which are not trained on, have no faults.
  """
  boxes = record['boxes']
  has_area = tf.reduce_all(boxes[:, 2:] - boxes[:, :2] > 0.0, axis=-1)
  is_finite = tf.reduce_all(tf.math.is_finite(boxes), axis=-1)
  codes = tf.where(record['classes'] >= 1, 0, int(ObjectFault.UNUSABLE_CLASS))
  codes = tf.where(has_area, codes, int(ObjectFault.ZERO_AREA_BOX))
  codes = tf.where(is_finite, codes, int(ObjectFault.UNUSABLE_BOX))
  return tf.where(tf.cast(record['is_crowd'], tf.bool), 0, codes)


def select_instances(record, faults, max_instances: int):
  """Indices of a record's objects to train on, ascending, int32.

  Crowds and objects with a fault are skipped; of more than `max_instances` the
  largest boxes are kept, which is logged once.
  """
  boxes = record['boxes']
  usable = (faults == 0) & ~tf.cast(record['is_crowd'], tf.bool)
  rows = tf.cast(tf.where(usable)[:, 0], tf.int32)

  def largest():
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = tf.gather(tf.reduce_prod(sides, axis=-1), rows)
    number = tf.numpy_function(_log_dropped, [tf.size(rows)], tf.int32)
    with tf.control_dependencies([number]):
      best = tf.math.top_k(areas, max_instances, sorted=False).indices
    return tf.gather(rows, tf.sort(best))

  def _log_dropped(count):
    logging.log_first_n(
      logging.WARNING,
      'An image has %d objects, max_instances is %d: the largest are kept, '
      'here and in all such images.',
      1,
      count,
      max_instances,
    )
    return count

  return tf.cond(tf.size(rows) > max_instances, largest, lambda: rows)


def decode_record(
  record,
  max_instances: int,
  with_instances: bool = True,
  careful: bool = False,
  accurate_jpeg: bool = False,
):
  """Decodes a parsed record into an example.

  Args:
    record: see `datasets.records.parse_record`.
    max_instances: see `select_instances`.
    with_instances: decode the objects too.
    careful: check each mask first, slowly, instead of rejecting the record for
      one that cannot be decoded or has another size.
    accurate_jpeg: see `decode_image`.

  Returns:
    `image`; with instances also `boxes`, `classes` and `masks` of the selected
    instances, `numbers`, their indices in the record, and `faults`, codes of
    `ObjectFault` of all objects of the record.
  """
  encoded = record['encoded']
  checked = tf.numpy_function(
    check_image, [encoded, record['height'], record['width']], tf.bool
  )
  with tf.control_dependencies([checked]):
    image = decode_image(tf.identity(encoded), accurate_jpeg)
  if not with_instances:
    return {'image': image}
  image_size = tf.shape(image)[:2]
  faults = object_faults(record)
  if careful:
    of_masks = tf.numpy_function(
      mask_faults, [record['masks'], image_size], tf.int32
    )
    of_masks = tf.where(tf.cast(record['is_crowd'], tf.bool), 0, of_masks)
    faults = tf.where(faults == 0, of_masks, faults)
  rows = select_instances(record, faults, max_instances)
  return {
    'image': image,
    'boxes': tf.gather(record['boxes'], rows),
    'classes': tf.cast(tf.gather(record['classes'], rows), tf.int32),
    'masks': tf.gather(record['masks'], rows),
    'numbers': rows,
    'faults': faults,
  }
