"""Geometry of polygons: flat lists x, y, x, y, ... in pixels."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from maskrcnn_jax.errors import UserError

# The search for crossings: pairs of edges, and those for each edge; pairs at a
# time; strips, and how many of them an edge may meet on average.
_MOST_PAIRS, _PAIRS_OF_EDGE, _PAIRS = 2**16, 64, 2**16
_STRIPS, _STRIPS_OF_EDGE = (1, 16, 256), 4
_FEW_EDGES = 32  # All pairs of so few are compared.


def closed(polygon: Sequence[float]) -> np.ndarray:
  """Corners `[n + 1, 2]` of a flat list x, y, ..., the first again at last."""
  corners = np.array(polygon, np.float64).reshape(-1, 2)
  return np.concatenate([corners, corners[:1]])


def area(polygon: Sequence[float]) -> float:
  """Area of a flat list x, y, x, y, ... by the shoelace formula.

  Lobes that wind the other way subtract.
  """
  corners = closed(polygon)
  # From the first corner, so that far away ones lose no digits.
  x, y = (corners - corners[:1]).T
  return float(abs(np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:])) / 2)


def find_crossing(polygon: Sequence[float]) -> tuple[float, float] | None:
  """A point `(x, y)` at which a polygon crosses itself, if any.

  Edges that touch, or run along each other, do not cross.

  Args:
    polygon: flat list x, y, x, y, ... of finite numbers; corners may repeat.

  Raises:
    UserError: too many edges lie side by side to compare all of them.
  """
  corners = closed(polygon)
  edges = np.stack([corners[:-1], corners[1:]], axis=1)
  edges = edges[(edges[:, 0] != edges[:, 1]).any(axis=1)]
  for first, second in _side_by_side(edges):
    (a, b), (p, q) = edges[first].swapaxes(0, 1), edges[second].swapaxes(0, 1)
    crosses = _separates(a, b, p, q) & _separates(p, q, a, b)
    if crosses.any():
      a, b, p, q = (each[np.argmax(crosses)] for each in (a, b, p, q))
      near, far = abs(_side(p, q, a)), abs(_side(p, q, b))
      x, y = a + (b - a) * near / (near + far)
      return float(x), float(y)
  return None


def _side_by_side(edges) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields indices of both edges of all pairs that may meet, in parts."""
  if len(edges) <= _FEW_EDGES:
    yield _all_pairs(len(edges))
    return
  strips = [count for count in _STRIPS if 8 * count < len(edges)]
  sweeps = (_sweep(edges, axis, x) for axis in (0, 1) for x in strips)
  sweeps = filter(None, sweeps)
  counts, order = min(sweeps, key=lambda each: each[0].sum() + each[0].size)
  ends = np.cumsum(counts)
  begin = done = 0
  while begin < len(counts):
    if done > _MOST_PAIRS + _PAIRS_OF_EDGE * len(edges):
      raise UserError(f'has {len(edges)} edges, too many side by side')
    end = max(begin + 1, np.searchsorted(ends, done + _PAIRS, 'right'))
    part = counts[begin:end]
    first = np.repeat(np.arange(begin, end), part)
    begins = np.repeat(ends[begin:end] - part - done, part)
    second = first + 1 + np.arange(len(first)) - begins
    yield order[first], order[second]
    begin, done = end, ends[end - 1]


@functools.cache
def _all_pairs(count) -> tuple[np.ndarray, np.ndarray]:
  return np.triu_indices(count, 1)


def _sweep(edges, axis, count) -> tuple[np.ndarray, np.ndarray] | None:
  """Edges in the order of their begin along an axis, in strips across it.

  An edge is in every strip that it meets.

  Returns:
    How many of the following edges begin before the end of each, and the
    indices of the edges; None if edges are too long for these strips.
  """
  low, high = np.sort(edges[..., axis], axis=1).T
  order, shift = np.arange(len(edges)), 0
  if count > 1:
    across = np.sort(edges[..., 1 - axis], axis=1)
    across -= across.min()
    across *= count / max(across.max(), 1e-9)
    first, last = np.minimum(across, count - 1).astype(int).T
    strips = last - first + 1
    if strips.sum() > _STRIPS_OF_EDGE * len(edges):
      return None
    order = np.repeat(order, strips)
    shift = np.arange(len(order)) - (np.cumsum(strips) - strips)[order]
    # Strips lie one behind the other.
    shift = (first[order] + shift) * (2 * (high.max() - low.min()) + 1)
  low, high = low[order] + shift, high[order] + shift
  place = np.argsort(low)
  ends = np.searchsorted(low[place], high[place], 'right')
  return ends - np.arange(len(place)) - 1, order[place]


def _separates(a, b, p, q):
  """Whether p and q lie on different sides of the line through a and b."""
  return _side(a, b, p) * _side(a, b, q) < 0.0


def _side(a, b, p):
  """Positive on one side of the line through a and b, negative on the other."""
  along, to = b - a, p - a
  return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]
