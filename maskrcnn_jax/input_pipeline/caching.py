"""Elements of a dataset kept in memory: records as read, or finished rows.

A record is a few times smaller than its row and saves the reading only; a row
saves everything but padding. A row depends on its record and on whether it is
mirrored, so each is kept up to twice.
"""

import threading

import numpy as np
import tensorflow as tf

from maskrcnn_jax.datasets.records import RecordIndex
from maskrcnn_jax.input_pipeline import memory, transforms

MODES = ('rows', 'records', 'nothing')


def choose(index: RecordIndex, fits: np.ndarray, options) -> str:
  """The first of `MODES` for which there is memory.

  Args:
    index: of the records.
    fits: `[n, 2]`, what each image may fill.
    options: see `transforms.TransformOptions`.
  """
  originals = np.stack([index.heights, index.widths], axis=-1)
  exact = options.resize.exact_sizes
  sizes, _ = transforms.resized_size(originals, fits, exact)
  pixels = int(np.sum(np.prod(sizes, axis=-1, dtype=np.int64)))
  bytes_per_pixel = 3 * np.dtype(options.image_dtype).itemsize
  # Beside the images the crops of masks are a few hundredths.
  if memory.fits(pixels * bytes_per_pixel * (2 if options.flip else 1)):
    return 'rows'
  return 'records' if memory.fits(int(index.lengths.sum())) else 'nothing'


class Cache:
  """Arrays by key, up to a limit; several threads may use it.

  Attributes:
    num_bytes: what is kept.
  """

  def __init__(self, limit_bytes: int | None = None):
    """An empty cache that takes up to `limit_bytes`; None: all it is given."""
    self.num_bytes = 0
    self._limit_bytes = limit_bytes
    self._values = {}
    self._lock = threading.Lock()

  def get(self, key: tuple) -> list | None:
    """Copies of what is kept for a key; None if there is nothing."""
    values = self._values.get(key)
    if values is None:
      return None
    # TensorFlow may write into what it is given.
    return [_copy(value) for value in values]

  def put(self, key: tuple, values: list) -> None:
    """Keeps copies of arrays and bytes, if there is room for them."""
    size = sum(len(x) if isinstance(x, bytes) else x.nbytes for x in values)
    with self._lock:
      full = self._limit_bytes is not None and (
        self.num_bytes + size > self._limit_bytes
      )
      if full or key in self._values:
        return
      self._values[key] = [_copy(value) for value in values]
      self.num_bytes += size


def _copy(value):
  return value if isinstance(value, bytes) else np.array(value)


def through(cache: Cache, dataset: tf.data.Dataset, key) -> tf.data.Dataset:
  """A dataset's element, made only once for a key; inside tf.data.

  Args:
    cache: where it is kept.
    dataset: of one element or none, which is not kept.
    key: integers or bools that the element depends on, scalar tensors.
  """
  spec = dataset.element_spec
  leaves = tf.nest.flatten(spec)
  dtypes = [leaf.dtype for leaf in leaves]
  blanks = [
    b'' if leaf.dtype == tf.string else np.zeros(_shape(leaf), leaf.dtype.name)
    for leaf in leaves
  ]

  def look_up(*key):
    values = cache.get(tuple(map(int, key)))
    return [values is not None, *(values or blanks)]

  def put(*arguments):
    cache.put(tuple(map(int, arguments[: len(key)])), arguments[len(key) :])
    return True

  def keep(element):
    values = tf.nest.flatten(element)
    done = tf.numpy_function(put, [*key, *values], tf.bool)
    with tf.control_dependencies([done]):
      return tf.nest.map_structure(tf.identity, element)

  hit, *values = tf.numpy_function(look_up, key, [tf.bool, *dtypes])
  values = [tf.ensure_shape(x, leaf.shape) for x, leaf in zip(values, leaves)]
  kept = tf.data.Dataset.from_tensors(tf.nest.pack_sequence_as(spec, values))
  kept = kept.take(tf.cast(hit, tf.int64))
  return kept.concatenate(dataset.map(keep)).take(1)


def _shape(leaf):
  return [side or 0 for side in leaf.shape]
