"""Small record files for tests, from a random seed."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from maskrcnn_jax.datasets import records
from maskrcnn_jax.input_pipeline import mask_crops


def png(array):
  """PNG bytes of a uint8 array."""
  stream = io.BytesIO()
  Image.fromarray(array).save(stream, 'PNG')
  return stream.getvalue()


def jpeg(array):
  """JPEG bytes of a uint8 array."""
  stream = io.BytesIO()
  Image.fromarray(array).save(stream, 'JPEG', quality=95)
  return stream.getvalue()


def rectangles(height, width, count, seed=0):
  """An image and rectangular objects: `[h, w, 3]`, boxes in pixels, masks."""
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, [height, width, 3], np.uint8)
  boxes, masks = [], np.zeros([count, height, width], np.uint8)
  for mask in masks:
    y1, x1 = rng.integers(0, [height // 2, width // 2])
    y2, x2 = rng.integers([y1 + 4, x1 + 4], [height + 1, width + 1])
    mask[y1:y2, x1:x2] = 1
    boxes.append([y1, x1, y2, x2])
  return image, np.array(boxes, np.float32).reshape(-1, 4), masks


def crop_masks(masks, boxes, rows, columns, mask_size):
  """`mask_crops.crop_masks` of `[n, h, w]` arrays."""
  encoded = tf.constant([png(np.asarray(mask)) for mask in masks], tf.string)
  size = np.shape(masks)[1:]
  return mask_crops.crop_masks(encoded, size, boxes, rows, columns, mask_size)


def record(
  encoded, image_id, size, boxes=(), masks=(), classes=None, crowd=None
):
  """A serialized record.

  Args:
    encoded: bytes of the image file.
    image_id: integer.
    size: (height, width) that the record states.
    boxes: `[n, 4]` pixels.
    masks: n arrays, or PNG bytes.
    classes: n integers; by default 1, 2, ...
    crowd: n integers; by default 0.
  """
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4) / (list(size) * 2)
  if classes is None:
    classes = range(1, len(boxes) + 1)
  crowd = [0] * len(boxes) if crowd is None else crowd
  masks = [m if isinstance(m, bytes) else png(m) for m in masks]
  example = tf.train.Example()

  def put(name, kind, values):
    feature = example.features.feature[f'image/{name}']
    getattr(feature, f'{kind}_list').value.extend(values)

  put('encoded', 'bytes', [encoded])
  put('source_id', 'bytes', [str(image_id).encode()])
  put('height', 'int64', [size[0]])
  put('width', 'int64', [size[1]])
  for name, values in zip(('ymin', 'xmin', 'ymax', 'xmax'), boxes.T):
    put(f'object/bbox/{name}', 'float', values)
  put('object/class/label', 'int64', classes)
  put('object/is_crowd', 'int64', crowd)
  put('object/area', 'float', [0.0] * len(boxes))
  put('object/mask', 'bytes', masks)
  return example.SerializeToString()


def write(path, sizes, first=0):
  """A file of random images; image i has the id 2**24 + i and i % 3 objects.

  Args:
    path: of the file.
    sizes: (height, width) of every image.
    first: i of the first image.
  """
  contents = []
  for i, (height, width) in enumerate(sizes, start=first):
    image, boxes, masks = rectangles(height, width, i % 3, i)
    size = (height, width)
    contents.append(record(jpeg(image), 2**24 + i, size, boxes, masks))
  records.write_records(path, contents)
  return str(path)
