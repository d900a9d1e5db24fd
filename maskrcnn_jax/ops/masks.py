"""Instance masks: cropped to RoIs as training targets, pasted into images.

Both resample bilinearly, as a product of two small interpolation matrices, one
along the rows and one along the columns of a mask.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Keeps the division finite on padded instances (Habana's constant).
EPSILON = 1e-8


def crop_masks(
  masks: jax.Array,
  instance_boxes: jax.Array,
  rois: jax.Array,
  instance_indices: jax.Array,
  size: int = 28,
) -> jax.Array:
  """Crops of instance masks inside RoIs: mask targets before the threshold.

  A bin is one bilinear sample at its centre, where cell i of a mask is at
  coordinate i as in Habana's system; outside its own box a mask is zero.

  Args:
    masks: `[num_instances, mask_size, mask_size]`, each cropped to its box, in
      [0, 1]; as integers in 0..255.
    instance_boxes: `[num_instances, 4]`.
    rois: `[n, 4]` in the same pixels.
    instance_indices: `[n]` int, the instance of each RoI.
    size: rows and columns of a crop.

  Returns:
    `[n, size, size]` float32; zeros where the instance's box is empty.

  Mask R-CNN, Sec. 3; the sampling is Habana's.
  """
  if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
    raise ValueError(f'masks must be [n, size, size], got {masks.shape}.')
  if instance_boxes.shape != (masks.shape[0], 4):
    raise ValueError(
      f'instance_boxes must be [{masks.shape[0]}, 4] for masks '
      f'{masks.shape}, got {instance_boxes.shape}.'
    )
  if rois.shape != (*instance_indices.shape, 4):
    raise ValueError(
      f'rois must be [n, 4] for instance_indices [n], got {rois.shape} and '
      f'{instance_indices.shape}.'
    )
  mask_size = masks.shape[-1]
  own_boxes = instance_boxes[instance_indices]
  scales = mask_size / (own_boxes[:, 2:] - own_boxes[:, :2] + EPSILON)
  starts = (rois[:, :2] - own_boxes[:, :2]) * scales
  sides = (rois[:, 2:] - rois[:, :2]) * scales
  centres = (np.arange(size, dtype=np.float32) + 0.5) / size
  positions = starts[..., None] + sides[..., None] * centres  # [n, 2, size]
  weights = _hat(positions, mask_size)
  # As floats only where a RoI needs them: most instances are padding.
  own_masks = masks[instance_indices].astype(jnp.float32)
  if jnp.issubdtype(masks.dtype, jnp.integer):
    own_masks = own_masks / 255.0
  return _resample(own_masks, weights[:, 0], weights[:, 1])


def paste_masks(
  masks: jax.Array, boxes: jax.Array, canvas: tuple[int, int]
) -> jax.Array:
  """Masks of the size of an image from masks relative to boxes.

  A mask is padded by one zero cell, its box grows in proportion and is
  truncated to whole pixels (toward zero, last pixel included), and the mask is
  resized to it bilinearly with half-pixel centres.

  Args:
    masks: `[n, size, size]` probabilities over the boxes.
    boxes: `[n, 4]` in pixels of the image.
    canvas: `(height, width)` of the image.

  Returns:
    `[n, height, width]` bool, probability > 0.5.

  Detectron's pasting, which Habana and torchvision share.
  """
  if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
    raise ValueError(f'masks must be [n, size, size], got {masks.shape}.')
  if boxes.shape != (masks.shape[0], 4):
    raise ValueError(
      f'boxes must be [{masks.shape[0]}, 4] for masks {masks.shape}, got '
      f'{boxes.shape}.'
    )
  padded = jnp.pad(masks.astype(jnp.float32), ((0, 0), (1, 1), (1, 1)))
  half_sides = (boxes[:, 2:] - boxes[:, :2]) * 0.5
  centres = boxes[:, :2] + half_sides
  half_sides *= padded.shape[-1] / masks.shape[-1]
  first = jnp.trunc(centres - half_sides)
  last = jnp.trunc(centres + half_sides)
  rows, columns = (
    _paste_weights(first[:, axis], last[:, axis], canvas[axis], padded.shape[1])
    for axis in range(2)
  )
  return _resample(padded, rows, columns) > 0.5


def _paste_weights(first, last, length, size):
  """Weights `[n, length, size]` that stretch cells over pixels first..last."""
  pixels = np.arange(length, dtype=np.float32)
  first, last = first[:, None], last[:, None]
  cells_per_pixel = size / jnp.maximum(last - first + 1.0, 1.0)
  positions = (pixels - first + 0.5) * cells_per_pixel - 0.5
  weights = _hat(jnp.clip(positions, 0.0, size - 1.0), size)
  inside = (pixels >= first) & (pixels <= last)
  return jnp.where(inside[..., None], weights, 0.0)


def _hat(positions, size):
  """Bilinear weights `[..., size]` of the cells around positions."""
  cells = np.arange(size, dtype=np.float32)
  return jnp.maximum(1.0 - jnp.abs(positions[..., None] - cells), 0.0)


def _resample(masks, rows, columns):
  """`rows @ masks @ columns^T` for every mask, in full float32."""
  return jnp.einsum(
    'nyh,nhw,nxw->nyx', rows, masks, columns, precision='highest'
  )
