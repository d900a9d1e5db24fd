"""Records in the schema of the reference implementations: write, read, parse.

A record is one image with its objects, a `tf.train.Example` in a TFRecord file.
Boxes are stored as fractions of the image's height and width, masks as PNG
files of the full image with the values 0 and 1. TFDS stores nested features
under the same names, so a TFDS directory is read by the same functions.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.lib.io import tf_record

from maskrcnn_jax import files
from maskrcnn_jax.datasets import record_file
from maskrcnn_jax.datasets.examples import ImageExample
from maskrcnn_jax.datasets.record_index import RecordIndex as RecordIndex
from maskrcnn_jax.datasets.record_index import index_records as index_records
from maskrcnn_jax.errors import brief

MAX_OBJECTS = 2**16  # Of an image.
# Only in records of annotations that number categories from 0.
_CATEGORY_IDS = 'object/class/category_id'
_INTEGERS = (
  *('height', 'width', 'object/class/label', 'object/is_crowd'),
  _CATEGORY_IDS,
)
_BOX_SIDES = ('ymin', 'xmin', 'ymax', 'xmax')


def _list_of(dtype):
  return tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)


_FEATURES = {
  'image/encoded': tf.io.FixedLenFeature([], tf.string),
  'image/source_id': tf.io.FixedLenFeature([], tf.string),
  'image/height': tf.io.FixedLenFeature([], tf.int64),
  'image/width': tf.io.FixedLenFeature([], tf.int64),
  'image/filename': tf.io.FixedLenFeature([], tf.string, ''),
  **{f'image/object/bbox/{x}': _list_of(tf.float32) for x in _BOX_SIDES},
  'image/object/class/label': _list_of(tf.int64),
  'image/object/is_crowd': _list_of(tf.int64),
  'image/object/area': _list_of(tf.float32),
  'image/object/mask': _list_of(tf.string),
}
_MORE_FEATURES = {
  'image/object/class/text': _list_of(tf.string),
  f'image/{_CATEGORY_IDS}': _list_of(tf.int64),
}


def columns(example: ImageExample) -> dict[str, list]:
  """Features of an example by name, without the `image/` before it.

  Values are lists of one, or, of objects and captions, of any number.
  """
  fractions = example.boxes / ([example.height, example.width] * 2)
  return {
    'encoded': [example.encoded],
    # Whatever the bytes are, as the reference does: readers may expect it.
    'format': [b'jpeg'],
    'filename': [example.filename.encode()],
    'source_id': [str(example.image_id).encode()],
    'key/sha256': [hashlib.sha256(example.encoded).hexdigest().encode()],
    'height': [example.height],
    'width': [example.width],
    'caption': [caption.encode() for caption in example.captions],
    **{
      f'object/bbox/{side}': values.tolist()
      for side, values in zip(_BOX_SIDES, fractions.T)
    },
    'object/class/label': example.classes.tolist(),
    'object/class/text': [name.encode() for name in example.class_names],
    'object/is_crowd': example.is_crowd.astype(int).tolist(),
    'object/area': example.areas.astype(float).tolist(),
    'object/mask': list(example.masks),
  }


def encode_record(example: ImageExample) -> bytes:
  """Serializes an example."""
  values = columns(example)
  if example.category_ids is not None:
    values[_CATEGORY_IDS] = example.category_ids.tolist()
  message = tf.train.Example()
  for name, column in values.items():
    feature = message.features.feature[f'image/{name}']
    if name in _INTEGERS:
      feature.int64_list.value.extend(column)
    elif name.startswith(('object/bbox/', 'object/area')):
      feature.float_list.value.extend(column)
    else:
      feature.bytes_list.value.extend(column)
  return message.SerializeToString(deterministic=True)


@contextlib.contextmanager
def open_writers(
  paths: Sequence[str | os.PathLike],
) -> Iterator[list[tf.io.TFRecordWriter]]:
  """Opens writers of new record files, which appear all or none.

  The files get their names when the block ends, and none does if it raises.

  Raises:
    FileExistsError: there is a file of that name.
    OSError: the disk is full; holds the name of the file.
  """
  finals = [pathlib.Path(path) for path in paths]
  for path in finals:
    if path.exists():
      raise FileExistsError(f'{path} exists: remove it or choose another name.')
  unfinished = {}
  try:
    with contextlib.ExitStack() as stack:
      for final in finals:
        unfinished[final] = stack.enter_context(files.replaced(final))
      with contextlib.ExitStack() as writers:
        yield [
          writers.enter_context(tf.io.TFRecordWriter(str(path)))
          for path in unfinished.values()
        ]
  except tf.errors.ResourceExhaustedError as error:
    # TensorFlow's error for a full disk or quota names the file in its text.
    failed = [k for k, path in unfinished.items() if path.name in str(error)]
    raise OSError(
      errno.ENOSPC, os.strerror(errno.ENOSPC), str((failed or finals)[0])
    ) from error


def write_records(path: str | os.PathLike, records: Iterable[bytes]) -> int:
  """Writes one new record file; returns the number of records."""
  count = 0
  with open_writers([path]) as (writer,):
    for record in records:
      writer.write(record)
      count += 1
  return count


def record_at(path, offset, length) -> tf.data.Dataset:
  """Reads the record at a location, for use inside tf.data.

  Reads no more of the file than the record, unlike `read_record`, which reads
  16 MB.

  Args:
    path: scalar string.
    offset: scalar int64, see `RecordIndex`.
    length: scalar int64, see `RecordIndex`.

  Returns:
    A dataset of a scalar string, the serialized record, its checksum checked.
    Reading it fails, once, if the record is corrupt, or the file missing or
    too short.
  """

  def read(path, offset, length):
    records = tf.raw_ops.TFRecordDatasetV2(
      filenames=path[None],
      compression_type='',
      buffer_size=length + record_file.FRAME_BYTES,
      byte_offsets=offset[None],
    )
    spec = tf.TensorSpec([], tf.string)
    records = tf.data.experimental.from_variant(records, spec)
    # As an element of its own, a missing file would be tried forever where
    # errors are ignored.
    return records.take(1).get_single_element()

  return tf.data.Dataset.from_tensors((path, offset, length)).map(read)


def parse_record(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
  """Parses a record, for use inside tf.data.

  Args:
    serialized: a scalar string.

  Returns:
    `encoded` (image file, scalar string), `filename` (scalar string),
    `image_id`, `height`, `width` (scalar int64), and of every object `boxes`
    `[n, 4]` float32 `(y1, x1, y2, x2)` as fractions of height and width,
    `classes` `[n]` int32, `is_crowd` `[n]` bool, `area` `[n]` float32 in
    pixels, `masks` `[n]` string, PNG files of the full image.
  """
  features = tf.io.parse_single_example(serialized, _FEATURES)
  of_objects = {
    name: features[f'image/object/{name}']
    for name in ('class/label', 'is_crowd', 'area', 'mask')
  }
  boxes = [features[f'image/object/bbox/{side}'] for side in _BOX_SIDES]
  num_objects = tf.size(of_objects['class/label'])
  image_id = features['image/source_id']
  tf.debugging.Assert(
    num_objects <= MAX_OBJECTS,
    ['image', image_id, f'has over {MAX_OBJECTS} objects:', num_objects],
  )
  for name, values in [('mask', of_objects['mask'])] + [
    (f'bbox/{side}', values) for side, values in zip(_BOX_SIDES, boxes)
  ]:
    tf.debugging.Assert(
      tf.size(values) == num_objects,
      ['image', image_id, f'needs one image/object/{name} per object'],
    )
  missing = tf.zeros([num_objects], tf.int64)
  is_crowd = _or_default(of_objects['is_crowd'], missing)
  area = _or_default(of_objects['area'], tf.cast(missing, tf.float32))
  return {
    'encoded': features['image/encoded'],
    'filename': features['image/filename'],
    # The reference goes through float32 here, which ends at 2**24.
    'image_id': tf.strings.to_number(image_id, tf.int64),
    'height': features['image/height'],
    'width': features['image/width'],
    'boxes': tf.stack(boxes, axis=-1),
    'classes': tf.cast(of_objects['class/label'], tf.int32),
    'is_crowd': is_crowd > 0,
    'area': area,
    'masks': of_objects['mask'],
  }


def _or_default(values, default):
  return tf.cond(tf.size(values) > 0, lambda: values, lambda: default)


def read_record(index: RecordIndex, row: int) -> bytes:
  """Reads the serialized record of a row and checks its checksum.

  Raises:
    UserError: the record is corrupt; names file, byte and image.
  """
  try:
    reader = tf_record.tf_record_random_reader(
      index.files[index.file_indices[row]]
    )
    record, _ = reader.read(int(index.offsets[row]))
    reader.close()
  except (tf.errors.OpError, IndexError) as error:
    raise index.error(row, f'cannot be read ({brief(str(error))})') from error
  return record


def read_objects(index: RecordIndex, row: int) -> list[dict]:
  """Reads the objects of a row's record, crowds included.

  Returns:
    `class_id`, `category_id` of the annotations that the record was made from,
    `name` of the class ('' if the record has none), `box` as fractions
    `(y1, x1, y2, x2)`, `is_crowd`, `area` in pixels and `mask`, a PNG file.

  Raises:
    UserError: the record is corrupt; names file, byte and image.
  """
  record = tf.constant(read_record(index, row))
  try:
    parsed = {k: v.numpy() for k, v in parse_record(record).items()}
    more = tf.io.parse_single_example(record, _MORE_FEATURES)
  # TensorFlow's message may hold bytes that are no text.
  except (tf.errors.OpError, UnicodeDecodeError) as error:
    raise index.error(row, f'cannot be parsed ({brief(str(error))})') from error
  if not all(np.isfinite(parsed[x]).all() for x in ('boxes', 'area')):
    raise index.error(row, 'has a box or an area that is not finite')
  names, categories = (more[name].numpy().tolist() for name in _MORE_FEATURES)
  class_ids = parsed['classes'].tolist()
  names = [name.decode(errors='replace') for name in names]
  columns = {
    'class_id': class_ids,
    'category_id': categories or class_ids,
    'name': names + [''] * (len(class_ids) - len(names)),
    'box': parsed['boxes'].tolist(),
    'is_crowd': parsed['is_crowd'].tolist(),
    'area': parsed['area'].tolist(),
    'mask': parsed['masks'],
  }
  return [dict(zip(columns, values)) for values in zip(*columns.values())]
