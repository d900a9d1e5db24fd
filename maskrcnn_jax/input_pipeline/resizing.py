"""Size and pixels of an image on its canvas, in NumPy.

`transforms` does the same inside tf.data; both give the same bits.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from maskrcnn_jax import override
from maskrcnn_jax.errors import UserError

IMAGE_DTYPES = ('uint8', 'float32')
_ROWS = 32  # Resized at a time: they stay in the processor's cache.


@dataclasses.dataclass(frozen=True)
class ResizeOptions:
  """Size of an image on its canvas.

  Attributes:
    fit_size: (shorter, longer) sides that the image must fit into, laid along
      those of the canvas; None: the canvas itself. torchvision pads 800x1333 to
      a multiple of 32.
    exact_sizes: compute sizes in float64 and report one scale per axis
      (torchvision) instead of truncating a float32 product and reporting the
      common scale (Habana, NVIDIA), which loses a pixel at some sizes.
    half_pixel_masks: nearest neighbours of pixel centres (TensorFlow) or of
      pixel corners (torchvision).
  """

  fit_size: tuple[int, int] | None = None
  exact_sizes: bool = False
  half_pixel_masks: bool = True


def resize_options(fields: Mapping | None) -> ResizeOptions:
  """Options of the config section `input.resize`; None: the defaults."""
  return override.make(ResizeOptions, fields or {}, 'input.resize')


def fit_size(
  canvas, options: ResizeOptions, name: str = 'input.resize.fit_size'
) -> tuple[int, int]:
  """(height, width) that an image may fill on a canvas; `name` for errors."""
  if options.fit_size is None:
    return tuple(canvas)
  is_tall = bool(canvas[0] > canvas[1])
  size = tuple(sorted(options.fit_size, reverse=is_tall))
  if size[0] > canvas[0] or size[1] > canvas[1]:
    raise UserError(
      f'{name} must fit into the canvas {tuple(canvas)}, got {size}.',
      argument=name,
      given=size,
      wanted=tuple(canvas),
    )
  return size


def resized_size(
  image_size, fit, exact: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Size and scales of an image that is fitted into a rectangle.

  Args:
    image_size: `[..., 2]`, original (height, width).
    fit: `[..., 2]`, the rectangle.
    exact: see `ResizeOptions.exact_sizes`.

  Returns:
    `[..., 2]` int32 size, at least 1, and `[..., 2]` float32 scales,
    input / original.
  """
  dtype = np.float64 if exact else np.float32
  original = np.asarray(image_size, dtype)
  scale = (np.asarray(fit, dtype) / original).min(axis=-1, keepdims=True)
  # The short side of a very long image keeps one pixel.
  size = np.maximum((scale * original).astype(np.int32), 1)
  scales = size / original if exact else scale
  scales = np.broadcast_to(scales, original.shape)
  return size, scales.astype(np.float32)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """An image resized bilinearly: half-pixel centres, no antialiasing.

  The operations and their order are those of TensorFlow's kernel, so the bits
  are those of `tf.image.resize`.

  Args:
    image: `[h, w, channels]`, of 8 bits or float32.
    size: (height, width).

  Returns:
    `[height, width, channels]` float32.
  """
  height, width, channels = image.shape
  lines = image.reshape(height, width * channels)
  above, below, y = _neighbors(height, size[0])
  left, right, x = _neighbors(width, size[1])
  # Of single values: many times faster than to take pixels of three.
  left, right = (
    (columns[:, None] * channels + np.arange(channels)).reshape(-1)
    for columns in (left, right)
  )
  x, y = np.repeat(x, channels), y[:, None]
  resized = np.empty((size[0], size[1] * channels), np.float32)
  for start in range(0, size[0], _ROWS):
    part = slice(start, start + _ROWS)
    rows = np.concatenate([above[part], below[part]])
    rows, places = np.unique(rows, return_inverse=True)
    used = lines[rows].astype(np.float32)
    used = _between(used.take(left, axis=1), used.take(right, axis=1), x)
    upper, lower = (used[each] for each in np.split(places, 2))
    resized[part] = _between(upper, lower, y[part])
  return resized.reshape(*size, channels)


def _between(first, second, weight):
  """first + (second - first) * weight, written over `second`."""
  second -= first
  second *= weight
  second += first
  return second


def _neighbors(original, resized):
  """Pixels before and after each resized one, and the weight of the second."""
  scale = np.float32(original) / np.float32(resized)
  half = np.float32(0.5)
  centers = (np.arange(resized, dtype=np.float32) + half) * scale - half
  first = np.floor(centers)
  before = np.maximum(first, 0).astype(np.intp)
  after = np.minimum(np.ceil(centers), original - 1).astype(np.intp)
  return before, after, centers - first
