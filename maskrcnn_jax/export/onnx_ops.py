"""Operations of detection in the forms that ONNX has operators for.

NMS and RoIAlign are two primitives, which `onnx_lowering` writes as ONNX's
operators of those names. What these lack is computed around them: levels, the
smallest side of a RoI, and values at and beyond the edges of a map.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import operations
from maskrcnn_jax.ops import roi_align as roi_ops

keep_p = core.Primitive('keep')
roi_align_p = core.Primitive('roi_align')


@keep_p.def_abstract_eval
def _(boxes, scores, valid, *, iou_threshold, max_outputs):
  return valid


@roi_align_p.def_abstract_eval
def _(features, boxes, *, size, samples):
  shape = (boxes.shape[0] * boxes.shape[1], size, size, features.shape[-1])
  return jax.core.ShapedArray(shape, features.dtype)


def keep(
  boxes: jax.Array,
  scores: jax.Array,
  valid: jax.Array,
  iou_threshold: float,
  max_outputs: int,
) -> jax.Array:
  """Mask of the boxes that NMS keeps, see `operations.Operations`."""
  return keep_p.bind(
    *(boxes, scores, valid),
    iou_threshold=iou_threshold,
    max_outputs=min(max_outputs, boxes.shape[1]),
  )


def pyramid_roi_align(
  pyramid: Mapping[int, jax.Array],
  boxes: jax.Array,
  size: int,
  options: roi_ops.RoiAlignOptions,
) -> jax.Array:
  """`roi_align.pyramid_roi_align` of boxes inside the canvas, as one RoIAlign.

  The levels lie below each other in one tall map, each framed by its repeated
  edges, so that a sample at the edge of a level finds there what it would find
  outside. With `adaptive_side` the operator's own number of samples is taken,
  which has no limit for large boxes.
  """
  if options.adaptive_side and options.min_side > 0.0:
    raise UserError(
      '--format onnx: model.roi_align.adaptive_side has no form in ONNX '
      'together with min_side. Choose --format stablehlo.',
      argument='model.roi_align.adaptive_side',
      given=options.adaptive_side,
    )
  levels = range(options.min_level, options.max_level + 1)
  maps = [pyramid[level] for level in levels]
  # A RoI of the smallest side, a cell, may begin at the very end of a map.
  after = 1 + int(np.ceil(options.min_side))
  width = max(x.shape[2] for x in maps) + 1 + after
  framed = [_frame(x, after, width, options) for x in maps]
  rows = np.cumsum([0, *(x.shape[1] for x in framed)])[:-1]
  own = roi_ops.assign_levels(boxes, options) - options.min_level
  start, height, length, scale = (
    jnp.asarray(x, jnp.float32)
    .at[own]
    .get(mode='promise_in_bounds', wrap_negative_indices=False)[..., None]
    for x in (
      rows,
      [x.shape[1] for x in maps],
      [x.shape[2] for x in maps],
      [0.5**level for level in levels],
    )
  )
  starts, sides = boxes[..., :2] * scale, (boxes[..., 2:] - boxes[..., :2])
  sides = sides * scale
  if options.min_side > 0.0:
    sides = jnp.maximum(sides, options.min_side)
  # To the center of the frame's first cell, where the operator has 0.5.
  shift = 1.0 if options.half_pixel else 1.5
  corner = starts + jnp.concatenate([start + shift, start * 0 + shift], -1)
  features = roi_align_p.bind(
    jnp.concatenate(framed, axis=1),
    jnp.concatenate([corner, corner + sides], axis=-1),
    size=size,
    # 0: as many as a bin has cells.
    samples=0 if options.adaptive_side else options.samples_per_bin,
  )
  if options.zero_outside and options.min_side > 0.0:
    lengths = jnp.concatenate([height, length], axis=-1)
    inside = _share_inside(starts, sides, lengths, size, options)
    y, x = (inside[..., i, :].reshape(-1, size) for i in range(2))
    features = features * y[:, :, None, None] * x[:, None, :, None]
  if options.adaptive_side:
    # A mean of no samples, which is not a number in OpenVINO.
    has_area = jnp.all(sides > 0.0, axis=-1).reshape(-1, 1, 1, 1)
    features = jnp.where(has_area, features, 0.0)
  return features.reshape(*boxes.shape[:2], *features.shape[1:])


def _frame(x, after, width, options):
  """A map with a row and a column before it, and more after it."""
  for axis, more in ((1, after), (2, width - x.shape[2] - 1)):
    first, second, last = (
      jax.lax.slice_in_dim(x, i, i + 1, axis=axis)
      for i in (0, min(1, x.shape[axis] - 1), x.shape[axis] - 1)
    )
    if options.half_pixel and not options.zero_outside:
      first = 2.0 * first - second  # Extrapolated, as in `RoiAlignOptions`.
    x = jnp.concatenate([first, x, *[last] * more], axis=axis)
  return x


def _share_inside(starts, sides, lengths, size, options):
  """Share `[batch, n, 2, size]` of the samples of a bin inside the map.

  Beyond the edge the map has the edge's value along that axis, and a bin that
  reaches outside lies there whole: zeros outside scale its mean by this share.
  """
  count = size * options.samples_per_bin
  fractions = (np.arange(count, dtype=np.float32) + 0.5) / count
  positions = starts[..., None] + fractions * sides[..., None]
  if options.half_pixel:
    positions -= 0.5
  inside = (positions <= lengths[..., None]).astype(jnp.float32)
  shape = (*inside.shape[:-1], size, options.samples_per_bin)
  return jnp.mean(inside.reshape(shape), axis=-1)


OPERATIONS = operations.Operations(keep, pyramid_roi_align)
