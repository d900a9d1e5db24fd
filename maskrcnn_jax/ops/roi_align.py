"""RoIAlign on one map, and on a feature pyramid with FPN's level assignment.

Every output bin is a weighted sum of a few cells, and its weights separate into
rows and columns. Both are *taps*: cell indices and weights along one axis,
`[n, size, taps]`, two taps per sample. With adaptive sampling, neighbouring
samples share cells: a bin then has one tap per cell.

Coordinates are cells of the map; cell i is at coordinate i, as the published
weights need it, or at i + 0.5 with `half_pixel`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.ops import adaptive_sampling, weighted_sums

# FPN, Eq. 1: a box of 224 x 224 pixels, ImageNet's input size, is on level 4.
CANONICAL_SIDE = 224.0
CANONICAL_LEVEL = 4


@dataclasses.dataclass(frozen=True)
class RoiAlignOptions:
  """Sampling and levels of RoIAlign; the defaults are Habana's.

  Attributes:
    samples_per_bin: number of samples along each axis of a bin, averaged.
    adaptive_side: with a number, the samples of a bin are as many along each
      axis as it has cells, rounded up (`sampling_ratio=0` of Detectron2,
      instead of `samples_per_bin`); a box without a positive side has none and
      gives zeros. Shapes are static, so this holds for boxes up to that many
      cells a side and for longer ones of the same area; a larger box has its
      bins sampled at fewer cells. Boxes of their own level have up to 28 cells
      a side.
    half_pixel: cell i is at i + 0.5 instead of i ("aligned").
    min_level: finest pyramid level that boxes are assigned to.
    max_level: coarsest pyramid level that boxes are assigned to.
    level_epsilon: added to the level before it is rounded down (torchvision:
      1e-6).
    min_side: smallest side of a box in cells (torchvision without "aligned":
      1).
    zero_outside: value of samples outside the map. True (torchvision): zero
      before -1 and beyond the map's size, the edge's value in between. False:
      extrapolated linearly before the first cell, the edge's value beyond the
      last; boxes that are clipped to the image have neither.
    dtype: dtype in which features are resampled and gradients summed; None:
      that of the features.
  """

  samples_per_bin: int = 1
  adaptive_side: int | None = None
  half_pixel: bool = False
  min_level: int = 2
  max_level: int = 6
  level_epsilon: float = 0.0
  min_side: float = 0.0
  zero_outside: bool = False
  dtype: str | None = None

  def __post_init__(self):
    if self.adaptive_side is None:
      return
    if self.adaptive_side < 1:
      name = 'model.roi_align.adaptive_side'
      raise invalid(name, self.adaptive_side, 'at least 1, or None')
    if not self.zero_outside:
      name = 'model.roi_align.zero_outside'
      raise invalid(name, self.zero_outside, 'True with adaptive_side')


def roi_align(
  features: jax.Array,
  boxes: jax.Array,
  size: int | tuple[int, int],
  options: RoiAlignOptions = RoiAlignOptions(),
) -> jax.Array:
  """Features of boxes on one map, resampled to a fixed size.

  Args:
    features: `[height, width, channels]`.
    boxes: `[n, 4]` in cells of the map; no gradient flows to them.
    size: number of bins along both axes, or `(rows, columns)`.
    options: see `RoiAlignOptions`; its levels are not used.

  Returns:
    `[n, rows, columns, channels]` in the options' dtype or that of `features`.

  Mask R-CNN, Sec. 3.
  """
  if features.ndim != 3:
    raise ValueError(f'features must be [h, w, c], got {features.shape}.')
  _check_boxes(boxes, ndim=2)
  height, width, channels = features.shape
  boxes = jax.lax.stop_gradient(boxes)
  flat = jnp.asarray(features, options.dtype).reshape(-1, channels)
  taps = _bin_taps(boxes, size, options, (height, width, 0))
  return weighted_sums.weighted_sums(flat, [taps], [_scope(size)])[0]


def pyramid_roi_align(
  pyramid: Mapping[int, jax.Array],
  boxes: jax.Array,
  size: int | tuple[int, int],
  options: RoiAlignOptions = RoiAlignOptions(),
) -> jax.Array:
  """Features of boxes on the pyramid level that fits the size of each.

  Args:
    pyramid: `[batch, height, width, channels]` by level; level l has a stride
      of 2**l pixels. Levels outside the options' range are not used.
    boxes: `[batch, n, 4]` in input pixels; no gradient flows to them.
    size: number of bins along both axes, or `(rows, columns)`.
    options: see `RoiAlignOptions`.

  Returns:
    `[batch, n, rows, columns, channels]` in the options' dtype or that of the
    pyramid.

  Raises:
    ValueError: a level is missing, or shapes disagree.

  FPN, Sec. 4.2.
  """
  return pyramid_roi_aligns(pyramid, [boxes], [size], options)[0]


def pyramid_roi_aligns(
  pyramid: Mapping[int, jax.Array],
  boxes: Sequence[jax.Array],
  sizes: Sequence[int | tuple[int, int]],
  options: RoiAlignOptions = RoiAlignOptions(),
) -> list[jax.Array]:
  """`pyramid_roi_align` of several sets of boxes, each with a size of its own.

  The gradients of all sets add up in one table.
  """
  levels = range(options.min_level, options.max_level + 1)
  missing = [level for level in levels if level not in pyramid]
  if missing:
    raise ValueError(f'pyramid lacks levels {missing}, has {sorted(pyramid)}.')
  maps = [pyramid[level] for level in levels]
  for x in boxes:
    _check_boxes(x, ndim=3)
    for level, features in zip(levels, maps):
      if features.ndim != 4 or features.shape[0] != x.shape[0]:
        raise ValueError(
          f'pyramid[{level}] must be [batch, h, w, c] with the batch of boxes '
          f'{x.shape}, got {features.shape}.'
        )
  shapes = np.array([x.shape[1:3] for x in maps])
  with jax.named_scope('align_table'):
    # One table of all images: no index has a batch axis beside it, and no map
    # is laid out anew. Within a level the cells of an image follow each other.
    flat = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in maps])
    flat = flat.astype(options.dtype or flat.dtype)
  taps = []
  for x, size in zip(boxes, sizes, strict=True):
    with jax.named_scope(_scope(size)):
      taps.append(_pyramid_taps(shapes, x, size, options))
  bins = weighted_sums.weighted_sums(flat, taps, map(_scope, sizes))
  return [y.reshape(*x.shape[:2], *y.shape[1:]) for x, y in zip(boxes, bins)]


def _scope(size) -> str:
  """Name of a resampling in a profile, such as `align7`."""
  return f'align{size if isinstance(size, int) else size[0]}'


def _pyramid_taps(shapes, boxes, size, options):
  """Taps of boxes `[batch, n, 4]` in the table of all levels and images."""
  batch, n = boxes.shape[:2]
  cells = np.prod(shapes, axis=1)
  boxes = jax.lax.stop_gradient(boxes).reshape(-1, 4)
  levels = assign_levels(boxes, options)
  own = levels - options.min_level
  starts = np.cumsum([0, *cells[:-1]])  # Of an image alone.
  # Selected, not gathered: there are few levels.
  height, width, cells, starts = (
    jax.lax.select_n(own, *(jnp.full_like(own, level) for level in values))
    for values in (*shapes.T, cells, starts)
  )
  # The number of images is symbolic in an export for any batch size.
  images = jax.lax.broadcasted_iota(jnp.int32, (batch, n), 0).reshape(-1)
  first = jnp.asarray(batch, jnp.int32) * starts + images * cells
  boxes = boxes * jnp.exp2(-levels.astype(jnp.float32))[:, None]
  return _bin_taps(boxes, size, options, (height, width, first))


def assign_levels(
  boxes: jax.Array, options: RoiAlignOptions = RoiAlignOptions()
) -> jax.Array:
  """Pyramid level of every box by its area.

  Args:
    boxes: `[..., 4]` in input pixels.
    options: range of levels and rounding, see `RoiAlignOptions`.

  Returns:
    `[...]` int32; `min_level` for a box without area.

  FPN, Eq. 1. Areas are compared with squared limits, which are exact in
  float32, so that a side of 112 is on level 3 on every device.
  """
  sides = boxes[..., 2:] - boxes[..., :2]
  areas = sides[..., 0] * sides[..., 1]
  above = np.arange(options.min_level + 1, options.max_level + 1)
  exponents = above - CANONICAL_LEVEL - options.level_epsilon
  limits = (CANONICAL_SIDE * 2.0**exponents) ** 2
  return options.min_level + jnp.sum(
    areas[..., None] >= limits.astype(np.float32), axis=-1, dtype=jnp.int32
  )


def _bin_taps(boxes, size, options, maps) -> weighted_sums.Taps:
  """Cells and weights `[n, rows, columns]` of the bins of boxes in cells.

  Args:
    boxes: `[n, 4]`.
    size: see `roi_align`.
    options: see `roi_align`.
    maps: height and width of the map of each box and its first cell, per box or
      for all.
  """
  bins = (size, size) if isinstance(size, int) else size
  boxes = boxes.astype(jnp.float32)
  heights, widths, offsets = maps
  axes = [
    (boxes[:, axis], boxes[:, axis + 2], lengths)
    for axis, lengths in enumerate((heights, widths))
  ]
  if options.adaptive_side is None:
    rows, columns = (
      _taps(*axis, number, options) for axis, number in zip(axes, bins)
    )
    return _crossed(rows, columns, offsets, widths)
  return adaptive_sampling.bin_taps(axes, bins, options, offsets)


def _taps(starts, ends, lengths, size, options):
  """Indices and weights `[n, size, 2 * samples_per_bin]` along one axis."""
  samples = options.samples_per_bin
  sides = ends - starts
  if options.min_side > 0.0:  # Otherwise an inverted box is sampled backwards.
    sides = jnp.maximum(sides, options.min_side)
  fractions = (np.arange(size * samples, dtype=np.float32) + 0.5) / (
    size * samples
  )
  positions = starts[:, None] + fractions * sides[:, None]
  if options.half_pixel:
    positions -= 0.5
  positions = positions.reshape(-1, size, samples)
  lengths = jnp.broadcast_to(lengths, starts.shape)[:, None, None]
  inside = 1.0 / samples
  if options.zero_outside:
    within = (positions >= -1.0) & (positions <= lengths)
    inside = jnp.where(within, inside, 0.0)
    positions = jnp.maximum(positions, 0.0)
  lower = jnp.maximum(jnp.floor(positions), 0.0)
  upper_weights = positions - lower
  # Clipped as floats: an index beyond int32 must not wrap around.
  last = (lengths - 1).astype(jnp.float32)
  indices = jnp.stack(
    [jnp.minimum(lower, last), jnp.minimum(lower + 1.0, last)], axis=-1
  )
  weights = jnp.stack([1.0 - upper_weights, upper_weights], axis=-1)
  weights *= jnp.broadcast_to(inside, positions.shape)[..., None]
  shape = (-1, size, 2 * samples)
  return indices.astype(jnp.int32).reshape(shape), weights.reshape(shape)


def _crossed(rows, columns, offsets, widths) -> weighted_sums.Taps:
  """Every pair of a row tap and a column tap."""
  (row_indices, row_weights), (column_indices, column_weights) = rows, columns
  offsets = jnp.broadcast_to(offsets, row_indices.shape[:1])[:, None]
  widths = jnp.broadcast_to(widths, row_indices.shape[:1])[:, None]
  taps = []
  for row in range(row_indices.shape[-1]):
    starts = offsets + row_indices[..., row] * widths
    for column in range(column_indices.shape[-1]):
      indices = starts[:, :, None] + column_indices[:, None, :, column]
      weights = (
        row_weights[:, :, None, row] * column_weights[:, None, :, column]
      )
      taps.append((indices, weights))
  indices, weights = zip(*taps)
  return indices, weights


def _check_boxes(boxes, ndim):
  if boxes.ndim != ndim or boxes.shape[-1] != 4:
    wanted = '[n, 4]' if ndim == 2 else '[batch, n, 4]'
    raise ValueError(f'boxes must be {wanted}, got {boxes.shape}.')
