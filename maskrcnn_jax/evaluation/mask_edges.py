"""Edges of pasted masks: the pixels at which a mask begins or ends in a column.

No picture is made. Down a column of pixels the value is linear between two
cells of a mask, so the mask begins or ends there at most once, and only if 0.5
lies between the cells. The row of that edge follows from the cells; only the
pixel nearest to it is interpolated, in float32 as resizing would. So the cost
grows with the widths of the boxes and not with their areas. All masks of an
image are one ragged array.
"""

import dataclasses

import numpy as np

# Interpolation in float32 is off by less than 2 ** -22: a value farther than
# this from 0.5 lies on the side where exact arithmetic would have it.
_MARGIN = np.float32(1e-6)
# Values above are in a mask; with the continuous rule, 0.5 is too.
_THRESHOLDS = {
  'whole_pixels': np.float32(0.5),
  'continuous': np.nextafter(np.float32(0.5), np.float32(0)),
}


def expand_boxes(boxes: np.ndarray, mask_size: int) -> np.ndarray:
  """Whole-pixel boxes of masks padded by one cell on every side.

  Args:
    boxes: `[n, 4]` in pixels of the image.
    mask_size: cells along a side of a mask, without the padding.

  Returns:
    `[n, 4]` int64, the last pixels included, also outside the image.
  """
  boxes = np.asarray(boxes, np.float32)
  scale = np.float32((mask_size + 2) / mask_size)
  half_sizes = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5)
  centers = boxes[:, :2] + half_sizes
  half_sizes = half_sizes * scale
  corners = np.concatenate([centers - half_sizes, centers + half_sizes], axis=1)
  return np.trunc(corners).astype(np.int64)


def pasted_extents(boxes: np.ndarray, mask_size: int, rule: str) -> np.ndarray:
  """Edges of masks padded by one cell on every side.

  Args:
    boxes: `[n, 4]` in pixels of the image.
    mask_size: cells along a side of a mask, without the padding.
    rule: see `mask_pasting`.

  Returns:
    `[n, 4]` float64 in continuous pixels of the image.
  """
  if rule == 'whole_pixels':
    return expand_boxes(boxes, mask_size) + np.array([0.0, 0.0, 1.0, 1.0])
  if rule != 'continuous':
    raise ValueError(f'rule must be whole_pixels or continuous, got {rule!r}.')
  boxes = np.asarray(boxes, np.float32).astype(np.float64)
  cells = (boxes[:, 2:] - boxes[:, :2]) / mask_size
  return np.concatenate([boxes[:, :2] - cells, boxes[:, 2:] + cells], axis=1)


def find_edges(
  masks: np.ndarray,
  boxes: np.ndarray,
  image_size: tuple[int, int],
  rule: str = 'whole_pixels',
) -> tuple[np.ndarray, np.ndarray]:
  """Pixels at which the value of a mask changes, counted down the columns.

  Args:
    masks: `[n, size, size]` float probabilities over the boxes.
    boxes: `[n, 4]` in pixels of the image.
    image_size: (height, width) of the image.
    rule: see `mask_pasting`.

  Returns:
    Two int64 arrays in ascending order: the mask of each edge, and its pixel
    `column * height + row`, the first one of the other value. Background comes
    before the first edge of a mask.
  """
  height, width = image_size
  extents = pasted_extents(boxes, masks.shape[-1], rule)
  num_cells = masks.shape[-1] + 2
  rows = _cover(extents[:, 0], extents[:, 2], height, num_cells)
  columns = _cover(extents[:, 1], extents[:, 3], width, num_cells)
  if not len(rows.owners):
    # All boxes lie above or below the image.
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
  spans = _find_spans(_interpolate(masks, columns), rows, columns)
  which, row = _find_rows(spans, rows, _THRESHOLDS[rule])
  owners = spans.owners[which]
  column = spans.columns[which]
  column += (columns.starts - columns.offsets)[owners]
  row += (rows.starts - rows.offsets)[owners]
  return _cancel(owners, column * height + row, height * width)


@dataclasses.dataclass(frozen=True)
class _Pixels:
  """Rows or columns of an image that padded masks cover, box by box."""

  # `[n]` of each box: its first pixel in the image, the index of that pixel in
  # the arrays below, the distance from the edge of the padded mask to that
  # pixel, and cells per pixel.
  starts: np.ndarray
  offsets: np.ndarray
  cut: np.ndarray
  steps: np.ndarray
  # `[num_pixels]`: the box of each pixel, the last cell at or before its
  # center, and the float32 weight of the next cell.
  owners: np.ndarray
  cells: np.ndarray
  weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Spans:
  """Pairs of neighboring cells in a column that may have an edge between them.

  All are `[num_spans]`.
  """

  columns: np.ndarray  # Index of the column among those of all boxes.
  owners: np.ndarray  # The box of the column.
  cells: np.ndarray  # The first cell of the pair.
  # Indices, among the rows of all boxes, of the first row between the cells and
  # after the last one.
  first_rows: np.ndarray
  end_rows: np.ndarray
  lower: np.ndarray  # Float32 value of the first cell.
  upper: np.ndarray  # Of the second.


def _cover(low, high, length, num_cells):
  """The `_Pixels` of an image along one side between two edges of each box."""
  sides = np.where(high > low, high - low, 0.0)
  starts = np.clip(np.floor(low), 0, length).astype(np.int64)
  ends = np.clip(np.ceil(high), 0, length).astype(np.int64)
  counts = np.where(sides > 0, np.maximum(ends - starts, 0), 0)
  owners = np.repeat(np.arange(len(low)), counts)
  offsets = np.cumsum(counts) - counts
  cut = starts - low
  steps = num_cells / np.where(sides > 0, sides, 1.0)
  pixels = np.arange(len(owners)) + (cut - offsets)[owners]
  positions = (pixels + 0.5) * steps[owners] - 0.5
  cells = np.clip(np.floor(positions), 0, num_cells - 1)
  weights = np.clip(positions - cells, 0, 1).astype(np.float32)
  cells = cells.astype(np.int64)
  return _Pixels(starts, offsets, cut, steps, owners, cells, weights)


def _interpolate(masks, columns):
  """`[num_columns, num_cells]` values in the columns, at the rows of cells."""
  num_masks, size, _ = masks.shape
  num_cells = size + 2
  # A column of cells becomes a row of memory.
  padded = np.zeros((num_masks, num_cells, num_cells), np.float32)
  padded[:, 1:-1, 1:-1] = masks.transpose(0, 2, 1)
  padded = padded.reshape(-1, num_cells)
  first = columns.owners * num_cells
  left = padded[first + columns.cells]
  left *= (1 - columns.weights)[:, None]
  right = padded[first + np.minimum(columns.cells + 1, num_cells - 1)]
  right *= columns.weights[:, None]
  return np.add(left, right, out=left)


def _find_spans(values, rows, columns):
  """The pairs of cells whose values are not surely on one side of 0.5."""
  num_cells = values.shape[1]
  # Columns follow one another, parted by the zeros of the padding.
  values = values.reshape(-1)
  above = values > 0.5 + _MARGIN
  above_or_near = values > 0.5 - _MARGIN
  undecided = above_or_near[:-1] | above_or_near[1:]
  undecided &= ~(above[:-1] & above[1:])
  first = np.flatnonzero(undecided)
  column, cell = np.divmod(first, num_cells)
  owners = columns.owners[column]
  num_masks = len(columns.starts)
  row_index = np.searchsorted(
    rows.owners * num_cells + rows.cells, np.arange(num_masks * num_cells)
  )
  index = owners * num_cells + cell
  return _Spans(
    columns=column,
    owners=owners,
    cells=cell,
    first_rows=row_index[index],
    end_rows=row_index[index + 1],
    lower=values[first],
    upper=values[first + 1],
  )


def _find_rows(spans, rows, threshold):
  """The span of each edge, in ascending order, and the index of its row."""
  differ = (spans.lower > threshold) != (spans.upper > threshold)
  per_row = np.abs(spans.upper - spans.lower) * rows.steps[spans.owners]
  steep = differ & (per_row > _MARGIN)
  which = np.arange(len(steep))
  if steep.all():
    return which, _cross(spans, rows, threshold)
  steep_spans, flat_spans = (
    _Spans(**{name: array[keep] for name, array in vars(spans).items()})
    for keep in (steep, ~steep)
  )
  found, flat_rows = _sample(flat_spans, rows, threshold)
  which = np.concatenate([which[steep], which[~steep][found]])
  row = np.concatenate([_cross(steep_spans, rows, threshold), flat_rows])
  order = np.argsort(which, kind='stable')
  return which[order], row[order]


def _cross(spans, rows, threshold):
  """Index of the first row behind the point where a span crosses 0.5.

  The value changes by more than rounding from row to row, so only the row next
  to the crossing has to be computed.
  """
  lower, upper, owners = spans.lower, spans.upper, spans.owners
  part = (0.5 - lower.astype(np.float64)) / (upper - lower)
  nearest = (spans.cells + part + 0.5) / rows.steps[owners] - 0.5
  nearest = np.rint(nearest + (rows.offsets - rows.cut)[owners])
  nearest = nearest.astype(np.int64)
  # The row before the cells, if no row lies between them.
  nearest = np.minimum(
    np.maximum(nearest, spans.first_rows), spans.end_rows - 1
  )
  weights = rows.weights[nearest]
  inside = lower * (1 - weights) + upper * weights > threshold
  before = inside == (lower > threshold)
  return nearest + (before | (spans.first_rows == spans.end_rows))


def _sample(spans, rows, threshold):
  """The span of each edge and its row, by computing every row of the spans."""
  counts = spans.end_rows - spans.first_rows + 1
  ends = np.cumsum(counts)
  starts = ends - counts
  which = np.repeat(np.arange(len(counts)), counts)
  row = np.arange(len(which)) + (spans.first_rows - starts)[which]
  weights = rows.weights[np.minimum(row, len(rows.weights) - 1)]
  lower, upper = spans.lower[which], spans.upper[which]
  inside = lower * (1 - weights) + upper * weights > threshold
  # Behind the rows of a span comes its second cell, before them the first.
  inside[ends - 1] = spans.upper > threshold
  before = np.roll(inside, 1)
  before[starts] = spans.lower > threshold
  edges = np.flatnonzero(inside != before)
  return which[edges], row[edges]


def _cancel(owners, pixels, end):
  """The edges without pairs that undo each other, and without one at the end.

  Two edges at one pixel are none: between cells that have no pixel between
  them, above and below the image, and where a mask goes on from the last row of
  a column to the first row of the next.
  """
  keys = owners * (end + 1) + pixels
  changes = np.flatnonzero(keys[1:] != keys[:-1])
  if len(keys) and len(changes) < len(keys) - 1:
    last = np.append(changes, len(keys) - 1)
    last = last[np.diff(last, prepend=-1) % 2 == 1]
    owners, pixels = owners[last], pixels[last]
  keep = pixels < end
  return owners[keep], pixels[keep]
