"""tf.data pipeline: reads the records of an order into batches of one host.

Records are read by offset. One that cannot be read becomes a row whose `valid`
is False, so that no other row moves; its `faults` say why, as do those of
skipped objects.
"""

import contextlib
import os
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from maskrcnn_jax.datasets import records
from maskrcnn_jax.input_pipeline import cache as caches
from maskrcnn_jax.input_pipeline import decode, faults, order, transforms
from maskrcnn_jax.input_pipeline.faults import ImageFault, ObjectFault

_LOCATION = {
  'row': ([None], tf.int64),
  'image_id': ([None], tf.int64),
  'path': ([None], tf.string),
  'offset': ([None], tf.int64),
  'length': ([None], tf.int64),
  'seed': ([None, 2], tf.int64),
  'canvas': ([None, 2], tf.int32),
  'fit': ([None, 2], tf.int32),
}
_OBJECT_REASONS = {
  ObjectFault.UNUSABLE_CLASS: 'its class is {label}, wanted 1 or more',
  ObjectFault.ZERO_AREA_BOX: 'its box {box} has no area',
  ObjectFault.UNUSABLE_BOX: 'its box {box} is not finite',
  ObjectFault.UNUSABLE_MASK: 'its mask is no PNG file that can be decoded',
  ObjectFault.OTHER_SIZE_MASK: "its mask has not the image's size",
  ObjectFault.EMPTY_MASK: 'its mask has no pixel in its box {box}',
}


def set_up_tensorflow(num_threads: int | None) -> None:
  """Leaves GPUs to JAX and limits TensorFlow's threads; call it before others.

  Args:
    num_threads: limit of the thread pools that all pipelines share; None: none.
  """
  try:
    tf.config.set_visible_devices([], 'GPU')
  except RuntimeError:
    logging.log_first_n(
      logging.WARNING, 'TensorFlow was in use before and may hold the GPU.', 1
    )
  if num_threads:
    # Where an earlier pipeline has set them, they stay.
    with contextlib.suppress(RuntimeError):
      tf.config.threading.set_inter_op_parallelism_threads(num_threads)
      tf.config.threading.set_intra_op_parallelism_threads(num_threads)


def _record_locations(numbers, plan, seeds, index, canvases, fits):
  """Dataset of record locations: file and offset, with seed and canvas."""
  paths = np.array([os.fsencode(path) for path in index.files], object)

  def columns(number):
    part = plan(number)
    size = len(part.rows)
    filler = part.rows == order.FILLER
    found = {
      'row': part.rows,
      'image_id': np.where(filler, 0, index.image_ids[part.rows]),
      'path': paths[index.file_indices[part.rows]],
      'offset': index.offsets[part.rows],
      'length': index.lengths[part.rows],
      'seed': seeds(part),
      'canvas': np.tile(canvases[part.canvas], (size, 1)),
      'fit': np.tile(fits[part.canvas], (size, 1)),
    }
    return [
      np.asarray(found[name], dtype.as_numpy_dtype)
      for name, (_, dtype) in _LOCATION.items()
    ]

  def locate(number):
    dtypes = [dtype for _, dtype in _LOCATION.values()]
    values = tf.numpy_function(columns, [number], dtypes)
    return {
      name: tf.ensure_shape(value, shape)
      for value, (name, (shape, _)) in zip(values, _LOCATION.items())
    }

  return numbers.map(locate).unbatch()


def read_batches(
  numbers: tf.data.Dataset,
  plan: Callable,
  seeds: Callable,
  index: records.RecordIndex,
  canvases: Sequence[tuple[int, int]],
  fits: Sequence[tuple[int, int]],
  batch_size: int,
  options: transforms.TransformOptions,
  num_threads: int | None,
  cache: str,
) -> tf.data.Dataset:
  """Reads, transforms and batches, with bounded threads, in order.

  Args:
    numbers: of the batches.
    plan: this host's `order.BatchPlan` of a number.
    seeds: `[rows, 2]` int64 of a plan.
    index: of the records.
    canvases: (height, width); with a single one the shapes are static.
    fits: (height, width) that an image may fill on each canvas.
    batch_size: rows of this host.
    options: of the transforms.
    num_threads: readers; None: one per CPU, at most 16.
    cache: one of `cache.MODES`.

  Returns:
    Batches of the README's table, and `faults`, `[batch]` strings of
    `faults.encode`.
  """
  num_threads = num_threads or min(os.cpu_count() or 1, 16)
  static = canvases[0] if len(set(map(tuple, canvases))) == 1 else (None, None)
  kept = caches.Cache(caches.limit_bytes())

  dataset = _record_locations(
    numbers, plan, seeds, index, canvases, fits
  ).interleave(
    lambda location: _one_row(location, index, options, cache, kept),
    cycle_length=num_threads,
    block_length=1,
    num_parallel_calls=num_threads,
    deterministic=True,
  )
  dataset = dataset.map(
    lambda row: row | {'images': tf.ensure_shape(row['images'], [*static, 3])}
  ).batch(batch_size, drop_remainder=True)
  settings = tf.data.Options()
  settings.deterministic = True
  settings.threading.private_threadpool_size = num_threads
  settings.threading.max_intra_op_parallelism = 1
  num_ready = 8 if caches.has_plenty_of_memory() else 2
  return dataset.prefetch(num_ready).with_options(settings)


def _one_row(location, index, options, cache: str, kept: caches.Cache):
  """Dataset of the row of one location; zeros if it cannot be read."""
  record = records.record_at(
    location['path'], location['offset'], location['length']
  )
  record = record.take(tf.cast(location['row'] != order.FILLER, tf.int64))
  if cache == 'records':
    record = caches.cached(kept, record, [location['row']])
  flip = transforms.draw_flip(location['seed'], options)
  # An error inside tf.data would end the iterator or, ignored, shift all later
  # rows; here it leaves one of the first alternatives empty.
  full, careful = (
    record.map(
      lambda x, c=c: _transform(x, location, flip, index, options, careful=c)
    ).ignore_errors()
    for c in (False, True)
  )
  row = full.concatenate(careful).take(1)
  if cache == 'rows':
    row = caches.cached(kept, row, [location['row'], flip])
  named = {'image_ids': location['image_id']}
  row = row.map(
    lambda x: transforms.pad(x, location['canvas'], options) | named
  )
  empty = tf.data.Dataset.from_tensors(location)
  empty = empty.map(lambda x: _empty(x, index, options) | named)
  return row.concatenate(empty).take(1)


def _transform(serialized, location, flip, index, options, careful: bool):
  """Parses and transforms the record of a location."""
  record = records.parse_record(serialized)
  row = transforms.transform(
    record, location['canvas'], location['fit'], flip, options, careful
  )

  def describe(row, codes, boxes, classes):
    return _describe_objects(index, int(row), codes, boxes, classes)

  found = [location['row'], row['faults'], record['boxes'], record['classes']]
  text = tf.cond(
    tf.reduce_any(row['faults'] > 0),
    lambda: tf.numpy_function(describe, found, tf.string),
    lambda: tf.constant(b''),
  )
  return row | {'faults': tf.ensure_shape(text, [])}


def _describe_objects(index, row: int, codes, boxes, classes) -> bytes:
  """`faults.encode` of the skipped objects of a record."""
  found = []
  for number in np.flatnonzero(codes):
    fault = ObjectFault(codes[number])
    reason = _OBJECT_REASONS[fault].format(
      label=classes[number], box=tuple(boxes[number].tolist())
    )
    where = f'{index.place(row)}, object {number} (from 0)'
    found.append((fault, f'{where} is skipped: {reason}.'))
  return faults.encode(found)


def _empty(location, index: records.RecordIndex, options):
  """A row without an image, with the reason unless it is a filler."""

  def describe(row):
    if row == order.FILLER:
      return b''
    fault, reason = _find_fault(index, int(row))
    return faults.encode([(fault, f'{index.place(row)} is skipped: {reason}')])

  text = tf.numpy_function(describe, [location['row']], tf.string)
  return transforms.empty_row(location['canvas'], options) | {
    'faults': tf.ensure_shape(text, [])
  }


def _find_fault(index: records.RecordIndex, row: int):
  """Kind and reason of a fault, found by reading the record again."""
  kind = ImageFault.UNREADABLE_RECORD
  try:
    serialized = records.read_record(index, row)
    kind = ImageFault.UNUSABLE_RECORD
    record = records.parse_record(tf.constant(serialized))
    kind = ImageFault.UNUSABLE_IMAGE
    sides = (int(record[name]) for name in ('height', 'width'))
    decode.check_image(record['encoded'].numpy(), *sides)
    decode.decode_image(record['encoded'])
  except (tf.errors.OpError, ValueError, OSError) as error:
    cause = error.__cause__ or error
    if isinstance(cause, tf.errors.DataLossError):
      kind = ImageFault.CORRUPT_RECORD
    return kind, plain_message(cause)
  # Most likely storage failed for a moment.
  return ImageFault.UNREADABLE_RECORD, 'it could be read at the next attempt.'


def plain_message(error: Exception) -> str:
  """Message of an error without the names of TensorFlow's nodes."""
  message = getattr(error, 'message', None) or str(error)
  return re.sub(r'\{\{.*?\}\} ?| ?name: *$', '', message)
