"""Convolution, dense and normalisation layers shared by backbone and heads.

Parameters are float32. `dtype` names the precision of a layer, one of
`PRECISIONS`: the dtype of its products and the dtype of its outputs.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskrcnn_jax.errors import UserError
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
    raise UserError(
      f'dtype must be one of {", ".join(PRECISIONS)}, got {precision!r}.',
      argument='model.dtype',
      given=precision,
      wanted=[*PRECISIONS],
    )
  return PRECISIONS[precision]


NORMS = ('frozen', 'batch', 'group')

# Habana's initialisation from nothing: truncated normal, fan in, scale 1.
variance_scaling = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal'
)


@dataclasses.dataclass(frozen=True)
class NormOptions:
  """Normalisation after the convolutions of the pyramid or a head.

  Attributes:
    kind: `none` (the convolutions then have a bias) or a kind of `Norm`.
    epsilon: number added to the variance.
    momentum: share of the stored statistics that stays, for `batch`.
  """

  kind: str = 'none'
  epsilon: float = 1e-5
  momentum: float = 0.9

  def __post_init__(self):
    if self.kind not in ('none', *NORMS):
      raise UserError(
        f'kind must be one of none, {", ".join(NORMS)}, got {self.kind!r}.',
        argument='model.head_norm.kind',
        given=self.kind,
        wanted=['none', *NORMS],
      )


class Conv(nn.Module):
  """Square convolution with an optional bias.

  Attributes:
    features: number of output channels.
    size: kernel height and width.
    stride: of both axes.
    padding: `symmetric` or `same`, see `ops.convolution.convolve`.
    use_bias: whether to add a bias.
    frozen: no gradient reaches the parameters.
    kernel_init: initialiser of the `[size, size, in, features]` kernel.
    dtype: precision.
  """

  features: int
  size: int = 1
  stride: int = 1
  padding: str = 'symmetric'
  use_bias: bool = True
  frozen: bool = False
  kernel_init: Callable = variance_scaling
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    shape = (self.size, self.size, inputs.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    if self.frozen:
      kernel = jax.lax.stop_gradient(kernel)
    products = product_dtype(self.dtype)
    outputs = convolution.convolve(
      inputs.astype(products),
      kernel.astype(products),
      self.stride,
      self.padding,
    )
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      return add_bias(outputs, bias, self.dtype)
    return outputs.astype(output_dtype(self.dtype))


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
    shape = (inputs.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    products = product_dtype(self.dtype)
    outputs = convolution.multiply(
      inputs.astype(products), kernel.astype(products)
    )
    return add_bias(outputs, bias, self.dtype)


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
    shape = (2, 2, inputs.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    products = product_dtype(self.dtype)
    outputs = convolution.upsample_convolve(
      inputs.astype(products), kernel.astype(products)
    )
    return add_bias(outputs, bias, self.dtype)


def conv_norm_relu(
  inputs: jax.Array,
  features: int,
  norm: NormOptions,
  names: tuple[str, str],
  valid: jax.Array | None = None,
  train: bool = False,
  relu: bool = True,
  dtype: str = 'float32',
  **conv,
) -> jax.Array:
  """Convolution, norm if there is one, ReLU; called inside a compact module.

  Args:
    inputs: `[batch, height, width, channels]`.
    features: number of output channels.
    norm: normalisation of the outputs; without one the convolution has a bias.
    names: names of the two submodules.
    valid: `[batch]` bool, the images in the statistics; None: all.
    train: whether `batch` uses and stores the statistics of this batch.
    relu: whether a ReLU follows.
    dtype: precision, see `PRECISIONS`.
    **conv: further fields of `Conv`.
  """
  has_norm = norm.kind != 'none'
  x = Conv(features, use_bias=not has_norm, dtype=dtype, name=names[0], **conv)(
    inputs
  )
  if has_norm:
    x = Norm(
      norm.kind, norm.epsilon, norm.momentum, dtype=dtype, name=names[1]
    )(x, valid, train)
  return nn.relu(x) if relu else x


def add_bias(outputs: jax.Array, bias: jax.Array, precision: str) -> jax.Array:
  """Products plus a bias, in the output dtype of a precision."""
  # In float32: the gradient of a bias is a sum over all cells, which was wrong
  # by a seventh in bfloat16.
  return (outputs + bias).astype(output_dtype(precision))


class Norm(nn.Module):
  """Normalisation of activations: frozen or trainable batch norm, group norm.

  Attributes:
    kind: `frozen`, batch norm with stored statistics, whose four arrays live in
      `batch_stats`; `batch`, statistics of the valid images of the global batch
      in training, stored ones otherwise; `group`, of 32 groups (fewer where a
      group would have less than `group_channels`).
    epsilon: number added to the variance.
    momentum: share of the stored statistics that stays, for `batch`.
    group_channels: smallest number of channels of a group.
    scale_init: initialiser of the scale of a trainable norm.
    dtype: precision of the outputs; statistics are float32.
  """

  kind: str = 'frozen'
  epsilon: float = 1e-4
  momentum: float = 0.9
  group_channels: int = 4
  scale_init: Callable = nn.initializers.ones
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, inputs: jax.Array, valid: jax.Array | None = None, train: bool = False
  ) -> jax.Array:
    """Normalised activations.

    Args:
      inputs: `[batch, height, width, channels]`.
      valid: `[batch]` bool, the images in the statistics; None: all.
      train: whether `batch` uses and stores the statistics of this batch.
    """
    if self.kind == 'frozen':
      return self._stored(inputs, self._variable_affine(inputs.shape[-1]))
    if self.kind not in NORMS:
      raise UserError(
        f"norm must be 'frozen', 'batch' or 'group', got {self.kind!r}.",
        argument='model.backbone.norm',
        given=self.kind,
        wanted=NORMS,
      )
    channels = inputs.shape[-1]
    scale = self.param('scale', self.scale_init, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    if self.kind == 'group':
      return self._group(inputs, scale, bias)
    mean = self._statistic('mean', jnp.zeros, channels)
    variance = self._statistic('variance', jnp.ones, channels)
    if not train:
      return self._affine(inputs, scale, bias, mean.value, variance.value)
    batch_mean, batch_variance = _moments(inputs, valid)
    if not self.is_initializing():
      keep = self.momentum
      if valid is not None:
        # A batch without a valid image leaves the statistics as they are.
        keep = jnp.where(jnp.any(valid), keep, 1.0)
      mean.value = keep * mean.value + (1 - keep) * batch_mean
      variance.value = keep * variance.value + (1 - keep) * batch_variance
    return self._affine(inputs, scale, bias, batch_mean, batch_variance)

  def _statistic(self, name, init, channels):
    return self.variable('batch_stats', name, init, (channels,), jnp.float32)

  def _variable_affine(self, channels):
    """Scale, bias, mean and variance of a frozen batch norm."""
    inits = {
      'scale': jnp.ones,
      'bias': jnp.zeros,
      'mean': jnp.zeros,
      'variance': jnp.ones,
    }
    return [
      self._statistic(name, init, channels).value
      for name, init in inits.items()
    ]

  def _stored(self, inputs, arrays):
    return self._affine(inputs, *map(jax.lax.stop_gradient, arrays))

  def _affine(self, inputs, scale, bias, mean, variance):
    # One multiplication and one addition, which XLA fuses into the convolution.
    factor = scale * jax.lax.rsqrt(variance + self.epsilon)
    offset = bias - mean * factor
    # In float32, as in `add_bias`.
    return (inputs * factor + offset).astype(output_dtype(self.dtype))

  def _group(self, inputs, scale, bias):
    batch, height, width, channels = inputs.shape
    groups = min(32, max(channels // self.group_channels, 1))
    if channels % groups:
      raise UserError(
        f'group norm needs channels divisible by {groups}, got {channels}.',
        given=channels,
        wanted=groups,
      )
    x = inputs.astype(jnp.float32).reshape(batch, height * width, channels)
    # Moments per channel first, then over the few channels of a group: one pass
    # over the activations.
    mean = jnp.mean(x, axis=1).reshape(batch, groups, -1)
    square = jnp.mean(jnp.square(x), axis=1).reshape(batch, groups, -1)
    mean = jnp.mean(mean, axis=-1, keepdims=True)
    variance = jnp.mean(square, axis=-1, keepdims=True) - jnp.square(mean)
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + self.epsilon)
    inverse = jnp.broadcast_to(inverse, (batch, groups, channels // groups))
    factor = inverse.reshape(batch, channels) * scale
    mean = jnp.broadcast_to(mean, (batch, groups, channels // groups))
    offset = bias - mean.reshape(batch, channels) * factor
    x = x * factor[:, None] + offset[:, None]
    return x.reshape(inputs.shape).astype(output_dtype(self.dtype))


def _moments(inputs, valid):
  """Mean and variance per channel, over the images that are valid."""
  x = inputs.astype(jnp.float32)
  if valid is None:
    valid = jnp.ones(x.shape[:1], bool)
  weights = valid.astype(jnp.float32)[:, None]
  cells = x.shape[1] * x.shape[2]
  count = jnp.maximum(jnp.sum(weights) * cells, 1.0)
  mean = jnp.sum(jnp.sum(x, axis=(1, 2)) * weights, axis=0) / count
  centered = jnp.square(x - mean)
  variance = jnp.sum(jnp.sum(centered, axis=(1, 2)) * weights, axis=0) / count
  return mean, variance
