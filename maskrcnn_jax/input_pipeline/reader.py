"""A tf.data pipeline from places in the order to batches of one host.

Records are read by offset. One that cannot be read keeps its place, as a row
whose `valid` is False.
"""

import os
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from maskrcnn_jax.datasets import records
from maskrcnn_jax.input_pipeline import order, transforms

_PLACE = ('row', 'image_id', 'seed', 'canvas', 'fit')


def places(
  numbers: tf.data.Dataset,
  plan: Callable,
  seeds: Callable,
  index: records.RecordIndex,
  canvases: Sequence[tuple[int, int]],
  fits: Sequence[tuple[int, int]],
) -> tf.data.Dataset:
  """A dataset of places: row, image id, seed, canvas and fit size.

  Args:
    numbers: of the batches.
    plan: the `order.BatchPlan` of this host for a number.
    seeds: `[rows, 2]` int64 for a plan.
    index: of the records.
    canvases: see `batches.train_batches`.
    fits: what an image may fill of each canvas.
  """

  def columns(number):
    part = plan(number)
    size = len(part.rows)
    filler = part.rows == order.FILLER
    image_ids = np.where(filler, 0, index.image_ids[part.rows])
    return (
      part.rows.astype(np.int64),
      image_ids.astype(np.int64),
      np.asarray(seeds(part), np.int64),
      np.tile(np.asarray(canvases[part.canvas], np.int32), (size, 1)),
      np.tile(np.asarray(fits[part.canvas], np.int32), (size, 1)),
    )

  dtypes = (tf.int64, tf.int64, tf.int64, tf.int32, tf.int32)
  shapes = ([None], [None], [None, 2], [None, 2], [None, 2])

  def place(number):
    values = tf.numpy_function(columns, [number], dtypes)
    pairs = zip(_PLACE, values, shapes)
    return {name: tf.ensure_shape(x, shape) for name, x, shape in pairs}

  return numbers.map(place).unbatch()


def batched(
  found: tf.data.Dataset,
  index: records.RecordIndex,
  canvases: Sequence[tuple[int, int]],
  batch_size: int,
  options: transforms.TransformOptions,
  num_threads: int | None,
) -> tf.data.Dataset:
  """Reads, transforms and batches, with bounded threads, in order.

  Args:
    found: see `places`.
    index: of the records.
    canvases: with a single one the shapes are static.
    batch_size: rows of this host.
    options: see there.
    num_threads: readers; None: one per CPU, at most 16.
  """
  _leave_accelerators()
  num_threads = num_threads or min(os.cpu_count() or 1, 16)
  static = canvases[0] if len(set(map(tuple, canvases))) == 1 else (None, None)

  def keep_shape(row):
    images = tf.ensure_shape(row['images'], [*static, 3])
    return row | {'images': images}

  def one_row(place):
    """The row of one place: what can be read, or else zeros."""
    # An error inside tf.data would end the iterator or, ignored, shift all
    # later rows; here it only empties the first of two alternatives.
    alternatives = tf.data.Dataset.from_tensors(place)
    full = alternatives.filter(lambda p: p['row'] != order.FILLER)
    full = full.map(lambda p: _load(p, index, options)).ignore_errors()
    empty = alternatives.map(lambda p: _empty(p, index, options))
    return full.concatenate(empty).take(1)

  dataset = found.interleave(
    one_row,
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
  return dataset.prefetch(2).with_options(settings)


def _leave_accelerators():
  """Keeps TensorFlow from taking the memory of a GPU that JAX needs."""
  try:
    tf.config.set_visible_devices([], 'GPU')
  except RuntimeError:
    logging.log_first_n(
      logging.WARNING, 'TensorFlow was in use before: it may hold the GPU.', 1
    )


def _load(place, index: records.RecordIndex, options):
  """Reads and transforms the record of a place."""

  def read(row):
    return records.read_record(index, int(row))

  serialized = tf.numpy_function(read, [place['row']], tf.string)
  record = records.parse_record(tf.ensure_shape(serialized, []))
  row = transforms.transform(
    record, place['canvas'], place['fit'], place['seed'], options
  )
  return row | {'image_ids': place['image_id']}


def _empty(place, index: records.RecordIndex, options):
  """A row without an image; logs why, unless the place is a filler."""

  def explain(row, *rest):
    if row != order.FILLER:
      values = map(tf.constant, (row, *rest))
      _explain(dict(zip(_PLACE, values)), index, options)
    return np.int64(row)

  arguments = [place[key] for key in _PLACE]
  row = tf.numpy_function(explain, arguments, tf.int64)
  with tf.control_dependencies([row]):
    image_id = tf.identity(place['image_id'])
  empty = transforms.empty_row(place['canvas'], options)
  return empty | {'image_ids': image_id}


def _explain(place, index: records.RecordIndex, options):
  """Logs the reason why a record cannot be used, found by trying again."""
  row = int(place['row'])
  reason = 'it could be read at the second attempt'
  try:
    records.read_record(index, row)
    _load(place, index, options)
  except (tf.errors.OpError, ValueError, OSError) as error:
    reason = getattr(error, 'message', None) or str(error)
    # TensorFlow puts the name of the node around what it has to say.
    reason = re.sub(r'\{\{.*?\}\} ?| ?name: *$', '', reason)
  image_id = int(index.image_ids[row])
  logging.warning(
    '%s, image %d is left out: %s', index.place(row), image_id, reason
  )
