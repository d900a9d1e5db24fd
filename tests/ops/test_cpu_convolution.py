"""The CPU's forms of convolutions against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maskrcnn_jax.ops import convolution, cpu_convolution


def random_arrays(batch, height, width, channels, out):
  """Inputs, kernel, and a gradient of the outputs."""
  rng = np.random.default_rng(0)
  return [
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in (
      (batch, height, width, channels),
      (3, 3, channels, out),
      (batch, height, width, out),
    )
  ]


def plain(inputs, kernel):
  return lax.conv_general_dilated(
    inputs, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def assert_near(actual, expected):
  assert actual.shape == expected.shape
  largest = np.max(np.abs(expected))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * largest)


def test_winograd_by_hand():
  # A 4x4 image of ones under a kernel of ones: each cell counts what it sees.
  counts = cpu_convolution.winograd(
    jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), 1
  )
  expected = [[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]
  np.testing.assert_array_equal(counts[0, ..., 0], expected)


@pytest.mark.parametrize('shape', [(2, 2), (4, 6), (5, 7), (1, 3), (14, 14)])
def test_winograd_is_the_convolution(shape):
  inputs, kernel, gradient = random_arrays(6, *shape, 3, 5)
  expected, vjp = jax.vjp(plain, inputs, kernel)
  for group in (1, 2, 6):
    assert_near(cpu_convolution.winograd(inputs, kernel, group), expected)
    assert_near(
      cpu_convolution.winograd_kernel_gradient(inputs, gradient, group),
      vjp(gradient)[1],
    )


@pytest.mark.parametrize('shape', [(8, 6), (4, 5), (12, 1)])
def test_bands_give_the_gradient_of_the_kernel(shape):
  inputs, kernel, gradient = random_arrays(2, *shape, 3, 5)
  expected = jax.vjp(plain, inputs, kernel)[1](gradient)[1]
  for rows in (2, 4):
    assert_near(
      cpu_convolution.banded_kernel_gradient(inputs, gradient, rows), expected
    )


def test_product_kernel_gradient():
  inputs, _, gradient = random_arrays(2, 3, 4, 5, 6)
  expected = np.einsum('bhwi,bhwo->io', inputs, gradient)
  assert_near(
    cpu_convolution.product_kernel_gradient(inputs, gradient), expected
  )


def group_size(batch, height=14, width=14, channels=256, dtype='float32'):
  return cpu_convolution.group_size(
    jax.ShapeDtypeStruct((batch, height, width, channels), dtype),
    jax.ShapeDtypeStruct((3, 3, channels, 256), dtype),
  )


def test_groups_divide_the_batch_and_fit_the_cache():
  assert group_size(128) == 16  # 16 x 49 tiles of at most 1024.
  assert group_size(100) == 20
  assert group_size(512, 7, 7) == 64
  assert group_size(128, dtype='bfloat16') is None
  assert group_size(128, channels=16) is None
  assert group_size(8) is None  # Too little work.
  assert group_size(127) is None  # Only by itself.
  assert group_size(1, 128, 128) is None  # Too large for a group.


def band_rows(batch, height, width, channels=256, dtype='float32'):
  return cpu_convolution.band_rows(
    jax.ShapeDtypeStruct((batch, height, width, channels), dtype),
    jax.ShapeDtypeStruct((3, 3, channels, 256), dtype),
  )


def test_bands_are_even_and_divide_the_height():
  assert band_rows(1, 128, 128) == 32  # 16 x 64 tiles.
  assert band_rows(1, 208, 336) == 8  # 6 x 168 would fit, 4 divides.
  assert band_rows(4, 208, 336) == 2
  assert band_rows(1, 64, 64) is None
  assert band_rows(1, 127, 256) is None
  assert band_rows(1, 128, 128, channels=128) is None
  assert band_rows(1, 128, 128, dtype='bfloat16') is None


def test_large_images_take_bands():
  inputs, kernel, gradient = random_arrays(1, 128, 128, 256, 256)
  _, vjp = jax.vjp(convolution.convolve, inputs, kernel)
  expected = jax.vjp(plain, inputs, kernel)[1](gradient)
  for actual, wanted in zip(vjp(gradient), expected):
    # Sums of 16384 terms: the plain ones are no nearer to the truth.
    np.testing.assert_allclose(actual, wanted, atol=1e-2, rtol=0)
  loops = [
    function.lower(inputs, kernel, gradient).as_text().count('while')
    for function in (
      jax.jit(lambda x, k, g: jax.vjp(convolution.convolve, x, k)[1](g)),
      jax.jit(lambda x, k, g: jax.vjp(plain, x, k)[1](g)),
    )
  ]
  assert loops[0] > loops[1] == 0


def test_other_backends_keep_the_plain_form():
  inputs, kernel, gradient = random_arrays(128, 14, 14, 64, 64)

  def gradients(inputs, kernel, gradient):
    return jax.vjp(convolution.convolve, inputs, kernel)[1](gradient)

  def has_loop(platform):
    traced = jax.jit(gradients).trace(inputs, kernel, gradient)
    lowered = traced.lower(lowering_platforms=(platform,))
    return 'stablehlo.while' in lowered.as_text()

  assert has_loop('cpu')
  assert not has_loop('tpu') and not has_loop('cuda')
