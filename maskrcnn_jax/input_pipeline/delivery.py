"""The batches of a dataset as NumPy arrays, until the interpreter exits."""

import atexit
import weakref
from collections.abc import Iterator

import tensorflow as tf


class DeliveredBatches:
  """A dataset's batches, one after the other.

  The dataset's threads call Python. Its destructor waits for them, so it must
  not run when the interpreter has begun to go: what is still open then, such as
  an iterator at the top of a script, is closed just before.
  """

  def __init__(self, dataset: tf.data.Dataset):
    """Starts reading."""
    self._batches = dataset.as_numpy_iterator()
    _OPEN.add(self)

  def __iter__(self) -> Iterator[dict]:
    return self

  def __next__(self) -> dict:
    return next(self._batches)

  def close(self) -> None:
    """Stops reading; there is no batch after it."""
    self._batches = iter(())


_OPEN = weakref.WeakSet()


# Registered after TensorFlow's own functions, so it runs before them.
@atexit.register
def close_all() -> None:
  """Closes every iterator of this process that is still open."""
  for batches in list(_OPEN):
    batches.close()
