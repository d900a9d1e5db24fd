"""Adaptive sampling of RoIAlign: samples of a bin as many as it has cells.

`sampling_ratio=0` of Detectron2: ceil(side / bins) samples along an axis.
Neighbouring samples are at most a cell apart, so a bin of h x w samples covers
(h + 1) x (w + 1) cells at most, a number that the area of a box bounds. Those
cells are counted through, row by row, each with the sum of the weights that the
samples give it: fewer reads than four for every sample.
"""

import math

import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.ops import weighted_sums


def bin_taps(axes, bins, options, offsets) -> weighted_sums.Taps:
  """Cells and weights `[n, rows, columns]` of bins under adaptive sampling.

  Args:
    axes: of rows and columns: first and last coordinate `[n]` of the boxes in
      cells, and the length of their maps, `[n]` or a number.
    bins: number of rows and columns.
    options: `roi_align.RoiAlignOptions` with `adaptive_side`.
    offsets: first cell of the map of each box, `[n]` or a number.
  """
  most = math.prod(math.ceil(options.adaptive_side / x) + 1 for x in bins)
  counts = [
    _sample_counts(starts, ends, number, options)
    for (starts, ends, _), number in zip(axes, bins)
  ]
  # The shorter side keeps all of its cells as long as they fit into a square.
  wanted = [count + 1 for count in counts]
  shorter = jnp.minimum(jnp.minimum(*wanted), math.isqrt(most))
  longest = most // 2  # Beside a row or column of one sample, two cells wide.
  longer = jnp.minimum(most // shorter, longest)
  numbers = [
    jnp.where(own <= other, jnp.minimum(own, shorter), jnp.minimum(own, longer))
    for own, other in (wanted, wanted[::-1])
  ]
  axes_taps = [
    _taps(*axis, number, count, taps, longest, options)
    for axis, number, count, taps in zip(axes, bins, counts, numbers)
  ]
  # The cells of a bin, counted through: their row and column among the taps.
  places = jnp.divmod(np.arange(most), numbers[1][:, None])  # [n, most] each.
  (rows, above), (columns, beside) = (
    [jnp.take_along_axis(x, place[:, None], axis=-1, mode='clip') for x in taps]
    for taps, place in zip(axes_taps, places)
  )  # [n, bins, most] each.
  above = jnp.where((places[0] < numbers[0][:, None])[:, None], above, 0.0)
  widths, offsets = (
    jnp.broadcast_to(x, counts[0].shape)[:, None, None]
    for x in (axes[1][2], offsets)
  )
  rows = offsets + rows * widths
  taps = [
    (
      rows[:, :, None, tap] + columns[:, None, :, tap],
      above[:, :, None, tap] * beside[:, None, :, tap],
    )
    for tap in range(most)
  ]
  indices, weights = zip(*taps)
  return indices, weights


def _sample_counts(starts, ends, size, options):
  """Samples `[n]` int32 of a bin along one axis: its cells, rounded up."""
  shift = 0.5 * options.half_pixel
  # Rounded as where the weights come from, since the count jumps at integers.
  sides = (ends - shift) - (starts - shift)
  if options.min_side > 0.0:
    sides = jnp.maximum(sides, options.min_side)
  counts = jnp.clip(jnp.ceil(sides / size), 0.0, 2.0**20)
  return counts.astype(jnp.int32)


def _taps(starts, ends, lengths, size, counts, taps, most, options):
  """Indices and weights `[n, size, most]` of the cells of each bin on one axis.

  Args:
    starts: `[n]` first coordinate of each box.
    ends: `[n]` last coordinate.
    lengths: of the map, per box or for all.
    size: number of bins.
    counts: `[n]` samples of a bin.
    taps: `[n]` cells of a bin. Fewer than `counts + 1`: they are the samples,
      as many as there are taps, at the nearest cell.
    most: length of the result.
    options: see `RoiAlignOptions`.
  """
  sides = ends - starts
  if options.min_side > 0.0:
    sides = jnp.maximum(sides, options.min_side)
  steps = (sides / size)[:, None, None]
  lengths = jnp.broadcast_to(lengths, starts.shape)[:, None, None]
  last = (lengths - 1).astype(jnp.float32)
  bins = starts[:, None, None] + np.arange(size)[:, None] * steps
  bins -= 0.5 * options.half_pixel

  def positions(number):  # [n, size, most], in the map, with their weights.
    places = (np.arange(most, dtype=np.float32) + 0.5) / jnp.maximum(number, 1)
    found = bins + places * steps
    is_sample = np.arange(most) < number
    is_sample &= (found >= -1.0) & (found <= lengths)
    weights = jnp.where(is_sample, 1.0 / jnp.maximum(number, 1), 0.0)
    return jnp.clip(found, 0.0, last), weights

  counts, taps = counts[:, None, None], taps[:, None, None]
  exact, weights = positions(counts)
  first = jnp.floor(exact[..., :1])
  cells = first + np.arange(most, dtype=np.float32)
  hats = 1.0 - jnp.abs(exact[..., None, :] - cells[..., None])
  shares = jnp.sum(jnp.maximum(hats, 0.0) * weights[..., None, :], axis=-1)
  nearest, equal = positions(taps)
  is_exact = taps > counts
  cells = jnp.where(is_exact, cells, jnp.round(nearest))
  indices = jnp.minimum(cells, last).astype(jnp.int32)
  return indices, jnp.where(is_exact, shares, equal)
