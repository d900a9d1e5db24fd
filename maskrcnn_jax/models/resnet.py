"""ResNet backbone (He et al. 2015)."""

import dataclasses
import functools

import flax.linen as nn
import jax

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models import layers, norms
from maskrcnn_jax.ops import convolution

STAGE_SIZES = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}
# Depths whose blocks are two 3x3 convolutions instead of a bottleneck.
BASIC_DEPTHS = (18, 34)


@dataclasses.dataclass(frozen=True)
class ResNetOptions:
  """Depth, norm and padding of a ResNet; the defaults are Habana's.

  Attributes:
    depth: 18, 34, 50, 101 or 152.
    width: number of channels of the stem; stage l has `width * 2**(l - 2)`,
      times 4 after a bottleneck.
    groups: number of groups of the 3x3 convolutions of bottlenecks, 32 in
      ResNeXt-101-32x8d (Xie et al. 2017).
    group_width: number of channels of such a group in stage 2 if `width` is 64,
      8 there.
    norm: `frozen`, `batch` or `group`, see `norms.Norm`.
    norm_epsilon: number added to the variance; Habana's 1e-4, elsewhere 1e-5.
    norm_momentum: share of the stored statistics of batch norm that stays.
    group_channels: smallest number of channels of a group of group norm.
    stride_in_1x1: bottlenecks have their stride in the first 1x1 (the paper,
      Caffe2), not in the 3x3 (v1.5).
    padding: padding of strided convolutions, `symmetric` or `same`.
    pool_padding: padding of the max-pooling after the stem.
    frozen_stages: number of frozen parts among (stem, stage 2, stage 3, ...);
      their norm is frozen batch norm.
  """

  depth: int = 50
  width: int = 64
  groups: int = 1
  group_width: int = 64
  norm: str = 'frozen'
  norm_epsilon: float = 1e-4
  norm_momentum: float = 0.997
  group_channels: int = 4
  stride_in_1x1: bool = False
  padding: str = 'symmetric'
  pool_padding: str = 'same'
  frozen_stages: int = 2

  def __post_init__(self):
    if self.depth not in STAGE_SIZES:
      known = ', '.join(map(str, STAGE_SIZES))
      raise invalid('model.backbone.depth', self.depth, f'one of {known}')


class ResNet(nn.Module):
  """ResNet that returns feature maps of strides 4, 8, 16 and 32.

  Attributes:
    options: see `ResNetOptions`.
    dtype: precision, see `layers.PRECISIONS`.
  """

  options: ResNetOptions = ResNetOptions()
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, images: jax.Array, valid: jax.Array | None = None, train: bool = False
  ) -> dict[int, jax.Array]:
    """Feature maps by level.

    Args:
      images: `[batch, height, width, 3]`, normalised.
      valid: `[batch]` bool, for the statistics of trainable batch norm.
      train: whether trainable batch norm uses the statistics of this batch.

    Returns:
      Levels 2 to 5, each `[batch, height / 2**l, width / 2**l, channels]`.
    """
    options = self.options
    block = functools.partial(
      Bottleneck,
      stride_in_1x1=options.stride_in_1x1,
      groups=options.groups,
      group_width=options.group_width,
    )
    if options.depth in BASIC_DEPTHS:
      block = BasicBlock
    x = Stem(**self._layers(0), features=options.width, name='stem')(
      images, valid, train
    )
    x = convolution.max_pool(x, options.pool_padding)
    features = {}
    for level, num_blocks in enumerate(STAGE_SIZES[options.depth], start=2):
      x = Stage(
        block=functools.partial(block, **self._layers(level - 1)),
        num_blocks=num_blocks,
        features=options.width * 2 ** (level - 2),
        stride=1 if level == 2 else 2,
        name=f'stage{level}',
      )(x, valid, train)
      if level - 1 < options.frozen_stages:
        x = jax.lax.stop_gradient(x)
      features[level] = x
    return features

  def _layers(self, stage):
    """Convolution and norm of a stage; the stem is stage 0."""
    options = self.options
    frozen = stage < options.frozen_stages
    return {
      'norm': functools.partial(
        norms.Norm,
        kind='frozen' if frozen else options.norm,
        epsilon=options.norm_epsilon,
        momentum=options.norm_momentum,
        group_channels=options.group_channels,
        dtype=self.dtype,
      ),
      'conv': functools.partial(
        layers.Conv,
        padding=options.padding,
        use_bias=False,
        frozen=frozen,
        dtype=self.dtype,
      ),
    }


class Stem(nn.Module):
  """7x7 convolution with stride 2, norm, ReLU."""

  conv: functools.partial
  norm: functools.partial
  features: int

  @nn.compact
  def __call__(self, x, valid, train):
    x = self.conv(self.features, size=7, stride=2, name='conv')(x)
    return nn.relu(self.norm(name='norm')(x, valid, train))


class Stage(nn.Module):
  """Blocks of one resolution; the first one carries the stride."""

  block: functools.partial
  num_blocks: int
  features: int
  stride: int

  @nn.compact
  def __call__(self, x, valid, train):
    for index in range(self.num_blocks):
      x = self.block(
        features=self.features,
        stride=self.stride if index == 0 else 1,
        has_projection=index == 0,
        name=f'block{index + 1}',
      )(x, valid, train)
    return x


class Bottleneck(nn.Module):
  """1x1, 3x3 in groups, 1x1 to four times the channels; shortcut."""

  conv: functools.partial
  norm: functools.partial
  features: int
  stride: int
  has_projection: bool
  stride_in_1x1: bool = False
  groups: int = 1
  group_width: int = 64

  @nn.compact
  def __call__(self, x, valid, train):
    shortcut = x
    inner = self.features * self.groups * self.group_width // 64
    if self.has_projection:
      shortcut = self.conv(
        4 * self.features, stride=self.stride, name='shortcut_conv'
      )(x)
      shortcut = self.norm(name='shortcut_norm')(shortcut, valid, train)
    first, second = self.stride, 1
    if not self.stride_in_1x1:
      first, second = second, first
    x = self.conv(inner, stride=first, name='conv1')(x)
    x = nn.relu(self.norm(name='norm1')(x, valid, train))
    x = self.conv(
      inner, size=3, stride=second, groups=self.groups, name='conv2'
    )(x)
    x = nn.relu(self.norm(name='norm2')(x, valid, train))
    x = self.conv(4 * self.features, name='conv3')(x)
    # A block that starts as the identity helps training from scratch.
    x = self.norm(name='norm3', scale_init=nn.initializers.zeros)(
      x, valid, train
    )
    return nn.relu(x + shortcut)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions, the first with the stride; shortcut."""

  conv: functools.partial
  norm: functools.partial
  features: int
  stride: int
  has_projection: bool

  @nn.compact
  def __call__(self, x, valid, train):
    shortcut = x
    if self.has_projection and (
      self.stride > 1 or x.shape[-1] != self.features
    ):
      shortcut = self.conv(
        self.features, stride=self.stride, name='shortcut_conv'
      )(x)
      shortcut = self.norm(name='shortcut_norm')(shortcut, valid, train)
    x = self.conv(self.features, size=3, stride=self.stride, name='conv1')(x)
    x = nn.relu(self.norm(name='norm1')(x, valid, train))
    x = self.conv(self.features, size=3, name='conv2')(x)
    x = self.norm(name='norm2', scale_init=nn.initializers.zeros)(
      x, valid, train
    )
    return nn.relu(x + shortcut)
