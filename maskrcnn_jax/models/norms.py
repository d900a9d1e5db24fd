"""Normalisation of activations, and convolutions followed by one."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.models.layers import Conv, output_dtype

NORMS = ('frozen', 'batch', 'group', 'layer')


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
      known = ', '.join(('none', *NORMS))
      raise invalid('model.head_norm.kind', self.kind, f'one of {known}')


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


class Norm(nn.Module):
  """Batch norm, frozen or trainable, group norm, or layer norm of activations.

  Attributes:
    kind: `frozen`, batch norm with stored statistics, whose four arrays live in
      `batch_stats`; `batch`, statistics of the valid images of the global batch
      in training, stored ones otherwise; `group`, of 32 groups (fewer where a
      group would have less than `group_channels`); `layer`, over the channels
      of every cell.
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
      inputs: `[batch, height, width, channels]`; for `layer` `[..., channels]`.
      valid: `[batch]` bool, the images in the statistics; None: all.
      train: whether `batch` uses and stores the statistics of this batch.
    """
    if self.kind not in NORMS:
      known = ', '.join(NORMS)
      raise invalid('model.backbone.norm', self.kind, f'one of {known}')
    channels = inputs.shape[-1]
    if self.kind == 'frozen':
      arrays = [
        self._statistic(name, init, channels).value
        for name, init in (
          ('scale', jnp.ones),
          ('bias', jnp.zeros),
          ('mean', jnp.zeros),
          ('variance', jnp.ones),
        )
      ]
      return self._affine(inputs, *map(jax.lax.stop_gradient, arrays))
    scale = self.param('scale', self.scale_init, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    if self.kind == 'group':
      return self._group(inputs, scale, bias)
    if self.kind == 'layer':
      return self._layer(inputs, scale, bias)
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

  def _affine(self, inputs, scale, bias, mean, variance):
    # One multiplication and one addition, which XLA fuses into the convolution.
    factor = scale * jax.lax.rsqrt(variance + self.epsilon)
    offset = bias - mean * factor
    # In float32, as in `_product`.
    return (inputs * factor + offset).astype(output_dtype(self.dtype))

  def _layer(self, inputs, scale, bias):
    x = inputs.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
    return x.astype(output_dtype(self.dtype))

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
