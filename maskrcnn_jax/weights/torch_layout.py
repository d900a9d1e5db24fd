"""How PyTorch lays out what our layers hold, and back.

| layer | ours | PyTorch |
|---|---|---|
| convolution | `[height, width, in, out]` | `[out, in, height, width]` |
| dense | `[in, out]` | `[out, in]` |
| dense behind a map | in: row, column, channel | in: channel, row, column |
| upsampling | `[2, 2, in, out]` | `[in, out, 2, 2]` |
| box deltas | `(dy, dx, dh, dw)` | `(dx, dy, dw, dh)` |
"""

import math

import numpy as np

_DECONV = 'mask_head/deconv/kernel'
_DELTAS = ('rpn_head/box_deltas', 'box_head/box_deltas')
# The first dense layer sees RoI features as one vector.
_FLATTENED = 'box_head/fc6/kernel'
# Ours -> PyTorch's axes; the other way round for the way back.
_CONV_AXES = (3, 2, 0, 1)
_DECONV_AXES = (2, 3, 0, 1)


def from_torch(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """An array of PyTorch as ours; as it is where its rank is another.

  Args:
    name: our name of it.
    array: of PyTorch.
    channels: of the RoI features.
  """
  if name.startswith(_DELTAS) and array.shape[0] % 4 == 0:
    array = _swap_axes_of_boxes(array)
  if not name.endswith('/kernel'):
    return array
  if array.ndim == 4:
    axes = _DECONV_AXES if name == _DECONV else np.argsort(_CONV_AXES)
    return array.transpose(axes)
  if array.ndim != 2:
    return array
  if name == _FLATTENED and (side := _side(array.shape[1], channels)):
    maps = array.reshape(-1, channels, side, side)
    array = maps.transpose(0, 2, 3, 1).reshape(array.shape)
  return array.T


def to_torch(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """One of our arrays as PyTorch's; undoes `from_torch`."""
  if name.endswith('/kernel'):
    if array.ndim == 4:
      axes = np.argsort(_DECONV_AXES) if name == _DECONV else _CONV_AXES
      array = array.transpose(axes)
    else:
      array = array.T
  if name == _FLATTENED and (side := _side(array.shape[1], channels)):
    maps = array.reshape(-1, side, side, channels)
    array = maps.transpose(0, 3, 1, 2).reshape(array.shape)
  if name.startswith(_DELTAS):
    array = _swap_axes_of_boxes(array)
  return np.ascontiguousarray(array)


def _swap_axes_of_boxes(array):
  """Rows of x and y changed, in each group of four; its own inverse."""
  groups = array.reshape(-1, 4, *array.shape[1:])
  return groups[:, [1, 0, 3, 2]].reshape(array.shape)


def _side(size, channels):
  """Height and width of square maps of so many numbers; 0 if they are not."""
  if channels < 1 or size % channels:
    return 0
  side = math.isqrt(size // channels)
  return side if side * side * channels == size else 0
