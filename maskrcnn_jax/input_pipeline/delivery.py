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


class TrainBatches:
  """Endless batches of one host.

  Attributes:
    element_spec: of a batch.
    position: `examples` and `salt` of the next batch, to resume from.
  """

  def __init__(
    self,
    dataset: tf.data.Dataset,
    batch_size: int,
    start_examples: int,
    salt: int,
    repeat_first: bool = False,
    max_unreadable_share: float = 0.05,
  ):
    """Wraps a dataset.

    Args:
      dataset: endless batches of this host's rows, see `reader.batched`.
      batch_size: rows of the global batch.
      start_examples: examples before the first batch.
      salt: see `order.epoch_order`.
      repeat_first: return the dataset's first batch for ever.
      max_unreadable_share: see `batches.train_batches`.
    """
    self._batches = DeliveredBatches(dataset, repeat_first)
    self.element_spec = self._batches.element_spec
    self._batch_size = batch_size
    self._max_unreadable_share = max_unreadable_share
    self.position = {'examples': start_examples, 'salt': salt}

  def __iter__(self) -> Iterator[dict]:
    return self

  @property
  def counts(self) -> dict[str, int]:
    """How many images and objects this process left out so far, by kind."""
    return self._batches.counts

  def __next__(self) -> dict:
    batch = next(self._batches)
    self._batches.tally.check(self._max_unreadable_share)
    examples = self.position['examples'] + self._batch_size
    self.position = {**self.position, 'examples': examples}
    return batch


def _without_faults(batch):
  return {key: batch[key] for key in batch if key != 'faults'}


_OPEN = weakref.WeakSet()


# Registered after TensorFlow's own functions, so it runs before them.
@atexit.register
def close_all() -> None:
  """Closes every iterator of this process that is still open."""
  for batches in list(_OPEN):
    batches.close()
