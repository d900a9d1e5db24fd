"""Box operations: area, IoU, clipping, and coding relative to anchors.

Boxes are `[..., 4]` float32 arrays of `(y1, x1, y2, x2)` in input pixels.

Coordinates are continuous: the pixel in row i covers [i, i + 1), so a box's
height is y2 - y1. Published weights were partly trained with another rule, in
which the last row belongs to the box and its height is y2 - y1 + 1; there the
functions take `plus_one`. A padded box is all zeros; every function here is
finite on it, in value and in gradient.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Lower limit of sides, so that logarithms and quotients stay finite. The box
# coder of TensorFlow's Object Detection API, which made the RPN targets of the
# published weights, adds the same number to every side.
_SMALLEST_SIDE = 1e-8

# A side grows at most by this factor, from Detectron: 1000 pixels is a large
# object, 16 the coarsest stride of the first detectors.
_LARGEST_GROWTH = 1000.0 / 16.0


def area(boxes: jax.Array) -> jax.Array:
  """Areas `[...]` of boxes `[..., 4]`; 0 where a side is not positive."""
  _check_boxes('boxes', boxes)
  y1, x1, y2, x2 = _coordinates(boxes)
  return jnp.maximum(y2 - y1, 0.0) * jnp.maximum(x2 - x1, 0.0)


def pairwise_iou(boxes: jax.Array, others: jax.Array) -> jax.Array:
  """Intersection over union of every box with every other box.

  Args:
    boxes: `[..., n, 4]`.
    others: `[..., m, 4]`, with the same leading axes.

  Returns:
    `[..., n, m]` in [0, 1]; 0 where either box is empty.
  """
  _check_boxes('boxes', boxes)
  _check_boxes('others', others)
  boxes, others = boxes[..., :, None, :], others[..., None, :, :]
  y1, x1, y2, x2 = _coordinates(boxes)
  other_y1, other_x1, other_y2, other_x2 = _coordinates(others)
  # One coordinate at a time: without an intermediate [n, m, 2] array, XLA fuses
  # everything into one loop over pairs.
  height = jnp.minimum(y2, other_y2) - jnp.maximum(y1, other_y1)
  width = jnp.minimum(x2, other_x2) - jnp.maximum(x1, other_x1)
  intersection = jnp.maximum(height, 0.0) * jnp.maximum(width, 0.0)
  union = area(boxes) + area(others) - intersection
  # Divide by 1 where the union is empty, so that 0 / 0 never enters a gradient.
  return intersection / jnp.where(union > 0.0, union, 1.0)


def clip(
  boxes: jax.Array, image_sizes: jax.Array, plus_one: bool = False
) -> jax.Array:
  """Boxes clipped to their images.

  Args:
    boxes: `[..., n, 4]`.
    image_sizes: `[..., 2]`, height and width in pixels.
    plus_one: clip to size - 1, the last pixel, instead of to size.

  Returns:
    `[..., n, 4]`; a box outside the image has no area left.
  """
  _check_boxes('boxes', boxes)
  image_sizes = jnp.asarray(image_sizes, jnp.float32)
  if image_sizes.shape[-1:] != (2,):
    raise ValueError(f'image_sizes must be [..., 2], got {image_sizes.shape}.')
  limits = jnp.maximum(image_sizes - float(plus_one), 0.0)
  limits = jnp.concatenate([limits, limits], axis=-1)[..., None, :]
  return jnp.clip(boxes, 0.0, limits)


def encode(
  boxes: jax.Array,
  anchors: jax.Array,
  weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
  plus_one: bool = False,
) -> jax.Array:
  """Deltas from anchors to boxes.

  Args:
    boxes: `[..., 4]`.
    anchors: `[..., 4]`, broadcast against the boxes.
    weights: weights of dy, dx, dh and dw.
    plus_one: heights are y2 - y1 + 1, widths likewise.

  Returns:
    `[..., 4]` deltas `(dy, dx, dh, dw)`: shift of the centre as a share of the
    anchor's side, and logarithm of the ratio of the sides. Very large, but
    finite, where a side is not positive.

  R-CNN (Girshick et al. 2014), App. C, Eq. 6-9.
  """
  _check_boxes('boxes', boxes)
  _check_boxes('anchors', anchors)
  y, x, height, width = _centers_and_sides(boxes, plus_one)
  anchor_y, anchor_x, anchor_height, anchor_width = _centers_and_sides(
    anchors, plus_one
  )
  height = jnp.maximum(height, _SMALLEST_SIDE)
  width = jnp.maximum(width, _SMALLEST_SIDE)
  anchor_height = jnp.maximum(anchor_height, _SMALLEST_SIDE)
  anchor_width = jnp.maximum(anchor_width, _SMALLEST_SIDE)
  deltas = (
    (y - anchor_y) / anchor_height * weights[0],
    (x - anchor_x) / anchor_width * weights[1],
    jnp.log(height / anchor_height) * weights[2],
    jnp.log(width / anchor_width) * weights[3],
  )
  return jnp.stack(deltas, axis=-1)


def decode(
  deltas: jax.Array,
  anchors: jax.Array,
  weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
  plus_one: bool = False,
) -> jax.Array:
  """Boxes from anchors and deltas; the inverse of `encode`.

  Args:
    deltas: `[..., 4]`, `(dy, dx, dh, dw)`; a side grows 62.5 times at most.
    anchors: `[..., 4]`, broadcast against the deltas.
    weights: the weights given to `encode`.
    plus_one: heights are y2 - y1 + 1; a box less than a pixel high then has
      y2 < y1.

  Returns:
    `[..., 4]` boxes, not clipped.
  """
  _check_boxes('deltas', deltas)
  _check_boxes('anchors', anchors)
  dy, dx, dh, dw = (deltas[..., i] / weight for i, weight in enumerate(weights))
  anchor_y, anchor_x, anchor_height, anchor_width = _centers_and_sides(
    anchors, plus_one
  )
  largest = jnp.log(_LARGEST_GROWTH)
  height = jnp.exp(jnp.minimum(dh, largest)) * anchor_height
  width = jnp.exp(jnp.minimum(dw, largest)) * anchor_width
  y1 = dy * anchor_height + anchor_y - 0.5 * height
  x1 = dx * anchor_width + anchor_x - 0.5 * width
  y2 = y1 + height - float(plus_one)
  x2 = x1 + width - float(plus_one)
  return jnp.stack([y1, x1, y2, x2], axis=-1)


def _centers_and_sides(boxes, plus_one):
  y1, x1, y2, x2 = _coordinates(boxes)
  height = y2 - y1 + float(plus_one)
  width = x2 - x1 + float(plus_one)
  return y1 + 0.5 * height, x1 + 0.5 * width, height, width


def _coordinates(boxes):
  return tuple(boxes[..., i] for i in range(4))


def _check_boxes(name, boxes):
  if boxes.shape[-1:] != (4,):
    raise ValueError(f'{name} must be [..., 4], got {boxes.shape}.')
