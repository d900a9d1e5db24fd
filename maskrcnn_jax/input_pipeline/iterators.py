"""Iterators over batches as NumPy arrays, open until the interpreter exits."""

import atexit
import itertools
import weakref
from collections.abc import Iterator

import tensorflow as tf

from maskrcnn_jax.input_pipeline.faults import Tally


class Batches:
  """Batches of one host, whose faults are counted.

  The dataset's threads call Python. Its destructor waits for them, so it must
  not run while the interpreter exits: iterators that are still open then, such
  as those at the top of a script, are closed just before.

  Attributes:
    element_spec: of a batch.
    tally: of faults, see `faults.Tally`.
    position: of training batches, `examples` and `salt` of the next one, to
      resume from.
  """

  def __init__(
    self,
    dataset: tf.data.Dataset,
    batch_size: int = 0,
    position: dict[str, int] | None = None,
    repeat_first: bool = False,
    max_unreadable_share: float | None = None,
  ):
    """Starts reading; see `batches.train_batches` for the last two arguments.

    Args:
      dataset: of `reader.read_batches`.
      batch_size: rows of the global batch.
      position: of the first batch.
    """
    self._batches = dataset.as_numpy_iterator()
    if repeat_first:
      self._batches = itertools.repeat(next(self._batches))
    self.element_spec = _without_faults(dataset.element_spec)
    self.tally = Tally()
    self.position = position
    self._batch_size = batch_size
    self._max_unreadable_share = max_unreadable_share
    _OPEN.add(self)

  def __iter__(self) -> Iterator[dict]:
    return self

  def __next__(self) -> dict:
    batch = next(self._batches)
    self.tally.add(batch, batch['faults'])
    if self._max_unreadable_share is not None:
      self.tally.check(self._max_unreadable_share)
    if self.position is not None:
      examples = self.position['examples'] + self._batch_size
      self.position = {**self.position, 'examples': examples}
    return _without_faults(batch)

  @property
  def counts(self) -> dict[str, int]:
    """Skipped images and objects of this process so far, by kind of fault."""
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
