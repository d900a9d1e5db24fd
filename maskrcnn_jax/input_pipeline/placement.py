"""Placement of an augmented image on its canvas: sizes, pixel maps and boxes.

A placement is computed from the size of an image and a draw, before any pixel
is touched. Coordinates are continuous, the pixel in row i covers [i, i + 1).
NumPy only.
"""

import dataclasses

import numpy as np

from maskrcnn_jax.input_pipeline.augment import Draw, PixelCrop


@dataclasses.dataclass(frozen=True)
class Placement:
  """An image that was turned, mirrored, cropped, scaled, and cut to its canvas.

  The turned and mirrored image is called upright here.

  Attributes:
    original: (height, width) of the image as it is stored.
    draw: what was drawn.
    crop: (y, x, height, width) of the random crop, in upright pixels.
    scaled: (height, width) of the scaled crop.
    offset: (y, x) of the first pixel of `scaled` that the canvas shows.
    size: (height, width) that the canvas shows of it, from its corner on.
  """

  original: np.ndarray
  draw: Draw
  crop: np.ndarray
  scaled: np.ndarray
  offset: np.ndarray
  size: np.ndarray

  @property
  def upright(self) -> np.ndarray:
    """(height, width) of the turned image."""
    return self.original[:: -1 if self.draw.turns % 2 else 1]

  @property
  def step(self) -> np.ndarray:
    """Pixels of the image for each pixel of the canvas, along both axes."""
    return self.crop[2:] / self.scaled


def place(draw: Draw, image_size, fit) -> Placement:
  """Places an image on a canvas.

  Rounding, scale and offset are those of Detectron2's RandomCrop,
  ResizeShortestEdge, ResizeScale and FixedSizeCrop. A crop of a resized image
  is the part of the image itself that it shows, to whole pixels, so that the
  image is resized once.

  Args:
    draw: parameters.
    image_size: (height, width) of the stored image.
    fit: (height, width) that an image may fill of the canvas.
  """
  original, fit = np.asarray(image_size), np.asarray(fit)
  upright = original[:: -1 if draw.turns % 2 else 1]
  shares = draw.crop_shares
  if draw.pixel_crop:
    shares = _shares_of(draw.pixel_crop, upright, np.max(fit))
  kept = np.floor(upright * shares + 0.5).astype(int)
  kept = np.clip(kept, 1, upright)
  corner = np.floor((upright - kept + 1) * draw.crop_position).astype(int)
  if draw.short_edge is None:
    scaled = np.round(kept * np.min(fit * draw.scale / kept))
  else:
    longest = np.max(fit)
    scale = min(draw.short_edge / np.min(kept), longest / np.max(kept))
    # Only an image of another orientation than its canvas is limited here.
    scaled = np.floor(kept * min(scale, np.min(fit / kept)) + 0.5)
  scaled = np.maximum(scaled, 1).astype(int)
  rest = np.maximum(scaled - fit, 0)
  return Placement(
    original=original,
    draw=draw,
    crop=np.concatenate([corner, kept]),
    scaled=scaled,
    offset=np.round(rest * draw.offset).astype(int),
    size=np.minimum(scaled, fit),
  )


def _shares_of(crop: PixelCrop, upright, longest: int) -> np.ndarray:
  """Height and width of a crop, as shares of the image.

  Args:
    crop: what was drawn.
    upright: `[2]`, size of the image.
    longest: side that the resized image may have.
  """
  scale = min(crop.short_edge / np.min(upright), longest / np.max(upright))
  sides = np.maximum(np.floor(upright * scale + 0.5), 1)
  least, most = (np.minimum(sides, side) for side in crop.sides)
  return (least + np.floor((most - least + 1) * crop.shares)) / sides


def nearest_pixels(placed: Placement, half_pixel: bool = True):
  """The nearest pixel of the stored image for the pixels before a rotation.

  Args:
    placed: size and place of the image.
    half_pixel: nearest to the centres of pixels instead of to their corners.

  Returns:
    `[height]` and `[width]` int32, rows and columns of the stored image; after
    an odd number of quarter turns, columns and rows.
  """
  shift = 0.5 if half_pixel else 0.0
  axes = []
  for axis in (0, 1):
    shown = placed.offset[axis] + np.arange(placed.size[axis]) + shift
    nearest = np.floor(shown * placed.step[axis]).astype(np.int32)
    nearest = np.minimum(nearest, placed.crop[2 + axis] - 1)
    axes.append(nearest + placed.crop[axis])
  draw, last = placed.draw, placed.upright - 1
  # A quarter turn mirrors the first axis, the next one the second too.
  mirrored = (
    draw.vertical ^ (draw.turns in (1, 2)),
    draw.horizontal ^ (draw.turns in (2, 3)),
  )
  return tuple(
    (end - pixels if does else pixels).astype(np.int32)
    for pixels, end, does in zip(axes, last, mirrored)
  )


def source_pixels(placed: Placement, half_pixel: bool = True) -> np.ndarray:
  """The nearest pixel of the stored image for every pixel that is shown.

  Args:
    placed, half_pixel: see `nearest_pixels`.

  Returns:
    `[height, width]` int32, y * width + x in the stored image, or, in the
    corners that a rotation leaves empty, its number of pixels.
  """
  factors = (placed.original[1], 1)[:: -1 if placed.draw.turns % 2 else 1]
  rows, columns = (
    (pixels * factor).astype(np.int32)
    for pixels, factor in zip(nearest_pixels(placed, half_pixel), factors)
  )
  if not placed.draw.angle:
    return rows[:, None] + columns
  ys, xs = (np.arange(side) + 0.5 for side in placed.size)
  turned = rotated(placed, ys[:, None], xs, backward=True)
  ys, xs = (np.floor(x).astype(np.int32) for x in turned)
  (height, width), outside = placed.size, np.prod(placed.original)
  shown = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
  rows = rows[np.clip(ys, 0, height - 1)]
  columns = columns[np.clip(xs, 0, width - 1)]
  return np.where(shown, rows + columns, np.int32(outside))


def rotated(placed: Placement, ys, xs, backward: bool = False):
  """Points of the canvas turned around the centre of the shown image.

  Args:
    placed: size and place of the image.
    ys: any shape.
    xs: a shape that broadcasts with that of `ys`.
    backward: from the place after the rotation to the one before.

  Returns:
    `ys` and `xs`.
  """
  angle = np.deg2rad(placed.draw.angle) * (-1 if backward else 1)
  (cy, cx), (sin, cos) = placed.size / 2, (np.sin(angle), np.cos(angle))
  ys, xs = ys - cy, xs - cx
  return cy + cos * ys - sin * xs, cx + sin * ys + cos * xs


def place_boxes(placed: Placement, boxes: np.ndarray) -> np.ndarray:
  """Boxes on the canvas, not cut to it.

  Args:
    placed: size and place of the image.
    boxes: `[n, 4]`, as fractions of the stored image.

  Returns:
    `[n, 4]` float64 in pixels. Of a rotated box, the box around its corners.
  """
  draw = placed.draw
  y1, x1, y2, x2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
  y1, x1, y2, x2 = {
    0: (y1, x1, y2, x2),
    1: (1 - x2, y1, 1 - x1, y2),
    2: (1 - y2, 1 - x2, 1 - y1, 1 - x1),
    3: (x1, 1 - y2, x2, 1 - y1),
  }[draw.turns]
  if draw.vertical:
    y1, y2 = 1 - y2, 1 - y1
  if draw.horizontal:
    x1, x2 = 1 - x2, 1 - x1
  corners = np.stack([y1, x1, y2, x2], axis=-1).reshape(-1, 2, 2)
  corners = corners * placed.upright - placed.crop[:2]
  corners = corners / placed.step - placed.offset
  if draw.angle:
    ys, xs = corners[..., 0], corners[..., 1]
    turned = rotated(placed, ys[:, [0, 0, 1, 1]], xs[:, [0, 1, 0, 1]])
    turned = np.stack(turned, axis=-1)
    corners = np.stack([turned.min(axis=1), turned.max(axis=1)], axis=1)
  return corners.reshape(-1, 4)


def shown_objects(placed: Placement, boxes: np.ndarray):
  """Objects of which the canvas may show a pixel.

  Args:
    placed: size and place of the image.
    boxes: `[n, 4]`, as fractions of the stored image.

  Returns:
    `[m]` int32 numbers of the objects, ascending; `[m, 4]` float32 boxes in
    pixels of the canvas, cut to the image; `[m]` bool, whether the box was
    neither cut by a pixel nor rotated; and `[m, 4]` int32 the rows and columns
    that hold all pixels of the object.
  """
  found = place_boxes(placed, boxes)
  size = np.tile(placed.size, 2)
  # The mask of an object may be a pixel larger than its box.
  margin = np.tile(np.ceil(1.5 / placed.step), 2) * (-1, -1, 1, 1)
  regions = found + margin
  regions[:, :2] = np.floor(regions[:, :2])
  regions = np.clip(np.ceil(regions), 0, size).astype(np.int32)
  rows = np.flatnonzero(np.all(regions[:, 2:] > regions[:, :2], axis=-1))
  # A pixel is cut off with its centre.
  inside = np.all((found >= -0.5) & (found <= size + 0.5), axis=-1)
  whole = inside & (placed.draw.angle == 0.0)
  cut = np.clip(found, 0, size).astype(np.float32)
  return rows.astype(np.int32), cut[rows], whole[rows], regions[rows]
