"""Convolutions and pooling, with faster forms of convolutions on the CPU.

Activations are `[batch, height, width, channels]`, kernels
`[height, width, in, out]`. Results are those of the plain convolution on every
backend; `cpu_convolution` is used from here only.
"""

import jax
import jax.numpy as jnp
from jax import lax

from maskrcnn_jax.ops import cpu_convolution

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def convolve(
  inputs: jax.Array,
  kernel: jax.Array,
  stride: int = 1,
  padding: str = 'symmetric',
  groups: int = 1,
) -> jax.Array:
  """Convolution of images with a square kernel.

  Args:
    inputs: `[batch, height, width, in]`.
    kernel: `[size, size, in / groups, out]`.
    stride: of both axes.
    padding: `symmetric`, (size - 1) zeros split evenly whatever the stride
      (Caffe, PyTorch, Habana's `fixed_padding`), or `same`, TensorFlow's rule,
      which with a stride of 2 puts the odd zero at the bottom right.
    groups: of channels, each with its own kernel.

  Returns:
    `[batch, ceil(height / stride), ceil(width / stride), out]` for odd sizes.

  Raises:
    ValueError: if the channels do not fit or the padding is unknown.
  """
  if inputs.shape[-1] != groups * kernel.shape[2]:
    channels = groups * kernel.shape[2]
    raise ValueError(
      f'kernel {kernel.shape} takes {channels} channels, inputs have '
      f'{inputs.shape[-1]}.'
    )
  pads = _pads(padding, kernel.shape[:2])
  if groups > 1:
    return _convolve(inputs, kernel, stride, pads, groups)
  if stride == 2 and _has_few_channels(inputs, kernel):
    return _convolve_images(inputs, kernel, pads)
  if kernel.shape[:2] == (1, 1):
    # A matrix product: on the CPU 3 to 7 times faster than the convolution,
    # elsewhere the same.
    return multiply(inputs[:, ::stride, ::stride], kernel[0, 0])
  if stride == 1 and any(_cpu_forms(inputs, kernel)):
    return _convolve_3x3(inputs, kernel)
  return _convolve(inputs, kernel, stride, pads)


def _pads(padding, sizes):
  """XLA's padding for windows of some sizes, see `convolve`."""
  if padding == 'same':
    return 'SAME'
  if padding != 'symmetric':
    raise ValueError(f"padding must be 'symmetric' or 'same', got {padding!r}.")
  return [((size - 1) // 2, size // 2) for size in sizes]


def _convolve(inputs, kernel, stride, pads, groups=1):
  return lax.conv_general_dilated(
    inputs,
    kernel,
    (stride, stride),
    pads,
    dimension_numbers=_LAYOUT,
    feature_group_count=groups,
  )


def _has_few_channels(inputs, kernel):
  """Whether `_convolve_by_parity` is possible and fills more of a tile."""
  _, height, width, channels = inputs.shape
  has_halves = height % 2 == 0 and width % 2 == 0
  # A kernel of 1x1 is a product instead, and sees one cell of a block.
  return channels <= 4 and has_halves and kernel.shape[0] in (3, 5, 7)


def _convolve_images(inputs, kernel, pads):
  """The first convolution of a ResNet, with stride 2."""
  before = (kernel.shape[0] - 2) // 2 if pads == 'SAME' else pads[0][0]
  return lax.platform_dependent(
    inputs,
    kernel,
    tpu=lambda x, k: _convolve_by_parity(x, k, before),
    default=lambda x, k: _convolve(x, k, 2, pads),
  )


def _convolve_by_parity(inputs, kernel, before):
  """Convolution with stride 2 as one with stride 1 and four times the channels.

  TPUs keep channels in tiles of 128: three of them take 43 times their memory.
  Here a cell has the channels of a block of 2x2, which are taken from planes of
  one channel.

  Args:
    inputs: `[batch, height, width, channels]`, of even sides.
    kernel: of odd size.
    before: zeros before the first row and column; as many as give half the
      size follow the last.
  """
  shift = before % 2
  kernel = jnp.pad(kernel, [(shift, 1 - shift)] * 2 + [(0, 0)] * 2)
  size = kernel.shape[0] // 2
  kernel = kernel.reshape(size, 2, size, 2, *kernel.shape[2:])
  kernel = jnp.swapaxes(kernel, 1, 2).reshape(size, size, -1, kernel.shape[-1])
  planes = jnp.transpose(inputs, (0, 3, 1, 2))
  parts = [
    planes[..., row::2, column::2] for row in (0, 1) for column in (0, 1)
  ]
  blocks = jnp.transpose(jnp.concatenate(parts, axis=1), (0, 2, 3, 1))
  first = (before + 1) // 2
  return _convolve(blocks, kernel, 1, [(first, size - 1 - first)] * 2)


def _cpu_forms(inputs, kernel):
  """Images per group and rows per band; None where that form is not faster."""
  return (
    cpu_convolution.group_size(inputs, kernel),
    cpu_convolution.band_rows(inputs, kernel),
  )


@jax.custom_vjp
def _convolve_3x3(inputs, kernel):
  """3x3 convolution with stride 1 that has a form of its own on the CPU."""
  group, _ = _cpu_forms(inputs, kernel)
  if not group:
    return _convolve_plain(inputs, kernel)
  return lax.platform_dependent(
    inputs,
    kernel,
    cpu=lambda x, k: cpu_convolution.winograd(x, k, group),
    default=_convolve_plain,
  )


def _convolve_plain(inputs, kernel):
  return _convolve(inputs, kernel, 1, 'SAME')


def _plain_gradients(inputs, kernel, gradient):
  return jax.vjp(_convolve_plain, inputs, kernel)[1](gradient)


def _convolve_3x3_forward(inputs, kernel):
  return _convolve_3x3(inputs, kernel), (inputs, kernel)


def _convolve_3x3_backward(residuals, gradient):
  inputs, kernel = residuals
  group, rows = _cpu_forms(inputs, kernel)

  def on_cpu(inputs, kernel, gradient):
    if group:
      turned = kernel[::-1, ::-1].swapaxes(2, 3)
      return (
        cpu_convolution.winograd(gradient, turned, group),
        cpu_convolution.winograd_kernel_gradient(inputs, gradient, group),
      )
    return (
      _plain_gradients(inputs, kernel, gradient)[0],
      cpu_convolution.banded_kernel_gradient(inputs, gradient, rows),
    )

  return lax.platform_dependent(
    inputs, kernel, gradient, cpu=on_cpu, default=_plain_gradients
  )


_convolve_3x3.defvjp(_convolve_3x3_forward, _convolve_3x3_backward)


@jax.custom_vjp
def multiply(inputs: jax.Array, matrix: jax.Array) -> jax.Array:
  """`inputs @ matrix` with a fast gradient on the CPU.

  Args:
    inputs: `[..., in]`.
    matrix: `[in, out]`.
  """
  return inputs @ matrix


def _multiply_forward(inputs, matrix):
  return inputs @ matrix, (inputs, matrix)


def _multiply_backward(residuals, gradient):
  inputs, matrix = residuals
  matrix_gradient = lax.platform_dependent(
    inputs,
    gradient,
    cpu=cpu_convolution.product_kernel_gradient,
    default=lambda x, g: jnp.einsum('...i,...o->io', x, g),
  )
  return gradient @ matrix.T, matrix_gradient


multiply.defvjp(_multiply_forward, _multiply_backward)


def convolve_patches(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolution whose stride is its kernel size, without padding.

  Every patch of the image is a row of a matrix product.

  Args:
    inputs: `[batch, height, width, in]`; the size divides height and width.
    kernel: `[size, size, in, out]`.

  Returns:
    `[batch, height / size, width / size, out]`.
  """
  batch, height, width, channels = inputs.shape
  size, out = kernel.shape[0], kernel.shape[3]
  rows, columns = height // size, width // size
  x = inputs.reshape(batch, rows, size, columns, size, channels)
  x = jnp.swapaxes(x, 2, 3).reshape(batch, rows, columns, -1)
  return multiply(x, kernel.reshape(-1, out))


def upsample_convolve(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """Transposed convolution whose stride is its kernel size, as blocks.

  Every input cell becomes its own block of output cells, so it is a matrix
  product. `interleave` rearranges the blocks into a map; operations on single
  cells can come before it, so that less data is moved.

  Args:
    inputs: `[batch, height, width, in]`.
    kernel: `[size, size, in, out]`.

  Returns:
    `[batch, height, width, size * size, out]`.
  """
  size, _, channels, out = kernel.shape
  weights = jnp.transpose(kernel, (2, 0, 1, 3)).reshape(channels, -1)
  blocks = multiply(inputs, weights)
  return blocks.reshape(*inputs.shape[:3], size * size, out)


def interleave(blocks: jax.Array, size: int) -> jax.Array:
  """Maps `[batch, size * h, size * w, ...]` from blocks.

  Args:
    blocks: `[batch, h, w, size**2, ...]`.
    size: of a block.
  """
  batch, height, width, _, *rest = blocks.shape
  blocks = blocks.reshape(batch, height, width, size, size, *rest)
  blocks = jnp.swapaxes(blocks, 2, 3)
  return blocks.reshape(batch, height * size, width * size, *rest)


def join_blocks(blocks: jax.Array) -> jax.Array:
  """Blocks `[..., 16]` of 4x4 cells from 2x2 blocks of 2x2 blocks `[..., 16]`.

  That is the order of cells after upsampling twice by `upsample_convolve`.
  """
  blocks = blocks.reshape(*blocks.shape[:-1], 2, 2, 2, 2)
  return jnp.swapaxes(blocks, -3, -2).reshape(*blocks.shape[:-4], 16)


def max_pool(inputs: jax.Array, padding: str = 'symmetric') -> jax.Array:
  """3x3 max-pooling with stride 2, after the stem of a ResNet.

  Args:
    inputs: `[batch, height, width, channels]`.
    padding: as for `convolve`; Habana pools with `same` beside symmetric
      convolutions.

  Returns:
    `[batch, ceil(height / 2), ceil(width / 2), channels]`.
  """
  window = (1, 3, 3, 1)
  pads = _pads(padding, window)
  return lax.reduce_window(
    inputs, -jnp.inf, lax.max, window, (1, 2, 2, 1), pads
  )
