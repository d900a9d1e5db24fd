"""Convolutions against loops and against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maskrcnn_jax.ops import convolution, depthwise_convolution

LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def random_arrays(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def slow_convolve(inputs, kernel, stride, pads):
  """One output at a time; `pads` is (before, after) for each axis."""
  size = len(kernel)
  padded = np.pad(inputs.astype(np.float64), ((0, 0), *pads, (0, 0)))
  height, width = ((n - size) // stride + 1 for n in padded.shape[1:3])
  outputs = np.zeros((len(inputs), height, width, kernel.shape[3]))
  for y in range(height):
    for x in range(width):
      window = padded[:, stride * y :, stride * x :][:, :size, :size]
      outputs[:, y, x] = np.einsum('nhwi,hwio->no', window, kernel)
  return outputs


def same_pads(length, size, stride):
  """TensorFlow's rule: the odd zero at the end."""
  total = max((-(-length // stride) - 1) * stride + size - length, 0)
  return total // 2, total - total // 2


@pytest.mark.parametrize(
  'size, stride', [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (7, 2)]
)
@pytest.mark.parametrize('padding', ['symmetric', 'same'])
def test_convolution_matches_the_definition(size, stride, padding):
  inputs, kernel = random_arrays((2, 9, 12, 3), (size, size, 3, 5))
  if padding == 'same':
    pads = [same_pads(length, size, stride) for length in (9, 12)]
  else:
    pads = [{1: (0, 0), 2: (0, 1), 3: (1, 1), 7: (3, 3)}[size]] * 2
  expected = slow_convolve(inputs, kernel, stride, pads)
  actual = convolution.convolve(inputs, kernel, stride, padding)
  assert actual.shape == (2, -(-9 // stride), -(-12 // stride), 5)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_paddings_differ_where_stride_meets_an_even_size():
  # Ones under a kernel of ones: each output counts the cells it sees.
  inputs, kernel = np.ones((1, 4, 4, 1)), np.ones((3, 3, 1, 1))
  symmetric = convolution.convolve(inputs, kernel, 2, 'symmetric')
  np.testing.assert_array_equal(symmetric[0, ..., 0], [[4, 6], [6, 9]])
  same = convolution.convolve(inputs, kernel, 2, 'same')
  np.testing.assert_array_equal(same[0, ..., 0], [[9, 6], [6, 4]])


@pytest.mark.parametrize('size', [1, 3])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_are_those_of_the_plain_convolution(size, dtype):
  # Enough images for the forms that the CPU has of its own.
  inputs, kernel, cotangent = random_arrays(
    (256, 4, 5, 32), (size, size, 32, 40), (256, 4, 5, 40)
  )
  arrays = [jnp.asarray(x, dtype) for x in (inputs, kernel)]
  cotangent = jnp.asarray(cotangent, dtype)

  def plain(inputs, kernel):
    return lax.conv_general_dilated(
      inputs, kernel, (1, 1), 'SAME', dimension_numbers=LAYOUT
    )

  outputs, vjp = jax.vjp(jax.jit(convolution.convolve), *arrays)
  expected, plain_vjp = jax.vjp(jax.jit(plain), *map(jnp.float32, arrays))
  tolerance = 2e-5 if dtype == 'float32' else 2e-2
  results = [outputs, *vjp(cotangent)]
  expected = [expected, *plain_vjp(jnp.float32(cotangent))]
  for actual, wanted in zip(results, expected):
    assert actual.dtype == dtype
    np.testing.assert_allclose(
      np.float32(actual),
      wanted,
      rtol=0,
      atol=tolerance * np.max(np.abs(wanted)),
    )


@pytest.mark.parametrize('argument', ['inputs', 'kernel'])
def test_what_is_not_asked_for_is_not_computed(argument):
  inputs, kernel = random_arrays((256, 4, 5, 32), (3, 3, 32, 32))

  def flops(wanted):
    def gradient(inputs, kernel):
      _, vjp = jax.vjp(convolution.convolve, inputs, kernel)
      return [vjp(inputs)[index] for index in wanted]

    compiled = jax.jit(gradient).lower(inputs, kernel).compile()
    return compiled.cost_analysis()['flops']

  index = ['inputs', 'kernel'].index(argument)
  assert flops([index]) < 0.7 * flops([0, 1])


@pytest.mark.parametrize('padding', ['symmetric', 'same'])
@pytest.mark.parametrize('size', [3, 5, 7])
def test_the_form_for_images_on_tpus_is_the_convolution(size, padding):
  inputs, kernel = random_arrays((2, 8, 14, 3), (size, size, 3, 5))
  before = (size - 2) // 2 if padding == 'same' else (size - 1) // 2

  def by_parity(inputs, kernel):
    return convolution._convolve_by_parity(inputs, kernel, before)

  def plain(inputs, kernel):
    return convolution.convolve(inputs, kernel, 2, padding)

  outputs, vjp = jax.vjp(by_parity, inputs, kernel)
  expected, plain_vjp = jax.vjp(plain, inputs, kernel)
  assert outputs.shape == (2, 4, 7, 5)
  np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
  for actual, wanted in zip(vjp(expected), plain_vjp(expected)):
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'platform, shape, channels',
  [
    ('tpu', (1, 32, 32, 3), 12),
    ('tpu', (1, 33, 32, 3), 3),
    ('tpu', (1, 32, 32, 8), 8),
    ('cpu', (1, 32, 32, 3), 3),
  ],
)
def test_images_have_a_form_of_their_own_on_tpus(platform, shape, channels):
  kernel = jnp.zeros((7, 7, shape[-1], 16))
  traced = jax.jit(lambda x: convolution.convolve(x, kernel, 2)).trace(
    jnp.zeros(shape)
  )
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  (line,) = [x for x in text.splitlines() if 'stablehlo.convolution' in x]
  assert f'x{channels}x16xf32>) -> ' in line


@pytest.mark.parametrize('size', [2, 3])
def test_upsampling_is_the_transposed_convolution(size):
  inputs, kernel = random_arrays((2, 4, 5, 6), (size, size, 6, 3))
  blocks = convolution.upsample_convolve(inputs, kernel)
  assert blocks.shape == (2, 4, 5, size * size, 3)
  # The transpose of a convolution that goes the other way.
  expected = lax.conv_transpose(
    inputs,
    kernel.swapaxes(2, 3),
    (size, size),
    'VALID',
    dimension_numbers=LAYOUT,
    transpose_kernel=True,
  )
  for channel in range(3):
    actual = convolution.interleave(blocks[..., channel], size)
    np.testing.assert_allclose(
      actual, expected[..., channel], rtol=0, atol=2e-5
    )


def test_upsampling_by_hand():
  # A cell of 1 beside a cell of 10, each spread as the kernel says.
  inputs = np.float32([[1, 10]]).reshape(1, 1, 2, 1)
  kernel = np.float32([[1, 2], [3, 4]]).reshape(2, 2, 1, 1)
  blocks = convolution.upsample_convolve(inputs, kernel)[..., 0]
  np.testing.assert_array_equal(
    convolution.interleave(blocks, 2)[0], [[1, 2, 10, 20], [3, 4, 30, 40]]
  )


@pytest.mark.parametrize('padding', ['symmetric', 'same'])
@pytest.mark.parametrize('shape', [(6, 8), (7, 5)])
def test_max_pool_matches_the_definition(padding, shape):
  (inputs,) = random_arrays((2, *shape, 3))
  inputs -= 10.0  # Padding must not be taken for a maximum.
  pads = [(1, 1)] * 2
  if padding == 'same':
    pads = [same_pads(length, 3, 2) for length in shape]
  padded = np.pad(inputs, ((0, 0), *pads, (0, 0)), constant_values=-np.inf)
  pooled = convolution.max_pool(inputs, padding)
  assert pooled.shape == (2, -(-shape[0] // 2), -(-shape[1] // 2), 3)
  for y in range(pooled.shape[1]):
    for x in range(pooled.shape[2]):
      window = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
      np.testing.assert_array_equal(pooled[:, y, x], window.max((1, 2)))


def test_errors_name_the_argument():
  inputs, kernel = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 2, 1))
  with pytest.raises(ValueError, match=r'^kernel .* 2 .* 3'):
    convolution.convolve(inputs, kernel)
  with pytest.raises(ValueError, match=r"^padding .*'valid'"):
    convolution.convolve(inputs, jnp.zeros((3, 3, 3, 1)), padding='valid')
  with pytest.raises(ValueError, match=r"^padding .*'valid'"):
    convolution.max_pool(inputs, 'valid')


def test_patches_match_the_definition():
  inputs, kernel = random_arrays((2, 8, 12, 3), (4, 4, 3, 5))
  expected = slow_convolve(inputs, kernel, 4, [(0, 0)] * 2)
  actual = convolution.convolve_patches(inputs, kernel)
  assert actual.shape == (2, 2, 3, 5)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_depthwise_convolution_matches_the_definition():
  inputs, kernel = random_arrays((2, 5, 9, 3), (7, 7, 1, 3))
  channels = [
    slow_convolve(inputs[..., i, None], kernel[..., i, None], 1, [(3, 3)] * 2)
    for i in range(3)
  ]
  expected = np.concatenate(channels, axis=-1)
  actual = depthwise_convolution.convolve_depthwise(inputs, kernel)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_of_a_depthwise_convolution_are_those_of_xla(dtype):
  arrays = random_arrays((2, 4, 6, 3), (3, 3, 1, 3), (2, 4, 6, 3))
  inputs, kernel, cotangent = (jnp.asarray(x, dtype) for x in arrays)
  _, gradients = jax.vjp(
    depthwise_convolution.convolve_depthwise, inputs, kernel
  )
  _, expected = jax.vjp(
    lambda x, k: lax.conv_general_dilated(
      *(x, k, (1, 1), 'SAME'), dimension_numbers=LAYOUT, feature_group_count=3
    ),
    *(x.astype(jnp.float32) for x in (inputs, kernel)),
  )
  tolerance = 2e-5 if dtype == 'float32' else 0.05
  for actual, wanted in zip(
    gradients(cotangent), expected(cotangent.astype(jnp.float32))
  ):
    assert actual.dtype == dtype
    np.testing.assert_allclose(
      actual.astype(jnp.float32), wanted, rtol=0, atol=tolerance
    )


def test_groups_are_convolutions_of_their_own():
  inputs, kernel = random_arrays((2, 5, 6, 4), (3, 3, 2, 6))
  parts = [
    slow_convolve(x, k, 2, [(1, 1)] * 2)
    for x, k in zip(np.split(inputs, 2, -1), np.split(kernel, 2, -1))
  ]
  actual = convolution.convolve(inputs, kernel, 2, groups=2)
  expected = np.concatenate(parts, axis=-1)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
  with pytest.raises(ValueError, match='channels'):
    convolution.convolve(inputs, kernel)


@pytest.mark.parametrize('padding', ['same', 'symmetric'])
def test_few_channels_with_a_kernel_of_one_cell_on_a_tpu(padding):
  """The form for images is not taken: it would see a neighbour's cell."""
  images, kernel = random_arrays((1, 4, 6, 3), (1, 1, 3, 8))
  traced = jax.jit(
    lambda x, k: convolution.convolve(x, k, 2, padding=padding)
  ).trace(images, kernel)
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert '12xf32' not in text  # The channels of a block of 2x2.
