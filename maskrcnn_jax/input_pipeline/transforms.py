"""Transforms of one example: image, boxes and masks brought to a canvas.

Masks are neither resized nor, before the last step, decoded: `rows` and
`columns` are the pixel of the original that each pixel of the canvas shows, and
the crops that training needs are cut through these maps (`mask_crops`).
"""

import dataclasses

import tensorflow as tf

from maskrcnn_jax.input_pipeline import decode, mask_crops
from maskrcnn_jax.input_pipeline.augment import AugmentOptions
from maskrcnn_jax.input_pipeline.faults import ObjectFault
from maskrcnn_jax.input_pipeline.resizing import ResizeOptions

_MOST_FLOATS = 2**26


@dataclasses.dataclass(frozen=True)
class TransformOptions:
  """Transforms of an example; see `batches.train_batches`."""

  max_instances: int = 100
  mask_size: int = 112
  flip: bool = True
  image_dtype: str = 'uint8'
  accurate_jpeg: bool = False
  with_instances: bool = True
  resize: ResizeOptions = ResizeOptions()
  augment: AugmentOptions = AugmentOptions()


def resized_size(image_size, fit, exact: bool = False):
  """`resizing.resized_size` of tensors."""
  dtype = tf.float64 if exact else tf.float32
  original = tf.cast(image_size, dtype)
  scale = tf.reduce_min(tf.cast(fit, dtype) / original, axis=-1, keepdims=True)
  # The short side of a very long image keeps one pixel.
  size = tf.maximum(tf.cast(scale * original, tf.int32), 1)
  scales = tf.cast(size, dtype) / original if exact else scale
  scales = tf.broadcast_to(scales, tf.shape(original))
  return size, tf.cast(scales, tf.float32)


def nearest_pixels(original, resized, half_pixel: bool = True):
  """The original pixel that each resized pixel shows, `[resized]` int32."""
  # In float32, as the resize kernels compute it.
  scale = tf.cast(original, tf.float32) / tf.cast(resized, tf.float32)
  centers = tf.range(resized, dtype=tf.float32) + (0.5 if half_pixel else 0.0)
  return tf.minimum(tf.cast(centers * scale, tf.int32), original - 1)


def resize_image(image, size, flip):
  """Mirrors an image if `flip` and resizes it; `[h, w, 3]` float32."""

  def resize(image):
    # Half-pixel centres, no antialiasing.
    return tf.image.resize(image, size, tf.image.ResizeMethod.BILINEAR)

  image = tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)
  # From floats the kernel makes the same values in half the time, but of a
  # large image they would take much memory.
  return tf.cond(
    tf.size(image) > _MOST_FLOATS,
    lambda: resize(image),
    lambda: resize(tf.cast(image, tf.float32)),
  )


def resize(example, canvas, fit, flip, options: ResizeOptions):
  """Mirrors an example if `flip`, resizes it and adds its pixel maps.

  Args:
    example: see `decode.decode_record`.
    canvas: `[2]` int32.
    fit: `[2]` int32, see `fit_size`.
    flip: scalar bool.
    options: of the size.

  Returns:
    `image` float32 [h, w, 3], `image_sizes`, `original_sizes`, `scales`, and,
    with instances, `boxes` in pixels, `classes`, `masks`, `rows` [height] and
    `columns` [width] of the canvas.
  """
  original = tf.shape(example['image'])[:2]
  size, scales = resized_size(original, fit, options.exact_sizes)
  result = {
    'image': resize_image(example['image'], size, flip),
    'image_sizes': tf.cast(size, tf.float32),
    'original_sizes': original,
    'scales': scales,
  }
  if 'boxes' not in example:
    return result
  rows = nearest_pixels(original[0], size[0], options.half_pixel_masks)
  columns = nearest_pixels(original[1], size[1], options.half_pixel_masks)
  columns = tf.where(flip, original[1] - 1 - columns, columns)
  y1, x1, y2, x2 = tf.unstack(example['boxes'], axis=-1)
  mirrored = tf.stack([y1, 1.0 - x2, y2, 1.0 - x1], axis=-1)
  boxes = tf.where(flip, mirrored, example['boxes'])
  return result | {
    'boxes': boxes * tf.tile(tf.cast(size, tf.float32), [2]),
    'classes': example['classes'],
    'masks': example['masks'],
    'rows': _pad(rows, [canvas[0]], mask_crops.OUTSIDE),
    'columns': _pad(columns, [canvas[1]], mask_crops.OUTSIDE),
  }


def finish_image(image, image_dtype: str):
  """An image of floats in its final type, rounded for uint8."""
  return tf.cast(image + 0.5, tf.uint8) if image_dtype == 'uint8' else image


def finish_instances(example, options: TransformOptions):
  """Crops the masks of a `resize`d example and drops objects without a pixel.

  Returns:
    `boxes`, `classes` and `masks` of a row, and `[n]` bool, False for objects
    that were dropped because their mask has no pixel in their box.
  """
  names = ('masks', 'original_sizes', 'boxes', 'rows', 'columns')
  crops = mask_crops.crop_masks(*map(example.get, names), options.mask_size)
  crops = tf.cast(crops * 255.0 + 0.5, tf.uint8)
  shown = tf.reduce_any(crops > 0, axis=[1, 2])
  values = {'masks': crops} | {x: example[x] for x in ('boxes', 'classes')}
  kept = tf.where(shown)[:, 0]
  return {name: tf.gather(x, kept) for name, x in values.items()}, shown


def draw_flip(seed, options: TransformOptions):
  """Whether an example is mirrored, scalar bool; `seed` is `[2]` int64."""
  if not options.flip:
    return tf.constant(False)
  return tf.random.stateless_uniform([], seed) < 0.5


def transform(
  record, canvas, fit, flip, options: TransformOptions, careful: bool = False
):
  """One row of a batch from one record, without its padding.

  Nothing is drawn but the flip; `augmented.transform` is the counterpart with
  augmentation.

  Args:
    record: see `datasets.records.parse_record`.
    canvas: `[2]` int32.
    fit: `[2]` int32, see `fit_size`.
    flip: scalar bool.
    options: of all steps.
    careful: see `decode.decode_record`.

  Returns:
    The keys of the batch without `image_ids`, `valid` and `instances.valid`,
    and `faults`, `[num_objects]` int32 codes of the objects of the record.
  """
  example = decode.decode_record(
    *(record, options.max_instances, options.with_instances, careful),
    accurate_jpeg=options.accurate_jpeg,
  )
  resized = resize(example, canvas, fit, flip, options.resize)
  row = {x: resized[x] for x in ('image_sizes', 'original_sizes', 'scales')}
  row['images'] = finish_image(resized['image'], options.image_dtype)
  row['faults'] = tf.zeros([0], tf.int32)
  if options.with_instances:
    row['instances'], shown = finish_instances(resized, options)
    row['faults'] = tf.tensor_scatter_nd_max(
      example['faults'],
      example['numbers'][:, None],
      tf.where(shown, 0, int(ObjectFault.EMPTY_MASK)),
    )
  return row


def pad_image(image, canvas, value: int = 0):
  """An image with a value below and to the right, as large as the canvas."""
  # Whole rows are padded three times as fast as pixels of three channels.
  height, width = tf.unstack(tf.shape(image)[:2])
  lines = tf.reshape(image, [height, width * 3])
  lines = _pad(lines, [canvas[0], canvas[1] * 3], value)
  return tf.reshape(lines, [canvas[0], canvas[1], 3])


def pad(row, canvas, options: TransformOptions):
  """A row of `transform` padded to fixed shapes, with its `valid` fields."""
  padded = row | {
    'images': pad_image(row['images'], canvas),
    'valid': tf.constant(True),
  }
  if options.with_instances:
    length = options.max_instances
    instances = row['instances']
    count = tf.shape(instances['classes'])[0]
    padded['instances'] = {
      name: _pad(value, [length]) for name, value in instances.items()
    } | {'valid': tf.range(length) < count}
  return padded


def _pad(values, shape, constant=0):
  """Pads with a constant at the end of the leading axes up to `shape`."""
  paddings = [[0, shape[i] - tf.shape(values)[i]] for i in range(len(shape))]
  paddings += [[0, 0]] * (len(values.shape) - len(shape))
  padded = tf.pad(values, paddings, constant_values=constant)
  known = [side if isinstance(side, int) else None for side in shape]
  return tf.ensure_shape(padded, known + list(values.shape[len(shape) :]))


def empty_row(canvas, options: TransformOptions):
  """A row of zeros whose `valid` is False; the keys of `transform`."""
  shape = tf.concat([canvas, [3]], axis=0)
  row = {
    'images': tf.zeros(shape, options.image_dtype),
    'valid': tf.constant(False),
    'image_sizes': tf.zeros([2]),
    'original_sizes': tf.zeros([2], tf.int32),
    'scales': tf.zeros([2]),
  }
  if options.with_instances:
    n, size = options.max_instances, options.mask_size
    row['instances'] = {
      'boxes': tf.zeros([n, 4]),
      'classes': tf.zeros([n], tf.int32),
      'masks': tf.zeros([n, size, size], tf.uint8),
      'valid': tf.zeros([n], tf.bool),
    }
  return row
