"""Attention of a ViT: windows, absolute and relative positions.

Positions are stored for maps of one size and resized to that of the image, as
in Detectron2, so that the weights fit images of any size.
"""

import jax
import jax.numpy as jnp
import numpy as np

# PyTorch's bicubic kernel; `jax.image.resize` has -0.5.
_CUBIC = -0.75


def resize_positions(grid: jax.Array, size: tuple[int, int]) -> jax.Array:
  """A grid of absolute positions, resized with a bicubic kernel.

  Half-pixel centres, the border repeated, no antialiasing.

  Args:
    grid: `[rows, columns, channels]`.
    size: rows and columns of the result.
  """
  rows, columns = (
    _resize_matrix(old, new, _cubic, 2)
    for old, new in zip(grid.shape[:2], size)
  )
  return jnp.einsum(
    'yr,xc,rcd->yxd', rows, columns, grid, precision=jax.lax.Precision.HIGHEST
  )


def relative_positions(table: jax.Array, queries: int, keys: int) -> jax.Array:
  """Relative positions of all pairs along one axis.

  Args:
    table: `[2 * n - 1, channels]`, the difference 0 in the middle; it is
      resized linearly to the larger of both lengths.
    queries: number of queries along the axis.
    keys: number of keys, which are stretched to the same extent.

  Returns:
    `[queries, keys, channels]`.
  """
  length = 2 * max(queries, keys) - 1
  if len(table) != length:
    matrix = _resize_matrix(len(table), length, _linear, 1)
    table = jnp.matmul(
      matrix.astype(table.dtype), table, precision=jax.lax.Precision.HIGHEST
    )
  query = np.arange(queries)[:, None] * max(keys / queries, 1.0)
  key = np.arange(keys) * max(queries / keys, 1.0)
  index = query - key + (keys - 1) * max(queries / keys, 1.0)
  return table[index.astype(np.int64)]


def relative_logits(
  queries: jax.Array, row_table: jax.Array, column_table: jax.Array
) -> jax.Array:
  """Logits of the decomposed relative positions (MViTv2, Eq. 4).

  Args:
    queries: `[..., height, width, channels]`, not scaled.
    row_table: of `relative_positions`, as `column_table`.

  Returns:
    `[..., height, width, height, width]`: queries, then keys.
  """
  height, width = queries.shape[-3:-1]
  rows = relative_positions(row_table, height, height)
  columns = relative_positions(column_table, width, width)
  by_row = jnp.einsum('...yxc,ykc->...yxk', queries, rows)
  by_column = jnp.einsum('...yxc,xkc->...yxk', queries, columns)
  return by_row[..., :, None] + by_column[..., None, :]


def attend(
  qkv: jax.Array, row_table: jax.Array, column_table: jax.Array
) -> jax.Array:
  """Attention among all tokens of a map.

  Args:
    qkv: queries, keys and values, `[batch, height, width, 3, heads, channels]`.
    row_table: relative positions, see `relative_positions`.
    column_table: the same of columns.

  Returns:
    `[batch, height, width, heads, channels]`.
  """
  batch, height, width, _, heads, channels = qkv.shape
  qkv = jnp.transpose(qkv, (3, 0, 4, 1, 2, 5))
  queries, keys, values = qkv.reshape(3, batch, heads, -1, channels)
  logits = jnp.einsum('bnqc,bnkc->bnqk', queries * channels**-0.5, keys)
  relative = relative_logits(qkv[0], row_table, column_table)
  logits = logits + relative.reshape(logits.shape)
  shares = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
  outputs = jnp.einsum('bnqk,bnkc->bqnc', shares.astype(qkv.dtype), values)
  return outputs.reshape(batch, height, width, heads, channels)


def split_windows(x: jax.Array, side: int) -> jax.Array:
  """Windows of a map, padded with zeros at the bottom and right.

  Args:
    x: `[batch, height, width, channels]`.
    side: of a window.

  Returns:
    `[batch * windows, side, side, channels]`, row by row.
  """
  batch, height, width, channels = x.shape
  rows, columns = -(-height // side), -(-width // side)
  pads = ((0, rows * side - height), (0, columns * side - width))
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  x = x.reshape(batch, rows, side, columns, side, channels)
  return jnp.swapaxes(x, 2, 3).reshape(-1, side, side, channels)


def join_windows(windows: jax.Array, size: tuple[int, int]) -> jax.Array:
  """The map of `split_windows`, without its padding.

  Args:
    windows: `[batch * windows, side, side, channels]`.
    size: height and width of the map.
  """
  side, channels = windows.shape[2:]
  height, width = size
  rows, columns = -(-height // side), -(-width // side)
  x = windows.reshape(-1, rows, columns, side, side, channels)
  x = jnp.swapaxes(x, 2, 3).reshape(-1, rows * side, columns * side, channels)
  return x[:, :height, :width]


def _resize_matrix(old, new, kernel, reach) -> np.ndarray:
  """`[new, old]` float32 weights of a resizing along one axis."""
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(centres).astype(int)
  matrix = np.zeros((new, old))
  for offset in range(1 - reach, reach + 1):
    columns = np.clip(first + offset, 0, old - 1)
    weights = kernel(np.abs(centres - (first + offset)))
    np.add.at(matrix, (np.arange(new), columns), weights)
  return matrix.astype(np.float32)


def _linear(distance):
  return np.maximum(1 - distance, 0.0)


def _cubic(distance):
  """Keys' kernel with four cells (Keys 1981)."""
  near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
  far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
  return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
