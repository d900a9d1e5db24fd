"""Heads for region proposals, for classes and boxes, and for masks.

The outputs are float32 at every precision, as losses and box arithmetic
require.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models import layers, norms
from maskrcnn_jax.ops import convolution, cpu_convolution, valid_groups

# He et al.'s initialisation (MSRAFill), fan out: that of the mask head in both
# published systems.
_he = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# RoIs that `skip_padding` computes or skips together: on a CPU a group of
# `cpu_convolution`.
_GROUP = 16


@flax.struct.dataclass
class RPNOutputs:
  """Outputs of the region proposal network for every anchor, by level.

  Attributes:
    objectness_logits: `[batch, num_anchors]` per level.
    box_deltas: `[batch, num_anchors, 4]` per level, `(dy, dx, dh, dw)`.
  """

  objectness_logits: dict[int, jax.Array]
  box_deltas: dict[int, jax.Array]


@flax.struct.dataclass
class BoxOutputs:
  """Outputs of the box head for every RoI.

  Attributes:
    class_logits: `[batch, num_rois, num_classes]`.
    box_deltas: `[batch, num_rois, num_classes, 4]`.
  """

  class_logits: jax.Array
  box_deltas: jax.Array


class RPNHead(nn.Module):
  """Region proposal head, shared by all levels (Faster R-CNN, Sec. 3.1).

  Attributes:
    anchors_per_cell: number of anchors at every position.
    channels: number of channels of the hidden convolutions.
    num_convs: number of hidden 3x3 convolutions, each followed by a ReLU.
    dtype: precision, see `layers.PRECISIONS`.
  """

  anchors_per_cell: int = 3
  channels: int = 256
  num_convs: int = 1
  dtype: str = 'float32'

  def setup(self):
    normal = nn.initializers.normal(0.01)
    # The first is named `conv` in checkpoints, whatever their number.
    self.convs = [
      layers.Conv(
        self.channels,
        size=3,
        kernel_init=normal,
        dtype=self.dtype,
        name=f'conv{index}' if index > 1 else 'conv',
      )
      for index in range(1, self.num_convs + 1)
    ]
    self.objectness = layers.ConvParameters(self.anchors_per_cell, normal)
    self.box_deltas = layers.ConvParameters(4 * self.anchors_per_cell, normal)

  def __call__(self, pyramid: dict[int, jax.Array]) -> RPNOutputs:
    """Objectness logits and box deltas of every anchor of a pyramid.

    Levels are `[batch, height, width, channels]`; the anchors of a level are
    ordered by row, column, then anchor of the cell.
    """
    # Both outputs are one product, which reads the hidden maps once, and whose
    # gradient adds up no two maps.
    outputs = self.objectness, self.box_deltas
    kernel, bias = (
      jnp.concatenate(x, axis=-1)
      for x in zip(*(output(self.channels) for output in outputs))
    )
    logits, deltas = {}, {}
    for level, features in pyramid.items():
      x = features
      for conv in self.convs:
        x = nn.relu(conv(x))
      x = layers.add_product(convolution.convolve, x, kernel, bias, self.dtype)
      x = _float32(x)
      first, rest = jnp.split(x, [self.anchors_per_cell], axis=-1)
      logits[level] = first.reshape(x.shape[0], -1)
      deltas[level] = rest.reshape(x.shape[0], -1, 4)
    return RPNOutputs(logits, deltas)


class BoxHead(nn.Module):
  """Box head: convolutions, dense layers, class logits and box deltas.

  Attributes:
    num_classes: number of classes with background.
    channels: width of the dense layers.
    num_convs: number of 3x3 convolutions, with the channels of the features.
    num_dense: number of dense layers, `fc6` onwards.
    norm: normalisation after every convolution.
    dtype: precision, see `layers.PRECISIONS`.
  """

  num_classes: int = 91
  channels: int = 1024
  num_convs: int = 0
  num_dense: int = 2
  norm: norms.NormOptions = norms.NormOptions()
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    features: jax.Array,
    valid: jax.Array | None = None,
    train: bool = False,
  ) -> BoxOutputs:
    """Class logits and box deltas of every RoI.

    Args:
      features: `[batch, num_rois, size, size, channels]`.
      valid: `[batch, num_rois]` bool, for the statistics of trainable batch
        norm.
      train: whether trainable batch norm uses the statistics of this batch.
    """
    batch, num_rois = features.shape[:2]
    x = features.reshape(batch * num_rois, *features.shape[2:])
    for index in range(1, self.num_convs + 1):
      x = _hidden_conv(self, x, x.shape[-1], index, valid, train)
    x = x.reshape(batch, num_rois, -1)
    glorot = nn.initializers.xavier_uniform()
    for index in range(self.num_dense):
      x = nn.relu(self._dense(self.channels, glorot, f'fc{6 + index}')(x))
    logits = self._dense(
      self.num_classes, nn.initializers.normal(0.01), 'class_logits'
    )(x)
    deltas = self._dense(
      4 * self.num_classes, nn.initializers.normal(0.001), 'box_deltas'
    )(x)
    deltas = deltas.reshape(batch, num_rois, self.num_classes, 4)
    return BoxOutputs(_float32(logits), _float32(deltas))

  def _dense(self, features, kernel_init, name):
    return layers.Dense(
      features, kernel_init=kernel_init, dtype=self.dtype, name=name
    )


class MaskHead(nn.Module):
  """Mask head: convolutions and upsampling (Mask R-CNN, Fig. 4).

  Attributes:
    num_classes: number of classes with background.
    channels: number of channels of every hidden layer.
    num_convs: number of 3x3 convolutions before the upsampling.
    norm: normalisation after each of these.
    upsample: side of a mask relative to that of the features: 2, as published,
      or 4, by a second transposed convolution.
    dtype: precision, see `layers.PRECISIONS`.
  """

  num_classes: int = 91
  channels: int = 256
  num_convs: int = 4
  norm: norms.NormOptions = norms.NormOptions()
  upsample: int = 2
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    features: jax.Array,
    classes: jax.Array,
    valid: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Mask logits of one class per RoI.

    The last layer computes the channel of that class only: with 91 classes that
    is 1/91 of its work and memory, and the same numbers.

    Args:
      features: `[batch, num_rois, size, size, channels]`.
      classes: `[batch, num_rois]` int32, class of each mask.
      valid: `[batch, num_rois]` bool, for the statistics of trainable batch
        norm.
      train: whether trainable batch norm uses the statistics of this batch.

    Returns:
      `[batch, num_rois, upsample * size, upsample * size]`.
    """
    if self.upsample not in (2, 4):
      raise invalid('model.mask_upsample', self.upsample, '2 or 4')
    batch, num_rois, size = features.shape[:3]
    x = features.reshape((batch * num_rois, *features.shape[2:]))
    for index in range(1, self.num_convs + 1):
      x = _hidden_conv(self, x, self.channels, index, valid, train)
    for number, name in enumerate(('deconv', 'deconv2')[: self.upsample // 2]):
      # Every cell becomes a block of its own: blocks stay in one axis.
      x = layers.UpsampleConv(
        self.channels, kernel_init=_he, dtype=self.dtype, name=name
      )(x.reshape(x.shape[0], size, size * 4**number, x.shape[-1]))
      x = nn.relu(x)
    logits = ClassMask(self.num_classes, dtype=self.dtype, name='mask_logits')(
      x.reshape(x.shape[0], size, size, self.upsample**2, x.shape[-1]),
      classes.reshape(-1),
    )
    if self.upsample == 4:
      logits = convolution.join_blocks(logits)
    logits = convolution.interleave(logits, self.upsample)
    side = self.upsample * size
    return logits.reshape(batch, num_rois, side, side)


class ClassMask(nn.Module):
  """1x1 convolution to one channel per class, for one class per RoI."""

  num_classes: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, classes):
    shape = (1, 1, x.shape[-1], self.num_classes)
    kernel = self.param('kernel', _he, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.num_classes,))
    products = layers.product_dtype(self.dtype)
    weights = jnp.take(kernel[0, 0].T, classes, axis=0).astype(products)
    logits = jnp.einsum('nhwpc,nc->nhwp', x.astype(products), weights)
    return _float32(logits) + jnp.take(bias, classes)[:, None, None, None]


def is_skipping_faster(
  size: int, channels: int, mask_channels: int, dtype: str
) -> bool:
  """Whether `skip_padding` is faster on a CPU than all RoIs at once.

  XLA computes convolutions in a loop without threads; those of
  `cpu_convolution` need a group of enough and wide enough maps. With 10x10
  cells of 64 channels a training step took three times as long.

  Args:
    size: side of the features.
    channels: of the features.
    mask_channels: of the mask head.
    dtype: precision of the mask head.
  """
  dtype = layers.product_dtype(dtype)
  group = jax.ShapeDtypeStruct((_GROUP, size, size, channels), dtype)
  kernel = jax.ShapeDtypeStruct((3, 3, channels, mask_channels), dtype)
  return cpu_convolution.group_size(group, kernel) is not None


def skip_padding(
  head: MaskHead,
  features: jax.Array,
  classes: jax.Array,
  valid: jax.Array,
  train: bool,
) -> jax.Array:
  """Mask logits of the groups of 16 RoIs that have a valid one, of others 0.

  On a CPU: accelerators prefer one large product to a few small ones, and
  compute all RoIs. So does a CPU where batch norm needs all at once, and where
  16 does not divide their number.

  Args:
    head: a submodule of a model that is being applied.
    features: see `MaskHead`, as the following.
    classes: `[batch, num_rois]`.
    valid: `[batch, num_rois]`.
    train: whether the model is trained.
  """
  is_whole = head.is_initializing() or head.norm.kind == 'batch'
  if is_whole or valid.shape[1] % _GROUP:
    return head(features, classes, valid, train)
  alone, variables = head.unbind()

  @jax.named_scope(head.name)
  def of_rois(features, classes):
    return alone.apply(variables, features, classes, train=train)

  def by_groups(features, classes, valid):
    rows = [x.reshape(-1, *x.shape[2:]) for x in (features, classes)]
    logits = valid_groups.map_groups(
      lambda *group: of_rois(*(x[None] for x in group))[0],
      *(rows, valid.reshape(-1), _GROUP),
    )
    return logits.reshape(*valid.shape, *logits.shape[1:])

  # Operations are counted in the form of other platforms, which computes all.
  return jax.lax.platform_dependent(
    *(features, classes, valid),
    cpu=by_groups,
    default=lambda features, classes, _: of_rois(features, classes),
  )


def _hidden_conv(head, x, features, index, valid, train):
  """3x3 convolution `conv{index}` of RoI features, its norm, ReLU."""
  return norms.conv_norm_relu(
    x,
    features,
    head.norm,
    (f'conv{index}', f'norm{index}'),
    None if valid is None else valid.reshape(-1),
    train,
    size=3,
    kernel_init=_he,
    dtype=head.dtype,
  )


def _float32(x):
  return x.astype(jnp.float32)
