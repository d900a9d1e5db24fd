"""What is wrong with the shape of a polygon, a flat list x, y, x, y, ..."""

from collections.abc import Sequence

import numpy as np

_EDGES_AT_A_TIME = 256  # So that a polygon of thousands needs little memory.


def polygon_area(polygon: Sequence[float]) -> float:
  """Area by the shoelace formula; lobes that wind the other way subtract."""
  x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
  # From the first corner, so that far away ones lose no digits.
  x, y = x - x[:1], y - y[:1]
  return float(abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2)


def find_crossing(polygon: Sequence[float]) -> tuple[float, float] | None:
  """Where a polygon first crosses itself, `(x, y)`; None if it never does.

  Edges that touch, or run along each other, do not cross.

  Args:
    polygon: finite numbers, corners may repeat.
  """
  points = np.asarray(polygon, np.float64).reshape(-1, 2)
  starts, ends = points, np.roll(points, -1, axis=0)
  keep = np.any(starts != ends, axis=1)
  starts, ends = starts[keep], ends[keep]
  for first in range(0, len(starts), _EDGES_AT_A_TIME):
    part = slice(first, first + _EDGES_AT_A_TIME)
    a, b = starts[part, None], ends[part, None]
    crosses = _are_apart(a, b, starts, ends) & _are_apart(starts, ends, a, b)
    rows, columns = np.nonzero(crosses)
    if len(rows):
      start, end = starts[first + rows[0]], ends[first + rows[0]]
      other, to = starts[columns[0]], ends[columns[0]]
      near, far = abs(_side(other, to, start)), abs(_side(other, to, end))
      x, y = start + (end - start) * near / (near + far)
      return float(x), float(y)
  return None


def _are_apart(a, b, p, q):
  """Whether p and q lie on different sides of the line through a and b."""
  return _side(a, b, p) * _side(a, b, q) < 0.0


def _side(a, b, p):
  """Positive on one side of the line through a and b, negative on the other."""
  along, to = b - a, p - a
  return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]
