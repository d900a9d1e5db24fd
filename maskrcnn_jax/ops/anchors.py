"""Anchors of a feature pyramid, as NumPy constants.

They depend on the static canvas alone, so nothing is computed on the device.
Anchors of a level are ordered by row, column, scale and aspect ratio; heads
that predict `[height, width, channels]` flatten to the same order.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class AnchorOptions:
  """Sizes, shapes and positions of anchors.

  Attributes:
    scale: side of a square anchor in cells of its level.
    scales_per_octave: anchor sizes of a level; each is
      2^(1 / scales_per_octave) times the one before.
    aspect_ratios: `(width, height)` multipliers of the side.
    rounded: corners are rounded to whole pixels relative to the centre
      (torchvision).
    centered: the first centre is half a stride from the edge, not on it.
    fitted_strides: the stride is canvas // feature size on each axis, which is
      less than 2^level where the canvas is no multiple of it (torchvision).
  """

  scale: float = 8.0
  scales_per_octave: int = 1
  aspect_ratios: tuple[tuple[float, float], ...] = (
    (1, 1),
    (1.4, 0.7),
    (0.7, 1.4),
  )
  rounded: bool = False
  centered: bool = True
  fitted_strides: bool = False


def anchors_per_cell(options: AnchorOptions) -> int:
  """Number of anchors in one cell of a level."""
  return options.scales_per_octave * len(options.aspect_ratios)


def pyramid_anchors(
  canvas: Sequence[int], levels: Sequence[int], options: AnchorOptions
) -> dict[int, np.ndarray]:
  """Anchors of a feature pyramid.

  Args:
    canvas: height and width of the network's input in pixels.
    levels: levels of the pyramid; a cell of level l covers 2^l pixels.
    options: see `AnchorOptions`.

  Returns:
    By level, float32 `[height * width * anchors_per_cell, 4]` boxes in pixels
    of the input, not clipped to it; the level has ceil(canvas / 2^l) cells.

  Feature Pyramid Networks (Lin et al. 2017), Sec. 4.1.
  """
  height, width = canvas
  if height < 1 or width < 1:
    raise ValueError(f'canvas must be two positive sizes, got {canvas}.')
  anchors = {}
  for level in levels:
    rows = _centers(height, level, options)
    columns = _centers(width, level, options)
    anchors[level] = place(cell_anchors(level, options), rows, columns)
  return anchors


def cell_anchors(level: int, options: AnchorOptions) -> np.ndarray:
  """Anchors `[anchors_per_cell, 4]` of a cell whose centre is the origin."""
  boxes = []
  for octave in range(options.scales_per_octave):
    side = options.scale * 2.0 ** (level + octave / options.scales_per_octave)
    for width, height in options.aspect_ratios:
      half_height, half_width = side * height / 2, side * width / 2
      boxes.append([-half_height, -half_width, half_height, half_width])
  boxes = np.array(boxes, np.float64)
  return np.round(boxes) if options.rounded else boxes


def place(
  cells: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
  """Copies of the anchors of a cell around the centres of a grid.

  Args:
    cells: `[a, 4]` boxes around the origin.
    rows: `[h]`, y of the centres.
    columns: `[w]`, x of the centres.

  Returns:
    `[h * w * a, 4]` float32.
  """
  y, x = np.meshgrid(rows, columns, indexing='ij')
  shifts = np.stack([y, x, y, x], axis=-1)  # [h, w, 4]
  boxes = shifts[:, :, None, :] + cells
  return boxes.reshape(-1, 4).astype(np.float32)


def _centers(size, level, options):
  """Coordinates of the centres of the cells along one axis."""
  stride = 2**level
  num_cells = -(-size // stride)
  if options.fitted_strides:
    stride = size // num_cells
  return (np.arange(num_cells) + 0.5 * options.centered) * stride
