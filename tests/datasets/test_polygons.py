"""Geometry of polygons, by hand and by exact arithmetic."""

import fractions
import itertools

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import polygons
from maskrcnn_jax.errors import UserError

SQUARE = [1, 2, 5, 2, 5, 6, 1, 6]
BOW_TIE = [0, 0, 4, 4, 4, 0, 0, 4]
STAR = [50, 5, 78, 90, 5, 38, 95, 38, 22, 90]  # Five corners, every other one.


@pytest.mark.parametrize(
  'polygon, area',
  [
    (SQUARE, 16.0),
    (SQUARE[::-1], 16.0),
    ([x + 1e8 for x in SQUARE], 16.0),  # Far away.
    ([0, 0, 3, 0, 0, 4], 6.0),
    ([0, 0, 1, 1, 2, 2], 0.0),
    (BOW_TIE, 0.0),  # Its lobes wind in opposite ways.
    ([], 0.0),
  ],
)
def test_area_by_hand(polygon, area):
  assert polygons.area(polygon) == area


@pytest.mark.parametrize(
  'polygon, crossing',
  [
    (SQUARE, None),
    (BOW_TIE, (2.0, 2.0)),
    ([0, 0, 8, 4, 8, 0, 0, 4], (4.0, 2.0)),
    (SQUARE * 2, None),  # Twice around: edges lie on each other.
    ([*SQUARE, *SQUARE[:2]], None),  # Closed by its first corner.
    ([0, 0, 4, 0, 4, 4, 2, 0, 0, 4], None),  # A corner touches an edge.
    ([0, 0, 1, 1], None),
    ([3, 3] * 4, None),
    ([], None),
  ],
)
def test_crossings_by_hand(polygon, crossing):
  assert polygons.find_crossing(polygon) == crossing


def test_an_area_surrounded_twice_is_not_in_the_mask():
  assert polygons.find_crossing(STAR)
  mask = coco_mask.decode(coco_mask.frPyObjects([STAR], 100, 100))[..., 0]
  assert not mask[52, 50]  # The middle.
  assert mask[25, 50]  # The upper point.


def test_crossings_agree_with_exact_arithmetic():
  rng = np.random.default_rng(0)
  found = set()
  for _ in range(300):
    polygon = rng.integers(0, 9, 2 * rng.integers(3, 8)).tolist()
    expected = _crosses(polygon)
    assert (polygons.find_crossing(polygon) is not None) == expected, polygon
    found.add(expected)
  assert found == {True, False}


def test_a_crossing_lies_on_two_edges():
  rng = np.random.default_rng(1)
  for _ in range(50):
    polygon = rng.random(2 * 9) * 100
    crossing = polygons.find_crossing(polygon)
    if crossing is None:
      continue
    corners = polygon.reshape(-1, 2)
    around = zip(corners, np.roll(corners, -1, axis=0))
    distances = sorted(
      np.linalg.norm(a - crossing)
      + np.linalg.norm(b - crossing)
      - np.linalg.norm(a - b)
      for a, b in around
    )
    np.testing.assert_allclose(distances[:2], 0, atol=1e-9)


def test_too_many_edges_side_by_side_are_not_searched():
  with pytest.raises(UserError):
    polygons.find_crossing([0, 0, 100, 100] * 2000)


def test_a_long_polygon_is_searched_to_its_end():
  angles = np.linspace(0, 2 * np.pi, 50_000, endpoint=False)
  points = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * 100
  assert polygons.find_crossing(points.ravel()) is None
  points[[49_000, 49_001]] = points[[49_001, 49_000]]
  x, y = polygons.find_crossing(points.ravel())
  np.testing.assert_allclose([x, y], points[49_000], atol=1.0)


def _crosses(polygon):
  """By fractions: two edges share one inner point, and are not parallel."""
  values = [fractions.Fraction(value) for value in polygon]
  corners = list(zip(values[::2], values[1::2]))
  edges = list(zip(corners, corners[1:] + corners[:1]))
  return any(
    _share_inner_point(*a, *b) for a, b in itertools.combinations(edges, 2)
  )


def _share_inner_point(a, b, c, d):
  """Solves a + s (b - a) = c + t (d - c) for s and t inside (0, 1)."""
  u, v = (b[0] - a[0], b[1] - a[1]), (d[0] - c[0], d[1] - c[1])
  w = (c[0] - a[0], c[1] - a[1])
  determinant = u[1] * v[0] - u[0] * v[1]
  if determinant == 0:
    return False
  s = (w[1] * v[0] - w[0] * v[1]) / determinant
  t = (u[0] * w[1] - u[1] * w[0]) / determinant
  return 0 < s < 1 and 0 < t < 1


def test_edges_in_strips_agree_with_all_pairs(monkeypatch):
  """Outlines of 300 corners, of which a few lie on the wrong side."""
  rng = np.random.default_rng(2)
  angles = np.linspace(0, 2 * np.pi, 300, endpoint=False)
  outline = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
  found = []
  for spread in np.linspace(0, 3, 40):
    waves = 100 + 20 * np.sin(30 * angles) + rng.normal(0, spread, 300)
    polygon = (outline * waves[:, None]).ravel()
    polygon += rng.normal(0, spread, 600)
    monkeypatch.setattr(polygons, '_FEW_EDGES', 32)
    crossing = polygons.find_crossing(polygon)
    monkeypatch.setattr(polygons, '_FEW_EDGES', 1000)
    expected = polygons.find_crossing(polygon)
    assert (crossing is None) == (expected is None)
    found.append(crossing is not None)
  assert 5 < sum(found) < 35


def test_work_grows_with_the_corners_of_a_ragged_outline():
  """30,000 corners on waves, where 200 edges lie above one another."""
  angles = np.linspace(0, 2 * np.pi, 30_000, endpoint=False)
  waves = 1000 + 50 * np.sin(600 * angles)
  points = np.stack([np.cos(angles), np.sin(angles)], -1) * waves[:, None]
  edges = np.stack([points, np.roll(points, -1, axis=0)], axis=1)
  pairs = sum(len(first) for first, _ in polygons._side_by_side(edges))
  assert pairs < 40 * len(points)
  assert polygons.find_crossing(points.ravel()) is None
  points[[9000, 9001]] = points[[9001, 9000]]
  crossing = polygons.find_crossing(points.ravel())
  np.testing.assert_allclose(crossing, points[9000], atol=10.0)
