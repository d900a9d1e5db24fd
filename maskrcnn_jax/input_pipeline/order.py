"""Order of the data: the records of every batch, computed from integers alone.

The order never depends on a reader's state: that of an epoch is a permutation
drawn from (seed, salt, epoch), the epochs follow each other without a gap, and
a position is the number of examples before it. NumPy only.
"""

import bisect
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from maskrcnn_jax.errors import UserError, invalid

FILLER = -1  # Instead of the row of a record, where a batch has no example.


@dataclasses.dataclass(frozen=True)
class BatchPlan:
  """The examples of one global batch.

  Attributes:
    rows: `[batch]` int64, rows of the record index, or FILLER.
    epochs: `[batch]` int64, times that each example was used before.
    canvas: index of the canvas that all of them share.
  """

  rows: np.ndarray
  epochs: np.ndarray
  canvas: int


def epoch_order(
  num_examples: int, seed: int, salt: int, epoch: int, block_size: int = 1
) -> np.ndarray:
  """The permutation of an epoch, `[num_examples]` int64.

  Args:
    num_examples: size of the data set.
    seed: of the run, not negative.
    salt: raised when a run is rewound and must see other data.
    epoch: counted from 0.
    block_size: neighbors that stay together, for storage where random reads
      are expensive; 1 permutes single examples.
  """
  num_blocks = -(-num_examples // block_size)
  # Raw bits of a named generator are the same in every NumPy release, which
  # Generator.permutation does not promise.
  bits = np.random.Philox(np.random.SeedSequence([seed, salt, epoch]))
  blocks = np.argsort(bits.random_raw(num_blocks), kind='stable')
  rows = blocks[:, None] * block_size + np.arange(block_size)
  rows = rows.reshape(-1)
  return rows[rows < num_examples]


def example_seed(seed: int, salt: int, epoch: int, row: int) -> np.ndarray:
  """`[2]` int64 for stateless ops, different for each use of each example."""
  # The leading 1 keeps these draws apart from those of the epochs' orders.
  entropy = np.random.SeedSequence([1, seed, salt, epoch, row])
  return entropy.generate_state(2, np.uint64).view(np.int64)


def assign_canvases(
  heights: np.ndarray, widths: np.ndarray, fit_sizes: Sequence[tuple[int, int]]
) -> np.ndarray:
  """For each image the canvas that shrinks it least; the first of equals.

  Args:
    heights: `[n]` of the original images.
    widths: `[n]`.
    fit_sizes: (height, width) that an image may fill on each canvas.

  Returns:
    `[n]` int64 indices into `fit_sizes`.
  """
  scales = [np.minimum(h / heights, w / widths) for h, w in fit_sizes]
  return np.argmax(np.stack(scales), axis=0)


class TrainOrder:
  """The endless sequence of global batches, each of one canvas.

  The epochs' permutations follow one another; an example waits with the others
  of its canvas, and when `batch_size` of them wait they become the next batch,
  across the ends of epochs. The number that waits when an epoch begins is known
  without going through earlier ones, so any batch is found directly.
  """

  def __init__(
    self,
    canvas_indices: np.ndarray,
    batch_size: int,
    seed: int = 0,
    salt: int = 0,
    block_size: int = 1,
  ):
    """Prepares the order; see `epoch_order` for the other arguments.

    Args:
      canvas_indices: `[num_examples]`, the canvas of every example.
      batch_size: examples in a global batch.
    """
    if len(canvas_indices) == 0:
      raise UserError(
        'input.file_pattern has no records.', argument='input.file_pattern'
      )
    if seed < 0:
      raise invalid('input.seed', seed, '0 or more')
    if salt < 0:
      raise ValueError(f'salt must be 0 or more, got {salt}.')
    self._canvas_indices = np.asarray(canvas_indices)
    self._batch_size = batch_size
    self._draw = functools.partial(
      epoch_order, len(canvas_indices), seed, salt, block_size=block_size
    )
    self._canvases, counts = np.unique(canvas_indices, return_counts=True)
    self._counts = [int(count) for count in counts]
    self._members = functools.lru_cache(maxsize=4)(self._draw_members)
    self._ends = functools.lru_cache(maxsize=2)(self._find_ends)

  def batch(self, examples: int) -> BatchPlan:
    """The global batch that begins after `examples` examples.

    With several canvases a position that is not a multiple of the batch size,
    from a run with another one, means the batch it falls into.
    """
    if examples < 0:
      raise ValueError(f'examples must be 0 or more, got {examples}.')
    if len(self._counts) == 1:
      return self._slice(0, examples)
    number = examples // self._batch_size
    # One more epoch than the batches need, for the examples that wait.
    waiting = len(self._counts) + 1
    limit = (number + waiting) * self._batch_size // sum(self._counts) + 2
    epoch = bisect.bisect_right(range(limit), number, key=self._finished) - 1
    group, last = self._ends(epoch)[number - self._finished(epoch)]
    return self._slice(int(group), int(last) + 1 - self._batch_size)

  def _finished(self, epoch: int) -> int:
    """Number of complete batches before an epoch begins."""
    return sum(epoch * count // self._batch_size for count in self._counts)

  def _draw_members(self, epoch: int) -> list[np.ndarray]:
    """The rows of every canvas in an epoch's order."""
    order = self._draw(epoch)
    canvases = self._canvas_indices[order]
    return [order[canvases == canvas] for canvas in self._canvases]

  def _find_ends(self, epoch: int) -> np.ndarray:
    """`[batches, 2]`: canvas group and rank in it of each batch's last row."""
    canvases = self._canvas_indices[self._draw(epoch)]
    positions, groups, ranks = [], [], []
    for group, canvas in enumerate(self._canvases):
      position = np.flatnonzero(canvases == canvas)
      rank = epoch * self._counts[group] + np.arange(len(position))
      full = (rank + 1) % self._batch_size == 0
      positions.append(position[full])
      groups.append(np.full(np.sum(full), group))
      ranks.append(rank[full])
    ends = np.stack([np.concatenate(groups), np.concatenate(ranks)], axis=-1)
    return ends[np.argsort(np.concatenate(positions))]

  def _slice(self, group: int, first: int) -> BatchPlan:
    """The batch of the examples from rank `first` on in their canvas' order."""
    ranks = first + np.arange(self._batch_size)
    epochs, offsets = np.divmod(ranks, self._counts[group])
    rows = [self._members(int(e))[group][o] for e, o in zip(epochs, offsets)]
    canvas = int(self._canvases[group])
    return BatchPlan(np.asarray(rows, np.int64), epochs, canvas)


def eval_plans(canvas_indices: np.ndarray, batch_size: int) -> list[BatchPlan]:
  """Every example once, canvas by canvas; the last batches are filled up."""
  plans = []
  for canvas in np.unique(canvas_indices):
    rows = np.flatnonzero(canvas_indices == canvas)
    num_batches = -(-len(rows) // batch_size)
    filled = np.full(num_batches * batch_size, FILLER, np.int64)
    filled[: len(rows)] = rows
    for batch in filled.reshape(num_batches, batch_size):
      plans.append(BatchPlan(batch, np.zeros_like(batch), int(canvas)))
  return plans


def host_rows(plan: BatchPlan, host_index: int, host_count: int) -> BatchPlan:
  """The part of a global batch that one host reads."""
  size = len(plan.rows) // host_count
  part = slice(host_index * size, (host_index + 1) * size)
  return BatchPlan(plan.rows[part], plan.epochs[part], plan.canvas)
