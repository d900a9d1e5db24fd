"""Locations of the records of an order, with the keys of their examples."""

import os

import numpy as np
import tensorflow as tf

from maskrcnn_jax.input_pipeline import copy_paste, order

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


def record_locations(numbers, plan, seeds, index, canvases, fits, pasted):
  """Dataset of record locations: file and offset, with seed and canvas.

  Args:
    numbers: see `reader.read_batches`, as for the others.
    pasted: share of the locations that have a `partner`, see `copy_paste`.
  """
  paths = np.array([os.fsencode(path) for path in index.files], object)

  def columns(part, keys):
    size = len(part.rows)
    filler = part.rows == order.FILLER
    found = {
      'row': part.rows,
      'image_id': np.where(filler, 0, index.image_ids[part.rows]),
      'path': paths[index.file_indices[part.rows]],
      'offset': index.offsets[part.rows],
      'length': index.lengths[part.rows],
      'seed': keys,
      'canvas': np.tile(canvases[part.canvas], (size, 1)),
      'fit': np.tile(fits[part.canvas], (size, 1)),
    }
    return [
      np.asarray(found[name], dtype.as_numpy_dtype)
      for name, (_, dtype) in _LOCATION.items()
    ]

  def columns_of(number):
    part = plan(number)
    keys = seeds(part)
    found = columns(part, keys)
    if pasted:
      rows, keys = copy_paste.partners(keys, len(index), pasted)
      partners = order.BatchPlan(rows, part.uses, part.canvas)
      found += columns(partners, keys)
    return found

  def locate(number):
    dtypes = [dtype for _, dtype in _LOCATION.values()] * (2 if pasted else 1)
    values = tf.numpy_function(columns_of, [number], dtypes)
    found = [
      {
        name: tf.ensure_shape(value, shape)
        for value, (name, (shape, _)) in zip(part, _LOCATION.items())
      }
      for part in (values[: len(_LOCATION)], values[len(_LOCATION) :])
    ]
    return found[0] | ({'partner': found[1]} if pasted else {})

  return numbers.map(locate).unbatch()
