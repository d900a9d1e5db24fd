"""Iterators over batches as NumPy arrays, open until the interpreter exits."""

import atexit
import itertools
import weakref
from collections.abc import Iterator

import tensorflow as tf

from maskrcnn_jax.input_pipeline.faults import Tally


class Batches:
  """Iterator over the batches of a dataset, which counts faults.

  The dataset's threads call Python. Its destructor waits for them, so it must
  not run while the interpreter exits: iterators that are still open then, such
  as those at the top of a script, are closed just before.

  Attributes:
    element_spec: of a batch.
    tally: of faults, see `faults.Tally`.
  """

  def __init__(self, dataset: tf.data.Dataset, repeat_first: bool = False):
    """Starts reading.

    Args:
      dataset: of `reader.read_batches`.
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
    """Skipped images and objects of this process so far, by kind of fault."""
    return dict(self.tally.counts)

  def close(self) -> None:
    """Stops reading; there is no batch after it."""
    self._batches = iter(())


class TrainBatches(Batches):
  """Endless batches of one host, which can be resumed.

  Attributes:
    position: `examples` and `salt` of the next batch, to resume from.
  """

  def __init__(
    self,
    dataset: tf.data.Dataset,
    batch_size: int,
    position: dict[str, int],
    repeat_first: bool,
    max_unreadable_share: float,
  ):
    """Starts reading; see `batches.train_batches` for the last two arguments.

    Args:
      dataset: endless batches of this host's rows.
      batch_size: rows of the global batch.
      position: of the first batch.
    """
    super().__init__(dataset, repeat_first)
    self._batch_size = batch_size
    self._max_unreadable_share = max_unreadable_share
    self.position = position

  def __next__(self) -> dict:
    batch = super().__next__()
    self.tally.check(self._max_unreadable_share)
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
