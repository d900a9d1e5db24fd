"""Cache in memory: records as read, or finished rows.

A record is a few times smaller than its row and saves reading alone; a row
saves everything but padding. A row depends on its record and on whether it is
mirrored, so each is kept up to twice; augmented rows, always new, are not kept.
"""

import contextlib
import os
import pathlib
import re
import threading

import numpy as np
import tensorflow as tf

from maskrcnn_jax.datasets.records import RecordIndex
from maskrcnn_jax.input_pipeline import resizing

MODES = ('rows', 'records', 'nothing')
# Habana's rule: a machine with less memory caches nothing and reads little
# ahead.
PLENTY_BYTES = 45 * 2**30
# Pattern and unit of the limit in each file. Those of containers are control
# groups, version 2 (where `max` is no limit) and version 1.
_LIMITS = {
  'proc/meminfo': (r'MemTotal:\s*(\d+)', 1024),
  'sys/fs/cgroup/memory.max': (r'(\d+)', 1),
  'sys/fs/cgroup/memory/memory.limit_in_bytes': (r'(\d+)', 1),
}


def choose_mode(index: RecordIndex, fits: np.ndarray, options) -> str:
  """The first of `MODES` for which there is memory.

  Args:
    index: of the records.
    fits: `[n, 2]`, the size that each image is fitted into.
    options: `transforms.TransformOptions`.
  """
  originals = np.stack([index.heights, index.widths], axis=-1)
  exact = options.resize.exact_sizes
  sizes, _ = resizing.resized_size(originals, fits, exact)
  pixels = int(np.sum(np.prod(sizes, axis=-1, dtype=np.int64)))
  bytes_per_pixel = 3 * np.dtype(options.image_dtype).itemsize
  # The crops of masks add a few hundredths to the images.
  num_bytes = pixels * bytes_per_pixel * (2 if options.flip else 1)
  # A row that is drawn would be the same for ever.
  if not options.augment.is_on and fits_in_memory(num_bytes):
    return 'rows'
  is_small = fits_in_memory(int(index.lengths.sum()))
  return 'records' if is_small else 'nothing'


def memory_bytes(root: str | os.PathLike = '/') -> int | None:
  """Memory of the machine or of the container around it, whichever is less.

  Args:
    root: folder of `proc` and `sys`.

  Returns:
    Bytes; None where the system does not say.
  """
  limits = []
  for name, (pattern, unit) in _LIMITS.items():
    with contextlib.suppress(OSError):
      found = re.search(pattern, pathlib.Path(root, name).read_text())
      limits += [int(found[1]) * unit] if found else []
  return min(limits, default=None)


def has_plenty_of_memory() -> bool:
  """Whether to cache and to read far ahead."""
  limit = memory_bytes()
  return limit is not None and limit >= PLENTY_BYTES


def limit_bytes() -> int | None:
  """Limit of the cache of every process of this machine; None if unknown.

  Half of the memory, for all of them.
  """
  limit = memory_bytes()
  # Processes of mpirun share the machine.
  processes = int(os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', 1))
  return None if limit is None else limit // 2 // processes


def fits_in_memory(num_bytes: int) -> bool:
  """Whether every process of this machine may cache this many bytes."""
  return has_plenty_of_memory() and num_bytes <= limit_bytes()


class Cache:
  """Arrays by key, up to a limit; several threads may use it.

  Attributes:
    num_bytes: size of all values.
  """

  def __init__(self, limit: int | None = None):
    """An empty cache of up to `limit` bytes; None: without a limit."""
    self.num_bytes = 0
    self._limit = limit
    self._values = {}
    self._lock = threading.Lock()

  def get(self, key: tuple) -> list | None:
    """Copies of the values of a key; None if there are none."""
    values = self._values.get(key)
    if values is None:
      return None
    # TensorFlow may write into what it is given.
    return [_copy(value) for value in values]

  def put(self, key: tuple, values: list) -> None:
    """Stores copies of arrays and bytes, if there is room for them."""
    size = sum(len(x) if isinstance(x, bytes) else x.nbytes for x in values)
    with self._lock:
      is_full = self._limit is not None and self.num_bytes + size > self._limit
      if is_full or key in self._values:
        return
      self._values[key] = [_copy(value) for value in values]
      self.num_bytes += size


def _copy(value):
  return value if isinstance(value, bytes) else np.array(value)


def cached(cache: Cache, dataset: tf.data.Dataset, key) -> tf.data.Dataset:
  """A dataset of one element that is made only once for a key; inside tf.data.

  Args:
    cache: stores the elements.
    dataset: of one element or none; none is not stored.
    key: integers or bools that the element depends on, scalar tensors.
  """
  spec = dataset.element_spec
  leaves = tf.nest.flatten(spec)
  dtypes = [leaf.dtype for leaf in leaves]
  blanks = [
    b''
    if leaf.dtype == tf.string
    else np.zeros([side or 0 for side in leaf.shape], leaf.dtype.name)
    for leaf in leaves
  ]

  def look_up(*key):
    values = cache.get(tuple(map(int, key)))
    return [values is not None, *(values or blanks)]

  def put(*arguments):
    cache.put(tuple(map(int, arguments[: len(key)])), arguments[len(key) :])
    return True

  def store(element):
    values = tf.nest.flatten(element)
    done = tf.numpy_function(put, [*key, *values], tf.bool)
    with tf.control_dependencies([done]):
      return tf.nest.map_structure(tf.identity, element)

  hit, *values = tf.numpy_function(look_up, key, [tf.bool, *dtypes])
  values = [tf.ensure_shape(x, leaf.shape) for x, leaf in zip(values, leaves)]
  found = tf.data.Dataset.from_tensors(tf.nest.pack_sequence_as(spec, values))
  found = found.take(tf.cast(hit, tf.int64))
  return found.concatenate(dataset.map(store)).take(1)
