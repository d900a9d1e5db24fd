"""Depthwise convolution: one kernel per channel.

XLA (jax 0.10.2) computes it on the CPU 10 to 40 times slower than the sums
below, which are the same products in another order.
"""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def convolve_depthwise(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """Depthwise convolution of odd size with stride 1 and zero padding.

  Args:
    inputs: `[batch, height, width, channels]`.
    kernel: `[size, size, 1, channels]`.

  Returns:
    The shape of the inputs.
  """
  return lax.platform_dependent(
    inputs, kernel, cpu=_shifted_sum, default=_convolve
  )


def _forward(inputs, kernel):
  return convolve_depthwise(inputs, kernel), (inputs, kernel)


def _backward(residuals, gradient):
  inputs, kernel = residuals
  inputs_gradient = convolve_depthwise(gradient, kernel[::-1, ::-1])

  def plain(inputs, gradient):
    return jax.vjp(lambda k: _convolve(inputs, k), kernel)[1](gradient)[0]

  kernel_gradient = lax.platform_dependent(
    inputs,
    gradient,
    cpu=lambda x, g: _sum_by_rows(x, g, kernel.shape[0]),
    default=plain,
  )
  return inputs_gradient, kernel_gradient


convolve_depthwise.defvjp(_forward, _backward)


def _convolve(inputs, kernel):
  return lax.conv_general_dilated(
    inputs,
    kernel,
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=inputs.shape[-1],
  )


def _shifted_sum(inputs, kernel):
  """Sum of shifted inputs, each times an entry of the kernel."""
  size, (height, width) = kernel.shape[0], inputs.shape[1:3]
  padded, kernel = _pad(inputs, size), kernel.astype(jnp.float32)
  outputs = sum(
    padded[:, y : y + height, x : x + width] * kernel[y, x, 0]
    for y in range(size)
    for x in range(size)
  )
  return outputs.astype(inputs.dtype)


def _sum_by_rows(inputs, gradient, size):
  """Gradient of the kernel: products summed over rows, then over columns.

  A sum over rows adds whole rows, which stay in the cache; sums over all cells
  of an image took 10 times as long.
  """
  batch, height, width, channels = gradient.shape
  padded, gradient = _pad(inputs, size), gradient.astype(jnp.float32)

  def add(index, sums):
    image, row = index // height, index % height
    start = (image, row, 0, 0)
    rows = lax.dynamic_slice(padded, start, (1, size, *padded.shape[2:]))[0]
    grad = lax.dynamic_slice(gradient, start, (1, 1, width, channels))[0]
    # [size, width, channels] for each column of the kernel.
    return [
      total + rows[:, x : x + width] * grad for x, total in enumerate(sums)
    ]

  zeros = jnp.zeros((size, width, channels), jnp.float32)
  sums = lax.fori_loop(0, batch * height, add, [zeros] * size)
  sums = jnp.stack([jnp.sum(x, axis=1) for x in sums], axis=1)
  return sums[:, :, None].astype(inputs.dtype)


def _pad(inputs, size):
  border = (size // 2, size // 2)
  inputs = inputs.astype(jnp.float32)
  padded = jnp.pad(inputs, ((0, 0), border, border, (0, 0)))
  # Otherwise every one of the sums would compute it again.
  return lax.optimization_barrier(padded)
