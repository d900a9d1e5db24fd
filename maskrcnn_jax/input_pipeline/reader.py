"""A tf.data pipeline from places in the order to batches of one host.

Records are read by offset. One that cannot be read keeps its place, as a row
whose `valid` is False; `faults` of a row says why, or what its objects lack.
"""

import os
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from maskrcnn_jax.datasets import records
from maskrcnn_jax.input_pipeline import (
  caching,
  decoding,
  faults,
  memory,
  order,
  transforms,
)
from maskrcnn_jax.input_pipeline.faults import ImageFault, ObjectFault

_PLACE = {
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
  """Keeps TensorFlow modest; before anything else is asked of it.

  It leaves the memory of a GPU to JAX, and with `num_threads` its own pools,
  which all pipelines share, are no larger.
  """
  try:
    tf.config.set_visible_devices([], 'GPU')
  except RuntimeError:
    logging.log_first_n(
      logging.WARNING, 'TensorFlow was in use before: it may hold the GPU.', 1
    )
  if not num_threads:
    return
  try:
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
  except RuntimeError:
    return  # The pools are those of an earlier pipeline.


def places(
  numbers: tf.data.Dataset,
  plan: Callable,
  seeds: Callable,
  index: records.RecordIndex,
  canvases: Sequence[tuple[int, int]],
  fits: Sequence[tuple[int, int]],
) -> tf.data.Dataset:
  """A dataset of places: which record, where it lies, and what becomes of it.

  Args:
    numbers: of the batches.
    plan: the `order.BatchPlan` of this host for a number.
    seeds: `[rows, 2]` int64 for a plan.
    index: of the records.
    canvases: see `batches.train_batches`.
    fits: what an image may fill of each canvas.
  """
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
      for name, (_, dtype) in _PLACE.items()
    ]

  def place(number):
    dtypes = [dtype for _, dtype in _PLACE.values()]
    values = tf.numpy_function(columns, [number], dtypes)
    return {
      name: tf.ensure_shape(value, shape)
      for value, (name, (shape, _)) in zip(values, _PLACE.items())
    }

  return numbers.map(place).unbatch()


def batched(
  found: tf.data.Dataset,
  index: records.RecordIndex,
  canvases: Sequence[tuple[int, int]],
  batch_size: int,
  options: transforms.TransformOptions,
  num_threads: int | None,
  cache: str = 'nothing',
) -> tf.data.Dataset:
  """Reads, transforms and batches, with bounded threads, in order.

  Args:
    found: see `places`.
    index: of the records.
    canvases: with a single one the shapes are static.
    batch_size: rows of this host.
    options: see there.
    num_threads: readers; None: one per CPU, at most 16.
    cache: what to keep in memory, one of `caching.MODES`.

  Returns:
    Batches of the README's table, and `faults`, `[batch]` strings of
    `faults.encode`.
  """
  num_threads = num_threads or min(os.cpu_count() or 1, 16)
  static = canvases[0] if len(set(map(tuple, canvases))) == 1 else (None, None)
  kept = caching.Cache(memory.share_bytes())

  def keep_shape(row):
    images = tf.ensure_shape(row['images'], [*static, 3])
    return row | {'images': images}

  dataset = found.interleave(
    lambda place: _one_row(place, index, options, cache, kept),
    cycle_length=num_threads,
    block_length=1,
    num_parallel_calls=num_threads,
    deterministic=True,
  )
  dataset = dataset.map(keep_shape).batch(batch_size, drop_remainder=True)
  settings = tf.data.Options()
  settings.deterministic = True
  settings.threading.private_threadpool_size = num_threads
  settings.threading.max_intra_op_parallelism = 1
  num_ready = 8 if memory.is_plenty() else 2
  return dataset.prefetch(num_ready).with_options(settings)


def _one_row(place, index, options, cache: str, kept: caching.Cache):
  """The row of one place: what can be read, or else zeros."""
  record = records.record_at(place['path'], place['offset'], place['length'])
  record = record.take(tf.cast(place['row'] != order.FILLER, tf.int64))
  if cache == 'records':
    record = caching.through(kept, record, [place['row']])
  flip = transforms.draw_flip(place['seed'], options)
  # An error inside tf.data would end the iterator or, ignored, shift all later
  # rows; here it only empties one of the first alternatives.
  full, careful = (
    record.map(
      lambda x, c=c: _transform(x, place, flip, index, options, careful=c)
    ).ignore_errors()
    for c in (False, True)
  )
  row = full.concatenate(careful).take(1)
  if cache == 'rows':
    row = caching.through(kept, row, [place['row'], flip])
  named = {'image_ids': place['image_id']}
  row = row.map(lambda x: transforms.pad(x, place['canvas'], options) | named)
  empty = tf.data.Dataset.from_tensors(place)
  empty = empty.map(lambda p: _empty(p, index, options) | named)
  return row.concatenate(empty).take(1)


def _transform(serialized, place, flip, index, options, careful: bool):
  """Parses and transforms the record of a place."""
  record = records.parse_record(serialized)
  row = transforms.transform(
    record, place['canvas'], place['fit'], flip, options, careful
  )

  def describe(row, codes, boxes, classes):
    return _describe_objects(index, int(row), codes, boxes, classes)

  found = [place['row'], row['faults'], record['boxes'], record['classes']]
  text = tf.cond(
    tf.reduce_any(row['faults'] > 0),
    lambda: tf.numpy_function(describe, found, tf.string),
    lambda: tf.constant(b''),
  )
  return row | {'faults': tf.ensure_shape(text, [])}


def _describe_objects(index, row: int, codes, boxes, classes) -> bytes:
  """The text on the objects of a record that are left out."""
  found = []
  for number in np.flatnonzero(codes):
    fault = ObjectFault(codes[number])
    reason = _OBJECT_REASONS[fault].format(
      label=classes[number], box=tuple(boxes[number].tolist())
    )
    found.append(
      (
        fault,
        f'{index.place(row)}, image {index.image_ids[row]}, object {number} '
        f'(from 0) is left out: {reason}.',
      )
    )
  return faults.encode(found)


def _empty(place, index: records.RecordIndex, options):
  """A row without an image that says why, unless the place is a filler."""

  def describe(row):
    if row == order.FILLER:
      return b''
    fault, reason = _find_fault(index, int(row))
    return faults.encode(
      [
        (
          fault,
          f'{index.place(row)}, image {index.image_ids[row]} is left out: '
          f'{reason}',
        )
      ]
    )

  text = tf.numpy_function(describe, [place['row']], tf.string)
  return transforms.empty_row(place['canvas'], options) | {
    'faults': tf.ensure_shape(text, [])
  }


def _find_fault(index: records.RecordIndex, row: int):
  """Kind and reason of a record that cannot be used, found by trying again."""
  kind = ImageFault.UNREADABLE_RECORD
  try:
    serialized = records.read_record(index, row)
    kind = ImageFault.UNUSABLE_RECORD
    record = records.parse_record(tf.constant(serialized))
    kind = ImageFault.UNUSABLE_IMAGE
    decoding.decode_image(record['encoded'])
  except (tf.errors.OpError, ValueError, OSError) as error:
    cause = error.__cause__ or error
    if isinstance(cause, tf.errors.DataLossError):
      kind = ImageFault.DAMAGED_RECORD
    return kind, plain_message(cause)
  # Storage that failed for a moment, for all that is known.
  return ImageFault.UNREADABLE_RECORD, 'it could be read at the next attempt.'


def plain_message(error: Exception) -> str:
  """What an error says, without the node that TensorFlow names around it."""
  message = getattr(error, 'message', None) or str(error)
  return re.sub(r'\{\{.*?\}\} ?| ?name: *$', '', message)
