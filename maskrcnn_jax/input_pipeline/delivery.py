"""Batches as NumPy arrays, faults counted, until the interpreter exits."""

import atexit
import itertools
import weakref
from collections.abc import Iterator

import tensorflow as tf

from maskrcnn_jax.input_pipeline.faults import Tally


class DeliveredBatches:
  """A dataset's batches, one after the other.

  The dataset's threads call Python. Its destructor waits for them, so it must
  not run when the interpreter has begun to go: what is still open then, such as
  an iterator at the top of a script, is closed just before.

  Attributes:
    element_spec: of a batch.
    tally: of what was left out.
  """

  def __init__(self, dataset: tf.data.Dataset, repeat_first: bool = False):
    """Starts reading.

    Args:
      dataset: see `reader.batched`.
      repeat_first: return the first batch for ever.
    """
    self._batches = dataset.as_numpy_iterator()
    if repeat_first:
      self._batches = itertools.repeat(next(self._batches))
    self.element_spec = _without_faults(dataset.element_spec)
    self.tally = Tally()
    _OPEN.add(self)

  def __iter__(self) -> Iterator[dict]:
    return self

  def __next__(self) -> dict:
    batch = next(self._batches)
    self.tally.add(batch, batch['faults'])
    return _without_faults(batch)

  @property
  def counts(self) -> dict[str, int]:
    """How many images and objects were left out so far, by kind."""
    return dict(self.tally.counts)

  def close(self) -> None:
    """Stops reading; there is no batch after it."""
    self._batches = iter(())


def _without_faults(batch):
  return {key: batch[key] for key in batch if key != 'faults'}


_OPEN = weakref.WeakSet()


# Registered after TensorFlow's own functions, so it runs before them.
@atexit.register
def close_all() -> None:
  """Closes every iterator of this process that is still open."""
  for batches in list(_OPEN):
    batches.close()
