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
from maskrcnn_jax.input_pipeline import (
  augmented,
  decode,
  faults,
  locations,
  order,
  transforms,
)
from maskrcnn_jax.input_pipeline import cache as caches
from maskrcnn_jax.input_pipeline.faults import ImageFault, ObjectFault

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

  dataset = locations.record_locations(
    *(numbers, plan, seeds, index, canvases, fits),
    options.augment.copy_paste,
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
  # Every size is given. The thread that would tune them sleeps for up to a
  # minute, and closing an iterator may fail to wake it (TensorFlow 2.21).
  settings.autotune.enabled = False
  settings.threading.private_threadpool_size = num_threads
  settings.threading.max_intra_op_parallelism = 1
  num_ready = 8 if caches.has_plenty_of_memory() else 2
  return dataset.prefetch(num_ready).with_options(settings)


def _one_row(location, index, options, cache: str, kept: caches.Cache):
  """Dataset of the row of one location; zeros if it cannot be read."""
  flip = transforms.draw_flip(location['seed'], options)
  inputs = _record(location, cache, kept)
  if 'partner' in location:
    pasted = _source(location['partner'], options, cache, kept)
    inputs = tf.data.Dataset.zip(inputs, pasted)
  row = _first_good(
    inputs,
    lambda *x, careful: _transform(*x, location, flip, index, options, careful),
  )
  if cache == 'rows':
    row = caches.cached(kept, row, [location['row'], flip])
  named = {'image_ids': location['image_id']}
  row = row.map(
    lambda x: transforms.pad(x, location['canvas'], options) | named
  )
  empty = tf.data.Dataset.from_tensors(location)
  empty = empty.map(lambda x: _empty(x, index, options) | named)
  return row.concatenate(empty).take(1)


def _record(location, cache: str, kept: caches.Cache):
  """Dataset of the serialized record of a location; none for a filler."""
  record = records.record_at(
    location['path'], location['offset'], location['length']
  )
  record = record.take(tf.cast(location['row'] != order.FILLER, tf.int64))
  if cache == 'records':
    record = caches.cached(kept, record, [location['row']])
  return record


def _first_good(inputs, make):
  """What is made of the one element of a dataset, quickly or carefully.

  An error inside tf.data would end the iterator or, ignored, shift all later
  rows; here it leaves one of the first alternatives empty.
  """
  full, careful = (
    inputs.map(lambda *x, c=c: make(*x, careful=c)).ignore_errors()
    for c in (False, True)
  )
  return full.concatenate(careful).take(1)


def _source(location, options, cache: str, kept: caches.Cache):
  """Dataset of the objects that are pasted; none if there is no such image."""

  def make(serialized, careful):
    record = records.parse_record(serialized)
    return augmented.make_source(record, location, options, careful)

  source = _first_good(_record(location, cache, kept), make)
  empty = tf.data.Dataset.from_tensors(location)
  empty = empty.map(lambda x: augmented.empty_source(x, options))
  return source.concatenate(empty).take(1)


def _transform(serialized, *arguments):
  """Parses and transforms the record of a location."""
  *source, location, flip, index, options, careful = arguments
  record = records.parse_record(serialized)
  if options.augment.is_on:
    row = augmented.transform(record, location, options, careful, *source)
  else:
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
