"""Order of the data: the records of every batch, computed from integers alone.

The order never depends on a reader's state: that of an epoch is a permutation
drawn from (seed, salt, epoch), the epochs follow each other without a gap, and
a position is the number of examples before it. With repeats the length of an
epoch is drawn from the same three, so a position is found by adding the lengths
up. NumPy only.
"""

import bisect
import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np

from maskrcnn_jax.errors import UserError, invalid

FILLER = -1  # Instead of the row of a record, where a batch has no example.


@dataclasses.dataclass(frozen=True)
class BatchPlan:
  """The examples of one global batch.

  Attributes:
    rows: `[batch]` int64, rows of the record index, or FILLER.
    uses: `[batch]` int64, a number for each use of an example: the epoch, or
      with repeats the epoch times the most repeats plus those before it.
    canvas: index of the canvas that all of them share.
  """

  rows: np.ndarray
  uses: np.ndarray
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


def repeat_factors(
  classes: Sequence[Collection[int]], threshold: float
) -> np.ndarray:
  """How often an epoch shows each image, so that rare classes come up.

  A class in a share f of the images has the factor max(1, sqrt(threshold / f)),
  and an image the largest factor of its classes, or 1 without any.

  Args:
    classes: of every image.
    threshold: share of the images below which a class is shown more often.

  Returns:
    `[n]` float64, 1 or more.

  LVIS (Gupta et al. 2019), Sec. 4.3 and Appendix.
  """
  counts = collections.Counter(x for each in classes for x in {*each})
  factors = {
    x: max(1.0, math.sqrt(threshold * len(classes) / count))
    for x, count in counts.items()
  }
  return np.array([max((factors[x] for x in c), default=1.0) for c in classes])


def draw_repeats(
  factors: np.ndarray, seed: int, salt: int, epoch: int
) -> np.ndarray:
  """`[n]` int64 times that an epoch shows each example.

  A factor is rounded up with the probability of its fraction, for each epoch
  and example anew, as by Detectron2's `RepeatFactorTrainingSampler`.

  Args:
    factors: see `repeat_factors`; for the others see `epoch_order`.
  """
  # The leading 2 keeps these draws apart from those of the epochs' orders.
  bits = np.random.Philox(np.random.SeedSequence([2, seed, salt, epoch]))
  uniform = (bits.random_raw(len(factors)) >> np.uint64(11)) * 2.0**-53
  whole = np.floor(factors)
  return (whole + (uniform < factors - whole)).astype(np.int64)


def example_seed(seed: int, salt: int, use: int, row: int) -> np.ndarray:
  """`[2]` int64 for stateless ops, different for each use of each example."""
  # The leading 1 keeps these draws apart from those of the epochs' orders.
  entropy = np.random.SeedSequence([1, seed, salt, use, row])
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
  without the order of earlier ones, so any batch is found directly.
  """

  def __init__(
    self,
    canvas_indices: np.ndarray,
    batch_size: int,
    seed: int = 0,
    salt: int = 0,
    block_size: int = 1,
    factors: np.ndarray | None = None,
  ):
    """Prepares the order; see `epoch_order` for the other arguments.

    Args:
      canvas_indices: `[num_examples]`, the canvas of every example.
      batch_size: examples in a global batch.
      factors: `[num_examples]`, see `repeat_factors`; None: every epoch shows
        each example once.
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
    self._batch_size, self._block_size = batch_size, block_size
    self._key, self._factors = (seed, salt), factors
    self._canvases, self._counts = np.unique(canvas_indices, return_counts=True)
    self._most = 1 if factors is None else int(np.ceil(np.max(factors)))
    # With factors, examples of every canvas before every epoch looked at.
    self._starts = [0 * self._counts]
    self._members = functools.lru_cache(maxsize=4)(self._draw_members)
    self._ends = functools.lru_cache(maxsize=2)(self._find_ends)

  def batch(self, examples: int) -> BatchPlan:
    """The global batch that begins after `examples` examples.

    With several canvases a position that is not a multiple of the batch size,
    from a run with another one, means the batch it falls into.
    """
    if examples < 0:
      raise ValueError(f'examples must be 0 or more, got {examples}.')
    if len(self._canvases) == 1:
      return self._slice(0, examples)
    number = examples // self._batch_size
    epoch = _last(lambda epoch: self._finished(epoch) <= number)
    group, last = self._ends(epoch)[number - self._finished(epoch)]
    return self._slice(int(group), int(last) + 1 - self._batch_size)

  def _repeats(self, epoch: int) -> np.ndarray:
    """`[num_examples]` times that an epoch shows each example."""
    if self._factors is None:
      return np.ones(len(self._canvas_indices), np.int64)
    return draw_repeats(self._factors, *self._key, epoch)

  def _start(self, epoch: int) -> np.ndarray:
    """Number of examples of every canvas before an epoch begins."""
    if self._factors is None:
      return epoch * self._counts
    while len(self._starts) <= epoch:
      repeats = self._repeats(len(self._starts) - 1)
      sizes = np.bincount(self._canvas_indices, weights=repeats)
      sizes = sizes[self._canvases].astype(np.int64)
      self._starts.append(self._starts[-1] + sizes)
    return self._starts[epoch]

  def _finished(self, epoch: int) -> int:
    """Number of complete batches before an epoch begins."""
    return int(np.sum(self._start(epoch) // self._batch_size))

  def _draw_epoch(self, epoch: int) -> np.ndarray:
    """`[n, 2]` row and use of the examples of an epoch, in its order."""
    repeats = self._repeats(epoch)
    rows = np.repeat(np.arange(len(repeats)), repeats)
    before = np.arange(len(rows)) - (np.cumsum(repeats) - repeats)[rows]
    examples = np.stack([rows, epoch * self._most + before], axis=-1)
    order = epoch_order(len(rows), *self._key, epoch, self._block_size)
    return examples[order]

  def _draw_members(self, epoch: int) -> list[np.ndarray]:
    """The examples of every canvas in an epoch's order."""
    examples = self._draw_epoch(epoch)
    canvases = self._canvas_indices[examples[:, 0]]
    return [examples[canvases == canvas] for canvas in self._canvases]

  def _find_ends(self, epoch: int) -> np.ndarray:
    """`[batches, 2]`: canvas group and rank in it of each batch's last row."""
    canvases = self._canvas_indices[self._draw_epoch(epoch)[:, 0]]
    positions, groups, ranks = [], [], []
    for group, canvas in enumerate(self._canvases):
      position = np.flatnonzero(canvases == canvas)
      rank = self._start(epoch)[group] + np.arange(len(position))
      full = (rank + 1) % self._batch_size == 0
      positions.append(position[full])
      groups.append(np.full(np.sum(full), group))
      ranks.append(rank[full])
    ends = np.stack([np.concatenate(groups), np.concatenate(ranks)], axis=-1)
    return ends[np.argsort(np.concatenate(positions))]

  def _slice(self, group: int, first: int) -> BatchPlan:
    """The batch of the examples from rank `first` on in their canvas' order."""
    epoch = _last(lambda epoch: self._start(epoch)[group] <= first)
    offset, parts = first - self._start(epoch)[group], []
    while sum(map(len, parts)) < self._batch_size:
      parts.append(self._members(epoch)[group][offset:])
      epoch, offset = epoch + 1, 0
    rows, uses = np.concatenate(parts)[: self._batch_size].T
    return BatchPlan(rows, uses, int(self._canvases[group]))


def _last(holds: Callable[[int], bool]) -> int:
  """The last number for which a condition holds, as it does from 0 on."""
  end = 1
  while holds(end):
    end *= 2
  return bisect.bisect_left(range(end), True, key=lambda n: not holds(n)) - 1


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
  return BatchPlan(plan.rows[part], plan.uses[part], plan.canvas)
