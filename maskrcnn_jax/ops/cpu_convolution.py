"""CPU only: forms of convolutions that are faster than XLA's own.

`ops.convolution` uses them if the backend is a CPU. They are exact in real
numbers; their rounding differs in the last bits.

A 3x3 convolution of many small images, such as RoIs, is Winograd's F(2x2, 3x3)
(Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015,
Sec. 4.1): 2x2 outputs are 16 products of transformed 4x4 inputs with a
transformed kernel instead of 36. Images go through it in groups, so that a
group's transforms stay in the cache. For large images only the kernel's
gradient is faster this way; they go through in bands of rows.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# 1D transforms of 4 inputs, of 3 kernel values, and from 4 products to 2
# outputs; in 2D each is applied along both axes.
_INPUT = np.float32([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_KERNEL = np.float32([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OUTPUT = np.float32([[1, 1, 1, 0], [0, 1, -1, -1]])

# 2x2 tiles of a group. On two cores with 128 RoIs of 14x14x256, groups of 196
# tiles take 1.4 times as long as groups of 784, and all in one 1.5 times.
_GROUP_TILES = (256, 1024)
# With fewer tiles or fewer channels the plain form is as fast.
_LEAST_TILES = 768
_LEAST_CHANNELS = 32
# The same for bands. One image of 128x128x256 gains 1.4 to 2 times, of
# 208x336x256 5 times, of 64x64x256 or 128x128x128 nothing.
_LEAST_BAND_TILES = 64 * 64
_LEAST_BAND_CHANNELS = 256


def group_size(inputs: jax.Array, kernel: jax.Array) -> int | None:
  """Number of images in a group, if Winograd's form is faster.

  Args:
    inputs: `[batch, height, width, in]`.
    kernel: `[size, size, in, out]`, of a convolution with stride 1.

  Returns:
    A divisor of the batch size; None if the plain form is faster, the dtype is
    not float32, or the batch size is symbolic.
  """
  batch, height, width, _ = inputs.shape
  if not _is_fit(inputs, kernel, _LEAST_CHANNELS):
    return None
  tiles = -(-height // 2) * -(-width // 2)
  if batch * tiles < _LEAST_TILES:
    return None
  least, most = _GROUP_TILES
  for size in range(min(batch, most // tiles), 0, -1):
    if batch % size == 0:
      return size if size * tiles >= least else None
  return None


def winograd(inputs: jax.Array, kernel: jax.Array, group: int) -> jax.Array:
  """3x3 convolution with stride 1 and zero padding, by Winograd's form.

  Args:
    inputs: `[batch, height, width, in]`.
    kernel: `[3, 3, in, out]`.
    group: number of images that go through at once, see `group_size`.

  Returns:
    `[batch, height, width, out]`.
  """
  batch, height, width, _ = inputs.shape
  out = kernel.shape[3]
  weights = _combine(_KERNEL, kernel)
  groups = _split(inputs, group)

  def convolve_group(index, outputs):
    tiles = _transform_inputs(_pad(_take(groups, index)))
    products = [[x @ w for x, w in zip(*rows)] for rows in zip(tiles, weights)]
    cells = _combine(_OUTPUT, products)
    cells = [
      [x.reshape(group, -1, -(-width // 2), out) for x in row] for row in cells
    ]
    # [group, rows, 2, columns, 2, out]: 2x2 cells of a tile to their places.
    image = jnp.stack([jnp.stack(row, axis=3) for row in cells], axis=2)
    image = image.reshape(group, 2 * -(-height // 2), 2 * -(-width // 2), out)
    image = image[:, :height, :width]
    return lax.dynamic_update_index_in_dim(outputs, image, index, axis=1)

  outputs = lax.fori_loop(
    0,
    batch // group,
    convolve_group,
    jnp.zeros((group, batch // group, height, width, out), inputs.dtype),
  )
  return outputs.reshape(batch, height, width, out)


def winograd_kernel_gradient(
  inputs: jax.Array, gradient: jax.Array, group: int
) -> jax.Array:
  """Kernel gradient of `winograd`.

  Args:
    inputs: `[batch, height, width, in]`.
    gradient: of the outputs, `[batch, height, width, out]`.
    group: see `winograd`.

  Returns:
    `[3, 3, in, out]`.
  """
  groups, gradients = _split(inputs, group), _split(gradient, group)
  return _sum_kernel_gradient(
    inputs.shape[0] // group,
    lambda index: (_pad(_take(groups, index)), _take(gradients, index)),
    (inputs.shape[3], gradient.shape[3]),
  )


def band_rows(inputs: jax.Array, kernel: jax.Array) -> int | None:
  """Number of rows in a band, if `banded_kernel_gradient` is faster.

  Args:
    inputs: `[batch, height, width, in]`.
    kernel: `[size, size, in, out]`, of a convolution with stride 1.

  Returns:
    An even divisor of the height, or None as for `group_size`.
  """
  batch, height, width, _ = inputs.shape
  if not _is_fit(inputs, kernel, _LEAST_BAND_CHANNELS):
    return None
  row_tiles = batch * -(-width // 2)
  if height % 2 or height // 2 * row_tiles < _LEAST_BAND_TILES:
    return None
  most = max(_GROUP_TILES[1] // row_tiles, 1)
  rows = [n for n in range(1, most + 1) if height % (2 * n) == 0]
  return 2 * rows[-1]


def banded_kernel_gradient(
  inputs: jax.Array, gradient: jax.Array, rows: int
) -> jax.Array:
  """Kernel gradient of a 3x3 convolution with stride 1 on large images.

  Args:
    inputs: `[batch, height, width, in]`.
    gradient: of the outputs, `[batch, height, width, out]`.
    rows: number of rows in a band, see `band_rows`.

  Returns:
    `[3, 3, in, out]`.
  """
  padded = _pad(inputs)

  def take(index):
    first = index * rows
    return (
      lax.dynamic_slice_in_dim(padded, first, rows + 2, axis=1),
      lax.dynamic_slice_in_dim(gradient, first, rows, axis=1),
    )

  channels = inputs.shape[3], gradient.shape[3]
  return _sum_kernel_gradient(inputs.shape[1] // rows, take, channels)


def _sum_kernel_gradient(count, take, channels):
  """Sum of the kernel gradients of pieces (padded inputs, output gradients)."""

  def add(index, sums):
    padded, gradient = take(index)
    tiles = _transform_inputs(padded)
    cells = _transform_gradient(gradient)
    return [
      [total + x.T @ g for total, x, g in zip(*rows)]
      for rows in zip(sums, tiles, cells)
    ]

  zeros = [[jnp.zeros(channels, jnp.float32)] * 4] * 4
  sums = lax.fori_loop(0, count, add, zeros)
  gradient = _combine(_KERNEL.T, sums)
  return jnp.stack([jnp.stack(row) for row in gradient])


def product_kernel_gradient(
  inputs: jax.Array, gradient: jax.Array
) -> jax.Array:
  """Gradient of the matrix in `inputs @ matrix`, `[in, out]`.

  Both arrays become matrices: for a product that sums over several axes XLA
  first transposes a copy, which took 0.17 s of 0.97 s in ResNet-50. Devices
  that share an image gather it for this.

  Args:
    inputs: `[..., in]`.
    gradient: `[..., out]`.
  """
  rows = inputs.reshape(-1, inputs.shape[-1])
  return rows.T @ gradient.reshape(-1, gradient.shape[-1])


def _is_fit(inputs, kernel, least_channels):
  """True if Winograd's form could be faster for a convolution."""
  return (
    kernel.shape[:2] == (3, 3)
    and min(kernel.shape[2:]) >= least_channels
    and inputs.dtype == jnp.float32
    # Not symbolic: an export for any batch size takes the plain form.
    and isinstance(inputs.shape[0], int)
  )


def _split(images, group):
  """`[group, batch / group, ...]`.

  Every group takes images from the whole batch, so that devices that share a
  batch share each group.
  """
  return images.reshape(group, -1, *images.shape[1:])


def _take(groups, index):
  return lax.dynamic_index_in_dim(groups, index, axis=1, keepdims=False)


def _pad(images):
  """Images with a border of one zero, and one more at the end of odd sizes."""
  height, width = images.shape[1:3]
  pads = [(1, 1 + height % 2), (1, 1 + width % 2)]
  return jnp.pad(images, ((0, 0), *pads, (0, 0)))


def _transform_inputs(padded):
  """4x4 arrays `[tiles, in]` from padded images."""
  height, width, channels = padded.shape[1:]
  cells = [
    [padded[:, y : y + height - 2 : 2, x : x + width - 2 : 2] for x in range(4)]
    for y in range(4)
  ]
  return _as_rows(_combine(_INPUT, cells), channels)


def _transform_gradient(gradient):
  """4x4 arrays `[tiles, out]`: the transpose of the output transform."""
  height, width, channels = gradient.shape[1:]
  pads = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
  padded = jnp.pad(gradient, pads)
  cells = [[padded[:, y::2, x::2] for x in range(2)] for y in range(2)]
  return _as_rows(_combine(_OUTPUT.T, cells), channels)


def _as_rows(arrays, channels):
  return [[x.reshape(-1, channels) for x in row] for row in arrays]


def _combine(matrix, arrays):
  """`matrix @ arrays @ matrix.T` for rows of arrays.

  Written out, since most factors are 0, 1 or -1 and XLA fuses the sums.
  """
  along_rows = [[_sum(factors, row) for factors in matrix] for row in arrays]
  columns = list(zip(*along_rows))
  return [[_sum(factors, column) for column in columns] for factors in matrix]


def _sum(factors, arrays):
  """Sum of factors times arrays."""
  terms = [
    array if factor == 1 else factor * array
    for factor, array in zip(factors.tolist(), arrays)
    if factor
  ]
  return functools.reduce(operator.add, terms)
