"""Small record files for tests, from a random seed."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from maskrcnn_jax.datasets import examples, records
from maskrcnn_jax.input_pipeline import mask_crops


def png(array, kind='PNG', **options):
  """PNG bytes of a uint8 array."""
  stream = io.BytesIO()
  Image.fromarray(array).save(stream, kind, **options)
  return stream.getvalue()


def jpeg(array):
  """JPEG bytes of a uint8 array."""
  return png(array, 'JPEG', quality=95)


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


def example(image_id, classes=(1, 2), names='ab', category_ids=None):
  """An example of 6 x 8 pixels whose objects all have the same box and mask."""
  count = len(classes)
  mask = np.zeros((6, 8), np.uint8)
  mask[1:4, 2:6] = 1
  return examples.ImageExample(
    encoded=png(np.zeros((6, 8, 3), np.uint8)),
    filename=f'{image_id}.png',
    image_id=image_id,
    height=6,
    width=8,
    boxes=np.tile([[1.0, 2.0, 4.0, 6.0]], (count, 1)).reshape(-1, 4),
    classes=np.array(classes, np.int64),
    class_names=names,
    is_crowd=np.zeros(count, bool),
    areas=np.full(count, 12.0),
    masks=[png(mask)] * count,
    category_ids=None if category_ids is None else np.array(category_ids),
  )


def features(pattern, decoded=True):
  """All features of every record, by image id.

  Args:
    pattern: of the record files.
    decoded: kind and values of each, masks as mode, size and pixels; if not,
      only the values, masks as PNG files.
  """
  index = records.index_records(pattern)
  found = {}
  for row, image_id in enumerate(index.image_ids.tolist()):
    record = records.read_record(index, row)
    content = tf.train.Example.FromString(record).features.feature
    each = found[image_id] = {}
    for name, feature in content.items():
      kind = feature.WhichOneof('kind')
      values = list(getattr(feature, kind).value) if kind else []
      if decoded and name == 'image/object/mask':
        opened = [Image.open(io.BytesIO(mask)) for mask in values]
        values = [(x.mode, x.size, x.tobytes()) for x in opened]
      each[name] = (kind, values) if decoded else values
  return found
