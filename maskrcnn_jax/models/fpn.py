"""Feature pyramid network (Lin et al. 2017)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskrcnn_jax.models import norms
from maskrcnn_jax.models.layout import Layout


class FPN(nn.Module):
  """Feature pyramid: lateral connections and a top-down pathway.

  Attributes:
    channels: number of channels of every level.
    max_level: coarsest level. Levels beyond the last of the backbone are made
      by subsampling the one before by 2 (FPN, Sec. 4.1: P6).
    dtype: precision, see `layers.PRECISIONS`.
    layout: sharding of the maps, see `layout.Layout`.
    norm: normalisation after every convolution.
  """

  channels: int = 256
  max_level: int = 6
  dtype: str = 'float32'
  layout: Layout = Layout()
  norm: norms.NormOptions = norms.NormOptions()

  @nn.compact
  def __call__(
    self,
    features: dict[int, jax.Array],
    valid: jax.Array | None = None,
    train: bool = False,
  ) -> dict[int, jax.Array]:
    """Pyramid levels from backbone features.

    Args:
      features: backbone maps by level, `[batch, height, width, any]`.
      valid: `[batch]` bool, for the statistics of trainable batch norm.
      train: whether trainable batch norm uses the statistics of this batch.

    Returns:
      Levels from the first of the backbone to `max_level`, each
      `[batch, height, width, channels]`.
    """
    conv = functools.partial(pyramid_conv, self, valid=valid, train=train)
    levels = sorted(features)
    top_down = {}
    for level in reversed(levels):
      lateral = conv(features[level], 1, f'lateral{level}')
      if level + 1 in top_down:
        lateral = lateral + upsample(top_down[level + 1], lateral.shape)
      top_down[level] = lateral
    pyramid = {
      level: conv(top_down[level], 3, f'output{level}')
      for level in levels
      if level <= self.max_level
    }
    return with_coarse_levels(pyramid, self.max_level, self.layout)


def with_coarse_levels(
  pyramid: dict[int, jax.Array], max_level: int, layout: Layout
) -> dict[int, jax.Array]:
  """A pyramid with the levels above its last one, every second cell of it."""
  pyramid = dict(pyramid)
  for level in range(max(pyramid) + 1, max_level + 1):
    # Coarse levels have too few rows to be split over devices.
    below = layout.whole(layout.split(pyramid[level - 1]))
    pyramid[level] = below[:, ::2, ::2]
  return pyramid


def pyramid_conv(pyramid, x, size, name, valid, train):
  """Convolution of a pyramid with its norm, without ReLU.

  Args:
    pyramid: module with `channels`, `norm` and `dtype`; called inside it.
    x: `[batch, height, width, channels]`.
    size: side of the kernel.
    name: of the convolution; its norm is `{name}_norm`.
    valid: see `FPN`.
    train: see `FPN`.
  """
  return norms.conv_norm_relu(
    x,
    pyramid.channels,
    pyramid.norm,
    (name, f'{name}_norm'),
    valid,
    train,
    relu=False,
    size=size,
    kernel_init=nn.initializers.xavier_uniform(),
    dtype=pyramid.dtype,
  )


def upsample(inputs: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Nearest-neighbour upsampling to the height and width of `shape`.

  A level is half the size of the one below, rounded up, so row i comes from row
  i // 2; the last row of a doubled map is cut where the size is odd.
  """
  double = _repeat
  # Products of bfloat16 are exact there; those of float32 would be rounded.
  if inputs.dtype == jnp.bfloat16:
    double = functools.partial(
      jax.lax.platform_dependent, tpu=_double_by_products, default=_repeat
    )
  return double(inputs)[:, : shape[1], : shape[2]]


def _repeat(inputs):
  return jnp.repeat(jnp.repeat(inputs, 2, axis=1), 2, axis=2)


def _double_by_products(inputs):
  """`_repeat` as a transposed convolution with a kernel of identities.

  TPUs keep the two innermost axes in tiles. The axis of two equal cells that a
  repetition makes, and its gradient sums over, fills a tile of its own, which
  costs more than the products. Finite values stay as they are.
  """
  channels = inputs.shape[-1]
  identity = jnp.eye(channels, dtype=inputs.dtype)
  return jax.lax.conv_general_dilated(
    inputs,
    jnp.broadcast_to(identity, (2, 2, channels, channels)),
    window_strides=(1, 1),
    padding=((1, 1), (1, 1)),
    lhs_dilation=(2, 2),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
