"""Polygons of masks, with their holes, along the edges of pixels.

A polygon is `[n, 2]` float64 `(x, y)` in pixels, not closed. Pixels that touch
at a corner alone belong to different parts, as every part is one polygon.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


@dataclasses.dataclass(frozen=True)
class Part:
  """A connected part of a mask: its outline, and those of its holes."""

  outline: np.ndarray
  holes: tuple[np.ndarray, ...]


def find_parts(mask: np.ndarray, tolerance: float = 0.0) -> list[Part]:
  """The parts of a mask, the largest outline first.

  Args:
    mask: `[height, width]` bool.
    tolerance: largest distance in pixels of a corner that is left out, by
      Douglas and Peucker (1973); 0 keeps all corners.
  """
  rings = _trace(np.asarray(mask, bool))
  areas = [_area(ring) for ring in rings]
  # A ring is found from its upper left corner on; the pixel there is part of
  # the mask, or of a hole.
  is_outline = [bool(mask[int(y), int(x)]) for x, y in (r[0] for r in rings)]
  outlines = [i for i, outer in enumerate(is_outline) if outer]
  outlines.sort(key=lambda i: -areas[i])
  holes = {i: [] for i in outlines}
  for number, ring in enumerate(rings):
    if not is_outline[number]:
      # The pixel above the corner is part of the mask.
      point = ring[0] + [0.5, -0.5]
      around = [i for i in outlines if _contains(rings[i], point)]
      holes[around[-1]].append(_simplify(ring, tolerance))
  return [
    Part(_simplify(rings[i], tolerance), tuple(holes[i])) for i in outlines
  ]


def of_run_lengths(
  runs: Mapping[str, Any], tolerance: float = 0.0
) -> list[Part]:
  """The parts of a mask that is given as COCO's compressed run lengths."""
  left, top, width, height = map(int, coco_mask.toBbox(runs))
  mask = coco_mask.decode(runs)[top : top + height, left : left + width]
  offset = np.array([left, top], np.float64)
  return [
    Part(part.outline + offset, tuple(hole + offset for hole in part.holes))
    for part in find_parts(mask, tolerance)
  ]


def _trace(mask) -> list[np.ndarray]:
  """Closed rings of corners along the border, each from its upper left one.

  The corners in a line of the grid, in order, begin and end edges in turn; at
  a corner where two pixels touch diagonally an edge ends and another begins.
  """
  padded = np.pad(mask, 1)
  a, b, c, d = (
    padded[:-1, :-1],
    padded[:-1, 1:],
    padded[1:, :-1],
    padded[1:, 1:],
  )
  falling, rising = a & d & ~b & ~c, b & c & ~a & ~d  # The diagonals.
  ys, xs = np.nonzero((a ^ b ^ c ^ d) | falling | rising)
  times = 1 + (falling | rising)[ys, xs]
  second = np.arange(np.sum(times)) - np.repeat(np.cumsum(times) - times, times)
  ys, xs = np.repeat(ys, times), np.repeat(xs, times)
  # The first of two ends a horizontal edge. Where the pixel at the upper left
  # is part of the mask it belongs to this one, as does the vertical edge above.
  is_lower = np.where(rising[ys, xs], 1 - second, second)
  across = _partners(np.arange(len(ys)))
  down = _partners(np.lexsort((is_lower, ys, xs)))
  points = np.stack([xs, ys], axis=-1).astype(np.float64)
  left, rings = np.ones(len(ys), bool), []
  for start in range(len(ys)):
    ring, corner = [], start
    while left[corner]:
      other = across[corner]
      left[corner] = left[other] = False
      ring += [corner, other]
      corner = down[other]
    if ring:
      rings.append(points[ring])
  return rings


def _partners(order) -> np.ndarray:
  """The other end of the edge of every corner, for corners in order."""
  partners = np.empty_like(order)
  partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
  return partners


def _area(ring) -> float:
  x, y = ring.T
  return abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


def _contains(ring, point) -> bool:
  """Whether a point is inside: edges to the left of it are odd in number."""
  following = np.roll(ring, -1, axis=0)
  low, high = np.sort([ring[:, 1], following[:, 1]], axis=0)
  crossed = (low <= point[1]) & (point[1] < high) & (ring[:, 0] < point[0])
  return bool(np.sum(crossed) % 2)


def _simplify(ring, tolerance) -> np.ndarray:
  """A ring without the corners that lie near the line between others."""
  if tolerance <= 0 or len(ring) <= 4:
    return ring
  # Of a ring, two corners far from each other are kept.
  far = int(np.argmax(np.sum((ring - ring[0]) ** 2, axis=1)))
  closed = np.concatenate([ring, ring[:1]])
  keep = np.zeros(len(closed), bool)
  keep[[0, far, -1]] = True
  spans = [(0, far), (far, len(closed) - 1)]
  while spans:
    first, last = spans.pop()
    inner = closed[first + 1 : last]
    if not len(inner):
      continue
    distances = _distances(inner, closed[first], closed[last])
    worst = int(np.argmax(distances))
    if distances[worst] > tolerance:
      middle = first + 1 + worst
      keep[middle] = True
      spans += [(first, middle), (middle, last)]
  simple = closed[:-1][keep[:-1]]
  return simple if len(simple) > 2 and _area(simple) > 0 else ring


def _distances(points, start, end) -> np.ndarray:
  """Distances of points to the segment between two others."""
  along = end - start
  length = max(float(np.sum(along**2)), 1e-12)
  share = np.clip((points - start) @ along / length, 0.0, 1.0)
  return np.linalg.norm(points - start - share[:, None] * along, axis=1)
