"""Convolution and dense layers shared by backbones and heads.

Parameters are float32. `dtype` names the precision of a layer, one of
`PRECISIONS`: the dtype of its products and the dtype of its outputs.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.ops import convolution

# Precision -> dtype of the factors of products, dtype of the outputs.
# Habana's TF_BF16_CONVERSION=full is `bfloat16`, its `basic` is
# `bfloat16_products`: only convolutions and matrix products are in bfloat16.
PRECISIONS = {
  'float32': ('float32', 'float32'),
  'bfloat16': ('bfloat16', 'bfloat16'),
  'bfloat16_products': ('bfloat16', 'float32'),
}


def product_dtype(precision: str) -> str:
  """Dtype of the factors of products."""
  return _types(precision)[0]


def output_dtype(precision: str) -> str:
  """Dtype of the outputs of a layer."""
  return _types(precision)[1]


def _types(precision):
  if precision not in PRECISIONS:
    known = ', '.join(PRECISIONS)
    raise invalid('model.dtype', precision, f'one of {known}')
  return PRECISIONS[precision]


# Habana's initialisation from nothing: truncated normal, fan in, scale 1.
variance_scaling = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal'
)


class Conv(nn.Module):
  """Square convolution with an optional bias.

  Attributes:
    features: number of output channels.
    size: kernel height and width.
    stride: of both axes.
    groups: of channels, each with its own kernel.
    padding: `symmetric` or `same`, see `ops.convolution.convolve`.
    use_bias: whether to add a bias.
    frozen: no gradient reaches the parameters.
    kernel_init: initialiser of the `[size, size, in / groups, features]`
      kernel.
    dtype: precision.
  """

  features: int
  size: int = 1
  stride: int = 1
  groups: int = 1
  padding: str = 'symmetric'
  use_bias: bool = True
  frozen: bool = False
  kernel_init: Callable = variance_scaling
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    def convolve(inputs, kernel):
      if self.frozen:
        kernel = jax.lax.stop_gradient(kernel)
      return convolution.convolve(
        inputs, kernel, self.stride, self.padding, self.groups
      )

    size = (self.size, self.size)
    return _product(self, convolve, inputs, size, self.use_bias, self.groups)


class Dense(nn.Module):
  """Matrix product with a bias.

  Attributes:
    features: number of output channels.
    kernel_init: initialiser of the `[in, features]` kernel.
    dtype: precision.
  """

  features: int
  kernel_init: Callable = variance_scaling
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    return _product(self, convolution.multiply, inputs)


class PatchConv(nn.Module):
  """Convolution whose stride is its kernel size, with a bias.

  Attributes:
    features: number of output channels.
    size: height and width of the kernel, and the stride.
    kernel_init: initialiser of the `[size, size, in, features]` kernel.
    dtype: precision.
  """

  features: int
  size: int
  kernel_init: Callable = variance_scaling
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    size = (self.size, self.size)
    return _product(self, convolution.convolve_patches, inputs, size)


class UpsampleConv(nn.Module):
  """2x2 transposed convolution with stride 2 and a bias, as blocks of 4 cells.

  The result is `[batch, height, width, 4, features]`; see
  `ops.convolution.upsample_convolve`.
  """

  features: int
  kernel_init: Callable = variance_scaling
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    return _product(self, convolution.upsample_convolve, inputs, (2, 2))


class ConvParameters(nn.Module):
  """Kernel and bias of a 1x1 convolution, of which `add_product` takes several.

  Attributes:
    features: number of output channels.
    kernel_init: initialiser of the `[1, 1, in, features]` kernel.
  """

  features: int
  kernel_init: Callable = variance_scaling

  @nn.compact
  def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
    """The kernel for a number of input channels, and the bias `[features]`."""
    shape = 1, 1, channels, self.features
    kernel = self.param('kernel', self.kernel_init, shape)
    return kernel, self.param('bias', nn.initializers.zeros, shape[-1:])


def add_product(operation, inputs, kernel, bias, dtype: str) -> jax.Array:
  """Inputs times a kernel, plus a bias, at a precision of `PRECISIONS`.

  Args:
    operation: of `ops.convolution`, on inputs and kernel.
    inputs: `[batch, ..., in]`.
    kernel: `[..., in, features]` float32.
    bias: `[features]` float32 or None.
    dtype: precision.
  """
  products = product_dtype(dtype)
  outputs = operation(inputs.astype(products), kernel.astype(products))
  if bias is not None:
    # In float32: the gradient of a bias is a sum over all cells, which was
    # wrong by a seventh in bfloat16.
    outputs += bias
  return outputs.astype(output_dtype(dtype))


def _product(layer, operation, inputs, kernel_size=(), use_bias=True, groups=1):
  """Inputs times the kernel of a compact module, plus its bias."""
  shape = (*kernel_size, inputs.shape[-1] // groups, layer.features)
  kernel = layer.param('kernel', layer.kernel_init, shape)
  bias = None
  if use_bias:
    bias = layer.param('bias', nn.initializers.zeros, (layer.features,))
  return add_product(operation, inputs, kernel, bias, layer.dtype)


def gelu(x: jax.Array) -> jax.Array:
  """Exact GELU, of any shape: x times the normal distribution function.

  In float32, as PyTorch's. `jax.nn.gelu` takes the complement of the error
  function, which is more exact for large negative values and on the CPU three
  times as slow.
  """
  wide = x.astype(jnp.float32)
  shares = 0.5 + 0.5 * jax.lax.erf(wide * jnp.float32(0.5**0.5))
  return (wide * shares).astype(x.dtype)


def drop_path_factors(
  key: jax.Array, rate: float, num_blocks: int, batch: int
) -> jax.Array:
  """Factors of residual branches: 0 drops a branch of one image.

  Stochastic depth (Huang et al. 2016): the chance grows linearly from 0 in the
  first block to `rate` in the last; kept branches are divided by the chance of
  being kept, so that the mean stays.

  Args:
    key: random key.
    rate: chance of the last block, below 1.
    num_blocks: of the whole backbone.
    batch: number of images.

  Returns:
    `[num_blocks, 2, batch]` float32, for up to two branches in a block.
  """
  keep = 1.0 - jnp.linspace(0.0, rate, num_blocks)[:, None, None]
  kept = jax.random.bernoulli(key, keep, (num_blocks, 2, batch))
  return kept / keep
