"""Oracle of the input pipeline: rows of a batch from whole images and masks.

For bit-exact comparison: the arithmetic is that of the pipeline, the code is
not.
"""

import functools
import io

import numpy as np
import tensorflow as tf
from PIL import Image

from maskrcnn_jax.datasets import records
from maskrcnn_jax.input_pipeline import order, transforms

OUTSIDE = -1


def flatten(batch, prefix=''):
  """Values of a batch, or its spec, by path, such as `instances/boxes`."""
  flat = {}
  for key, value in batch.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{key}/')
    else:
      flat[prefix + key] = value
  return flat


def assert_equal(batch, other):
  """Two batches have the same keys and, bit by bit, the same values."""
  batch, other = flatten(batch), flatten(other)
  assert batch.keys() == other.keys()
  for key, value in batch.items():
    np.testing.assert_array_equal(value, other[key], err_msg=key)


def crop_masks(masks, boxes, rows, columns, mask_size):
  """See `mask_crops.crop_masks`; `masks` are `[n, h, w]` uint8."""
  arguments = (np.float32(boxes), np.int32(rows), np.int32(columns))
  return _cropper(mask_size)(np.uint8(masks), *arguments)


# The last digit of an optimized expression depends on the shapes that are known
# when it is traced: here as in the pipeline, none.
MAPS = [tf.TensorSpec([None], tf.int32)] * 2
BOXES = tf.TensorSpec([None, 4], tf.float32)


@functools.cache
def _cropper(mask_size):
  masks = tf.TensorSpec([None] * 3, tf.uint8)

  @tf.function(input_signature=[masks, BOXES, *MAPS], autograph=False)
  def crop(masks, boxes, rows, columns):
    ys, y_weights = _samples(boxes[:, 0], boxes[:, 2], rows, mask_size)
    xs, x_weights = _samples(boxes[:, 1], boxes[:, 3], columns, mask_size)
    lines = tf.gather(masks, ys, axis=1, batch_dims=1)
    values = tf.gather(lines, xs, axis=2, batch_dims=1)
    values = tf.cast(values > 0, tf.float32)
    values = values * y_weights[:, :, None] * x_weights[:, None, :]
    values = values[:, :mask_size] + values[:, mask_size:]
    return values[..., :mask_size] + values[..., mask_size:]

  return crop


def _samples(starts, ends, pixels, mask_size):
  """Indices and weights of lower, then upper neighbors."""
  length = tf.size(pixels)
  size = tf.cast(length, tf.float32)
  starts, ends = starts[:, None] * (1.0 / size), ends[:, None] * (1.0 / size)
  steps = (ends - starts) * (size - 1.0) / (mask_size - 1)
  numbers = tf.range(mask_size, dtype=tf.float32)
  points = starts * (size - 1.0) + numbers * steps
  lower, upper = tf.floor(points), tf.math.ceil(points)
  inside = (points >= 0.0) & (points <= size - 1.0)
  neighbors = tf.cast(tf.concat([lower, upper], axis=1), tf.int32)
  indices = tf.gather(pixels, tf.clip_by_value(neighbors, 0, length - 1))
  weights = tf.concat([1.0 - (points - lower), points - lower], axis=1)
  shown = tf.tile(inside, [1, 2]) & (indices != OUTSIDE)
  return tf.maximum(indices, 0), tf.where(shown, weights, 0.0)


def nearest(original, resized, length):
  """The pixel of the original for each of `length` of the canvas."""
  centers = np.arange(resized, dtype=np.float32) + np.float32(0.5)
  scale = np.float32(original) / np.float32(resized)
  found = np.minimum((centers * scale).astype(np.int32), original - 1)
  return np.pad(found, (0, length - resized), constant_values=OUTSIDE)


def make_row(serialized, canvas, flip, mask_size, max_instances):
  """A row of a good record with at most `max_instances` objects, no crowds.

  Returns:
    What the batch holds for it, without `image_ids`; uint8 images.
  """
  record = records.parse_record(tf.constant(serialized))
  image = tf.io.decode_image(record['encoded'], channels=3).numpy()
  masks = [
    np.asarray(Image.open(io.BytesIO(png))) for png in record['masks'].numpy()
  ]
  boxes = record['boxes'].numpy()
  if flip:
    image = image[:, ::-1]
    masks = [mask[:, ::-1] for mask in masks]
    y1, x1, y2, x2 = boxes.T
    boxes = np.stack([y1, 1 - x2, y2, 1 - x1], axis=-1)
  original = np.array(image.shape[:2], np.int32)
  scale = np.min(np.float32(canvas) / np.float32(original))
  size = np.maximum((scale * np.float32(original)).astype(np.int32), 1)
  resized = tf.image.resize(image, size).numpy()
  images = np.zeros([*canvas, 3], np.uint8)
  images[: size[0], : size[1]] = (resized + np.float32(0.5)).astype(np.uint8)
  boxes = boxes * np.float32(np.tile(size, 2))
  instances = {
    'boxes': np.zeros([max_instances, 4], np.float32),
    'classes': np.zeros([max_instances], np.int32),
    'masks': np.zeros([max_instances] + [mask_size] * 2, np.uint8),
    'valid': np.arange(max_instances) < len(boxes),
  }
  if len(boxes):
    maps = [nearest(*sides) for sides in zip(original, size, canvas)]
    crops = crop_masks(np.stack(masks), boxes, *maps, mask_size)
    instances['boxes'][: len(boxes)] = boxes
    instances['classes'][: len(boxes)] = record['classes']
    instances['masks'][: len(boxes)] = (crops * 255 + 0.5).numpy()
  return {
    'images': images,
    'image_sizes': size.astype(np.float32),
    'instances': instances,
    'original_sizes': original,
    'scales': np.full([2], scale),
    'valid': np.True_,
  }


def train_rows(index, canvases, seed=0, **sizes):
  """Endless rows of a run, in its order, each with its `image_ids`.

  Args:
    index: of the records.
    canvases: one of them.
    seed: of the run.
    **sizes: of `make_row`.
  """
  sequence = order.TrainOrder(np.zeros(len(index), int), 1, seed)
  options = transforms.TransformOptions()
  examples = 0
  while True:
    (row,), (epoch,) = (
      getattr(sequence.batch(examples), name) for name in ('rows', 'uses')
    )
    drawn = order.example_seed(seed, 0, int(epoch), int(row))
    flip = bool(transforms.draw_flip(drawn, options))
    serialized = records.read_record(index, row)
    made = make_row(serialized, canvases, flip, **sizes)
    yield made | {'image_ids': index.image_ids[row]}
    examples += 1
